"""HumanEval and MBPP: short Python functions, judged by tests (arXiv 2107.03374, 2108.07732).

HumanEval has no training questions: its train split is MBPP's. MBPP's question shows the first of
its tests, which fixes the function's name, and is graded on all of them: shown all, as published, a
policy trained on the reward could answer with the table of tests. A setup that makes objects of the
solution's own classes (two rows of MBPP build trees) is shown too, and executed beside the
solution. What tests cannot do here is listed in `graders.jail`. A row that asks for it, or whose
tests name no function of the solution, is left out and named in the log.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Set
from typing import Any

from malt_jax.tasks.base import Question
from malt_jax.tasks.files import Row


def humaneval(row: Row, split: str) -> Question:
    """Columns `task_id`, `prompt`, `test`, `entry_point` and `canonical_solution`."""
    prompt, entry = row.text("prompt"), row.text("entry_point").strip()
    if not entry.isidentifier():
        raise row.fail(f"`entry_point` is {entry[:40]!r}", "give the function's name")
    # HumanEval's tests define `check`, which takes the function under test.
    tests = f"{row.text('test')}\n\ncheck({entry})\n"
    _parsed(row, "test", tests)
    _parsed(row, "prompt", prompt)
    code = {"setup": prompt, "tests": tests, "names": [entry]}
    text = f"Complete this Python function.\n\n```python\n{prompt.rstrip()}\n```"
    answer = row.text("canonical_solution") if row.has("canonical_solution") else entry
    return Question(row.identity(split, "task_id"), text, answer, {"code": code})


def mbpp(row: Row, split: str) -> Question:
    """Columns `task_id`, `text` (or `prompt`), `code`, `test_list` and imports for the tests."""
    _, listed = row.get("test_list")
    if not isinstance(listed, list) or not listed or not all(isinstance(t, str) for t in listed):
        raise row.fail("`test_list` is not a list of texts", 'write ["assert f(1) == 2"]')
    tests = "\n".join(row.clean("test_list", test) for test in listed)
    setup = ""
    if row.has("test_setup_code") and row.values["test_setup_code"]:
        setup = row.text("test_setup_code")
    elif row.has("test_imports") and isinstance(row.values["test_imports"], list):
        setup = "\n".join(str(line) for line in row.values["test_imports"])
    solution = _parsed(row, "code", row.text("code"))
    trees = [_parsed(row, "test_setup_code", setup), _parsed(row, "test_list", tests)]
    code: dict[str, Any] = {"setup": setup}
    # One test fixes the name and the form of the arguments.
    shown = listed[0]
    if free_names(trees[0])[0]:  # it makes objects of the solution's own classes
        code = {"setup": "", "fixture": setup}
        shown = "\n".join([*map(str.rstrip, setup.splitlines()), "", shown])
        # The fixture runs beside the solution, so what it defines is taken from there as well.
        del trees[0]
    # One published solution is called `sum`: what it defines is not Python's own.
    own = {node.name for node in solution.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names, modules = free_names(*trees, own=own)
    if not names:
        raise row.fail("`test_list` calls no function of the solution", "correct the tests")
    if _hands_over_code(trees[-1], names):
        raise row.fail("`test_list` passes a function of its own", "correct the tests")
    # Tests may use a module of the standard library without importing it.
    code |= {"tests": "".join(f"import {m}\n" for m in modules) + tests, "names": names}
    asked = row.text("text", "prompt").strip()
    text = f"{asked}\nThe code must pass tests like this one:\n\n```python\n{shown}\n```"
    identity = row.identity(split, "task_id")
    return Question(identity, text, row.text("code"), {"code": code})


def free_names(*trees: ast.Module, own: Set[str] = frozenset()) -> tuple[list[str], list[str]]:
    """Names that the trees use and neither they nor Python define, and modules among them, sorted.

    Names of `own` count as not defined by Python. A module is a name of the standard library that
    is used as in `sys.getsizeof`.
    """
    used, defined, owners = set[str](), set(dir(builtins)) - own, set[str]()
    # Scopes are ignored: a name that is defined anywhere counts as defined everywhere.
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owners.add(node.value.id)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
    modules = (owners & sys.stdlib_module_names) - defined
    return sorted(used - defined - modules), sorted(modules)


def _hands_over_code(tests: ast.Module, names: list[str]) -> bool:
    """Whether a test passes a lambda to the solution, which cannot leave the tests' process."""
    # Only direct calls of the solution count, but a lambda may be deep inside an argument.
    calls = (node for node in ast.walk(tests) if isinstance(node, ast.Call))
    return any(
        isinstance(part, ast.Lambda)
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in names
        for argument in (*call.args, *(keyword.value for keyword in call.keywords))
        for part in ast.walk(argument)
    )


def _parsed(row: Row, column: str, code: str) -> ast.Module:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise row.fail(f"`{column}` is not Python ({error})", "correct the code") from None
