"""The command line: help that fits a screen and is quick, errors that mend, exit statuses."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

import tiny
from malt_jax import cli, config
from malt_jax.commands import completion, init
from malt_jax.commands.command import Command, parse
from malt_jax.config.reading import split_flags
from malt_jax.config.run import all_fields
from malt_jax.errors import HubError, RunStopped, Unavailable, UserError

ROOT = Path(__file__).parents[1]
COMMANDS = [command.name for command in cli.all_commands()]
HEAVY = ("jax", "flax", "transformers", "numpy", "torch", "datasets", "rich", "scipy")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


def malt(*words: str, **more) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "malt_jax.cli", *words], capture_output=True, text=True, **more
    )


def fails(capsys, *words: str) -> str:
    """The one message of a call that the user got wrong."""
    assert cli.main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("malt: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_the_contract_s_commands_exist():
    expected = "run search label train eval export report ask plan bench init tasks models"
    assert set(expected.split()) <= set(COMMANDS)


@pytest.mark.parametrize("words", [[], *([name] for name in COMMANDS)], ids=str)
def test_help_fits_a_screen(words, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*words, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 8 <= len(lines) <= (30 if words == ["plan"] else 42)
    assert all(len(line) <= 90 for line in lines)
    assert any(line.startswith("Example") for line in lines)


def test_help_imports_nothing_heavy_and_is_quick():
    for words in (["--help"], ["run", "--help"], ["fields"]):
        script = (
            "import sys, time; started = time.perf_counter()\n"
            f"from malt_jax.cli import main; status = main({words!r})\n"
            f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
            "print(status, heavy, time.process_time() < 1.0, file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-S", "-c", f"import site; site.main()\n{script}"],
                              capture_output=True, text=True)  # fmt: skip
        assert done.stderr.strip() == "0 [] True"


def test_every_config_an_example_reads_exists_and_its_words_are_known():
    """A config is the package's own, one of the repository's, or the one that `init` writes."""
    (init,) = (command for command in cli.all_commands() if command.name == "init")
    assert "--output mine.yaml" in init.examples[0]
    for command in cli.all_commands():
        for example in command.examples:
            words = shlex.split(example.partition(" >")[0])
            assert words[:2] == ["malt", command.name]
            parse(command, words[2:])
            for flag, value in pairwise(words):
                there = value in ("quickstart", "mine.yaml") or (ROOT / value).is_file()
                assert flag != "--config" or there, example


def test_every_field_has_help_and_every_shown_field_exists():
    fields = {field.path: field for field in all_fields()}
    assert all(field.help for field in fields.values())
    for command in cli.all_commands():
        assert set(command.fields) <= set(fields)


def test_a_misspelt_command_flag_or_field_is_named_with_the_nearest(capsys):
    assert "Did you mean 'search'?" in fails(capsys, "serch")
    assert "Did you mean '--dry-run'?" in fails(capsys, "run", "--dryrun")
    assert "Did you mean 'num_train'?" in fails(capsys, "run", "--task.num-tran", "3")
    assert "Did you mean '--sharing'?" in fails(capsys, "run", "--sharin", "shared")
    assert "Did you mean 'train.dpo'?" in fails(capsys, "fields", "train.dop")
    assert "Did you mean --task.num-train?" in fails(capsys, "run", "--num-train", "3")
    assert "`--eval.systems ma,malt`" in fails(capsys, "run", "--eval.systems", "ma", "malt")


def test_fields_are_found_by_any_part_of_their_name_and_stand_under_their_section(capsys):
    assert cli.main(["fields", "learning_rate"]) == 0
    out = capsys.readouterr().out
    assert "train.sft.optim:\n  --train.sft.optim.learning-rate" in out
    assert cli.main(["fields"]) == 0
    headings = [line for line in capsys.readouterr().out.splitlines() if line[:1].strip()]
    assert len(headings) == len(set(headings)) > 10
    assert "sampler|train" in fails(capsys, "bench")


def test_the_quickstart_is_had_without_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shipped = config.load("quickstart")
    assert shipped == config.load(str(ROOT / "configs" / "quickstart.yaml"))
    assert cli.main(["init", "arithmetic", "quickstart", "--output", "mine.yaml"]) == 0
    assert capsys.readouterr().out == "mine.yaml\n"
    own = config.load("mine.yaml", ["--output-dir", "runs/quickstart"])
    assert (own, config.load("mine.yaml").output_dir) == (shipped, "runs/mine")
    assert "reads only short sums" in fails(capsys, "init", "gsm8k", "quickstart")
    assert "model's context of 256" in fails(capsys, "plan", "--task.name", "arithmetic")


def test_a_file_of_ones_own_needs_no_grader_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("q.csv").write_text("question,answer\nHow many are 3 and 4?,7\n")
    Path("e.csv").write_text("question,answer\nHow many are 5 and 4?,9\n")
    words = ["run", "--task.name", "custom", "--task.train-path", "q.csv", "--dry-run"]
    said = fails(capsys, *words, "--task.eval-path", "e.csv")
    assert "max_new_tokens" in said  # as far as the embedded model's context, and no traceback


@pytest.mark.parametrize(
    "words",
    [
        ["run", "extra"],
        ["run", "--config"],
        ["run", "--config", "missing.yaml"],
        ["run", "--seed", "1.5"],
        ["run", "--seed", "-1"],
        ["run", "--rounds", "many"],
        ["ask"],
        ["ask", "a", "b", "--run", "x"],
        ["ask", "a", "--run", "missing"],
        ["ask", "a", "--run", "x", "--votes", "few"],
        ["ask", "a", "--run", "x", "--seed.x", "1"],
        ["bench"],
        ["bench", "everything"],
        ["init", "gsm8k"],
        ["init", "gms8k", "model"],
        ["completion", "tcsh"],
        ["tasks", "--all"],
        ["--verbose"],
    ],
    ids=" ".join,
)
def test_wrong_words_are_one_message_and_exit_2(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_control_characters_in_a_message_are_written_out(capsys):
    assert "\x1b" not in fails(capsys, "run", "--config", "a\x1b[31m")


def _raising(error: BaseException) -> Command:
    def run(invocation):
        raise error

    return Command("run", "", "", run)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (RunStopped(signal.SIGINT), 130),
        (RunStopped(signal.SIGTERM), 143),
        (UserError("wrong"), 2),
        (Unavailable("no answer").at("mirror"), 75),
        (HubError("no answer", ConnectionError()), 75),
        (HubError("no such model", FileNotFoundError()), 2),
        (ZeroDivisionError("\x1b[2J"), 1),
    ],
)
def test_exit_statuses(error, status, capsys, monkeypatch):
    monkeypatch.setattr(cli, "all_commands", lambda: (_raising(error),))
    assert cli.main(["run"]) == status
    err = capsys.readouterr().err
    assert ("Traceback" in err) == (status == 1) and "\x1b" not in err


SLOW_TO_LET_GO = """
import os, signal, sys
from malt_jax import cli
from malt_jax.commands.command import Command
from malt_jax.storage.signals import graceful_stop, raise_if_stopped

class Model:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

def run(invocation):
    model = Model()
    with graceful_stop():
        os.kill(os.getpid(), signal.SIGTERM)
        raise_if_stopped()

cli.all_commands = lambda: (Command("run", "", "", run),)
sys.argv[1:] = ["run"]
cli.console()
"""


def test_a_second_signal_while_the_model_is_let_go_does_not_change_the_status():
    assert subprocess.run([sys.executable, "-c", SLOW_TO_LET_GO]).returncode == 143


def test_a_reader_that_has_seen_enough_is_no_error():
    command = f"{sys.executable} -m malt_jax.cli fields | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout.count("\n") == 1 and done.stderr == ""


@pytest.mark.parametrize(
    ("command", "status", "error"),
    [
        ("fields seed > /dev/full", 2, "standard output could not be written: No space left"),
        ("fields seed >&-", 0, ""),
        ("fields seed <&- 2>&-", 0, ""),
        ("nope 2> /dev/full", 2, ""),
        ("ask --run R -1+2", 2, "after two dashes: -- '-1+2'"),
    ],
)
def test_closed_and_full_streams_are_no_fault_of_ours(command, status, error):
    command = f"{sys.executable} -m malt_jax.cli {command}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.returncode == status and error in done.stderr
    assert done.stderr.count("\n") == bool(error)


def test_a_reader_who_leaves_standard_error_does_not_end_the_work():
    code = (
        "import sys, time\n"
        "from malt_jax import cli, streams\n"
        "streams.set_up()\n"
        "def work(words):\n"
        "    for _ in range(3):\n"
        "        time.sleep(0.2)\n"
        "        print('on the way', file=sys.stderr, flush=True)\n"
        "    open(words[0], 'w').write('done')\n"
        "cli.dispatch = work\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    with tempfile.NamedTemporaryFile() as made:
        child = subprocess.Popen(
            [sys.executable, "-c", code, made.name], stderr=subprocess.PIPE, text=True
        )
        child.stderr.readline()
        child.stderr.close()
        assert child.wait() == 0
        assert made.read() == b"done"


def test_what_cannot_be_printed_does_not_change_the_status_of_a_refusal():
    code = (
        "from malt_jax import cli, errors\n"
        "def work(words):\n"
        "    print('on the way')\n"
        "    raise errors.UserError('no.')\n"
        "cli.dispatch = work\n"
        "cli.console()\n"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
        )
    assert (done.returncode, done.stderr) == (2, "malt: no.\n")


def test_no_name_forges_a_second_message(capsys):
    assert cli.main(["x\nmalt: done"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_dry_run_says_everything_and_writes_nothing(model, tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--model.path", str(model), "--output-dir", str(out), "--task.num-train", "7"]
    flags += ["--task.num-eval", "5", "--pipeline.roles.0.max-new-tokens", "20"]
    for role in (1, 2):
        flags += [f"--pipeline.roles.{role}.max-new-tokens", "20"]
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["run", "--dry-run", *flags]) == 0
    said = capsys.readouterr().out
    assert "7 questions to search, 5 to evaluate" in said
    assert "3 + 9 + 27 = 39 completions per question, 273 per round" in said
    for role in ("generator", "verifier", "refiner"):
        assert f"first prompt of the {role}" in said
        assert f"  {out / 'export' / role}\n" in said
    assert "[what the verifier says]" in said and "label: value" in said and "train: " in said
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("stage", ["label", "train", "eval", "export"])
def test_a_stage_names_the_stage_that_is_missing_before_it(stage, model, tmp_path, capsys):
    flags = ["--model.path", str(model), "--task.num-train", "2", "--task.num-eval", "2"]
    message = fails(capsys, stage, *flags, "--quiet", "--output-dir", str(tmp_path / "run"))
    assert "is not finished" in message and "run `malt" in message
    assert not (tmp_path / "run").exists()


def test_refused_input_leaves_no_run_directory(model, tmp_path, capsys):
    out = str(tmp_path / "run")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "7*x+15=351"}\n')
    for words in (
        ["--model.path", str(model), "--task.train-path", str(bad)],
        ["--model.path", str(tmp_path / "nothing")],
        ["--model.path", str(model), "--eval.systems", "mlat"],
        ["--model.path", str(model), "--pipeline.roles.0.template", "{answer}"],
    ):
        fails(capsys, "run", "--output-dir", out, "--quiet", *words)
        assert not Path(out).exists()


def test_without_a_config_the_one_of_the_run_is_taken(tmp_path, capsys, monkeypatch):
    from malt_jax.commands.command import parse
    from malt_jax.commands.launch import read_config
    from malt_jax.config.reading import to_dict
    from malt_jax.storage.rundir import RunDir

    monkeypatch.chdir(tmp_path)
    made = config.load(None, ["--seed", "7", "--output-dir", "elsewhere"])
    RunDir.open("here", to_dict(made), "test").close()
    report = next(command for command in cli.all_commands() if command.name == "report")
    found = read_config(parse(report, ["--output-dir", "here"]))
    assert (found.seed, found.output_dir) == (7, "here")
    with pytest.raises(UserError, match="none is given, and runs/malt is not a run"):
        read_config(parse(report, []))


@pytest.mark.parametrize("task", ["arithmetic", "gsm8k", "csqa", "custom"])
def test_init_writes_a_commented_config_that_loads(task, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    assert cli.main(["init", task, "org/model-1B", "--output", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    made = config.load(str(path))
    assert (made.task.name, made.model.path) == (task, "org/model-1B")
    assert made.output_dir == "runs/mine"
    assert made.pipeline == config.Config().pipeline and made.train == config.Config().train
    assert path.read_text().count("#") > len(init.CHOSEN)
    assert "exists" in fails(capsys, "init", task, "org/model-1B", "--output", str(path))


def test_init_quotes_what_yaml_would_read_as_something_else(tmp_path):
    for name in ("no", "1e3", "a: b", "# x", "null", "it's"):
        assert yaml.safe_load(init.starter("gsm8k", name))["model"]["path"] == name


@pytest.mark.parametrize("template", [None, "{{ messages[0]['content'] }}"])
def test_init_ends_the_turns_of_a_base_model_before_a_question_of_its_own(template, tmp_path):
    """A model without a chat template continues the document, with the next problem."""
    folder = tmp_path / "model"
    folder.mkdir()
    settings = {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    roles = yaml.safe_load(init.starter("gsm8k", str(folder)))["pipeline"]["roles"]
    wanted = [] if template else ["\nProblem:", "\nQuestion:"]
    assert [role["stop"] for role in roles] == [wanted] * 3
    made = config.from_dict(yaml.safe_load(init.starter("gsm8k", str(folder))))
    assert made.pipeline.roles[0].stop == tuple(wanted)


def strangers_run(folder: Path, ablations=(), **task) -> str:
    """A run directory as someone else may have made it, whose config names a module here."""
    from malt_jax.config.reading import to_dict
    from malt_jax.storage.rundir import RunDir

    if "name" in task:
        module = task["name"].partition(":")[0]
        Path(f"{module}.py").write_text("open('imported', 'w').close()\n")
    data = {"task": task, "output_dir": str(folder), "ablations": list(ablations)}
    made = config.from_dict(data)
    RunDir.open(folder, to_dict(made), "test").close()
    return str(folder)


def test_code_that_a_strangers_config_names_is_not_imported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = strangers_run(tmp_path / "run", name="evil:TASK")
    for words in (
        ("ask", "1+1?", "--run", run),
        ("pool", run, run),
        *((name, "--output-dir", run) for name in ("run", "label", "train", "report", "plan")),
        ("search", "--output-dir", run, "--dry-run"),
        ("bench", "train", "--output-dir", run),
    ):
        assert "--trust-task-code" in fails(capsys, *words), words
    assert not Path("imported").exists()
    fails(capsys, "report", "--output-dir", run, "--trust-task-code")
    assert Path("imported").exists()


def test_a_strangers_config_sends_nothing_anywhere(tmp_path, capsys):
    from malt_jax.config.reading import to_dict
    from malt_jax.storage.rundir import RunDir

    home = tmp_path / "home"
    for field, value in {"mirror": str(home), "export": {"push_to_hub": "thief/run"}}.items():
        run = tmp_path / field
        made = config.from_dict({"output_dir": str(run), field: value})
        RunDir.open(run, to_dict(made), "test").close()
        for command in ("report", "label", "export"):
            said = fails(capsys, command, "--output-dir", str(run))
            assert "sends what it holds from here" in said and "with its --config" in said
        assert not home.exists()
    # The user's own words are none of a stranger's.
    assert "not finished" in fails(
        capsys, "label", "--output-dir", str(tmp_path / "mirror"), "--mirror", str(home)
    )


def test_programs_are_not_read_from_where_a_strangers_config_says(tmp_path):
    from malt_jax.config.reading import to_dict
    from malt_jax.stages.trust import open_existing
    from malt_jax.storage.rundir import RunDir

    made = config.from_dict({"sampler": {"cache_dir": "programs"}})
    run = tmp_path / "run"
    RunDir.open(run, to_dict(made), "test").close()
    found = [
        open_existing(run, trusted, flags)[0].sampler.cache_dir
        for trusted, flags in ((False, []), (True, []), (False, ["--sampler.cache-dir", "mine"]))
    ]
    assert found == ["auto", "programs", "mine"]


@pytest.mark.parametrize(
    "changed",
    [
        {"pipeline.roles.1.verdict": "evil:read"},
        {"pipeline.roles": '{verdict: "evil:read"}'},
        {"task": {"name": "evil:TASK"}},
        {"task.allow_code": True},
    ],
)
def test_however_an_ablation_spells_it_a_strangers_code_is_refused(changed, tmp_path, capsys):
    run = strangers_run(tmp_path / "run", ablations=[{"name": "a", "set": changed}])
    assert "--trust-task-code" in fails(capsys, "report", "--output-dir", run)


def test_a_task_that_the_user_names_is_the_users_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = strangers_run(tmp_path / "run", name="mine_alone:TASK")
    fails(capsys, "report", "--output-dir", run, "--task.name", "mine_alone:TASK")
    assert Path("imported").exists()


def test_a_dry_run_refuses_a_stage_that_cannot_be_repeated(model, tmp_path, capsys):
    flags = ["--model.path", str(model), "--output-dir", str(tmp_path / "run"), "--dry-run"]
    for role in range(3):
        flags += [f"--pipeline.roles.{role}.max-new-tokens", "20"]
    assert "no stage named 'nope' to redo" in fails(capsys, "run", *flags, "--redo", "nope")
    assert "not a run" in fails(capsys, "label", *flags, "--join", str(tmp_path))
    assert not (tmp_path / "run").exists()


def test_lists_name_everything(capsys):
    from malt_jax.tasks import task_names

    assert cli.main(["tasks"]) == 0
    tasks = capsys.readouterr().out
    assert all(name in tasks for name in task_names())
    assert cli.main(["models"]) == 0
    assert "qwen2" in capsys.readouterr().out


def test_bash_completes_commands_flags_fields_and_choices(tmp_path):
    script = tmp_path / "malt.bash"
    script.write_text(completion.script(cli.all_commands(), "bash"))

    def complete(*words: str) -> set[str]:
        command = (
            f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
            '_shtab_malt; printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.stderr == ""
        return set(done.stdout.split())

    assert complete("malt", "se") == {"search", "serve"}
    assert complete("malt", "run", "--dry") == {"--dry-run"}
    numbers = {"--task.num-train", "--task.num-eval", "--task.num-validation"}
    assert complete("malt", "run", "--task.num") == numbers
    assert complete("malt", "bench", "s") == {"sampler"}


def test_fish_and_zsh_scripts_cover_every_command(capsys):
    for shell in ("fish", "zsh"):
        assert cli.main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert all(name in script for name in COMMANDS)


def test_version_names_package_jax_and_device():
    done = malt("--version", env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert done.returncode == 0
    assert "malt-jax 0." in done.stdout and "jax 0." in done.stdout and "cpu" in done.stdout


def test_a_topology_that_is_none_is_named(model, capsys):
    assert "allowed: CHIP:SHAPE" in fails(
        capsys, "plan", "--config", "quickstart", "--topology", "h100"
    )


@pytest.mark.parametrize("what", ["sampler", "train"])
def test_a_benchmark_takes_its_fields_from_the_config(what, model):
    from importlib import import_module

    from malt_jax.commands import bench

    words = ["--model.path", str(model), "--no-peer", "--sampler.rows", "6"]
    invocation = parse(bench.COMMAND, [what, *words])
    made = config.load(None, invocation.fields)
    half = import_module(f"malt_jax.bench.{what}")
    found = bench.arguments(what, half, made, invocation.options)
    assert found["model"] == str(model) and found["no_peer"]
    assert what == "train" or found["sampler"]["rows"] == 6


@pytest.mark.parametrize("columns", ["9" * 5000, "²", "-5", "0", "99999999"])
def test_a_table_is_printed_whatever_columns_says(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", columns)
    assert cli.main(["tasks"]) == 0
    assert "gsm8k" in capsys.readouterr().out


def test_a_line_break_in_the_name_of_a_config_stays_in_its_comment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "in\nseed: 77\n# j.yaml"
    assert cli.main(["init", "gsm8k", "m", "--output", name]) == 0
    assert yaml.safe_load((tmp_path / name).read_text())["seed"] == 0


def test_a_field_whose_value_has_a_blank_is_no_item_of_the_list_before_it():
    label = next(command for command in cli.all_commands() if command.name == "label")
    made = parse(label, ["--join", "a", "b", "--output-dir=my runs/x", "--task.name", "svamp"])
    assert made.options.join == ["a", "b"]
    assert [*split_flags(made.fields)] == [("output-dir", "my runs/x"), ("task.name", "svamp")]
    # Of the same field the last word counts, in whichever form.
    for words in (["--seed=1", "--seed", "2"], ["--seed", "1", "--seed=2"]):
        assert config.load(None, parse(label, words).fields).seed == 2


def test_a_stage_is_not_opened_again_by_a_command_that_does_not_make_it(tmp_path, capsys):
    from malt_jax.config.reading import to_dict
    from malt_jax.storage import manifest
    from malt_jax.storage.rundir import RunDir

    run = tmp_path / "run"
    with RunDir.open(run, to_dict(config.from_dict({"output_dir": str(run)})), "test") as made:
        (made.path / "shard.jsonl").write_text("{}\n")
        manifest.seal(made, "search/000", [made.path / "shard.jsonl"])
    said = fails(capsys, "report", "--output-dir", str(run), "--redo", "search/000")
    assert "`malt report` does not make search/000" in said
    assert manifest.stage_done(run, "search/000")
