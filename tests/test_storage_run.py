"""Run directories under damage, other configs, other programs' files, signals and resumes."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from malt_jax.config.evaluation import CANNOT_CHANGE_RESULTS
from malt_jax.config.reading import to_dict
from malt_jax.config.run import Config, load, with_defaults
from malt_jax.errors import RunStopped, UserError
from malt_jax.hashing import fingerprint
from malt_jax.storage import manifest, mirror, signals
from malt_jax.storage.jsonl import append_lines, read_lines
from malt_jax.storage.metrics import Metrics
from malt_jax.storage.rundir import RunDir, differences

CONFIG = {
    "seed": 1,
    "quiet": False,
    "model": {"path": "m", "dtype": "float32"},
    "roles": [{"name": "generator", "temperature": 0.7}],
    "wandb": {"project": None},
}


def make_run(path: Path) -> RunDir:
    """A small finished run with one sealed unit of every kind."""
    run = RunDir.open(path, CONFIG, "malt run", facts={"devices": ["cpu"]})
    for shard in range(2):
        append_lines(run.trees(0) / f"{shard}.jsonl", [{"question_id": f"Q{shard}"}] * 3)
    manifest.seal(run, "search/000", sorted(run.trees(0).iterdir()))
    append_lines(run.data(0, "generator") / "sft.jsonl", [{"prompt": "p", "completion": "c"}])
    manifest.seal(run, "label/000", [run.data(0, "generator")])
    for step in (10, 20):
        folder = run.checkpoint(0, "generator") / str(step)
        (folder / "d").mkdir(parents=True)
        (folder / "d" / "weights").write_bytes(random.Random(step).randbytes(3000))
        (folder / "_METADATA").write_text("{}")
        manifest.seal(run, "train/000/generator", [folder], done=step == 20)
    run.results.write_text('{"accuracy": 0.5}')
    manifest.seal(run, "eval", [run.results])
    return run


@pytest.fixture
def run(tmp_path):
    with make_run(tmp_path / "run") as made:
        yield made


def sealed_files(run: RunDir) -> list[Path]:
    return [run.path / name for name in manifest.load(run)["artefacts"]]


# ---------------------------------------------------------------- the seal


def test_sealed_units_verify_and_mark_their_stage_as_done(run):
    manifest.verify(run)
    manifest.verify(run, [run.trees(0), run.results])
    assert len(sealed_files(run)) == 8
    assert manifest.stage_done(run, "eval") and not manifest.stage_done(run, "export")
    newest = manifest.sealed_units(run, "train/000/generator")[-1]
    assert newest == run.checkpoint(0, "generator") / "20"
    data = manifest.load(run)
    assert data["devices"] == ["cpu"] and "jax" in data["versions"] and data["git_commit"]


def test_a_hundred_random_damages_are_all_refused_by_name(run, tmp_path):
    """Bit flips, truncations, additions and deletions of any file that a run depends on."""
    generator = random.Random(0)
    files = [*sealed_files(run), run.path / "config.yaml", run.path / manifest.NAME]
    run.close()
    spare = tmp_path / "spare"
    shutil.copytree(run.path, spare)
    for kind in ["flip"] * 55 + ["cut"] * 25 + ["grow"] * 10 + ["delete"] * 10:
        victim = generator.choice(files)
        data = bytearray(victim.read_bytes())
        if kind == "flip":
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        elif kind == "cut":
            del data[generator.randrange(len(data)) :]
        elif kind == "grow":
            data += generator.randbytes(3)
        victim.unlink()
        if kind != "delete":
            victim.write_bytes(data)
        damaged = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
        with (
            pytest.raises(UserError) as refusal,
            RunDir.open(run.path, CONFIG, "malt run") as again,
        ):
            manifest.verify(again)
        assert str(victim.relative_to(run.path)) in str(refusal.value), (kind, victim)
        left = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
        assert {**left, run.path / ".lock": b""} == {**damaged, run.path / ".lock": b""}
        shutil.copy2(spare / victim.relative_to(run.path), victim)
    with RunDir.open(run.path, CONFIG, "malt run") as again:
        manifest.verify(again)


def test_a_file_that_was_never_sealed_is_refused(run):
    stranger = run.trees(0) / "9.jsonl"
    append_lines(stranger, [{"question_id": "Q9"}])
    with pytest.raises(UserError, match=r"rounds/000/trees/9\.jsonl \(unknown\)") as refusal:
        manifest.verify(run, [run.trees(0)])
    assert "sealed before" not in str(refusal.value)
    (run.checkpoint(0, "generator") / "20" / "extra").touch()
    with pytest.raises(UserError, match=r"checkpoints/000/generator/20/extra \(unknown\)"):
        manifest.verify(run)


def test_an_unfinished_unit_is_not_accepted_as_sealed(run):
    append_lines(run.trees(1) / "0.jsonl", [{}])
    with pytest.raises(UserError, match="rounds/001/trees was never finished"):
        manifest.verify(run, [run.trees(0), run.trees(1)])


def test_the_refusal_names_the_newest_intact_unit(run):
    (run.checkpoint(0, "generator") / "20" / "_METADATA").write_text("[]")
    with pytest.raises(UserError) as refusal:
        manifest.verify(run)
    assert "--redo train/000/generator" in str(refusal.value)
    assert "checkpoints/000/generator/10, sealed before it, is intact" in str(refusal.value)
    (run.checkpoint(0, "generator") / "10" / "_METADATA").unlink()
    with pytest.raises(UserError, match="rounds/000/data/generator, sealed before it, is intact"):
        manifest.verify(run)


def test_redo_sets_aside_damaged_units_and_later_stages_only(run):
    (run.trees(0) / "1.jsonl").write_text("damaged")
    aside = manifest.redo(run, "search/000")
    assert (aside / "rounds/000/trees/1.jsonl").read_text() == "damaged"
    assert (aside / "checkpoints/000/generator/20/d/weights").exists()
    assert not run.results.exists() and not run.checkpoint(0, "generator").joinpath("20").exists()
    manifest.verify(run)
    assert manifest.sealed_units(run, "search/000") == [run.trees(0) / "0.jsonl"]
    assert not manifest.stage_done(run, "search/000") and not manifest.stage_done(run, "eval")
    with pytest.raises(UserError, match=r"no stage named 'eval'.*search/000"):
        manifest.redo(run, "eval")


def test_redo_sets_aside_what_a_link_keeps_on_another_disk(run, monkeypatch):
    (run.trees(0) / "1.jsonl").write_text("damaged")

    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "rename", other_disk)
    aside = manifest.redo(run, "search/000")
    assert (aside / "rounds/000/trees/1.jsonl").read_text() == "damaged"
    assert (aside / "checkpoints/000/generator/20/d/weights").exists()
    assert not (run.trees(0) / "1.jsonl").exists() and not run.results.exists()


def test_after_an_interrupted_redo_the_run_is_refused_until_it_is_repeated(run, monkeypatch):
    (run.trees(0) / "1.jsonl").write_text("damaged")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(manifest, "_write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        manifest.redo(run, "search/000")
    with pytest.raises(UserError, match=r"trees/1\.jsonl \(missing\)"):
        manifest.verify(run)
    manifest.redo(run, "search/000")
    manifest.verify(run)


def test_sealing_a_unit_again_replaces_its_hashes(run):
    first, last = manifest.sealed_units(run, "train/000/generator")
    third = run.checkpoint(0, "generator") / "30"
    shutil.copytree(last, third)
    manifest.seal(run, "train/000/generator", [third])
    manifest.verify(run)
    assert manifest.sealed_units(run, "train/000/generator") == [first, last, third]
    run.results.write_text('{"accuracy": 0.6}')
    manifest.seal(run, "eval", [run.results])
    manifest.verify(run)


def test_sealing_a_new_unit_does_not_hide_damage_of_an_earlier_one(run):
    (run.checkpoint(0, "generator") / "20" / "_METADATA").write_text("[]")
    third = run.checkpoint(0, "generator") / "30"
    shutil.copytree(run.checkpoint(0, "generator") / "10", third)
    manifest.seal(run, "train/000/generator", [third])
    with pytest.raises(UserError, match="generator/20/_METADATA"):
        manifest.verify(run)


def test_units_of_a_reopened_stage_may_be_written_again(run):
    manifest.reopen(run, "eval")
    run.results.write_text('{"accuracy": 0.7}')
    manifest.verify(run)
    assert not manifest.stage_done(run, "eval")
    with pytest.raises(UserError, match=r"results\.json was never finished"):
        manifest.verify(run, [run.results])


def test_after_a_kill_while_sealing_every_sealed_unit_is_intact(tmp_path):
    code = """
import sys
from malt_jax.storage import manifest
from malt_jax.storage.atomic import atomic_directory
from malt_jax.storage.rundir import RunDir
run = RunDir.open(sys.argv[1], {}, "malt run")
units = manifest.sealed_units(run, "train")
step = int(units[-1].name) if units else 0
print("ready", flush=True)
while True:
    step += 1
    with atomic_directory(run.checkpoint(0, "g") / str(step), replace=True) as new:
        (new / "weights").write_bytes(b"%08d" % step * 10_000)
    manifest.seal(run, "train", [run.checkpoint(0, "g") / str(step)], done=False)
    print(step, flush=True)
"""
    generator = random.Random(3)
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(generator.uniform(0.01, 0.1))
        child.kill()
        promised = child.stdout.read().split()
        child.wait()
        child.stdout.close()
        with RunDir.open(tmp_path, {}, "malt run") as run:
            manifest.verify(run)
            steps = [int(unit.name) for unit in manifest.sealed_units(run, "train")]
        assert steps == list(range(1, len(steps) + 1))
        assert not promised or steps[-1] >= int(promised[-1])


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=50).map(lambda text: json.dumps(text).encode()))
def test_arbitrary_bytes_are_not_accepted_as_a_manifest(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("forged")
    (folder / manifest.NAME).write_bytes(raw)
    with pytest.raises(UserError, match="cannot be trusted"):
        manifest.load(folder)


def test_a_lost_manifest_is_refused_and_its_copy_restores_it(run):
    run.close()
    (run.path / manifest.NAME).unlink()
    with pytest.raises(UserError, match=f"missing.*{manifest.TWIN}"):
        RunDir.open(run.path, CONFIG, "malt run")
    shutil.copy(run.path / manifest.TWIN, run.path / manifest.NAME)
    with RunDir.open(run.path, CONFIG, "malt run") as again:
        manifest.verify(again)


def test_a_manifest_cannot_point_outside_its_run(run):
    data = manifest.load(run)
    data["stages"]["eval"]["units"] = ["../../victim"]
    manifest._write(run.path, data)  # even with a valid hash
    with pytest.raises(UserError, match="leaves the run directory"):
        manifest.redo(run, "search/000")


def test_a_changed_input_is_refused_by_name(run, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "config.json").write_bytes(b"{}")
    manifest.record_inputs(run, [model])
    manifest.record_inputs(run, [model])
    (model / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(UserError, match=r"other contents of .*safetensors;"):
        manifest.record_inputs(run, [model])
    with pytest.raises(UserError, match="no such file"):
        manifest.record_inputs(run, [tmp_path / "gone.jsonl"])


@pytest.mark.parametrize("change", ["content", "name", "added", "removed", "data"])
def test_a_fingerprint_depends_on_every_input(tmp_path, change):
    data = {"temperature": 0.7, "template": "{question}"}
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    before = fingerprint([tmp_path], data)
    assert fingerprint([tmp_path], dict(reversed(data.items()))) == before
    match change:
        case "content":
            (tmp_path / "a").write_text("3")
        case "name":
            (tmp_path / "a").rename(tmp_path / "c")
        case "added":
            (tmp_path / "c").touch()
        case "removed":
            (tmp_path / "b").unlink()
        case "data":
            data["temperature"] = 0.8
    assert fingerprint([tmp_path], data) != before
    with pytest.raises(FileNotFoundError):
        fingerprint([tmp_path / "gone"], data)


# ---------------------------------------------------------------- opening a run


def test_opening_with_the_same_config_writes_nothing(run):
    run.close()
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file() and p.name != ".lock"}
    with RunDir.open(run.path, json.loads(json.dumps(CONFIG)), "malt run") as again:
        assert again.config == CONFIG
    assert before == {p: p.read_bytes() for p in before}


def test_every_differing_field_is_named_with_both_values(run):
    run.close()
    other = json.loads(json.dumps(CONFIG))
    other["seed"] = 2
    other["model"]["dtype"] = "bfloat16"
    other["roles"][0]["temperature"] = 1.0
    other["new"] = {"field": "x" * 500}
    with pytest.raises(UserError) as refusal:
        RunDir.open(run.path, other, "malt run")
    message = str(refusal.value)
    for part in ("seed was 1 and is now 2", "model.dtype was 'float32' and is now 'bfloat16'"):
        assert part in message
    assert "roles.0.temperature was 0.7 and is now 1.0" in message
    assert "new.field was absent" in message
    assert len(message) < 1000 and "model.path" not in message


def test_fields_that_cannot_change_results_may_differ(run):
    run.close()
    other = json.loads(json.dumps(CONFIG))
    other["quiet"] = True
    other["wandb"]["project"] = "p"
    RunDir.open(run.path, other, "malt run", free={"quiet", "wandb"}).close()
    with pytest.raises(UserError, match=r"quiet was False and is now True; wandb\.project"):
        RunDir.open(run.path, other, "malt run")


def older_run(path: Path, *missing: str, **changed: object) -> dict:
    """Begins a run whose config.yaml lacks some fields, as an older version saves it.

    Returns the config as this version has it.
    """
    config = to_dict(Config())
    saved = json.loads(json.dumps(config | changed))
    for field in missing:
        *sections, name = field.split(".")
        place = saved
        for section in sections:
            place = place[int(section)] if section.isdigit() else place[section]
        del place[name]
    RunDir.open(path, saved, "malt run").close()
    return config


def test_a_run_begun_before_a_field_existed_continues_with_its_default(tmp_path):
    missing = ("rounds", "sampler", "train.lora.rank", "pipeline.roles.1.temperature")
    config = older_run(tmp_path / "run", *missing)
    for _ in range(2):
        RunDir.open(tmp_path / "run", config, "malt run", complete=with_defaults).close()
    assert "rounds" not in RunDir.existing(tmp_path / "run").config  # config.yaml is kept as it is


@pytest.mark.parametrize("opening", [RunDir.check, lambda *a, **k: RunDir.open(*a, "test", **k)])
def test_a_run_begun_before_a_field_existed_is_refused_for_another_value(tmp_path, opening):
    config = older_run(tmp_path / "run", "rounds", "pipeline.roles.1.temperature")
    config["pipeline"]["roles"][1]["temperature"] = 0.123
    for now in (config, config | {"rounds": 3}):
        with pytest.raises(UserError) as refusal:
            opening(tmp_path / "run", now, complete=with_defaults)
        assert "pipeline.roles.1.temperature was " in str(refusal.value)
        assert "and is now 0.123" in str(refusal.value)
        assert ("rounds was 1 and is now 3" in str(refusal.value)) == (now["rounds"] == 3)


def test_a_run_begun_by_the_first_release_is_continued(tmp_path):
    """Its config.yaml, as commit 0db4435 wrote it for `malt run --config quickstart`."""
    saved = yaml.safe_load((Path(__file__).parent / "config_0db4435.yaml").read_bytes())
    RunDir.open(tmp_path / "run", saved, "malt run").close()
    now = to_dict(load("quickstart", ["--output-dir", str(tmp_path / "run")]))
    free = CANNOT_CHANGE_RESULTS
    RunDir.open(tmp_path / "run", now, "malt run", free=free, complete=with_defaults).close()
    with pytest.raises(UserError, match="seed was 0 and is now 1"):
        RunDir.check(tmp_path / "run", now | {"seed": 1}, free=free, complete=with_defaults)


def test_a_run_with_a_field_that_no_longer_exists_is_refused_by_name(tmp_path):
    config = older_run(tmp_path / "run", former_option=1)
    with pytest.raises(UserError, match=r"does not read: former_option.*version in its manifest"):
        RunDir.open(tmp_path / "run", config, "malt run", complete=with_defaults)


def test_the_mirror_of_an_older_version_is_continued(tmp_path):
    url = str(tmp_path / "mirror")
    config = older_run(tmp_path / "run", "rounds")
    mirror.push(tmp_path / "run", url)
    opened = {"complete": with_defaults, "mirror": url}
    with pytest.raises(UserError, match="rounds was 1 and is now 2"):
        RunDir.open(tmp_path / "two", config | {"rounds": 2}, "malt run", **opened)
    RunDir.open(tmp_path / "two", config, "malt run", **opened).close()


names = st.text(min_size=1, max_size=5).filter(lambda key: "." not in key)
values = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
)
configs = st.recursive(
    st.dictionaries(names, values, max_size=3),
    lambda inner: st.dictionaries(names, values | inner | st.lists(values, max_size=3), max_size=3),
    max_leaves=5,
)


@settings(max_examples=30, deadline=None)
@given(configs, st.text(st.characters(codec=None, exclude_categories=()), max_size=20))
def test_any_config_equals_itself_after_saving(tmp_path_factory, config, text):
    config = {**config, "prompt": text}
    path = tmp_path_factory.mktemp("any") / "run"
    RunDir.open(path, config, "malt run").close()
    RunDir.open(path, config, "malt run").close()
    assert differences(config, {**config, "prompt": text + "x"}) != []


@pytest.mark.parametrize("content", ["notes.txt", "config.yaml", "manifest.copy.json", "a/b"])
def test_another_programs_folder_is_refused_and_unchanged(tmp_path, content):
    target = tmp_path / content
    target.parent.mkdir(exist_ok=True)
    target.write_text("mine")
    with pytest.raises(UserError):
        RunDir.open(tmp_path, CONFIG, "malt run")
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [target]
    assert target.read_text() == "mine"


def test_a_file_in_place_of_the_run_directory_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        RunDir.open(tmp_path / "run", CONFIG, "malt run")
    with pytest.raises(UserError, match="remove the file"):
        RunDir.open(tmp_path / "run" / "below", CONFIG, "malt run")


def test_reading_a_run_takes_no_lock(run, tmp_path):
    assert RunDir.existing(run.path).config == CONFIG
    with pytest.raises(UserError, match="is writing this run"):
        RunDir.open(run.path, CONFIG, "malt run")
    with pytest.raises(UserError, match="not a run directory"):
        RunDir.existing(tmp_path)


def test_a_run_killed_at_any_moment_of_its_creation_opens_again(tmp_path):
    code = """
import sys
from malt_jax.storage.rundir import RunDir
config = {"seed": 1}
print("ready", flush=True)
RunDir.open(sys.argv[1], config, "malt run").close()
print("made", flush=True)
"""
    generator = random.Random(2)
    for attempt in range(6):
        path = tmp_path / str(attempt)
        child = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(generator.uniform(0, 0.03))
        child.kill()
        child.wait()
        child.stdout.close()
        with RunDir.open(path, {"seed": 1}, "malt run") as run:
            assert run.config == {"seed": 1}
            assert not list(path.glob(".tmp-*"))


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", ".tmp-x", "a\0", "-x", "x" * 200])
def test_names_of_roles_and_systems_cannot_lead_out_of_the_run(run, name):
    for place in (lambda: run.data(0, name), lambda: run.eval(name), lambda: run.export(name)):
        with pytest.raises(UserError, match="cannot name a folder"):
            place()
    assert run.eval("malt@3+sa_9").parent == run.path / "eval"


def test_withdrawing_removes_an_empty_run_and_no_other(run, tmp_path):
    with RunDir.open(tmp_path / "empty", CONFIG, "malt run") as empty:
        empty.withdraw()
    assert not (tmp_path / "empty").exists()
    before = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}
    run.withdraw()
    assert {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()} == before


def test_checking_refuses_what_opening_refuses_and_writes_nothing(run, tmp_path):
    RunDir.check(tmp_path / "new", CONFIG)
    RunDir.check(run.path, CONFIG)
    assert not (tmp_path / "new").exists()
    with pytest.raises(UserError, match="seed was 1 and is now 2"):
        RunDir.check(run.path, {**CONFIG, "seed": 2})
    with pytest.raises(UserError, match="not a run directory"):
        RunDir.check(tmp_path, CONFIG)


def test_a_read_only_folder_gives_one_sentence(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"Permission denied.*choose another folder"):
        RunDir.open(tmp_path / "run", CONFIG, "malt run")


def test_changed_package_versions_are_reported_and_recorded(run, monkeypatch, capsys):
    run.close()
    monkeypatch.setattr(manifest, "versions", lambda: {"jax": "99"})
    with RunDir.open(run.path, CONFIG, "malt run") as again:
        assert "resumed_with" not in manifest.load(again)  # nothing has been made with them yet
        manifest.seal(again, "eval", [again.results])
        assert "is now 99" in capsys.readouterr().err
        assert manifest.load(run)["resumed_with"] == [{"jax": "99"}]
        manifest.seal(again, "eval", [again.results])
        assert capsys.readouterr().err == ""


def test_storage_does_not_import_jax():
    code = "import malt_jax.storage.metrics, sys; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- other programs' files


def listing(folder: Path) -> dict[str, bytes | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.update(format=2),
        lambda data: data.pop("versions"),
        lambda data: data.pop("config_sha256"),
        lambda data: data.update(stages=[]),
        lambda data: data["stages"]["eval"].pop("done"),
        lambda data: data["stages"]["eval"].update(units=[5]),
        lambda data: data["artefacts"]["results.json"].pop("bytes"),
        lambda data: data["artefacts"]["results.json"].update(stage="nowhere"),
        lambda data: data.update(model="m"),
        lambda data: data.update(resumed_with=[]),
    ],
)
def test_a_malformed_manifest_with_a_valid_seal_is_refused(run, damage):
    data = manifest.load(run)
    damage(data)
    manifest._write(run.path, data)
    with pytest.raises(UserError, match="cannot be trusted"):
        manifest.load(run)


@pytest.mark.parametrize(
    "path", ["", ".", "..", "/etc/x", "../x", "a/../../x", "./x", "a//b", "a\0", "set-aside"]
)
@pytest.mark.parametrize("place", ["units", "artefacts"])
def test_no_path_in_a_manifest_can_lead_out_of_the_run(run, place, path):
    data = manifest.load(run)
    if place == "units":
        data["stages"]["eval"]["units"] = [path]
    else:
        data["artefacts"][path] = data["artefacts"]["results.json"]
    manifest._write(run.path, data)
    before = listing(run.path)
    with pytest.raises(UserError, match="leaves the run directory"):
        manifest.redo(run, "search/000")
    assert listing(run.path) == before


@pytest.mark.parametrize("name", [".lock", "manifest.json", "config.yaml"])
def test_a_pipe_in_place_of_a_file_is_refused_without_waiting(tmp_path, name):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / name)
    with pytest.raises(UserError):
        RunDir.open(tmp_path / "run", CONFIG, "malt run")
    assert os.listdir(tmp_path / "run") == [name]


def test_a_lock_file_that_is_a_link_is_refused(run, tmp_path):
    (tmp_path / "precious").write_text("mine")
    run.close()
    (run.path / ".lock").unlink()
    (run.path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(UserError, match="is a link"):
        RunDir.open(run.path, CONFIG, "malt run")
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    "name",
    [
        *(".tmp-thesis/x.tex", ".tmp-malt-thesis", ".tmp-malt-0123abcd-thesis", ".lock"),
        *(".tmp-malt-0123abcd-config.yaml/x.tex", ".old-malt-0123abcd-thesis/x.tex"),
    ],
)
def test_a_folder_with_other_hidden_files_is_refused_and_unchanged(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = listing(tmp_path)
    with pytest.raises(UserError, match="not empty"):
        RunDir.open(tmp_path, CONFIG, "malt run")
    assert listing(tmp_path) == before


def test_a_run_inside_another_run_is_refused_unless_it_is_declared(run, tmp_path):
    (tmp_path / "link").symlink_to(run.path)
    for outer in (run.path, tmp_path / "link"):
        for opening in (RunDir.check, lambda *to: RunDir.open(*to, "malt run")):
            with pytest.raises(UserError, match="lies in the run directory"):
                opening(outer / "cost" / "new", CONFIG)
    assert not (run.path / "cost").exists()
    RunDir.open(run.path / "ablations" / "a", CONFIG, "ablation", inside=run).close()
    RunDir.open(run.path / "ablations" / "a", CONFIG, "malt label").close()


def test_withdrawing_keeps_folders_that_existed_before(tmp_path):
    (tmp_path / "run").mkdir()
    for place in ("run", "new/deep/run"):
        with RunDir.open(tmp_path / place, CONFIG, "malt run") as made:
            made.withdraw()
    assert listing(tmp_path) == {"run": None}


@pytest.mark.parametrize("place", ["x" * 300, "/proc/x", "/dev/fd/x", "\ud800"])
def test_an_impossible_path_gives_one_sentence(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        RunDir.open(place, CONFIG, "malt run")
    with pytest.raises(UserError, match="not a run directory"):
        RunDir.existing(place)
    assert listing(tmp_path) == {}


# ---------------------------------------------------------------- requests to stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_only_request_a_stop_and_further_ones_have_no_effect(number, capfd):
    before = signal.getsignal(number)
    with signals.graceful_stop():
        signals.raise_if_stopped()
        assert not signals.stop_requested()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.stop_requested()
        with pytest.raises(RunStopped) as stop:
            signals.raise_if_stopped()
        assert stop.value.signal_number == number
    assert capfd.readouterr().err.count("next safe point") == 1
    assert signal.getsignal(number) == before and not signals.stop_requested()


def test_a_nested_block_leaves_the_request_to_the_outer_one():
    with signals.graceful_stop():
        with signals.graceful_stop():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signals.stop_requested()
    assert not signals.stop_requested()


def test_forked_workers_ignore_ctrl_c_and_end_on_sigterm(capfd):
    def work(started) -> None:
        started.set()
        time.sleep(60)

    forking = multiprocessing.get_context("fork")
    with signals.graceful_stop():
        started = forking.Event()
        worker = forking.Process(target=work, args=(started,))
        worker.start()
        assert started.wait(10)
        os.kill(worker.pid, signal.SIGINT)
        worker.join(0.2)
        assert worker.is_alive()
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == -signal.SIGTERM and not signals.stop_requested()
    assert "next safe point" not in capfd.readouterr().err


# ---------------------------------------------------------------- metrics


def test_a_resumed_series_replaces_only_the_steps_it_computes_again(run):
    with Metrics(run) as metrics:
        other = metrics.series("train", 0, "refiner", "sft")
        series = metrics.series("train", 0, "generator", "sft")
        for step in range(5):
            other.log(step, {"loss": 9.0})
            series.log(step, {"loss": float(step)})
    with open(run.metrics, "ab") as file:
        file.write(b'{"torn')
    with Metrics(run) as metrics:
        series = metrics.series("train", 0, "generator", "sft")
        for step in range(3, 6):
            series.log(step, {"loss": 10.0 + step, "margin": float("nan")})
    lines = [line for line in read_lines(run.metrics) if line["role"] == "generator"]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["loss"] for line in lines] == [0, 1, 2, 13, 14, 15]
    assert lines[-1]["margin"] is None
    assert sum(line["role"] == "refiner" for line in read_lines(run.metrics)) == 5
    events = run.events / "train/000/generator/sft"
    assert len(list(events.iterdir())) == 2
    assert (run.events / "train/000/refiner/sft").is_dir()


def test_a_tracker_receives_the_numbers_and_a_missing_one_is_named(run, monkeypatch):
    calls = []
    fake = types.SimpleNamespace(
        init=lambda **kwargs: calls.append(kwargs), log=calls.append, finish=lambda: None
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Metrics(run, tracker="wandb") as metrics:
        metrics.series("eval").log(0, {"accuracy": 0.5})
    assert calls[0]["name"] == "run" and calls[1] == {"eval/000/accuracy": 0.5}
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(UserError, match="pip install trackio"):
        Metrics(run, tracker="trackio")
