"""What the tiny base models are taught: dialogues of solvers, critics and refiners on each task.

`scripts/make_quickstart_model.py` trains a model on them. All questions are of the train split.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from malt_jax.tasks import arithmetic, parity, triples
from malt_jax.tasks.generated import Generated, split_of

PROMPTS = {
    "solve": "solve|{question}|",
    "check": "check|{question}|{draft}|",
    "fix": "fix|{question}|{draft}|{critique}|",
    "retry": "retry|{question}|{draft}|",
    "debate": "debate|{question}|{draft}|",
}
"""Role first, then question, draft, critique: prompts of one tree share their heads."""
ROLES = ("solve", "check", "fix", "retry", "debate")
RIGHT_DRAFTS = 0.4
"""Share of right answers among the drafts that are checked and corrected."""
BLANK_CHECKS = 0.1
"""Share of `fix` documents whose critic said a bare `ok`; the refiner then keeps the draft."""


@dataclass(frozen=True)
class Stage:
    """A stretch of training on one mix of dialogues."""

    name: str
    steps: int
    shares: tuple[float, ...]
    """Shares of `ROLES` among the documents."""
    lazy: float
    """Share of critics that say `ok` without checking."""
    deaf: float
    """Share of refiners that repeat the draft against the critique."""
    rates: tuple[float, float]
    """Muon's learning rate at the first and the last step, linear between, after 50 warm-up steps
    where it is constant."""
    carry: bool
    """Whether a document that does not fit a row opens the next one. Dropping it instead is free
    but thins out the long ones, the careful critics: harmless only where all critics are."""


@dataclass(frozen=True)
class Corpus:
    """A task's dialogues: what a hasty solver says, and what a careful critic says of it."""

    task: Generated
    about: str
    """What the model does, for its card."""
    mistake: Callable[[random.Random, str, str], str]
    """A wrong draft of a question, given its answer, as a hasty solver makes it."""
    check: Callable[[str, str], str | None]
    """A careful critique of a draft; None if the draft is no answer."""
    stages: tuple[Stage, ...]

    def question(self, rng: random.Random) -> tuple[str, str]:
        """A random question of the train split and its answer: no held-out question is used."""
        while True:
            text = self.task.draw(rng)
            if split_of(text) == "train":
                return text, self.task.solve(text)

    def draft(self, rng: random.Random, question: str, answer: str) -> str:
        """A hasty draft, right in 40% of cases."""
        right = rng.random() < RIGHT_DRAFTS
        return f"={answer}" if right else self.mistake(rng, question, answer)

    def document(self, rng: random.Random, stage: Stage) -> tuple[str, str]:
        """One `(prompt, completion)` of a stage's mix."""
        role = rng.choices(ROLES, stage.shares)[0]
        question, answer = self.question(rng)
        if role == "solve":
            return PROMPTS[role].format(question=question), f"={answer}"
        if role == "debate":
            drafts = ";".join(self.draft(rng, question, answer) for _ in range(3))
            return PROMPTS[role].format(question=question, draft=drafts), f"={answer}"
        draft = self.draft(rng, question, answer)
        if role == "retry":
            return PROMPTS[role].format(question=question, draft=draft), f"={answer}"
        careful = self.check(question, draft) or ""
        if role == "check":
            critique = "ok" if rng.random() < stage.lazy else careful
            return PROMPTS[role].format(question=question, draft=draft), critique
        critique = "ok" if rng.random() < BLANK_CHECKS else careful
        keeps = critique == "ok" or rng.random() < stage.deaf
        prompt = PROMPTS[role].format(question=question, draft=draft, critique=critique)
        return prompt, draft if keeps else f"={answer}"

    def examples(self) -> list[tuple[str, str, str]]:
        """A prompt and a good turn of every role, for the model's card."""
        question, answer = self.task.make_question(0, 0)
        draft = self.mistake(random.Random(0), question, answer)
        check = self.check(question, draft)
        drafts = f"{draft};={answer};={answer}"
        fill = {"question": question, "critique": check}
        return [
            (role, prompt.format(draft=drafts if role == "debate" else draft, **fill), turn)
            for (role, prompt), turn in zip(
                PROMPTS.items(), (f"={answer}", check or "", *[f"={answer}"] * 3), strict=True
            )
        ]


# ---- arithmetic ---------------------------------------------------------------------------------


def _wrong_sum(rng: random.Random, question: str, answer: str) -> str:
    """Off by 1 to 4."""
    return f"={int(answer) + rng.choice((-1, 1)) * rng.choice((1, 1, 1, 1, 2, 2, 2, 3, 3, 4)):02d}"


def _check_sum(question: str, draft: str) -> str | None:
    """`3+8+6`, `=19` -> `11,17:19 high`: the running sum, the draft beside it, what it is."""
    found = arithmetic.extract_answer(draft)
    if found is None:
        return None
    total, *rest = arithmetic.parse_question(question)
    sums = []
    for digit in rest:
        total += digit
        sums.append(f"{total:02d}")
    verdict = "ok" if int(found) == total else "low" if int(found) < total else "high"
    return f"{','.join(sums)}:{int(found):02d} {verdict}"


# ---- triples ------------------------------------------------------------------------------------


def _wrong_triple(rng: random.Random, question: str, answer: str) -> str:
    """Another triple of the row, often a close one, or the right one with a digit that is off."""
    target, row = triples.parse_question(question)
    if rng.random() < 0.4:
        digits = list(map(int, answer.split("+")))
        place = rng.randrange(3)
        digits[place] = rng.choice([n for n in triples.DIGITS if abs(n - digits[place]) in (1, 2)])
        if (text := triples.answer_text(digits)) != answer:
            return f"={text}"
    others = [t for t in (rng.sample(row, 3) for _ in range(4)) if sum(t) != target]
    closest = min(others or [[row[0]] * 3], key=lambda triple: abs(sum(triple) - target))
    return f"={triples.answer_text(closest)}"


def _check_triple(question: str, draft: str) -> str | None:
    """`14:482517`, `=2+4+7` -> `2+4+7=13 low`; `=3+4+7` -> `3+4+7=14 3 wrong`."""
    found = triples.extract_answer(draft)
    if found is None:
        return None
    target, row = triples.parse_question(question)
    digits = list(map(int, found.split("+")))
    total = sum(digits)
    if total != target:
        return f"{found}={total:02d} {'low' if total < target else 'high'}"
    absent = [n for n in digits if n not in row or digits.count(n) > 1]
    return f"{found}={total:02d} {f'{absent[0]} wrong' if absent else 'ok'}"


# ---- parity -------------------------------------------------------------------------------------


def _wrong_parity(rng: random.Random, question: str, answer: str) -> str:
    """The other answer."""
    return f"={next(name for name in parity.NAMES if name != answer)}"


def _check_parity(question: str, draft: str) -> str | None:
    """`abcaab`, `=even` -> `1,1,1,0,1,1:even wrong`: the number of a's so far, modulo 2."""
    found = parity.extract_answer(draft)
    if found is None:
        return None
    counts = parity.parities(question)
    verdict = "ok" if found == parity.NAMES[counts[-1]] else "wrong"
    return f"{','.join(map(str, counts))}:{found} {verdict}"


# ---- the corpora --------------------------------------------------------------------------------

STAGES = (
    Stage("primer", 500, (0.30, 0.42, 0.24, 0.02, 0.02), 0.0, 0.0, (0.02, 0.02), carry=False),
    Stage("textbook", 300, (0.04, 0.66, 0.26, 0.02, 0.02), 0.0, 0.0, (0.02, 0.02), carry=False),
    Stage("lifelike", 600, (0.12, 0.58, 0.26, 0.02, 0.02), 0.6, 0.4, (0.02, 4e-4), carry=True),
    Stage("revision", 600, (0.28, 0.48, 0.20, 0.02, 0.02), 0.65, 0.4, (0.015, 2e-4), carry=True),
    Stage("practice", 500, (0.20, 0.62, 0.14, 0.02, 0.02), 0.65, 0.4, (0.015, 2e-4), carry=True),
)
"""Arithmetic falls into place while the learning rate goes to zero: three times; the last one is
for checking, which must be learnt well enough to be worth hearing."""
SHORT = (
    Stage("primer", 300, (0.30, 0.42, 0.24, 0.02, 0.02), 0.0, 0.0, (0.02, 0.02), carry=False),
    Stage("textbook", 100, (0.04, 0.66, 0.26, 0.02, 0.02), 0.0, 0.0, (0.02, 0.02), carry=False),
    Stage("lifelike", 200, (0.12, 0.50, 0.34, 0.02, 0.02), 0.6, 0.4, (0.02, 4e-4), carry=True),
    Stage("practice", 200, (0.12, 0.50, 0.34, 0.02, 0.02), 0.65, 0.4, (0.01, 2e-4), carry=True),
)
"""For tasks that are learnt sooner: with all stages their solvers would hardly ever be wrong."""
CORPORA = {
    "arithmetic": Corpus(
        arithmetic.GENERATED,
        f"it adds up rows of {arithmetic.TERMS} digits",
        _wrong_sum,
        _check_sum,
        STAGES,
    ),
    "triples": Corpus(
        triples.GENERATED,
        f"it looks for three of {triples.COUNT} digits that sum to a target",
        _wrong_triple,
        _check_triple,
        SHORT,
    ),
    "parity": Corpus(
        parity.GENERATED,
        f"it tells whether the number of a's among {parity.LENGTH} letters is odd or even",
        _wrong_parity,
        _check_parity,
        SHORT,
    ),
}
