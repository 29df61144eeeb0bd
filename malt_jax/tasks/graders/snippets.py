"""Finding the program in the text of an answer: in fenced blocks, or in the prose."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import islice

from malt_jax.tasks.graders.patterns import Patterns

_RE = Patterns("snippets")
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
MAX_UNFENCED = 50  # definitions looked at in a text without fences
MAX_CODE = 10_000  # characters of one of them
MAX_PARSED = 50  # attempts to parse a part of a text


def program(text: str, names: set[str]) -> str | None:
    """The last fenced block that defines one of `names`, with what it needs.

    Earlier blocks are joined when they define one of the names or something that a later block
    uses: a helper is often in a block of its own, sometimes below the code that calls it. If no
    block defines one of the names, the Python lines in the prose between them may, and if they
    don't, the last block with a definition counts. Without fences, the Python lines in the prose
    are the block, and without any definition the whole text is.
    """
    fenced, prose = _blocks(text)
    # A block that was never closed ends in prose.
    fenced = [block if _parsed(textwrap.dedent(block)) else _cut(block, names) for block in fenced]
    if fenced and not any(names & _defined(block) for block in fenced):
        fenced = [b for b in _unfenced(prose) if names & _defined(b)] or fenced
    blocks = [_outdented(b, names) for b in fenced or _unfenced(text) or [text]]
    defining = [block for block in blocks if _RE.any_definition.search(block)]
    found = "\n".join(_needed(blocks, names) or (defining or blocks)[-1:]).strip("\n").rstrip()
    return found if found.strip() else None


def _blocks(text: str) -> tuple[list[str], str]:
    """Markdown's fenced blocks, less the indentation of their fences, and the prose between them.

    An open last block counts.
    """
    blocks: list[list[str]] = []
    prose: list[str] = []
    if _RE.quoted_fence.search(text):  # fences and code as an e-mail quotes them
        text = _RE.quote.sub("", text)
    mark, margin = "", 0
    for line in text.replace("\r\n", "\n").split("\n"):
        indent, words = len(line) - len(line.lstrip()), line.strip()
        # Nothing but marks, and at least as many as opened the block, is a closing fence.
        bare = words.startswith(mark) and not words.strip(mark[:1])
        opening = _RE.fence.fullmatch(line)
        # A fence that names a language opens a block, also where the last one was never closed.
        if opening and (not mark or (words.startswith(mark) and not bare and indent < margin + 4)):
            mark, margin = opening[1], indent
            blocks.append([])
        elif not mark:
            prose.append(line)
        elif bare and indent < margin + 4:  # further in it belongs to a docstring
            mark = ""
        elif not bare and words.endswith(mark) and words.count(mark) == 1:
            # The fence is at the end of a line of code, without the line break before it.
            blocks[-1].append(line[min(indent, margin) :].rstrip().removesuffix(mark))
            mark = ""
        else:
            blocks[-1].append(line[min(indent, margin) :])
    return ["\n".join(lines) for lines in blocks], "\n".join(prose)


def _unfenced(text: str) -> list[str]:
    """The Python in prose: from each import or definition on, as many lines as can be parsed.

    A text that is Python as a whole, or the body of a function, is left whole.
    """
    # An indented text is the body of a function, and `if True:` gives it a place to be parsed in.
    if _is_python(text) or _is_python(f"if True:\n{text}"):
        return [text]
    text = _RE.tag.sub("\n", text)  # <answer>def f(): ...</answer>
    blocks: list[str] = []
    end = 0
    attempts = iter(range(MAX_PARSED))
    for opening in islice(_RE.code.finditer(text), MAX_UNFENCED):
        start, margin = opening.end(), opening["margin"] or opening["indent"] or ""
        # A definition inside the block found before is part of it already.
        if start < end:
            continue
        first, *more = text[start : start + MAX_CODE].split("\n")
        # Code that is quoted within a line ends at the backtick.
        lines = [first.partition("`")[0], *(line.removeprefix(margin).rstrip() for line in more)]
        if count := _parsed_lines(lines, attempts):
            above = _assignments(text[end:start])
            blocks.append("\n".join([*above, *lines[:count]]))
            end = start + sum(map(len, lines[:count]))
    return blocks


def _cut(block: str, names: set[str]) -> str:
    """The Python of a block that is none as a whole, if it defines one of `names`."""
    parts = _unfenced(block)
    return "\n".join(parts).strip("\n") if any(names & _defined(part) for part in parts) else block


def _assignments(before: str) -> list[str]:
    """The lines at the end of `before` that assign module variables, in their order."""
    found: list[str] = []
    for line in reversed(before.split("\n")):
        if line.strip() and not (_RE.assigned.fullmatch(line) and _parsed(line)):
            break
        found.insert(0, line)
    return found


def _is_python(text: str) -> bool:
    """Whether a text is Python as a whole; "Done" and "Note: x" parse, but are prose."""
    tree = _parsed(text)
    return tree is not None and all(
        isinstance(node.value, ast.Call | ast.Constant)
        for node in tree.body
        if isinstance(node, ast.Expr | ast.AnnAssign)
    )


def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _outdented(block: str, names: set[str]) -> str:
    """The block without the margin of all its lines, if one of `names` is defined there."""
    outdented = textwrap.dedent(block)
    return outdented if names & _defined(outdented) else block


def _defined(block: str) -> set[str]:
    """The names that a block defines or assigns at its margin."""
    return {match[1] or match[2] for match in _RE.defined.finditer(block)}


def _parsed_lines(lines: list[str], attempts: Iterator[int]) -> int:
    """How many lines, to the end of a definition or import, are Python; 0 for none."""
    count = len(lines)
    # Each failed attempt names the line where Python ends; the text is cut there and parsed again.
    for _ in attempts:
        try:
            tree = ast.parse("\n".join(lines[:count]))
        except SyntaxError as error:
            count = min(count, error.lineno or 1) - 1  # the text continues as prose from there
        except (ValueError, RecursionError, MemoryError):
            break
        else:
            ends = [node.end_lineno or 0 for node in tree.body if isinstance(node, _DEFINITIONS)]
            return max(ends, default=0)
        if count < 1:
            break
    return 0


def _needed(blocks: Sequence[str], asked: set[str]) -> list[str]:
    """The blocks that define what is asked for or what the ones taken use, in their order."""
    taken: list[str] = []
    wanted, known = set(asked), set[str]()
    # From the last block back, because a later block says what it needs of earlier ones.
    for block in reversed(blocks):
        defined = _defined(block)
        imported = words("\n".join(_RE.imported.findall(block)))
        # An answer is no import: `from solution import f` shows how to use an earlier block.
        if (wanted - known) & (defined | imported if taken else defined):
            taken.insert(0, block)
            wanted |= words(block)
            known |= defined | imported
    # A helper may also stand below the code that calls it.
    for block in blocks:
        defined = {match[1] for match in _RE.defined.finditer(block) if match[1]}
        called = {name for one in taken for name in _RE.called.findall(one)} - known
        if taken and block not in taken and defined & called:
            taken.append(block)
            known |= _defined(block)
    return taken


def words(code: str) -> set[str]:
    return set(re.findall(r"\w+", code))
