"""A search tree as text, for terminals and READMEs."""

from __future__ import annotations

from collections.abc import Iterator

from malt_jax.escape import one_line
from malt_jax.tree.node import Node, Tree


def tree_text(tree: Tree, width: int = 100) -> str:
    """One tree as lines of at most `width` characters.

    Each node shows its name, its value (a leaf: right or wrong), a `+` if it is labelled positive,
    and the end of its completion, where the conclusion is.
    """
    lines = [f"{tree.question_id}  {one_line(tree.question)}", f"answer: {one_line(tree.answer)}"]
    cut = [line if len(line) <= width else line[: width - 1] + "…" for line in lines]
    return "\n".join(line.rstrip() for line in [*cut, *_subtree(tree, None, "", width)])


def _subtree(tree: Tree, parent: str | None, indent: str, width: int) -> Iterator[str]:
    children = tree.children.get(parent, [])
    for node in children:
        last = node is children[-1]
        name = node.id.rpartition("/")[2]
        start = f"{indent}{'└─ ' if last else '├─ '}{one_line(name)}  {_value(node)}  "
        yield start + _end(one_line(node.completion).strip(), width - len(start))
        yield from _subtree(tree, node.id, indent + ("   " if last else "│  "), width)


def _value(node: Node) -> str:
    if node.reward is not None:
        return "✓" if node.reward else "✗"
    return f"{node.value:.2f}{'+' if node.label else ' '}"


def _end(text: str, room: int) -> str:
    """The last `room` characters of a text, with a mark where it was cut."""
    if len(text) <= room:
        return text
    return "…" + text[len(text) - room + 1 :] if room > 1 else ""
