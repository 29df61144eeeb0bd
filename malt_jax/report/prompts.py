"""Prompts kept small: a prompt is its role's template with the question and earlier turns in it.

All prompts of a role share the template's text, and what they hold besides is on the page already.
So a node keeps the number of its template, and the page puts the texts back.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

QUESTION = "\ue000q\ue001"
_MARK = re.compile("\ue000(q|[0-9]+)\ue001")
MOST_TEMPLATES = 100
"""Beyond this the prompts do not share templates (cut turns, say) and are kept as they are."""


class Templates:
    """The templates met so far; `DATA.prompts` of the page."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, prompt: str, question: str, turns: Sequence[str]) -> int | str:
        """The number of the template that gives `prompt`, or the prompt itself if none can.

        `turns` are the earlier turns' texts, the first turn's first.
        """
        template = prompt
        # The last turn first: it may quote what came before it.
        for index in reversed(range(len(turns))):
            if turns[index]:
                template = template.replace(turns[index], f"\ue000{index}\ue001")
        template = template.replace(question, QUESTION) if question else template
        if expand(template, question, turns) != prompt:
            return prompt
        if template not in self._numbers:
            if len(self.texts) >= MOST_TEMPLATES:
                return prompt
            self._numbers[template] = len(self.texts)
            self.texts.append(template)
        return self._numbers[template]


def expand(template: str, question: str, turns: Sequence[str]) -> str:
    """The prompt a template gives; marks that stand for nothing stay."""

    def put(match: re.Match[str]) -> str:
        if match[1] == "q":
            return question
        return turns[int(match[1])] if int(match[1]) < len(turns) else match[0]

    return _MARK.sub(put, template)
