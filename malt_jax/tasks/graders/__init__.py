"""Graders: numbers, LaTeX, choices, exact answers, sets and code."""

from __future__ import annotations

import importlib
from typing import Any

from malt_jax.checks import nearest
from malt_jax.errors import UserError
from malt_jax.tasks.base import Grader

_GRADERS = {
    "number": "number:NumberGrader",
    "choice": "choice:ChoiceGrader",
    "exact": "exact:ExactGrader",
    "set": "exact:SetGrader",
    "latex": "latex:LatexGrader",
}

ANSWER_FORMATS = {
    # Neither `####`, which small models take for a heading or write alone, nor an example number,
    # which they copy. No format may itself read as an answer: a copy of the prompt must earn none.
    "number": 'End with "The answer is" and the final number.',
    "choice": 'End with "The answer is" and the letter of one choice in parentheses.',
    "exact": 'End with a last line of the form "Answer: ..." that holds only the answer.',
    "set": 'End with a last line of the form "Answer: ..." that lists the answers with commas.',
    "latex": r"End with the final answer in \boxed{...}.",
}

WRITTEN = {  # a final answer as these formats ask for it
    "number": "The answer is {}",
    "choice": "The answer is ({})",
    "exact": "Answer: {}",
    "set": "Answer: {}",
    "latex": r"\boxed{{{}}}",
}


def get_grader(name: str) -> Grader:
    """The grader called `name`: number, choice, exact, set or latex."""
    if name not in _GRADERS:
        known = ", ".join(_GRADERS)
        raise UserError(
            f"task.grader: no grader {name!r}; choose from {known}.{nearest(name, _GRADERS)}"
        )
    return _made(_GRADERS[name])


def benchmark_grader(name: str, allow_code: bool) -> tuple[Grader, str]:
    """A benchmark's grader and answer format: one of `get_grader`, or `yes_no` or `code`."""
    if name == "yes_no":
        aliases = {"true": "yes", "false": "no"}
        grader = _made("choice:ChoiceGrader", choices={"yes": "", "no": ""}, aliases=aliases)
        return grader, 'End with "The answer is" and then yes or no.'
    if name == "code":
        answer_format = "End with the complete Python code in one ```python block."
        return _made("code:CodeGrader", allow_code=allow_code), answer_format
    return get_grader(name), ANSWER_FORMATS[name]


def _made(place: str, **settings: Any) -> Grader:
    module, _, kind = place.partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), kind)(**settings)
