"""pass@k, votes weighted by critiques, equal tokens: against brute force and by their edges."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.credit.verdict import Verdict, read_verdict
from malt_jax.evaluation import measures
from malt_jax.evaluation.records import DrawRecord, TurnRecord
from malt_jax.evaluation.results import SystemInfo, summarise
from malt_jax.evaluation.sections import sections
from malt_jax.evaluation.statistics import majority_vote
from malt_jax.evaluation.support import support
from malt_jax.sampling.request import Completion


def turn(role="generator", parsed=None, correct=None, support=None, tokens=1) -> TurnRecord:
    return TurnRecord(role, "base", "", "", tokens, 0.0, "eos", parsed, correct, support)


def draw(question="q", number=0, parsed="1", correct=True, *turns) -> DrawRecord:
    return DrawRecord(question, number, parsed, correct, turns or (turn("g", parsed, correct),))


@given(st.lists(st.booleans(), min_size=1, max_size=7), st.data())
def test_pass_at_k_is_the_share_of_all_choices_of_k_draws_with_a_right_one(grades, data):
    k = data.draw(st.integers(1, len(grades)))
    subsets = [any(grades[i] for i in s) for s in itertools.combinations(range(len(grades)), k)]
    drawn = [[draw(correct=grade) for grade in grades]]
    assert measures.pass_at_k(drawn, k) == pytest.approx(np.mean(subsets))


@given(st.lists(st.sampled_from(["1", "2", "3", None]), min_size=1, max_size=6))
def test_with_equal_weights_the_weighted_vote_is_the_plain_one(predictions):
    vote = measures.weighted_vote(predictions, [0.5] * len(predictions))
    assert vote == majority_vote(predictions)


def test_a_critique_supports_the_answer_it_read_and_opposes_any_other():
    graded = turn("g", "7", False)
    critique = turn("v", support=0.1)
    kept = draw("q", 0, "7", False, graded, critique, turn("r", "7", False))
    mended = draw("q", 1, "8", True, graded, critique, turn("r", "8", True))
    silent = draw("q", 2, "7", False, graded, turn("v"), turn("r", "7", False))
    assert [measures.draw_weight(r) for r in (kept, mended, silent)] == [0.1, 0.9, 0.5]
    # A verdict before any answer judges none.
    plan = draw("q", 3, "7", False, turn("planner", support=0.9), turn("r", "7", False))
    assert measures.draw_weight(plan) == 0.5
    votes = measures.weighted_vote(["7", "8", "7"], [0.1, 0.9, 0.5])
    assert votes.answer == "8" and votes.draw == 1
    assert measures.weighted_outcomes([[kept, mended, silent]]) == [True]


def test_a_weighted_vote_under_several_seeds_is_tested_over_questions():
    """Two questions that weights put right under each of four seeds are no evidence of eight."""
    graded, critique = turn("g", "7", False), turn("v", support=0.1)
    kept = draw("q", 0, "7", False, graded, critique, turn("r", "7", False))
    mended = draw("q", 1, "8", True, graded, critique, turn("r", "8", True))
    units = [(seed, question) for seed in range(4) for question in "ab"]
    draws = {
        name: [replace(one, seed=s, question_id=q) for s, q in units for one in drawn]
        for name, drawn in {"sa": [draw(number=n) for n in range(6)], "c": [kept, mended]}.items()
    }
    found = summarise(draws, {"sa": SystemInfo("sa"), "c": SystemInfo("c", (2,))}, "sa")
    test = found["systems"][-1]["weighted"]
    assert (test["accuracy"], test["wrong_to_right"], test["right_to_wrong"]) == (1.0, 8, 0)
    assert (test["p"], test["p_pooled"]) == (0.5, pytest.approx(2**-7))
    assert test["seeds"]["0"] == {"wrong_to_right": 2, "right_to_wrong": 0, "p": 0.5}


def test_records_without_a_verdict_are_written_as_they_always_were():
    assert "support" not in draw("q", 0, "7", True).to_record()["turns"][0]
    judged = draw("q", 0, "7", True, turn("v", support=0.25), turn("r", "7", True))
    assert DrawRecord.from_record(judged.to_record()) == judged


class Characters:
    def decode(self, ids):
        return "".join("" if i == 0 else chr(i) for i in ids)


def completion(text: str, logprob: float = -0.1) -> Completion:
    return Completion((*map(ord, text), 0), (logprob,) * len(text) + (-9.0,), "eos")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("11,17:19 ok", (1 + math.exp(-0.2)) / 2),
        ("11,17:18  low ", (1 - math.exp(-0.3)) / 2),
        ("right at  first,\nand Correct.", (1 + math.exp(-0.7)) / 2),
        ("correct at first, but wrong in the end", (1 - math.exp(-0.5)) / 2),
        ("it is not correct", (1 - math.exp(-1.1)) / 2),
        ("there is no  mistake", (1 + math.exp(-1.1)) / 2),
        ("Maße: correct", (1 + math.exp(-0.7)) / 2),
        ("token okays indirectly", None),
        ("", None),
    ],
)
def test_the_last_verdict_counts_with_the_probability_of_its_own_tokens(text, expected):
    found = supported(text)
    assert found == (expected and pytest.approx(expected, abs=1e-6))


def supported(text: str) -> float | None:
    verdict = read_verdict(text)
    return verdict and support(verdict, completion(text), Characters())


def test_a_verdict_counts_in_full_where_nobody_says_which_words_state_it():
    assert support(Verdict(True), completion("fine"), Characters()) == 1.0
    assert support(Verdict(False), completion("bad"), Characters()) == 0.0


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("the answer isn't correct", False),
        ("the answer isn\u2019t correct", False),
        ("this cannot be right", False),
        ("not quite right", False),
        ("it was never really correct", False),
        ("it is not wrong", True),
        ("I do not see any error", True),
        ("correct with high confidence", True),
        ("probability low, but valid", True),
        ("not 12. Correct", True),
        ("it does not matter, correct", True),
        ("not only correct but short", True),
        ("the right-hand side", None),
        ("an error-free critique", None),
        ("the value is too high", False),
    ],
)
def test_verdicts_are_read_with_their_negation(text, right):
    found = supported(text)
    assert right == (None if found is None else found > 0.5)


def test_the_tokens_of_a_negation_belong_to_its_verdict():
    found = supported("so it cannot be right")
    assert found == pytest.approx((1 - math.exp(-0.1 * len("cannot be right"))) / 2, abs=1e-6)


def test_equal_tokens_takes_the_fewest_draws_with_as_many_and_says_when_there_are_too_few():
    assert measures.votes_for_tokens([5.0, 10.0, 15.0], 10.0) == 2
    assert measures.votes_for_tokens([5.0, 10.0, 15.0], 10.5) == 3
    draws = {
        "sa": [draw(q, n, "1", True, turn("g", "1", True, tokens=4)) for q in "ab"
               for n in range(3)],
        "ma": [draw(q, 0, "2", False, turn("g", "1", True, tokens=3), turn("v", tokens=3),
                    turn("r", "2", False, tokens=3)) for q in "ab"],
        "long": [draw(q, 0, "1", True, turn("g", "1", True, tokens=40)) for q in "ab"],
    }  # fmt: skip
    systems = {name: SystemInfo(name) for name in draws}
    rows = {row["name"]: row for row in summarise(draws, systems, "sa")["systems"]}
    equal = rows["ma"]["equal_tokens"]
    assert (equal["row"], equal["tokens"], equal["reached"]) == ("sa@3", 12.0, True)
    assert (equal["delta"], equal["right_to_wrong"]) == (-1.0, 2)
    assert rows["long"]["equal_tokens"]["reached"] is False
    assert "equal_tokens" not in rows["sa"]


def test_the_frontier_has_no_row_that_a_faster_one_matches():
    points = {"a": (1.0, 0.5), "b": (2.0, 0.5), "c": (3.0, 0.7), "d": (1.0, 0.4)}
    assert measures.frontier(points) == {"a", "c"}


def test_each_temperature_is_compared_with_the_single_agent_at_its_own():
    draws = {
        f"{name}-t{t}": [draw(q, n, str(n % 2), n % 2 == 0) for q in "ab" for n in range(3)]
        for name in ("sa", "ma") for t in (0, 1)
    }  # fmt: skip
    systems = {
        f"{name}-t{t}": SystemInfo(
            f"{name}, T={t}", (1, 3), 0.5, f"sa-t{t}", f"sa-t{t}@3", float(t)
        )
        for name in ("sa", "ma")
        for t in (0, 1)
    }
    results = summarise(draws, systems, "sa@3")
    rows = {row["name"]: row for row in results["systems"]}
    assert set(rows["ma-t1"]["tests"]) == {"sa-t1", "sa-t1@3"}
    assert set(rows["sa-t0"]["tests"]) == {"sa-t0@3"}
    # All single agents of at most three calls are candidates, and the first of the best is named.
    best = rows["ma-t1@3"]["best_single_agent"]
    assert best["row"] == "sa-t0" and best["accuracy"] == 1.0
    assert "best_single_agent" not in rows["sa-t1"]
    found = {section.heading: section.table for section in sections(results)}
    assert [c.heading for c in found["By temperature"].columns] == ["system", "T=0", "T=1"]
    assert {"One of k right", "At equal tokens", "Accuracy against time"} <= set(found)
