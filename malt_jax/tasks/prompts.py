"""Prompt templates of each role, shared by all tasks.

The role's instructions come first, then question, answer and critique, so that the prompts of one
role, and those of siblings under one question, share their first tokens. A small model that is
asked for a solution of its own answers instead of checking, so the verifier is asked not to write
one.
"""

from __future__ import annotations

_GENERATOR = """\
Solve the problem. Reason step by step, with short steps. <format>

Problem:
{question}"""

_VERIFIER = """\
Check the solution to the problem. Go through it step by step and redo each step yourself. If a \
step is wrong, name the first wrong step and say what is wrong with it. If every step is right, \
say so. Also check that the solution answers what was asked. Be brief and do not write a new \
solution.

Problem:
{question}

Solution:
{generator}"""

_REFINER = """\
Write the final solution to the problem. A first solution and a check of it are given; either may \
be wrong. Keep what is right and mend what is wrong. Reason step by step, with short steps. <format>

Problem:
{question}

Solution:
{generator}

Check:
{verifier}"""

_JUDGE = """\
Check the solution to the problem. Go through it step by step, name the first wrong step if there \
is one, and say what follows once it is mended. <format>

Problem:
{question}

Solution:
{generator}"""

_RETRY = """\
Look again at your solution to the problem. Mend what is wrong with it, keep what is right, and \
write the whole solution. Reason step by step, with short steps. <format>

Problem:
{question}

Your solution:
{previous}"""

_DEBATE = """\
Solve the problem. Others have solved it too; their solutions are given and may be wrong. Use them \
as advice and reason step by step, with short steps. <format>

Problem:
{question}

Solutions of the others:
{others}"""


def role_templates(answer_format: str) -> dict[str, str]:
    """Templates by role for a task whose answers are written as `answer_format` says.

    `judge` is for a pipeline that ends with its verifier, `retry` for one that refines without a
    critique and for self-correction, `debate` for several agents that read each other.
    """
    templates = {
        "generator": _GENERATOR,
        "verifier": _VERIFIER,
        "refiner": _REFINER,
        "judge": _JUDGE,
        "retry": _RETRY,
        "debate": _DEBATE,
    }
    return {role: text.replace("<format>", answer_format) for role, text in templates.items()}
