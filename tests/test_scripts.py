"""Scripts do what they say, with stand-ins for hours of work and for programs of other machines."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import cli_run
from malt_jax import cli
from malt_jax.cli import all_commands
from malt_jax.commands.command import parse
from malt_jax.config.run import QUICKSTART, load
from malt_jax.evaluation.records import DrawRecord, TurnRecord

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("form", "searched"), [((), "1,000"), (("--cpu", "--seeds", "0 1"), "60")])
def test_the_script_of_the_real_model_accepts_both_of_its_forms(form, searched, tmp_path):
    for split, count in (("train", 1000), ("eval", 660)):
        rows = ({"question": f"{split} {i}?", "answer": f"#### {i}"} for i in range(count))
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["sh", "scripts/qwen25_gsm8k.sh", *form, "--dry-run", "--model.path", cli_run.model()]
    for split in ("train", "eval"):
        words += [f"--task.{split}-path", tmp_path / f"{split}.jsonl"]
    # `malt` is found beside this Python, as in an activated environment.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        list(map(str, words)), cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"{searched} questions to search") == max(1, len(form) - 1)
    assert "DPO" in done.stdout and "sa: generator:base" in done.stdout


FAKE_PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  -c*) echo $VERSION; [ $VERSION != 3.9 ] ;;
  "-m venv"*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && [ ! "$NO_VENV" ] ;;
  "-m pip"*) printf '#!/bin/sh\\necho ran "$@"\\n' > .venv/bin/malt && chmod +x .venv/bin/malt ;;
esac
"""
"""Says it is $VERSION; its pip installs a `malt` that says what it was given."""


@pytest.fixture
def quickstart(tmp_path):
    """Runs a copy of the script with a Python that notes what it is asked for."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "malt_jax").mkdir()
    for name in ("pyproject.toml", "malt_jax/cli.py"):
        (tmp_path / name).touch()
    fake, log = tmp_path / "python", tmp_path / "log"
    fake.write_text(FAKE_PYTHON)
    fake.chmod(0o755)

    def run(version="3.12", **variables):
        log.write_text("")
        env = {**os.environ, "PYTHON": str(fake), "LOG": str(log), "VERSION": version, **variables}
        words = ["sh", tmp_path / "scripts/quickstart.sh", "--seed", "1"]
        done = subprocess.run(words, env=env, capture_output=True, text=True)
        return done, [line for line in log.read_text().splitlines() if line.startswith("-m")]

    return run


def test_the_quickstart_installs_once_and_again_when_the_checkout_changed(quickstart, tmp_path):
    done, asked = quickstart()
    assert done.stdout == "ran run --config configs/quickstart.yaml --seed 1\n", done.stderr
    assert "installing into .venv" in done.stderr and len(asked) == 2
    done, asked = quickstart()
    assert (done.returncode, done.stderr, asked) == (0, "", [])
    for name in ("pyproject.toml", "malt_jax/cli.py"):
        later = (tmp_path / ".venv/installed").stat().st_mtime + 5
        os.utime(tmp_path / name, (later, later))
        _, [pip] = quickstart()
        assert pip.startswith("-m pip install")
        os.utime(tmp_path / name, (0, 0))


def test_the_quickstart_refuses_a_python_that_is_too_old(quickstart, tmp_path):
    done, asked = quickstart("3.9")
    assert done.returncode == 2 and "found Python 3.9" in done.stderr and not asked
    assert "PYTHON=python3.12 sh" in done.stderr and not (tmp_path / ".venv").exists()
    assert quickstart()[0].returncode == 0
    done, asked = quickstart("3.9")  # as if the environment had been made with it
    assert done.returncode == 2 and "remove .venv" in done.stderr and not asked


def test_the_quickstart_leaves_no_half_environment(quickstart, tmp_path):
    done, _ = quickstart(NO_VENV="1")
    assert done.returncode == 1 and not (tmp_path / ".venv").exists()
    assert quickstart()[0].returncode == 0


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.py")), ids=lambda p: p.name)
def test_what_a_script_imports_from_the_package_exists(script):
    for node in ast.walk(ast.parse(script.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "malt_jax":
            module = import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    import_module(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("malt_jax"):
                    import_module(alias.name)


LAUNCH = ROOT / "scripts/launch"
STAND_INS = {
    # As https://cloud.google.com/sdk/gcloud/reference/compute/tpus/tpu-vm describes scp and ssh.
    "gcloud": """
verb = sys.argv[4]
assert sys.argv[1:4] == ["compute", "tpus", "tpu-vm"]
parser = argparse.ArgumentParser(allow_abbrev=False)
if verb == "scp":
    parser.add_argument("source")
parser.add_argument("target")
parser.add_argument("--zone", required=True)
parser.add_argument("--worker", choices=["all"])
if verb == "ssh":
    parser.add_argument("--command", required=True)
options = parser.parse_args(sys.argv[5:])
if verb == "ssh":
    subprocess.run(["bash", "-ec", options.command], check=True)
else:
    name, _, path = options.target.partition(":")
    shutil.copyfile(options.source, path)
""",
    # As https://slurm.schedmd.com/srun.html: options of srun, then a command that it starts.
    "srun": """
words = sys.argv[1:]
while words[0].startswith("--"):
    assert words.pop(0) in ("--kill-on-bad-exit=0", "--wait=0")
step = subprocess.Popen(words)
Path("step").write_text(str(step.pid))
def kill(*_):  # src/srun/srun_job.c: SIGTERM, "forcing job termination"
    step.kill()
signal.signal(signal.SIGTERM, kill)
status = step.wait()
sys.exit(status if status >= 0 else 128 - status)
""",
    # As https://slurm.schedmd.com/scancel.html: a signal is sent to the steps of a job.
    "scancel": """
assert sys.argv[1:] == ["--signal=TERM", "17"]
step = int(Path("step").read_text())
os.kill(step, signal.SIGTERM)
while Path(f"/proc/{step}").exists():  # slow, so that the job may have ended when it returns
    time.sleep(0.02)
time.sleep(0.3)
""",
    "scontrol": "Path('requeued').write_text(' '.join(sys.argv[1:]))",
    "malt": """
Path('calling').write_text(repr(sys.argv[1:]))
os.replace('calling', 'called')  # whole when it appears: the test waits for it
time.sleep(float(os.environ['WAIT']))
sys.exit(int(os.environ.get('STATUS', 0)))
""",
}


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Runs a launch script where its programs are stand-ins; gives what `malt` was called with."""
    imports = (
        "import argparse, os, shutil, signal, subprocess, sys, time\nfrom pathlib import Path\n"
    )
    on_term = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    for name, code in STAND_INS.items():
        (tmp_path / "bin").mkdir(exist_ok=True)
        path = tmp_path / "bin" / name
        path.write_text(f"#!{sys.executable}\n{imports}{on_term}{code}")
        path.chmod(0o755)
    (tmp_path / "malt/bin").mkdir(parents=True)
    (tmp_path / "malt/bin/malt").symlink_to(tmp_path / "bin/malt")
    (tmp_path / "my config.yaml").write_text("seed: 3\n")
    env = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def launch(
        script: str, *words: str, wait: str = "0", after=None, **variables: str
    ) -> tuple[int, list[str]]:
        env.update(WAIT=wait, SLURM_JOB_ID="17", SLURM_ARRAY_JOB_ID="17")
        env.update(SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_COUNT="16")
        env.update({"STATUS": "0", "SLURM_RESTART_COUNT": "0", **variables})
        process = subprocess.Popen(["bash", LAUNCH / script, *words], cwd=tmp_path, env=env)
        called = tmp_path / "called"
        while process.poll() is None and not called.exists():
            time.sleep(0.02)
        if after is not None:
            process.send_signal(after)
        status = process.wait(60)
        return status, ast.literal_eval(called.read_text()) if called.exists() else []

    return launch


def check_run(words: list[str], config: str, run: str) -> None:
    parse({command.name: command for command in all_commands()}[words[0]], words[1:])
    assert words == ["run", "--config", config, "--output-dir", run]


def test_the_tpu_script_runs_the_config_on_every_host(launched, tmp_path):
    status, words = launched("tpu_vm.sh", "pod", "us-x1-a", "my config.yaml", "/runs/my run")
    assert status == 0
    check_run(words, "malt-run.yaml", "/runs/my run")
    assert (tmp_path / "malt-run.yaml").read_text() == "seed: 3\n"
    assert launched("tpu_vm.sh", "pod")[0] == 2


def test_the_slurm_script_runs_and_queues_itself_again_when_it_is_told_to_stop(launched, tmp_path):
    status, words = launched("slurm.sbatch", "my config.yaml", "/runs/my run")
    assert status == 0 and not (tmp_path / "requeued").exists()
    check_run(words, "my config.yaml", "/runs/my run")
    (tmp_path / "called").unlink()
    status, _ = launched("slurm.sbatch", "my config.yaml", "r", wait="30", after=signal.SIGUSR1)
    assert status == 143 and (tmp_path / "requeued").read_text() == "requeue 17"


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_slices.sbatch"])
def test_a_cancelled_slurm_job_saves_its_state_and_does_not_come_back(launched, tmp_path, script):
    status, _ = launched(script, "my config.yaml", "r", wait="30", after=signal.SIGTERM)
    assert status == 143 and not (tmp_path / "requeued").exists()


@pytest.mark.parametrize(("status", "again"), [(0, False), (2, False), (1, True), (137, True)])
def test_the_slurm_scripts_queue_again_what_a_restart_can_mend(
    launched, tmp_path, monkeypatch, status, again
):
    for script in ("slurm.sbatch", "slurm_slices.sbatch"):
        for name in ("called", "requeued"):
            (tmp_path / name).unlink(missing_ok=True)
        assert launched(script, "my config.yaml", "r", STATUS=str(status))[0] == status
        assert (tmp_path / "requeued").exists() == again
        (tmp_path / "requeued").unlink(missing_ok=True)
        launched(script, "c", "r", STATUS=str(status), SLURM_RESTART_COUNT="50")
        assert not (tmp_path / "requeued").exists()


def test_the_slurm_array_searches_a_slice_per_task_and_queues_itself_again(launched, tmp_path):
    status, words = launched("slurm_slices.sbatch", "my config.yaml", "r", "s3://b/slices")
    assert status == 0
    parse({command.name: command for command in all_commands()}[words[0]], words[1:])
    assert words == ["search", "--config", "my config.yaml", "--search.shard", "3/16",
                     "--output-dir", "r/3", "--mirror", "s3://b/slices/3"]  # fmt: skip
    (tmp_path / "called").unlink()
    status, words = launched("slurm_slices.sbatch", "c", "r", wait="30", after=signal.SIGUSR1)
    assert "--mirror" not in words
    assert status == 143 and (tmp_path / "requeued").read_text() == "requeue 17_3"


@pytest.mark.parametrize("script", ["slurm.sbatch", "slurm_slices.sbatch"])
def test_the_slurm_script_asks_for_what_sbatch_has(script):
    """Names of options as https://slurm.schedmd.com/sbatch.html has them."""
    text = (LAUNCH / script).read_text()
    known = {"job-name", "ntasks-per-node", "cpus-per-task", "time", "signal", "requeue",
             "open-mode", "nodes", "gpus-per-node", "array"}  # fmt: skip
    assert set(re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE)) <= known
    [usage] = re.findall(r"^#   sbatch (.*)$", text, re.MULTILINE)
    assert set(re.findall(r"--([a-z-]+)", usage)) <= known


def test_the_jobset_has_a_pod_for_every_host_of_its_slice():
    text = (LAUNCH / "gke_jobset.yaml").read_text()
    [jobs] = yaml.safe_load(text)["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    shape = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["completions"] == job["parallelism"] == math.prod(map(int, shape)) // chips
    program, *words = container["command"]
    assert program == "malt"
    check_run(words, "/config/run.yaml", "/runs/malt")
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def kubernetes_job(spec: dict) -> None:
    """Checks the template of a Job with the schema that the API server has."""
    validate = pytest.importorskip("kubernetes_validate").validate
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": spec}
    validate(job, "1.32", strict=True)


def test_the_jobset_is_what_kubernetes_accepts():
    """JobSet's own fields by the model of its API, the jobs in it by that of Kubernetes."""
    models = pytest.importorskip("kubeflow_trainer_api.models")
    found = yaml.safe_load((LAUNCH / "gke_jobset.yaml").read_text())
    read = models.JobsetV1alpha2JobSet.from_dict(found).to_dict()
    # What the model does not know it drops, so that a misspelt field would be missing.
    policy = found["spec"]["failurePolicy"]
    rules = [
        {k: v for k, v in rule.items() if v} for rule in read["spec"]["failurePolicy"]["rules"]
    ]
    assert read["spec"]["failurePolicy"]["maxRestarts"] == policy["maxRestarts"]
    assert [{**rule, "name": ""} for rule in rules] == [{**r, "name": ""} for r in policy["rules"]]
    [jobs] = found["spec"]["replicatedJobs"]
    assert jobs.keys() <= {"name", "replicas", "template"}
    kubernetes_job(jobs["template"]["spec"])
    with pytest.raises(Exception, match="backofLimit"):
        kubernetes_job({**jobs["template"]["spec"], "backofLimit": 3})


def test_the_indexed_job_is_what_kubernetes_accepts_and_searches_a_slice_per_index(tmp_path):
    found = yaml.safe_load((LAUNCH / "gke_slices.yaml").read_text())
    kubernetes_job(found["spec"])
    [container] = found["spec"]["template"]["spec"]["containers"]
    shell, flag, script = container["command"]
    (tmp_path / "malt").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "malt").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": "2"}
    said = subprocess.run(
        [shell, flag, script], env=env, capture_output=True, text=True, check=True
    )
    words = said.stdout.splitlines()
    parse({command.name: command for command in all_commands()}[words[0]], words[1:])
    assert words[words.index("--search.shard") + 1] == f"3/{found['spec']['completions']}"
    assert words[words.index("--mirror") + 1].endswith("/slices/3")


def test_a_run_graded_again_by_the_same_grader_has_the_same_table(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    run, again = shutil.copytree(cli_run.as_trained(), tmp_path / "run"), tmp_path / "again"
    assert cli.main(["eval", *cli_run.flags()[:-1], str(run)]) == 0
    monkeypatch.setattr(sys, "argv", ["regrade.py", str(run), str(again)])
    import_module("regrade").main()
    assert "votes that lack draws: 0" in capsys.readouterr().out
    for name in ("results.json", "results.md"):
        assert (again / name).read_text() == (run / name).read_text()


def test_settings_of_any_kind_are_read_from_a_flag_and_stand_in_the_table(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    choose = import_module("choose_settings")
    # PyYAML takes 5e-4 for a text, the config for a number.
    grids = [["train.sft.optim.learning_rate=5e-4,0.002", "train.dpo.loss=ipo"],
             ["pg", "train.pg.clip=0.5"]]  # fmt: skip
    entries = choose.ablations(grids)
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(choose.config(QUICKSTART, entries), sort_keys=False))
    made = load(str(path))
    assert [list(one.set.values()) for one in made.ablations] == [[5e-4, "ipo"], [0.002, "ipo"],
                                                                  [0.5]]  # fmt: skip
    assert [one.rule for one in made.ablations] == ["", "", "pg"]
    assert made.eval.split == "validation"
    default = choose.ablations([choose.GRID])
    # One of them is the quickstart's own, which is the run itself.
    assert (len(default), len(choose.config(QUICKSTART, default)["ablations"])) == (18, 17)

    def rows(system, accuracy):
        tests = {"malt@3": {"delta": 0.1, "p": 0.5}} if system != "malt" else {}
        return [{"system": system, "votes": votes, "accuracy": accuracy - (votes == 1) / 10,
                 "interval": [0.4, 0.6], "tests": tests} for votes in (1, 3)]  # fmt: skip

    found = [*rows("sa", 0.3), *rows("malt", 0.5), *rows("malt-s00", 0.4), *rows("malt-s02", 0.6)]
    lines = choose.table(entries, {"systems": found}).rows
    assert [line[:5] for line in lines] == [
        ["s02", "pg", "train.pg.clip=0.5", "50.0", "60.0"],
        ["", "", "as it is", "40.0", "50.0"],
        ["s00", "", "train.sft.optim.learning_rate=5e-4, train.dpo.loss=ipo", "30.0", "40.0"],
    ]


def test_the_comparison_of_rules_tests_each_against_the_published_one(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    compare = import_module("compare_rules")

    def rows(system, accuracy, p=None):
        test = {"delta": accuracy - 0.5, "delta_interval": [0.0, 0.1], "p": p,
                "wrong_to_right": 5, "right_to_wrong": 2}  # fmt: skip
        tests = {"malt@3": test} if p is not None else {}
        return [{"name": f"{system}@{votes}" if votes > 1 else system, "system": system,
                 "votes": votes, "calls": 3 * votes, "tokens": 7.0,
                 "accuracy": accuracy - (votes == 1) / 10,
                 "interval": [0.4, 0.6], "tests": tests}
                for votes in (1, 3)]  # fmt: skip

    def phase(run, steps, seconds):
        cost = {"seconds": 99.0, "steps": steps, "counts": {"trained": 4}}
        (run / "cost").mkdir(parents=True, exist_ok=True)
        sizes = {phase: {"batch_size": 8} for phase in ("sft", "dpo", "kto", "pg")}
        (run / "config.yaml").write_text(yaml.safe_dump({"train": sizes}))
        (run / "cost" / "train-000-verifier-dpo.json").write_text(json.dumps(cost))
        line = {"stage": "train", "round": 0, "role": "verifier", "phase": "dpo",
                "useful_tokens": 10, "tokens_per_s": 10 / seconds}  # fmt: skip
        compiling = {**line, "tokens_per_s": 1e-3}
        lines = "".join(json.dumps(one) + "\n" for one in (compiling, line, line))
        (run / "metrics.jsonl").write_text(lines)

    for task, p in (("triples", 0.004), ("parity", 0.02)):
        run = tmp_path / task / "seed-0"
        systems = rows("ma", 0.1, 0.5) + rows("malt-both", 0.6, p) + rows("malt", 0.5)
        phase(run, 2, 1.0)
        phase(run / "ablations/both", 2, 2.0)
        # What was copied from the run has no steps of its own.
        cost = {"seconds": 1.0, "steps": 3, "counts": {"trained": 10}}
        (run / "cost" / "train-000-verifier-sft.json").write_text(json.dumps(cost))
        copied = run / "ablations" / "both" / "cost" / "train-000-verifier-sft.json"
        copied.write_text(json.dumps({"seconds": 0.1}))
        flips = [{"from": "g", "to": "r", "wrong_to_right": 6, "right_to_wrong": 1}]
        turns = [{"system": "malt", "draws": 30, "flips": flips,
                  "accuracy": [{"accuracy": 1 / 3}, {"accuracy": 0.5}]}]  # fmt: skip
        results = {"systems": systems, "questions": 30, "turns": turns}
        (run / "results.json").write_text(json.dumps(results))
    (run / "rule_memory.json").write_text(json.dumps({"published": 5e6, "both": 7e6}))
    monkeypatch.setattr(sys, "argv", ["compare_rules.py", str(tmp_path), "--table"])
    compare.main()
    found = {(r["task"], r["name"]): r for r in json.loads((tmp_path / "rules.json").read_text())}
    assert list(found)[:3] == [(task, name) for task in ["parity"]
                               for name in ("untrained", "published", "both")]  # fmt: skip
    tests = {task: row["test"] for (task, name), row in found.items() if name == "both"}
    assert {task: test["p_holm"] for task, test in tests.items()} == {
        "parity": 0.02,
        "triples": 0.008,
    }
    assert tests["triples"]["seeds"] == [0.1] and found["triples", "published"]["test"] is None
    assert found["triples", "published"]["seconds"] == 2.0
    assert found["triples", "both"]["seconds"] == 4.0 and found["triples", "both"]["alone"] == 0.5
    assert {row["steps"] for row in found.values()} == {0, 5}
    assert {row["calls"] for row in found.values()} == {9}
    assert [found[task, "both"]["peak_bytes"] for task in ("parity", "triples")] == [7e6, 0]
    # Examples and passes: a phase that both have in common is the published rule's.
    written = (tmp_path / "rules.md").read_text().splitlines()
    assert "| triples | both | 10 (2.4) | 4 (4.0) |" in written
    assert found["parity", "published"]["mended"] == pytest.approx(0.3)
    assert found["parity", "published"]["spoilt"] == pytest.approx(0.1)
    assert found["parity", "both"]["mended"] is None
    assert "both" in capsys.readouterr().out and (tmp_path / "rules.png").stat().st_size > 1000
    # A rule for which a role found no data cannot be compared at equal steps.
    phase(tmp_path / "triples/seed-0/ablations/both", 1, 2.0)
    with pytest.raises(SystemExit, match=r"\[4, 5\] optimiser steps"):
        compare.main()


def test_critics_are_read_by_what_they_approve_of(tmp_path, capsys, monkeypatch):
    def draw(draft, critique, answer):
        said = (("", draft), (critique, None), ("", answer))
        turns = (TurnRecord("", "", "", text, 4, 0.0, "eos", None, correct)
                 for text, correct in said)  # fmt: skip
        return DrawRecord("q", 0, None, answer, tuple(turns)).to_record()

    given = [
        draw(True, "44:44 ok", True),
        draw(True, "44:45 high", False),
        draw(False, "44:43 low", True),
        draw(False, "44:43 low", False),
        draw(False, "ok", False),
        draw(False, "no verdict", False),
    ]
    (tmp_path / "eval").mkdir()
    lines = "".join(json.dumps(one) + "\n" for one in given)
    (tmp_path / "eval" / "malt.jsonl").write_text(lines)
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setattr(sys, "argv", ["read_critics.py", str(tmp_path)])
    import_module("read_critics").main()
    row = capsys.readouterr().out.splitlines()[-1]
    assert row == "| malt | 5 | 4.0 | 50.0 | 33.3 | 60.0 | 100.0 | 50.0 | 0.0 |"
