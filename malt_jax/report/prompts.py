"""Prompts kept small: a prompt is its role's template with the question and earlier turns in it.

All prompts of a role share the text of the template, and the page has the question and the turns
already. A node therefore keeps the number of its template, and the page fills it in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# The marks are private-use characters, which texts hardly contain; `number` expands every template
# again to be sure.
QUESTION = "\ue000q\ue001"
"""Marks the place of the question; the place of turn i is marked with its number."""
_MARK = re.compile("\ue000(q|[0-9]+)\ue001")
MAX_TEMPLATES = 100
"""Beyond this the prompts do not share templates (turns were cut, say) and are kept as they are."""


class Templates:
    """The templates found so far, `DATA.prompts` of the page."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, prompt: str, question: str, turns: Sequence[str]) -> int | str:
        """The number of the template that gives `prompt`, or the prompt itself if none does.

        `turns` are the texts of the earlier turns, the first turn's first.
        """
        template = prompt
        # The last turn first, because it may quote an earlier one.
        for index in reversed(range(len(turns))):
            if turns[index]:
                template = template.replace(turns[index], f"\ue000{index}\ue001")
        template = template.replace(question, QUESTION) if question else template
        # A prompt that its template does not give back exactly is kept as it is.
        if expand(template, question, turns) != prompt:
            return prompt
        if template not in self._numbers:
            if len(self.texts) >= MAX_TEMPLATES:
                return prompt
            self._numbers[template] = len(self.texts)
            self.texts.append(template)
        return self._numbers[template]


def expand(template: str, question: str, turns: Sequence[str]) -> str:
    """The prompt that a template gives; marks of turns that do not exist stay."""

    def text_at(match: re.Match[str]) -> str:
        if match[1] == "q":
            return question
        return turns[int(match[1])] if int(match[1]) < len(turns) else match[0]

    return _MARK.sub(text_at, template)
