"""Graders: numbers, LaTeX, choices, exact answers, sets and code."""

from __future__ import annotations

import difflib
import importlib

from malt_jax.errors import UserError
from malt_jax.tasks.base import Grader

_GRADERS = {
    "number": "malt_jax.tasks.graders.number:NumberGrader",
    "choice": "malt_jax.tasks.graders.choice:ChoiceGrader",
    "exact": "malt_jax.tasks.graders.exact:ExactGrader",
    "set": "malt_jax.tasks.graders.exact:SetGrader",
    "latex": "malt_jax.tasks.graders.latex:LatexGrader",
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
        near = difflib.get_close_matches(name, _GRADERS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"task.grader: no grader {name!r}; {hint}choose from {', '.join(_GRADERS)}")
    module, _, kind = _GRADERS[name].partition(":")
    return getattr(importlib.import_module(module), kind)()
