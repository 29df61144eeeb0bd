"""The report as a file: what it holds, what it must not, and what it does with half a run."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.errors import UserError
from malt_jax.report import build_report, figures
from malt_jax.report.drawing import COLOURS, inline_svg, svg_file, to_svg
from malt_jax.report.embed import script_json
from malt_jax.report.figures import DepthValues
from malt_jax.report.prompts import Templates, expand
from malt_jax.report.trees import entry
from malt_jax.storage.jsonl import read_lines
from malt_jax.tree.node import Node, Tree
from synthetic_run import HOSTILE, make_run

any_text = st.text(alphabet=st.characters(categories=("L", "N", "P", "S", "Z", "C")))


class Page(HTMLParser):
    """The elements of a page, and what its scripts hold."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: Counter = Counter()
        self.attributes: list[tuple[str, str, str | None]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        if tag == "script":
            self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data

    @property
    def data(self) -> dict:
        return json.loads(self.scripts[0])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo", 20, rounds=2)


def _trees(run: Path, folder: str = "000") -> Iterator[dict]:
    return read_lines(run / "rounds" / folder / "trees" / "00000.jsonl")


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page(build_report(run))


@pytest.fixture
def only_svg(monkeypatch):
    """For tests of the page alone: PDF and PNG files take most of the time of a report."""
    monkeypatch.setattr("malt_jax.report.drawing.save", lambda figure, path: None)


def test_page_holds_every_question_of_every_round(run, page):
    groups = {group["key"]: group for group in page.data["groups"]}
    assert list(groups) == ["trees000", "trees001", "heldout-before", "heldout-after"]
    for group, folder in zip(groups.values(), ("000", "001"), strict=False):
        trees = [tree["question_id"] for tree in _trees(run, folder)]
        assert [question["id"] for question in group["questions"]] == trees
    assert groups["heldout-before"]["trained"] is None
    assert len(page.data["evaluation"]) == 20
    assert page.data["folder"] is None and not (run / "report_data").exists()


def test_the_page_needs_no_network(page):
    for _, name, value in page.attributes:
        assert name not in ("src", "href", "action", "data") or value.startswith("#")
    assert page.tags["link"] == page.tags["img"] == page.tags["iframe"] == 0
    policy = next(v for _, name, v in page.attributes if name == "content" and "default-src" in v)
    assert "default-src 'none'" in policy and "http" not in policy


def test_model_text_adds_no_element_to_the_page(run, page, tmp_path, only_svg):
    harmless = tmp_path / "harmless"
    shutil.copytree(run, harmless)
    for path in [*harmless.rglob("*.jsonl")]:
        text = path.read_text()
        for hostile in HOSTILE:
            text = text.replace(json.dumps(hostile)[1:-1], "plain")
        path.write_text(text)
    assert Page(build_report(harmless)).tags == page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_system_names_and_run_facts_are_text(run, tmp_path, only_svg):
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    results = json.loads((copied / "results.json").read_text())
    before = Page(build_report(copied)).tags
    for row, hostile in zip(results["systems"], HOSTILE, strict=False):
        row["label"] = hostile
    results["run"]["model"] = HOSTILE[1]
    (copied / "results.json").write_text(json.dumps(results))
    path = build_report(copied)
    assert Page(path).tags == before
    assert "\x1b" not in path.read_text() and "\u202e" not in path.read_text()


@given(st.recursive(any_text | st.integers() | st.none(), st.lists, max_leaves=8))
def test_embedded_data_is_inert_and_is_read_back(data):
    text = script_json(data)
    assert text.isascii() and not set(text) & set("<>&\x00")
    assert json.loads(text) == data


def test_numbers_that_json_lacks_are_refused():
    with pytest.raises(ValueError):
        script_json([float("nan")])


@given(st.text("ab{}\ue000q\ue0010 "), st.lists(st.text("ab\ue0001\ue001q "), max_size=3))
def test_every_prompt_can_be_assembled_again(question, turns):
    templates = Templates()
    prompt = "role: " + question + "".join(f"\nturn {turn}" for turn in turns) + " end"
    number = templates.number(prompt, question, turns)
    kept = templates.texts[number] if isinstance(number, int) else number
    expanded = expand(kept, question, turns) if isinstance(number, int) else kept
    assert expanded == prompt


def test_prompts_of_a_role_share_one_template(page):
    assert len(page.data["prompts"]) == 3


def test_saved_and_broken_leaves_are_those_whose_draft_had_the_opposite_outcome(run):
    for tree in _trees(run):
        nodes = {node["id"]: node for node in tree["nodes"]}
        leaves = [node for node in tree["nodes"] if "reward" in node]
        drafted = [nodes["/".join(leaf["id"].split("/")[:2])]["correct"] for leaf in leaves]
        right = [bool(leaf["reward"]) for leaf in leaves]
        found = entry(Tree.from_record(tree))
        assert found["saved"] == sum(r and not d for r, d in zip(right, drafted, strict=True))
        assert found["broke"] == sum(d and not r for r, d in zip(right, drafted, strict=True))
        assert found["leaves"] == "".join("01"[r] for r in right)


def test_a_report_of_the_same_run_is_the_same_file_with_the_same_figures(run, page):
    def written() -> dict[str, bytes]:
        files = [run / "report.html", *sorted((run / "plots").iterdir())]
        return {path.name: path.read_bytes() for path in files}

    before = written()
    build_report(run)
    assert written() == before


def test_large_runs_keep_the_page_small_and_write_the_data_beside_it(
    tmp_path, monkeypatch, only_svg
):
    monkeypatch.setattr("malt_jax.report.embed.INLINE_BYTES", 100_000)
    monkeypatch.setattr("malt_jax.report.embed.PAGE_BYTES", 60_000)
    run = make_run(tmp_path / "run", 12)
    path = build_report(run)
    files = sorted((run / "report_data").iterdir())
    named = {q["page"] for found in Page(path).data["groups"] for q in found["questions"]}
    named |= {q["page"] for q in Page(path).data["evaluation"]}
    assert {file.stem for file in files} == named and len(files) > 4
    assert path.stat().st_size < 200_000
    for file in files:
        call = re.fullmatch(r'maltPage\("([\w-]+)",(.*)\);\n', file.read_text(), re.S)
        assert call[1] == file.stem and json.loads(call[2])
    monkeypatch.undo()
    build_report(run)
    assert not (run / "report_data").exists(), "pages nothing refers to are left behind"


def test_five_hundred_questions_stay_below_five_megabytes(tmp_path, only_svg):
    # A fifth of them, to be quick: what the page holds beside its questions counts five times.
    run = make_run(tmp_path / "run", 100, words=60)
    assert 5 * build_report(run).stat().st_size < 5_000_000
    assert (run / "report_data").exists()


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (["rounds"], ["No system has been measured", "Nothing has been trained", "no results yet"]),
        (["metrics.jsonl"], ["There are no trees yet", "nothing to explore"]),
        (["results.json"], ["There are no trees yet", "Nothing has been trained"]),
        (["eval"], ["No system has been measured", "Nothing has been trained"]),
    ],
)
def test_a_sentence_stands_for_what_is_missing(run, tmp_path, kept, told, only_svg):
    part = tmp_path / "part"
    part.mkdir()
    for name in kept:
        copy = shutil.copytree if (run / name).is_dir() else shutil.copy
        copy(run / name, part / name)
    text = build_report(part).read_text()
    assert all(sentence in text for sentence in told)


def test_trees_without_role_data_and_without_leaves_right_are_shown(run, tmp_path):
    part = tmp_path / "part"
    folder = part / "rounds" / "000" / "trees"
    folder.mkdir(parents=True)
    tree = next(_trees(run))
    for node in tree["nodes"]:
        node.update(value=0.0, label=False, correct=None)
        if "reward" in node:
            node.update(reward=0, correct=False)
    (folder / "00000.jsonl").write_text(json.dumps(tree) + "\n")
    assert Page(build_report(part)).data["groups"][0]["trained"] == []


def test_an_empty_folder_and_torn_results_are_refused(tmp_path):
    with pytest.raises(UserError, match="nothing to report"):
        build_report(tmp_path)
    (tmp_path / "results.json").write_text('{"run":')
    with pytest.raises(UserError, match=r"results\.json: not JSON"):
        build_report(tmp_path)


def test_every_figure_is_well_formed_whatever_names_it_holds(run):
    results = json.loads((run / "results.json").read_text())
    for row, hostile in zip(results["systems"], HOSTILE, strict=False):
        row["label"] = row["system"] = hostile
    drawn = [
        figures.accuracy_against_tokens(results),
        figures.cost_by_stage({HOSTILE[0]: {"seconds": 0.0}, "a/b": {"seconds": 2.0}}),
        figures.value_histogram(HOSTILE[1], {0.0: 3, 1.0: 4}, 0.5),
        figures.value_histogram("many", {i / 40: 1 for i in range(41)}, 0.0),
        figures.reward_by_depth(
            [DepthValues(HOSTILE[2], 0, 0.5, 1, None), DepthValues("r", 0, 0.5, 1, 0.5)]
        ),
        figures.learning_curve(HOSTILE[3], [(0, 1.0), (1, 1.0)]),
        *(figures.reliability(HOSTILE[4], found) for found in results["calibration"].values()),
    ]
    for figure in drawn:
        svg = to_svg(figure)
        for text in (svg_file(svg), inline_svg(svg, HOSTILE[1])):
            assert ElementTree.fromstring(text).tag.endswith("svg")


def test_every_figure_is_saved_as_svg_pdf_and_png_that_need_no_page(run, page):
    saved = {}
    for path in (run / "plots").iterdir():
        saved.setdefault(path.stem, {})[path.suffix] = path.read_bytes()
    for kind in ("accuracy-against-tokens", "cost-by-stage", "values-", "reward-by-depth-",
                 "reliability-verifier", "training-1-verifier-dpo-margin"):  # fmt: skip
        assert any(name.startswith(kind) for name in saved), kind
    for files in saved.values():
        assert set(files) == {".svg", ".pdf", ".png"}
        text = files[".svg"].decode()
        box = ElementTree.fromstring(text).get("viewBox").split()
        assert [float(x) for x in box[2:]] > [0, 0]
        assert "var(" not in text and "color-mix" not in text
        assert files[".pdf"].startswith(b"%PDF-") and files[".png"].startswith(b"\x89PNG")


def test_the_page_shows_figures_in_the_colours_of_its_theme(page, run):
    text = (run / "report.html").read_text()
    drawings = re.findall(r'<svg [^>]*class="plot".*?</svg>', text, re.DOTALL)
    assert len(drawings) == len(list((run / "plots").glob("*.svg")))
    for drawing in drawings:
        assert not re.search(r"#[0-9a-f]{6}\b", drawing), "a colour that no theme changes"
        assert not re.search(r"<g id=", drawing), "an id that other figures have too"
    assert all(f"var(--{name}" in "".join(drawings) for name in ("ink", "muted", "blue", "orange"))
    assert set(COLOURS) <= set(re.findall(r"--([a-z-]+):", text))


def test_a_point_of_a_figure_says_what_it_is(run, page):
    text = (run / "plots" / "accuracy-against-tokens.svg").read_text()
    results = json.loads((run / "results.json").read_text())
    tips = [e.text for e in ElementTree.fromstring(text).iter("{http://www.w3.org/2000/svg}title")]
    for row in results["systems"]:
        accuracy = f"{100 * row['accuracy']:.1f}%"
        assert (
            f"{row['label']}: {accuracy}, {row['calls']} calls, {row['tokens']:.0f} tokens" in tips
        )


def test_figures_of_nothing_are_not_drawn():
    assert figures.cost_by_stage({}) is figures.reward_by_depth([]) is None
    assert figures.learning_curve("a", [(0, 1.0)]) is None


@pytest.mark.parametrize(
    ("name", "field"), [("eval/sa.jsonl", "turns"), ("rounds/000/trees/00000.jsonl", "nodes")]
)
def test_a_record_in_progress_without_what_is_shown_is_refused_by_line(run, tmp_path, name, field):
    copied = tmp_path / "copied"
    shutil.copytree(run, copied)
    text = (copied / name).read_text()
    (copied / name).write_text(text.replace(f'"{field}":', '"x":', 1))
    with pytest.raises(UserError, match=f":1: .*(without|has no) '{field}'"):
        build_report(copied)


def _chain(correct: list[list[bool | None]], rewards: list[float]) -> Tree:
    """One path per row of `correct`, from planner to editor; the planner does not answer."""
    roles, nodes = ("planner", "solver", "editor"), []
    for row, (path, reward) in enumerate(zip(correct, rewards, strict=True)):
        parent = None
        for depth, (role, right) in enumerate(zip(roles, path, strict=True)):
            name = (parent or "Q") + f"/{role[0]}{row if depth == 0 else 0}"
            last = depth == 2
            nodes.append(
                Node(
                    id=name, role=role, parent=parent, prompt="", prompt_ids=(1,), cut=0,
                    completion=name, token_ids=(1,), logprobs=(), finish="eos", parsed="1",
                    correct=right, value=reward, label=reward > 0.5,
                    **({"reward": reward} if last else {}),
                )
            )  # fmt: skip
            parent = name
    nodes.sort(key=lambda node: node.id.count("/"))  # level by level
    return Tree("Q", "Q", "1", {}, (2, 1, 1), roles, tuple(nodes))


def test_a_partial_reward_is_no_right_answer_and_the_first_answer_is_the_draft():
    tree = _chain([[None, False, True], [None, True, False]], [1.0, 0.5])
    found = entry(tree)
    assert (found["leaves"], found["saved"], found["broke"]) == ("10", 1, 1)
