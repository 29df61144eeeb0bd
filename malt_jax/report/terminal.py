"""A search tree as text, for terminals and READMEs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from malt_jax.escape import one_line


def tree_text(record: Mapping[str, Any], width: int = 100, texts: bool = True) -> str:
    """One tree record as lines of at most `width` characters.

    Each node shows its name, its value (a leaf: right or wrong), whether it is labelled positive
    (`+`), and the end of what it says, where the conclusion stands.
    """
    children: dict[str | None, list[Mapping[str, Any]]] = defaultdict(list)
    for node in record["nodes"]:
        children[node["parent"]].append(node)
    head = f"{record['question_id']}  {one_line(record['question'])}"
    lines = [_cut(head, width), _cut(f"answer: {one_line(str(record['answer']))}", width)]

    def grow(parent: str | None, indent: str) -> None:
        for position, node in enumerate(children[parent]):
            last = position == len(children[parent]) - 1
            name = node["id"].rpartition("/")[2]
            told = _value(node)
            start = f"{indent}{'└─ ' if last else '├─ '}{one_line(name)}  {told}  "
            room = width - len(start)
            lines.append(start + _end(one_line(node["completion"]), room) if texts else start)
            grow(node["id"], indent + ("   " if last else "│  "))

    grow(None, "")
    return "\n".join(line.rstrip() for line in lines)


def _value(node: Mapping[str, Any]) -> str:
    if "reward" in node:
        return "✓" if node["reward"] else "✗"
    return f"{node['value']:.2f}{'+' if node['label'] else ' '}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


def _end(text: str, room: int) -> str:
    text = text.strip()
    if len(text) <= room:
        return text
    return "…" + text[len(text) - room + 1 :] if room > 1 else ""
