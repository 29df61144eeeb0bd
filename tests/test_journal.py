"""A stage's journal: what it writes is recovered, appended once, sealed, and never repeated."""

from __future__ import annotations

import json
import signal

import pytest

from malt_jax.errors import RunStopped, UserError
from malt_jax.progress import Progress
from malt_jax.storage import manifest
from malt_jax.storage.journal import Journal
from malt_jax.storage.rundir import RunDir
from malt_jax.storage.signals import graceful_stop

ITEMS = [f"q{i}" for i in range(7)]


@pytest.fixture
def run(tmp_path):
    with RunDir.open(tmp_path / "run", {"seed": 0}, "test") as directory:
        yield directory


def journal(run, stage="search/000", **options) -> Journal:
    return Journal(run, stage, Progress(quiet=True), **options)


def shard(run):
    def files(number, items):
        return {run.trees(0) / f"{number:05d}.jsonl": {(item,) for item in items}}

    return files


def search(run, seen, fail_at=None):
    with journal(run) as one:
        for block in one.blocks(ITEMS, 3, shard(run)):
            seen.append(list(block.items))
            if fail_at in block.items:
                raise RuntimeError("killed")
            (path,) = block.missing
            block.append(path, ({"question_id": item, "text": item * 3} for item in block.items))


def lines(path):
    return [json.loads(line)["question_id"] for line in path.read_text().splitlines()]


def test_every_block_is_a_sealed_file_and_a_finished_stage_has_nothing_to_do(run):
    seen = []
    search(run, seen)
    assert seen == [ITEMS[:3], ITEMS[3:6], ITEMS[6:]]
    assert [lines(path) for path in sorted(run.trees(0).iterdir())] == seen
    assert manifest.stage_done(run, "search/000")
    search(run, again := [])
    assert again == []


def test_after_a_failure_only_the_unfinished_blocks_are_worked_on_again(run):
    with pytest.raises(RuntimeError):
        search(run, [], fail_at="q4")
    assert not manifest.stage_done(run, "search/000")
    search(run, seen := [])
    assert seen == [ITEMS[3:6], ITEMS[6:]]


def test_of_a_block_that_was_cut_short_only_the_missing_lines_are_appended(run):
    with pytest.raises(RuntimeError):
        search(run, [], fail_at="q4")
    path = run.trees(0) / "00001.jsonl"
    whole = b'{"question_id":"q3","text":"q3q3q3"}\n'
    path.write_bytes(whole + b'{"question_id":"q4","te')  # torn in its second line
    search(run, seen := [])
    assert seen[0] == ITEMS[3:6] and lines(path) == ITEMS[3:6]
    assert path.read_bytes().startswith(whole)


def test_a_stop_request_takes_effect_after_the_block_is_sealed(run):
    with graceful_stop(), pytest.raises(RunStopped), journal(run) as one:
        for block in one.blocks(ITEMS, 3, shard(run)):
            (path,) = block.missing
            block.append(path, ({"question_id": item} for item in block.items))
            signal.raise_signal(signal.SIGTERM)
    assert [path.name for path in manifest.sealed_units(run, "search/000")] == ["00000.jsonl"]
    with graceful_stop():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(RunStopped):
            journal(run, "label/000")


def test_files_that_all_blocks_append_to_are_sealed_after_the_last_one(run):
    path = run.eval("sa")

    def roll_out(fail_at=None):
        with journal(run, "eval") as one:
            files = lambda number, items: {path: {(i, d) for i in items for d in (0, 1)}}  # noqa: E731
            key = ("question_id", "draw")
            for block in one.blocks(ITEMS, 3, files, key=key, sealed_apart=False):
                if fail_at in block.items:
                    raise RuntimeError("killed")
                block.append(
                    path, ({"question_id": i, "draw": d} for i in block.items for d in (0, 1))
                )

    with pytest.raises(RuntimeError):
        roll_out(fail_at="q6")
    assert manifest.sealed_units(run, "eval") == []
    roll_out()
    assert lines(path) == [item for item in ITEMS for _ in (0, 1)]
    costs = Journal.block_costs(run, "eval")
    assert [cost["questions"] for cost in costs.values()] == [3, 3, 1]  # of both processes
    run_cost = json.loads((run.path / "cost" / "eval.json").read_text())
    assert run_cost["seconds"] == sum(cost["seconds"] for cost in costs.values())


def test_of_files_that_grow_together_only_a_damaged_one_is_made_again(run):
    paths = [run.eval("sa"), run.eval("ma")]

    def roll_out():
        seen = []
        with journal(run, "eval") as one:
            files = lambda number, items: {path: {(i,) for i in items} for path in paths}  # noqa: E731
            for block in one.blocks(ITEMS, 3, files, sealed_apart=False):
                seen.append({path.name for path, keys in block.missing.items() if keys})
                for path in paths:
                    block.append(path, ({"question_id": item} for item in block.items))
        return seen

    roll_out()
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:-9])
    manifest.redo(run, "eval")
    assert roll_out() == [{"ma.jsonl"}] * 3 and paths[1].read_bytes() == whole


def test_the_cost_is_recorded_even_if_the_stop_came_after_the_last_block(run):
    with graceful_stop(), pytest.raises(RunStopped), journal(run) as one:
        for block in one.blocks(ITEMS, 7, shard(run)):
            (path,) = block.missing
            block.append(path, ({"question_id": item} for item in block.items))
            signal.raise_signal(signal.SIGTERM)
    cost = run.path / "cost" / "search-000.json"
    assert not cost.exists()
    search_again = []
    with journal(run, meter=lambda: lambda: {"tokens": 0}) as one:
        for block in one.blocks(ITEMS, 7, shard(run)):
            search_again.append(block)
    assert search_again == [] and json.loads(cost.read_text())["tokens"] == 0
    assert cost in manifest.sealed_units(run, "search/000")


def test_the_cost_of_growing_files_can_be_read_before_the_stage_ends(run):
    path = run.eval("sa")
    with journal(run, "eval") as one:
        files = lambda number, items: {path: {(i,) for i in items}}  # noqa: E731
        for block in one.blocks(ITEMS, 3, files, sealed_apart=False):
            block.append(path, ({"question_id": item} for item in block.items))
        assert "seconds" in json.loads((run.path / "cost" / "eval.json").read_text())


def test_what_a_failing_stage_has_written_is_not_sealed(run):
    with pytest.raises(RuntimeError), journal(run, "label/000") as one:
        one.write_json(run.data(0, "counts").with_suffix(".json"), {})
        raise RuntimeError
    assert not manifest.stage_done(run, "label/000")
    with journal(run, "label/000") as one:
        one.write_lines(run.data(0, "verifier") / "sft.jsonl", [{"prompt": "a"}])
        one.record_cost(seconds=1.0)
    names = [path.name for path in manifest.sealed_units(run, "label/000")]
    assert names == ["sft.jsonl", "label-000.json"] and manifest.stage_done(run, "label/000")


def test_pieces_are_sealed_one_by_one_and_a_foreign_folder_in_their_place_is_moved_aside(run):
    pieces = {name: run.export(name) for name in ("verifier", "refiner")}
    pieces["verifier"].mkdir(parents=True)
    (pieces["verifier"] / "mine").write_text("kept")

    def export(fail_at=None):
        done = []
        with journal(run, "export") as one:
            for name, folder in one.pending(pieces, folders=True):
                if name == fail_at:
                    raise RuntimeError
                folder.mkdir(parents=True)
                (folder / "weights").write_text(name)
                done.append(name)
        return done

    with pytest.raises(RuntimeError):
        export(fail_at="refiner")
    assert (run.path / "set-aside" / "000" / "export" / "verifier" / "mine").read_text() == "kept"
    assert export() == ["refiner"] and export() == []


def test_a_finished_stage_whose_files_have_changed_is_refused(run):
    search(run, [])
    path = run.trees(0) / "00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b"q1", b"q9"))
    with pytest.raises(UserError, match="content changed"):
        journal(run)


def test_other_sealed_files_of_an_evaluation_do_not_stop_it_and_those_of_a_search_do(run):
    """Held-out trees are sealed beside the draws; a joined search must not be added to."""

    def evaluate(fail: bool) -> None:
        path = run.path / "eval/sa.jsonl"
        with journal(run, "eval") as one:
            for block in one.blocks(
                ITEMS, 3, lambda number, items: {path: {(i,) for i in items}}, sealed_apart=False
            ):
                block.append(path, ({"question_id": item} for item in block.items))
            trees = {"before": run.path / "eval/trees/before.jsonl"}
            for _, place in one.pending(trees, folders=False):
                one.write_lines(place, [{"id": 1}, {"id": 2}])
            if fail:
                raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        evaluate(fail=True)
    evaluate(fail=False)
    assert manifest.stage_done(run, "eval")
    with journal(run, finishes=False) as one:
        one.write_lines(run.trees(0) / "1of2-00000.jsonl", [{"question_id": "q0"}])
    with pytest.raises(UserError, match="was joined or imported"):
        search(run, [])
