"""Generated tasks and what their models are taught, against brute force."""

from __future__ import annotations

import itertools
import random
import sys
from pathlib import Path

import pytest

from malt_jax.credit.verdict import read_verdict
from malt_jax.tasks import GENERATED, get_task, parity, triples
from malt_jax.tasks.generated import split_of

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from base_corpora import CORPORA

SEEDS = range(200)


@pytest.mark.parametrize("seed", range(20))
def test_exactly_one_answer_solves_a_question(seed):
    rng = random.Random(seed)
    target, row = triples.parse_question(text := triples.draw(rng))
    found = {frozenset(t) for t in itertools.permutations(row, 3) if sum(t) == target}
    assert found == {frozenset(map(int, triples.solve(text).split("+")))}

    # Taking the a's away two by two leaves one of them, or none.
    left = sorted(text := parity.draw(rng))
    while left[:2] == ["a", "a"]:
        left = left[2:]
    assert parity.solve(text) == ("odd" if "a" in left else "even")


def test_a_careful_critique_names_what_is_wrong():
    triple, letters = CORPORA["triples"].check, CORPORA["parity"].check
    assert triple("14:482517", "=2+4+7") == "2+4+7=13 low"
    assert triple("14:482517", "=3+4+7") == "3+4+7=14 3 wrong"
    assert letters("abcaab", "=even") == "1,1,1,0,1,1:even wrong"
    assert letters("abcaab", "=odd") == "1,1,1,0,1,1:odd ok"


@pytest.mark.parametrize("name", GENERATED)
def test_a_careful_critique_approves_of_right_drafts_and_of_no_others(name):
    corpus, grader = CORPORA[name], get_task(name).grader
    assert set(CORPORA) == set(GENERATED)
    for seed in SEEDS:
        rng = random.Random(seed)
        question, answer = corpus.question(rng)
        assert split_of(question) == "train"
        wrong = corpus.mistake(rng, question, answer)
        for draft, right in ((f"={answer}", True), (wrong, False)):
            assert (grader.extract(draft) == answer) is right
            critique = corpus.check(question, draft)
            assert read_verdict(critique).approves is right
            assert critique.split()[-1] in ("ok", "high", "low", "wrong")
        assert corpus.check(question, "nothing") is None


@pytest.mark.parametrize("name", GENERATED)
def test_prompts_and_turns_fit_the_configs(name):
    corpus, rng = CORPORA[name], random.Random(0)
    documents = [corpus.document(rng, corpus.stages[-1]) for _ in range(500)]
    by_role = {
        role: [one for one in documents if one[0].startswith(role)]
        for role in ("solve", "check", "fix")
    }
    for role, limit in {"solve": 8, "check": 40, "fix": 8}.items():
        assert by_role[role] and max(len(turn) + 1 for _, turn in by_role[role]) <= limit
    assert max(len(prompt) for ones in by_role.values() for prompt, _ in ones) <= 64
