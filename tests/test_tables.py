"""Rows, equal-call baselines, corrections, and text that cannot break out of a table."""

from __future__ import annotations

import csv
import html
import io
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax import escape
from malt_jax.errors import UserError
from malt_jax.evaluation import cells, statistics, tables
from malt_jax.evaluation.records import DrawRecord, TurnRecord
from malt_jax.evaluation.results import (
    SystemInfo,
    single_agent_draws,
    summarise,
    with_seeds,
)
from malt_jax.evaluation.sections import titles
from synthetic_run import HOSTILE, make_run


def _records(system_correct: list[list[bool]], calls: int = 1) -> list[DrawRecord]:
    """Records of draws [question][draw]; a right draw says "1", a wrong one its own number."""

    def turn(number: int) -> TurnRecord:
        return TurnRecord(
            role=f"r{number}", policy="base", prompt="", text="", tokens=10, logprob=0.0,
            finish="eos", parsed=None, correct=None,
        )  # fmt: skip

    turns = tuple(map(turn, range(calls)))
    return [
        DrawRecord(f"Q{q}", d, "1" if right else f"wrong {d}", right, turns)
        for q, draws in enumerate(system_correct)
        for d, right in enumerate(draws)
    ]


def _two_systems(malt: list[list[bool]], sa: list[list[bool]]) -> dict:
    return summarise(
        {"sa": _records(sa), "malt": _records(malt, 3)},
        {"sa": SystemInfo("single agent"), "malt": SystemInfo("MALT", (1, 3), seconds=0.5)},
        "sa@9",
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    run = make_run(tmp_path_factory.mktemp("run"), 40)
    return json.loads((run / "results.json").read_text())


def test_every_row_has_the_single_agent_at_its_own_number_of_calls(results):
    rows = {row["name"]: row for row in results["systems"]}
    for row in rows.values():
        equal = rows[row["equal_calls_baseline"]]
        assert equal["system"] == "sa" and equal["calls"] == row["calls"]
        assert (row["equal_calls_baseline"] in row["tests"]) == (equal is not row)
        assert (results["baseline"] in row["tests"]) == (row["name"] != results["baseline"])


def test_a_row_costs_its_number_of_votes_times_one_draw(results):
    rows = {row["name"]: row for row in results["systems"]}
    assert rows["malt@3"]["calls"] == 3 * rows["malt"]["calls"] == 9
    assert rows["malt@3"]["seconds"] == pytest.approx(3 * rows["malt"]["seconds"])
    assert rows["sa@9"]["tokens"] > 8 * rows["sa"]["tokens"]


def test_rows_agree_with_votes_counted_by_hand():
    malt = [[True, False, True], [False, False, True], [True, True, True], [False] * 3]
    sa = [[True] * 5 + [False] * 4, [False] * 9, [True] * 9, [True] + [False] * 8]
    rows = {row["name"]: row for row in _two_systems(malt, sa)["systems"]}
    # Wrong draws all differ: two equal right ones win, one alone ties with whatever came first.
    assert rows["malt"]["accuracy"] == 0.5
    assert rows["malt@3"]["accuracy"] == 0.5 and rows["malt@3"]["ties"] == 2
    assert rows["sa@9"]["accuracy"] == 0.75
    test = rows["malt@3"]["tests"]["sa@9"]
    assert (test["wrong_to_right"], test["right_to_wrong"]) == (0, 1)
    assert test["p"] == statistics.exact_mcnemar(0, 1)
    assert test["delta"] == -0.25


def test_holm_runs_over_all_tests_of_the_table(results):
    family = [test for row in results["systems"] for test in row["tests"].values()]
    expected = statistics.holm([test["p"] for test in family])
    assert [test["p_holm"] for test in family] == expected
    assert len(family) > len(results["systems"])


def test_levels_cover_all_questions_and_average_to_the_accuracy(results):
    levels = results["levels"]
    assert sum(level["questions"] for level in levels.values()) == results["questions"]
    for row in results["systems"]:
        total = sum(lv["questions"] * lv["accuracy"][row["name"]] for lv in levels.values())
        assert total / results["questions"] == pytest.approx(row["accuracy"])


def test_levels_are_in_the_order_of_their_numbers():
    levels = {f"Q{i}": f"Level {level}" for i, level in enumerate((10, 2, 1, 2))}
    records = {"sa": _records([[True]] * 4)}
    found = summarise(records, {"sa": SystemInfo("single agent")}, "sa", levels=levels)
    assert list(found["levels"]) == ["Level 1", "Level 2", "Level 10"]


def test_flips_between_turns_lead_from_the_draft_to_the_answer(results):
    turns = {entry["system"]: entry for entry in results["turns"]}
    assert "sa" not in turns
    entry = turns["malt"]
    first, last = entry["accuracy"][0], entry["accuracy"][-1]
    gained = entry["flips"][0]["wrong_to_right"] - entry["flips"][0]["right_to_wrong"]
    assert last["accuracy"] - first["accuracy"] == pytest.approx(gained / entry["draws"])


def test_instances_of_one_template_are_one_cluster():
    """Fifty copies of a question prove no more than one."""
    sa = [[q % 2 == 0] * 9 for q in range(8)]
    malt = [[q % 2 == 0 or q < 6] * 3 for q in range(8)]
    systems = {"sa": SystemInfo("single agent"), "malt": SystemInfo("MALT", (1, 3))}
    alone = summarise({"sa": _records(sa), "malt": _records(malt, 3)}, systems, "sa@9")
    records = {"sa": _records(sa * 50), "malt": _records(malt * 50, 3)}
    clusters = {f"Q{q}": f"T{q % 8}" for q in range(400)}
    many = summarise(records, systems, "sa@9", clusters=clusters)
    (row, own), (naive,) = (
        [table["systems"][-1] for table in (many, alone)],
        [summarise(records, systems, "sa@9")["systems"][-1]],
    )
    assert row["tests"]["sa@9"]["p"] == pytest.approx(own["tests"]["sa@9"]["p"])
    assert naive["tests"]["sa@9"]["p"] < 1e-6
    width, too_narrow = (high - low for low, high in (row["interval"], naive["interval"]))
    assert width > 3 * too_narrow
    assert many["clusters"] == 8 and "clusters" not in alone
    assert "400 questions in 8 clusters" in tables.to_markdown(many)
    assert "sign-flip test over clusters" in tables.to_markdown(many)
    lone = {f"Q{q}": f"T{q}" for q in range(8)}
    found = summarise(
        {"sa": _records(sa), "malt": _records(malt, 3)}, systems, "sa@9", clusters=lone
    )
    assert "clusters" not in found  # each question is one, so nothing is resampled together
    found = summarise(records, systems, "sa@9", clusters={"Q0": "T", "Q1": "T"})
    assert found["clusters"] == 399  # the one of two, and all that stand alone


def test_pooled_seeds_are_clustered_and_also_shown_one_by_one():
    sa = [[True] * 9 if q % 2 else [False] * 9 for q in range(30)]
    malt = [[True] * 3 if q % 2 or q < 14 else [False] * 3 for q in range(30)]
    one = {"sa": _records(sa), "malt": _records(malt, 3)}
    systems = {"sa": SystemInfo("single agent"), "malt": SystemInfo("MALT", (1, 3))}
    alone = summarise(one, systems, "sa@9")
    pooled = summarise(with_seeds({1: one, 2: one, 3: one}), systems, "sa@9")
    row, single = pooled["systems"][-1], alone["systems"][-1]
    assert row["seeds"] == {"1": row["accuracy"], "2": row["accuracy"], "3": row["accuracy"]}
    assert row["accuracy"] == single["accuracy"] and row["seeds_sd"] == 0
    test, own = row["tests"]["sa@9"], single["tests"]["sa@9"]
    assert test["p"] == pytest.approx(own["p"]), "three copies of one seed prove no more than one"
    assert test["wrong_to_right"] == 3 * own["wrong_to_right"]
    assert test["seeds"]["2"]["p"] == own["p"]
    assert pooled["questions"] == 30 and pooled["seeds"] == [1, 2, 3]
    assert test["p_pooled"] == statistics.exact_mcnemar(
        test["wrong_to_right"], test["right_to_wrong"]
    )
    for text in (tables.to_markdown(pooled), tables.to_latex(pooled), tables.to_csv(pooled)):
        assert all(f"seed {seed}" in text for seed in (1, 2, 3))


def test_markdown_has_sections_for_turns_levels_calibration_and_hashes(results):
    told = {**results, "records": {"eval/malt.jsonl": "0f" * 32}}
    page = tables.to_markdown(told)
    for heading in ("By turn", "By level", "Do values predict success?", "Records"):
        assert f"\n## {heading}\n" in page
    assert "By seed" not in page and "0f" * 32 in page
    flip = results["turns"][0]["flips"][0]
    assert f"| {flip['wrong_to_right']} | {flip['right_to_wrong']} |" in page


def test_turns_and_rows_call_a_system_by_one_name(results):
    names = titles(results)
    for row in results["systems"]:
        assert row["label"] in (f"{names[row['system']]}, vote of {row['votes']}",
                                names[row["system"]])  # fmt: skip
    section = tables.to_markdown(results).partition("## By turn")[2].partition("\n## ")[0]
    for entry in results["turns"]:
        assert f"\n| {escape.markdown(names[entry['system']])} |" in section


def test_what_rounds_to_zero_has_no_minus_and_short_times_keep_two_digits():
    assert [cells.points(share) for share in (-0.0004, 0.0, -0.0006)] == ["+0.0", "+0.0", "−0.1"]
    assert [cells.seconds(s) for s in (12.344, 1.0, 0.5, 0.00614)] == [
        *("12.34", "1.00", "0.5", "0.0061")
    ]


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda r: r["malt"].pop(), "draws"),
        (lambda r: r["malt"].append(r["malt"][0]), "twice"),
        (lambda r: r.update(malt=r["malt"][3:]), "same questions"),
        (lambda r: r.update(sa=[x for x in r["sa"] if x.draw < 8]), "8 draws"),
        (lambda r: r.update(sa=[]), "no records"),
        (lambda r: r.pop("malt"), "no records"),
    ],
)
def test_incomplete_records_are_refused_with_the_name_of_the_system(break_it, told):
    records = {"sa": _records([[True] * 9] * 4), "malt": _records([[True] * 3] * 4, 3)}
    break_it(records)
    systems = {"sa": SystemInfo("single agent"), "malt": SystemInfo("MALT", (1, 3))}
    with pytest.raises(UserError, match=told):
        summarise(records, systems, "sa@9")


def test_an_unknown_baseline_is_refused_with_the_rows_there_are():
    records = {"sa": _records([[True] * 9])}
    with pytest.raises(UserError, match=r"'tot'.*sa"):
        summarise(records, {"sa": SystemInfo("single agent")}, "tot")


def test_single_agent_draws_cover_the_row_with_the_most_calls():
    assert (
        single_agent_draws({"sa": 1, "malt": 3, "deep": 5}, {"sa": [9], "malt": [9], "deep": [1]})
        == 27
    )


def _unescaped_columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line)) - 1


def test_markdown_keeps_its_shape_whatever_a_system_is_called(results):
    hostile = json.loads(json.dumps(results))
    for row, text in zip(hostile["systems"], HOSTILE, strict=False):
        row["label"] = text
    hostile["run"]["model"] = "\n# Heading\n<script>"
    page = tables.to_markdown(hostile)
    blocks = [block.splitlines() for block in page.split("\n\n") if block.startswith("| ")]
    assert _unescaped_columns(blocks[0][0]) == len(tables.columns(results))
    for block in blocks:
        assert len({_unescaped_columns(line) for line in block}) == 1
    assert "<script" not in page and "<img" not in page and "\x1b" not in page
    assert page.count("\n# ") == 0 and page.startswith("# Results")
    assert "](" not in page.replace("\\](", "")


def test_every_line_of_markdown_states_calls_and_tokens(results):
    page = tables.to_markdown(results)
    for row in results["systems"]:
        start = f"| {escape.markdown(row['label'])} | {row['calls']} | {row['tokens']:.0f} |"
        assert start in page


def test_latex_has_as_many_columns_as_its_preamble_says(results):
    hostile = json.loads(json.dumps(results))
    hostile["systems"][0]["label"] = HOSTILE[6] + " & % # _ ~ ^"
    page = tables.to_latex(hostile)
    columns = re.search(r"begin\{tabular\}\{([lr]+)\}", page)[1]
    for line in page.splitlines():
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
    assert r"\input" not in page


def test_csv_is_read_back_and_starts_no_formula(results):
    hostile = json.loads(json.dumps(results))
    hostile["systems"][0]["label"] = HOSTILE[5]
    lines = list(csv.reader(io.StringIO(tables.to_csv(hostile))))
    assert {len(line) for line in lines} == {len(tables.columns(results))}
    assert lines[1][0].startswith("'=HYPERLINK")
    assert [float(line[3]) for line in lines[1:]]


def test_terminal_table_prints_labels_as_text(results):
    from rich.console import Console

    hostile = json.loads(json.dumps(results))
    hostile["systems"][0]["label"] = "[bold]x[/bold] \x1b[2J"
    console = Console(file=io.StringIO(), width=200)
    console.print(tables.to_terminal(hostile))
    printed = console.file.getvalue()
    assert "[bold]x[/bold] \\x1b[2J" in printed and "\x1b[2J" not in printed


def test_terminal_table_keeps_its_numbers_whole_at_80_columns(results):
    from rich.console import Console

    long = json.loads(json.dumps(results))
    long["systems"][-1]["label"] = "MALT, generator + verifier only, the draft answers, vote of 3"
    console = Console(file=io.StringIO(), width=80)
    console.print(tables.to_terminal(long))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and "…" not in console.file.getvalue()
    [heading] = [line for line in lines if "accuracy" in line and "interval" in line]
    assert all(name in heading for name in ("system", "calls", "tokens", "vs SA", "p (Holm)"))
    for system in results["systems"]:
        assert any(cells.interval(system["interval"]) in line for line in lines)


@given(st.text(alphabet=st.characters(categories=("L", "N", "P", "S", "Z", "C"))))
def test_escaped_text_cannot_leave_its_place(text):
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]", escape.visible(text)
    )
    line = escape.markdown(text)
    assert "\n" not in line and "<" not in line and not re.search(r"(?<!\\)(\\\\)*\|", line)
    assert next(csv.reader([escape.csv(text)]))[0].lstrip("'") == escape.one_line(text).lstrip("'")
    bare = re.sub(r"^\{\}|\\[{}$&#%_]|\\text\w+\{\}", "", escape.latex(text))
    assert not set(bare) & set("\\{}$&#%_^~")


def test_no_address_becomes_a_link_and_no_first_cell_an_argument():
    line = escape.markdown("www.evil.example user@evil.example @you https://evil.example")
    assert not re.search(r"www\.|@\w|://", html.unescape(line))
    for text in ("[10cm] x", " [1]", "* x"):
        assert escape.latex(text).startswith("{}")


@pytest.mark.parametrize("hidden", ["", " ", "\u200b", "\u2060\u00ad", "\u200d \ufe0f"])
@pytest.mark.parametrize("start", ["=", "+", "@", "\uff1d"])
def test_no_formula_hides_behind_invisible_characters(hidden, start):
    assert escape.csv(f"{hidden}{start}cmd|1").startswith("\"'")
