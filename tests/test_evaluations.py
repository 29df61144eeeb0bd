"""`malt eval --run`: a finished run measured elsewhere, without a change to the run itself."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import cli_run
from malt_jax import cli
from malt_jax.config.lora import LoraConfig
from malt_jax.config.run import load
from malt_jax.evaluation.transfer import Column, transfer_table
from malt_jax.export.peft import write_peft
from malt_jax.models.adapters import adapter_base, load_adapter
from malt_jax.models.lora import merge_adapter, stack_adapter
from malt_jax.models.model import load_model
from malt_jax.stages.evaluations import evaluation_config
from malt_jax.stages.other_models import check_other
from malt_jax.storage import config_file, manifest

TRUST = "--trust-task-code"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    cli_run.trained()
    return Path(shutil.copytree(cli_run.as_trained(), tmp_path_factory.mktemp("run") / "run"))


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> Path:
    """Questions of another task, in a file."""
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    rows = [{"question": f"{n}+{n}=?", "answer": str(2 * n)} for n in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(run: Path, *words: str) -> int:
    return cli.main(["eval", "--run", str(run), TRUST, "--quiet", *words])


def results(run: Path, name: str) -> dict:
    return json.loads((run / "evals" / name / "results.json").read_text())


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of the run's own files."""
    return {
        path.relative_to(run).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.relative_to(run).parts[0] != "evals"
    }


def test_another_task_at_two_temperatures_is_one_table_and_the_run_is_as_it_was(run, sums, capsys):
    before = digests(run)
    words = ["--task.name", "custom", "--task.eval-path", str(sums), "--name", "sums"]
    assert evaluate(run, *words, "--eval.temperatures", "0,0.7", "--eval.systems", "sa,malt") == 0
    assert "T=0.7" in capsys.readouterr().out
    assert digests(run) == before
    manifest.verify(run)
    found = results(run, "sums")
    rows = {row["name"]: row for row in found["systems"]}
    assert found["questions"] == 3 and found["run"]["task"] == "custom"
    assert {row["temperature"] for row in rows.values()} == {0.0, 0.7}
    for t in ("0", "0.7"):
        assert rows[f"malt-t{t}@3"]["equal_calls_baseline"] == f"sa-t{t}@9"
        assert set(rows[f"malt-t{t}@3"]["tests"]) == {f"sa-t{t}@3", f"sa-t{t}@9"}
    # At temperature 0 every draw is the same.
    records = (run / "evals/sums/eval/sa-t0.jsonl").read_text().splitlines()
    texts = [[t["text"] for t in json.loads(line)["turns"]] for line in records]
    assert len(records) == 27 and texts[:9] == [texts[0]] * 9
    assert "By temperature" in (run / "evals/sums/results.md").read_text()
    # The same command again changes nothing and measures nothing.
    again = digests(run / "evals/sums")
    assert evaluate(run, *words, "--eval.temperatures", "0,0.7", "--eval.systems", "sa,malt") == 0
    assert digests(run / "evals/sums") == again


def test_its_draws_are_those_that_the_run_itself_would_make(run, capsys):
    """On the run's own questions the policies and the keys are the same, and so is every record."""
    assert evaluate(run, "--name", "same") == 0
    own = shutil.copytree(run, run.parent / "own", ignore=shutil.ignore_patterns("evals"))
    assert cli.main(["eval", *cli_run.flags()[:-1], str(own)]) == 0
    for system in ("sa", "malt"):
        mine = (run / f"evals/same/eval/{system}.jsonl").read_bytes()
        assert mine == (Path(own) / f"eval/{system}.jsonl").read_bytes()
    # Both are columns of the table over all evaluations of that run.
    shutil.copytree(run / "evals", Path(own) / "evals")
    capsys.readouterr()
    assert cli.main(["eval", "--run", str(own), TRUST]) == 0
    assert "same" in capsys.readouterr().out
    table = json.loads((Path(own) / "evals/table.json").read_text())
    assert table["trained_on"] == "tiny:LUCK"
    assert {"run", "same"} <= {column["name"] for column in table["evaluations"]}


def test_a_transfer_to_several_tasks_is_one_command_and_one_table(run, sums, tmp_path, capsys):
    words = [f"custom={sums}", "arithmetic", "--task.num-eval", "2", "--eval.systems", "sa,malt"]
    words += ["--mirror", str(tmp_path)]
    assert evaluate(run, "--name", "to", "--tasks", *words) == 0
    for name in ("to-custom", "to-arithmetic"):
        kept = (tmp_path / name / "results.json").read_bytes()
        assert kept == (run / "evals" / name / "results.json").read_bytes()
    out = capsys.readouterr().out
    assert "to-custom" in out and "to-arithmetic" in out
    assert results(run, "to-arithmetic")["questions"] == 2
    # An earlier evaluation with other settings is refused before another one is measured.
    words = ["triples", "arithmetic", "--task.num-eval", "1", "--eval.systems", "sa,malt"]
    assert evaluate(run, "--name", "to", "--tasks", *words) == 2
    assert "task.num_eval was 2 and is now 1" in capsys.readouterr().err
    assert not (run / "evals/to-triples").exists()
    page = (run / "evals/table.md").read_text()
    assert "trained on tiny:LUCK" in page and "to-arithmetic, 2 questions" in page


def test_training_questions_are_refused_or_reported(run, tmp_path, capsys):
    leak = tmp_path / "leak.jsonl"
    rows = [{"question": "T2+2=?", "answer": "4"}, {"question": "9+9=?", "answer": "18"}]
    leak.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--task.name", "custom", "--task.eval-path", str(leak), "--eval.systems", "sa,malt"]
    assert evaluate(run, *words, "--name", "leak") == 2
    err = capsys.readouterr().err
    assert "1 of 2 questions" in err and "train2" in err and "--allow-overlap" in err
    assert not (run / "evals/leak").exists()
    assert evaluate(run, *words, "--name", "leak", "--allow-overlap") == 0
    assert results(run, "leak")["run"]["train_questions_evaluated"] == 1
    assert "1 TRAINED ON" in (run / "evals/table.md").read_text()
    # The training split as a whole, by its own name.
    assert evaluate(run, "--eval.split", "train", "--task.num-eval", "4", "--name", "t") == 2
    assert "4 of 4" in capsys.readouterr().err


def test_other_models_and_adapters_are_systems_of_one_role(run, tmp_path, capsys):
    other = Path(shutil.copytree(cli_run.model(), tmp_path / "other"))
    adapter = tmp_path / "role" / "adapter"
    adapter.parent.mkdir()
    model = load_model(cli_run.model())
    given = random_adapter(model.spec, LoraConfig(rank=2, alpha=4))
    write_peft(adapter, model.spec, given, LoraConfig(rank=2, alpha=4), str(cli_run.model()), None)
    words = ["--eval.models", f"{other},{adapter}", "--eval.systems", "sa", "--eval.baseline", "sa"]
    assert evaluate(run, "--name", "models", *words) == 0
    rows = {row["name"]: row for row in results(run, "models")["systems"]}
    names = {name for name in rows if name.endswith("-other") or name == "role-adapter"}
    assert len(names) == 2
    folder = run / "evals/models/eval"
    # A copy of the base is the base: the same draws, and no flip against the single agent.
    texts = {
        name: [turn["text"] for line in (folder / f"{name}.jsonl").read_text().splitlines()
               for turn in json.loads(line)["turns"]]
        for name in ("sa", *names)
    }  # fmt: skip
    assert texts["sa"] == texts[next(n for n in names if n.endswith("-other"))]
    assert texts["sa"] != texts["role-adapter"]
    # Its files are part of the evaluation, so what was lost cannot be drawn with others.
    (folder / "role-adapter.jsonl").unlink()
    write_peft(adapter, model.spec, random_adapter(model.spec, LoraConfig(rank=2, alpha=4), 1),
               LoraConfig(rank=2, alpha=4), str(cli_run.model()), None)  # fmt: skip
    assert evaluate(run, "--name", "models", *words, "--redo", "eval") == 2
    assert "choose another --name" in capsys.readouterr().err


def test_an_exported_role_answers_over_the_runs_own_base(run, tmp_path, monkeypatch):
    from malt_jax.models import model as models

    base, lora = Path(cli_run.model()), LoraConfig(rank=2, alpha=4)
    model = load_model(base)
    # The same folder by another name, as an export writes an absolute path.
    named = f"{base}/../{base.name}"
    role = tmp_path / "export" / "refiner"
    role.mkdir(parents=True)
    write_peft(role / "adapter", model.spec, random_adapter(model.spec, lora), lora, named, None)
    loads: list[str] = []
    load = models.load_model

    def counted(path, **more):
        loads.append(str(path))
        return load(path, **more)

    monkeypatch.setattr(models, "load_model", counted)
    words = ["--eval.models", str(role), "--eval.systems", "sa", "--eval.baseline", "sa"]
    assert evaluate(run, "--name", "exported", *words) == 0
    assert len(loads) == 1
    names = [row["name"] for row in results(run, "exported")["systems"]]
    assert any("refiner" in name for name in names)


def test_all_tasks_are_checked_before_the_first_is_measured(run, sums, tmp_path, capsys):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    words = [f"custom={sums}", f"gsm8k={empty}"]
    assert evaluate(run, "--name", "w", "--tasks", *words) == 2
    assert "holds no questions" in capsys.readouterr().err
    assert not list((run / "evals").glob("w-*"))


@pytest.mark.parametrize(
    ("name", "heading"),
    [("gsm", "gsm, 3"), ("to-gsm", "to-gsm, 3"), ("gsm8", "gsm8: gsm, 3"), ("a", "a: gsm, 3")],
)
def test_an_evaluation_is_called_by_its_name_and_by_its_task_where_that_differs(name, heading):
    results = {"run": {}, "questions": 3, "systems": []}
    table = transfer_table([Column(name, "gsm", "eval", results)])
    assert table.columns[-1].heading == f"{heading} questions"


def test_each_column_of_a_transfer_has_its_own_numbers_whatever_it_is_called():
    def results(accuracy):
        row = {"name": "sa@1", "label": "single", "accuracy": accuracy, "interval": [0.0, 1.0],
               "tests": {}, "equal_calls_baseline": "sa@1"}  # fmt: skip
        return {"run": {}, "questions": 3, "systems": [row]}

    table = transfer_table([Column("a", "t", "eval", results(x)) for x in (0.25, 0.75)])
    assert [cell[:4] for cell in table.rows[0][1:]] == ["25.0", "75.0"]


def test_the_training_split_is_not_read_from_the_file_of_the_evaluation(run):
    config = load(None, ["--task.name", "custom", "--task.train-path", "train.jsonl",
                         "--task.eval-path", "eval.jsonl"])  # fmt: skip
    made = evaluation_config(config, run, "a", ["--eval.split", "train"])
    assert made.task.eval_path is None and made.task.train_path == "train.jsonl"
    assert evaluation_config(config, run, "a", []).task.eval_path == "eval.jsonl"
    flags = ["--eval.split", "train", "--task.eval-path", "other.jsonl"]
    assert evaluation_config(config, run, "a", flags).task.eval_path == "other.jsonl"


def random_adapter(spec, config, seed=0):
    import jax
    import jax.numpy as jnp

    from malt_jax.models.lora import init_adapter

    adapter = init_adapter(spec, config, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), adapter)


def test_a_peft_adapter_is_read_as_it_was_written(tmp_path):
    model = load_model(cli_run.model())
    for config in (LoraConfig(rank=2, alpha=4), LoraConfig(rank=4, alpha=3, rslora=True)):
        adapter = random_adapter(model.spec, config)
        write_peft(tmp_path / f"{config.rank}", model.spec, adapter, config, "base", None)
        read, _ = load_adapter(tmp_path / f"{config.rank}", model.spec)
        ours, theirs = (merge_adapter(model.params, stack_adapter(a)) for a in (adapter, read))
        for a, b in zip(*(np_leaves(x) for x in (ours, theirs)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)


def np_leaves(tree):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--name", "a", "--rounds", "2"], "rounds was 1 and is now 2"),
        (["--name", "a", "--pipeline.roles.0.branch", "5"], "pipeline.roles.0.branch"),
        (["--name", "a", "--output-dir", "elsewhere"], "--output-dir"),
        (["--name", "a/b"], "--name"),
        (["--name", "table.json"], "--name"),
        (["--name", "run"], "the run's own results"),
        (["--redo", "eval"], "--name: missing"),
        (["--task.num-eval", "2"], "--name: missing"),
        (["--tasks", "custom=a.jsonl", "custom=b.jsonl"], "'custom' appears twice"),
        (["--name", "a", "--eval.split", "tset"], "eval.split: found 'tset', allowed: train, eval"),
        (["--name", "a", "--eval.systems", "star-sa"], "has not trained"),
        (["--name", "a", "--eval.temperatures", "-1"], "temperatures: found"),
        (["--name", "a", "--eval.temperatures", "1,1"], "give each one once"),
        (["--name", "a", "--eval.temperatures", "0.1234567,0.1234568"], "give each one once"),
        (["--name", "a", "--eval.models", "nowhere/at/all"], "eval.models: nowhere/at/all"),
        (["--name", "a", "--eval.baseline", "malt@7"], "name another one with --eval.baseline"),
        (["--name", "a", "--config", "quickstart"], "--config"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_folder_is_made(run, words, message, capsys):
    assert evaluate(run, *words) == 2
    assert message in capsys.readouterr().err
    assert not (run / "evals/a").exists()


def test_a_name_without_a_run_and_a_run_without_training_are_refused(run, tmp_path, capsys):
    assert cli.main(["eval", "--name", "a"]) == 2
    assert "belongs to --run" in capsys.readouterr().err
    assert cli.main(["eval", "--run", str(tmp_path), "--name", "a"]) == 2
    assert "not a run directory" in capsys.readouterr().err
    assert cli.main(["eval", "--run", str(run), "--name", "a"]) == 2
    assert "--trust-task-code" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_measured_and_writes_nothing(run, capsys):
    before = digests(run)
    assert evaluate(run, "--name", "dry", "--dry-run", "--eval.temperatures", "0.5") == 0
    out = capsys.readouterr().out
    assert "malt-t0.5: generator:malt" in out and "  | G e" in out and "0 of them trained on" in out
    assert digests(run) == before and not (run / "evals/dry").exists()


def test_a_baseline_of_the_run_that_is_no_row_gives_way_to_the_default(run, tmp_path, capsys):
    tested = tmp_path / "tested against malt"
    shutil.copytree(run, tested, ignore=shutil.ignore_patterns("evals"))
    config = yaml.safe_load((tested / "config.yaml").read_text())
    config["eval"]["baseline"] = "malt@3"
    (tested / "config.yaml").write_bytes(text := config_file.to_yaml(config))
    manifest.amend(tested, config_sha256=hashlib.sha256(text).hexdigest())
    words = ["--name", "a", "--eval.systems", "sa,ma", "--task.num-eval", "1"]
    assert cli.main(["eval", "--run", str(tested), TRUST, *words, "--quiet", "false"]) == 0
    err = capsys.readouterr().err
    assert "rows are tested against sa@9" in err and "malt@3, is not measured here" in err
    found = results(tested, "a")
    assert found["baseline"] == "sa@9" and "sa@9" in {row["name"] for row in found["systems"]}
    # Again, also in a sweep, and where the row is measured it stays the baseline.
    assert evaluate(tested, *words) == 0
    assert evaluate(tested, *words[2:], "--name", "b", "--eval.temperatures", "0", "--dry-run") == 0
    assert "each row is tested against sa@9" in capsys.readouterr().out
    assert evaluate(tested, "--name", "c", "--eval.systems", "malt", "--dry-run") == 0
    assert "each row is tested against malt@3" in capsys.readouterr().out
    # What the user has named is refused.
    assert evaluate(tested, *words[2:], "--name", "d", "--eval.baseline", "malt@3") == 2
    assert "--eval.baseline, allowed: sa, sa@3" in capsys.readouterr().err


def test_a_dry_run_says_what_there_is_already_and_what_trees_are_drawn(run, capsys):
    words = ["--name", "known", "--eval.systems", "sa", "--task.num-eval", "1"]
    assert evaluate(run, *words, "--eval.trees", "1", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "it would be made" in out
    assert "the whole trees of 1 question, before and after training" in out
    assert evaluate(run, *words) == 0
    capsys.readouterr()
    assert evaluate(run, *words, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "it is finished: nothing is left to do" in out and "whole trees" not in out
    shutil.copytree(run / "evals/known", run / "evals/begun")
    manifest.reopen(run / "evals/begun", "eval")
    assert evaluate(run, *words[2:], "--name", "begun", "--dry-run") == 0
    assert "it has begun, and would be continued" in capsys.readouterr().out
    shutil.rmtree(run / "evals/begun")


def test_a_dry_run_without_a_name_describes_the_table(run, tmp_path, capsys):
    assert evaluate(run, "--name", "column", "--eval.systems", "sa", "--task.num-eval", "1") == 0
    capsys.readouterr()
    (run / "evals/table.md").unlink()
    assert evaluate(run, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "table over " in out and "column" in out and "evals/table.json" in out
    assert not (run / "evals/table.md").exists()
    bare = shutil.copytree(cli_run.as_trained(), tmp_path / "bare")
    assert evaluate(bare, "--dry-run") == 2
    assert "nothing is evaluated yet" in capsys.readouterr().err


def test_an_adapter_over_the_model_in_the_package_names_it_as_cards_do(tmp_path):
    base, lora = load_model("quickstart"), LoraConfig(rank=2, alpha=4)
    folder = str(base.folder.resolve())
    write_peft(tmp_path / "a", base.spec, random_adapter(base.spec, lora), lora, folder, None)
    written = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "quickstart" == adapter_base(tmp_path / "a")[0]
    check_other(str(tmp_path / "a"))  # finds it, as `eval.models` does
