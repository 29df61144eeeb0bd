"""Evaluations and signals on the page, two runs on one page, and the page of a run in progress."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from malt_jax.credit.signals import node_signals
from malt_jax.errors import UserError
from malt_jax.evaluation.records import DrawRecord
from malt_jax.evaluation.results import SystemInfo, summarise
from malt_jax.evaluation.statistics import exact_mcnemar, majority_vote
from malt_jax.evaluation.transfer import Column
from malt_jax.report import build_report, compare, live
from malt_jax.report.signals import read_signals, signal_table
from malt_jax.stages.compare import check_output
from malt_jax.storage.jsonl import read_lines, read_records
from malt_jax.tree.node import Forest, Tree
from synthetic_run import HOSTILE, _problem, make_run

QUESTIONS = 10


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return make_run(folder / "one", QUESTIONS), make_run(folder / "other", QUESTIONS, seed=1)


@pytest.fixture(autouse=True)
def only_svg(monkeypatch):
    """PDF and PNG files take most of the time of a report."""
    monkeypatch.setattr("malt_jax.report.drawing.save", lambda figure, path: None)


def _results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def side(run: Path, rename: str = "E", questions: int = QUESTIONS) -> compare.Side:
    """A run as the page of a comparison takes it; its ids may be other ones than its file's."""
    problems = {f"{rename}{i}": _problem(i) for i in range(questions)}
    texts = {id: (text, str(answer)) for id, (text, answer, _) in problems.items()}
    return compare.Side(run, texts, _results(run), 0.5, ("generator", "verifier", "refiner"))


def sweep(run: Path) -> dict:
    """The results of a run as if two of its systems were measured at two temperatures."""
    draws, systems = {}, {}
    for t, (name, label) in itertools.product(
        (0.0, 0.7), (("sa", "single agent"), ("malt", "MALT"))
    ):
        baseline = f"sa-t{t:g}"
        systems[f"{name}-t{t:g}"] = SystemInfo(
            f"{label}, T={t:g}", (1, 3), 0.5, baseline, f"{baseline}@9", t
        )
        records = read_records(run / "eval" / f"{name}.jsonl", DrawRecord.from_record)
        draws[f"{name}-t{t:g}"] = list(records)
    return summarise(draws, systems, "sa@9")


def test_the_page_shows_every_evaluation_beside_the_runs_own_results(runs, tmp_path):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    other = _results(runs[1])
    found = [Column("sweep", "gsm8k", "eval", sweep(run)), Column(HOSTILE[1], "math", "x", other)]
    text = build_report(run, evaluations=found).read_text()
    accuracy = next(r["accuracy"] for r in other["systems"] if r["name"] == "malt@3")
    assert "Measured elsewhere" in text and f"{100 * accuracy:.1f} (" in text
    assert 'data-evaluation="sweep"' in text and "By temperature" in text
    assert "<img src=x" not in text
    assert (run / "plots" / "evaluation-sweep-by-temperature.svg").exists()
    # A run's own evaluation may be a sweep; each row has the baseline of its temperature.
    (run / "results.json").write_text(json.dumps(sweep(run)))
    text = build_report(run).read_text()
    assert "Measured elsewhere" not in text and "at the same temperature (sa@9)" in text
    assert "MALT, T=0, vote of 3: <strong>" in text and "not tested" not in text
    assert "sa@9 at its own temperature" in text and '"before":["ma-t0","sa-t0"]' in text
    assert Column.of("run", other).task == "gsm8k"


def test_signals_are_summed_up_as_numpy_sums_them_up(runs, tmp_path):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    trees = list(read_records(run / "rounds/000/trees/00000.jsonl", Tree.from_record))
    signals = node_signals(Forest(trees))
    path = run / "rounds" / "000" / "credit" / "signals.jsonl"
    path.parent.mkdir()
    nodes = [node for tree in trees for node in tree.nodes]
    rows = [{"node_id": n.id, "role": n.role, "value": n.value, **signals[n.id]} for n in nodes]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = [signals[n.id]["advantage"] for n in nodes if n.role == "verifier"]
    values, _ = read_signals(path)["verifier", "advantage"]
    assert list(values) == own
    [line] = [
        row for row in signal_table(read_signals(path)).rows if row[:2] == ["advantage", "verifier"]
    ]
    numbers = [float(cell.replace("−", "-")) for cell in line[3:7]]
    quantiles = np.quantile(own, (0.05, 0.5))
    assert numbers == pytest.approx([len(own), np.mean(own), *quantiles], abs=6e-4)
    text = build_report(run).read_text()
    assert "Credit signals" in text and "advantage, share of nodes" in text


def test_runs_are_tested_on_the_questions_whose_text_both_have(runs, tmp_path):
    page = tmp_path / "page.html"
    compare.write_comparison(page, (side(runs[0]), side(runs[1])), [("seed", "3", HOSTILE[0])])
    text = page.read_text()

    def right(run: Path) -> list[bool]:
        drawn: dict[str, list[dict]] = {}
        for row in read_lines(run / "eval" / "malt.jsonl"):
            drawn.setdefault(row["question_id"], []).append(row)
        votes = {q: majority_vote([r["prediction"] for r in rows[:3]]) for q, rows in drawn.items()}
        return [drawn[q][vote.draw]["correct"] for q, vote in votes.items()]

    a, b = right(runs[0]), right(runs[1])
    gained = sum(y and not x for x, y in zip(a, b, strict=True))
    lost = sum(x and not y for x, y in zip(a, b, strict=True))
    assert f"<td>{gained} / {lost}</td><td>{exact_mcnemar(gained, lost):.3f}</td>" in text
    assert f"On the {QUESTIONS} questions" in text
    assert "</script><script>document" not in text
    assert "B: Search trees" in text and "verifier, DPO, margin" in text


def test_an_ablation_of_both_runs_is_compared_by_the_file_that_its_results_name(runs, tmp_path):
    sides = [side(Path(shutil.copytree(run, tmp_path / run.name))) for run in runs]
    both = compare.same_questions(sides[0].questions, sides[1].questions)
    expected = compare._pairings(tuple(sides), both)
    for one in sides:
        folder = one.path / "ablations" / "a" / "eval"
        folder.mkdir(parents=True)
        (one.path / "eval" / "star-ma.jsonl").rename(folder / "star-ma.jsonl")
        records = dict(one.results["records"])
        records["ablations/a/eval/star-ma.jsonl"] = records.pop("eval/star-ma.jsonl")
        one.results["records"] = records
    assert compare._pairings(tuple(sides), both) == expected


def test_a_question_is_the_same_by_its_text_and_answer_whatever_its_id(runs):
    first, second = side(runs[0]).questions, side(runs[1], rename="X").questions
    second["X0"] = (second["X0"][0], "another answer")
    both = compare.same_questions(first, second)
    assert both == {f"E{i}": f"X{i}" for i in range(1, QUESTIONS)}


def test_runs_without_a_question_in_common_are_shown_and_not_tested(runs, tmp_path):
    page = tmp_path / "page.html"
    strangers = side(runs[1])
    object.__setattr__(strangers, "questions", {"E0": ("another", "1")})
    compare.write_comparison(page, (side(runs[0]), strangers), [])
    text = page.read_text()
    assert "no evaluation question in common" in text and "same config" in text
    check_output(page)  # an earlier comparison may be replaced
    (tmp_path / "mine.html").write_text("<p>my notes")
    with pytest.raises(UserError, match="is kept"):
        check_output(tmp_path / "mine.html")


def test_a_folder_that_is_not_the_data_of_an_earlier_comparison_is_kept(tmp_path):
    page, folder = tmp_path / "results.html", tmp_path / "results_data"
    folder.mkdir()
    (folder / "pages-0000.js").write_text('maltPage("pages-0000",[]);\n')
    with pytest.raises(UserError, match="results_data is in the place"):
        check_output(page)  # no page of a comparison is beside it
    page.write_text(f"<html>{compare.MARK}")
    check_output(page)
    for name, text in (("raw.csv", "maltPage("), ("own.js", "alert(1)"), ("sub/a.js", "maltPage(")):
        mine = folder / name
        mine.parent.mkdir(exist_ok=True)
        mine.write_text(text)
        with pytest.raises(UserError, match="it is kept"):
            check_output(page)
        assert mine.read_text() == text
        mine.unlink()
        if mine.parent != folder:
            mine.parent.rmdir()
    check_output(page)
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="it is kept"):
        check_output(page)


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of a live page of the run."""
    address, stop = [], threading.Event()
    options = {"evaluations": list, "stopped": stop.is_set, "on_ready": address.append}
    thread = threading.Thread(target=live.serve, args=(run, 0), kwargs=options)
    thread.start()
    try:
        while not address:
            assert thread.is_alive()
            time.sleep(0.02)
        yield address[0]
    finally:
        stop.set()
        thread.join()


def get(address: str, host: str | None = None) -> str:
    request = urllib.request.Request(address, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=60) as reply:
        return reply.read().decode()


@pytest.fixture
def begun(runs, tmp_path, monkeypatch) -> Path:
    """A run that has a manifest and nothing else; what it makes next is in `runs[0]`."""
    monkeypatch.setattr(live, "LEAST_PAUSE", 0.2)
    stages = {"search/000": {"done": True, "units": []}, "eval": {"done": False, "units": []}}
    monkeypatch.setattr(live.manifest, "load", lambda run: {"stages": stages})
    folder = tmp_path / "demo"
    folder.mkdir()
    return folder


def test_a_live_page_waits_for_a_run_and_then_shows_it_without_writing_there(begun, runs):
    with served(begun) as address:
        assert "nothing to show yet" in get(address)
        state = json.loads(get(address + "state"))
        assert (state["done"], state["open"], state["trees"]) == (["search/000"], ["eval"], 0)
        shutil.copytree(runs[0] / "rounds", begun / "rounds")
        lines = (runs[0] / "metrics.jsonl").read_text().splitlines(keepends=True)
        (begun / "metrics.jsonl").write_text("".join(lines) + '{"torn')
        until = time.monotonic() + 120
        # The torn line is refused, so the page still waits.
        while json.loads(get(address + "state"))["trees"] != QUESTIONS:
            assert time.monotonic() < until
        assert json.loads(get(address + "state"))["last"] == json.loads(lines[-1])
        (begun / "metrics.jsonl").write_text("".join(lines))
        while "Search trees" not in get(address) and time.monotonic() < until:
            time.sleep(0.1)
        assert "connect-src 'self'" in get(address) and "demo" in get(address)
        assert {path.name for path in begun.iterdir()} == {"rounds", "metrics.jsonl"}


def test_data_of_a_live_page_has_a_secret_address_that_ends_with_its_version(
    begun, runs, monkeypatch
):
    monkeypatch.setattr("malt_jax.report.embed.INLINE_BYTES", 0)
    shutil.copytree(runs[0] / "rounds", begun / "rounds")

    def data_of(text: str) -> str:
        return str(json.loads(re.findall(r'id="data">(.*?)</script>', text)[0])["folder"])

    with served(begun) as address:
        old, page = data_of(get(address)), "trees000-0000.js"
        assert len(old) > len("data/") + 20
        with urllib.request.urlopen(address + old + page, timeout=60) as reply:
            assert reply.read().startswith(b"maltPage(")
            assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        (begun / "changed.json").write_text("{}")
        until = time.monotonic() + 120
        while data_of(get(address)) == old:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert get(address + data_of(get(address)) + page).startswith("maltPage(")
        for place in (old + page, f"data/{page}", f"report_data/{page}"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(address + place)
            assert refused.value.code == 404
            assert ("reload the page" in refused.value.reason) == place.startswith("data/")


def test_a_live_page_is_for_this_machine_only(begun):
    with served(begun) as address:
        assert address.startswith("http://127.0.0.1:")
        for path, host, status in (
            ("", "evil.example:80", 403),
            ("manifest.json", None, 404),
            ("report_data/../../etc/passwd", None, 404),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                get(address + path, host)
            assert refused.value.code == status
