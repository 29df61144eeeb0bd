"""Training examples as a role's data files hold them: what TRL reads, and where each came from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SftExample:
    """A prompt and a completion to imitate, its end token included."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    node_id: str
    role: str = ""
    question_id: str = ""
    """All examples of a question are held out together or not at all."""
    prompt: str = ""
    completion: str = ""
    value: float = math.nan

    @property
    def id(self) -> str:
        return self.node_id

    @property
    def completions(self) -> tuple[tuple[int, ...], ...]:
        return (self.completion_ids,)

    def to_record(self) -> dict[str, Any]:
        """One line of `sft.jsonl`."""
        return {
            "prompt": self.prompt,
            "completion": self.completion,
            "role": self.role,
            "question_id": self.question_id,
            "node_id": self.node_id,
            "value": self.value,
            "prompt_ids": list(self.prompt_ids),
            "completion_ids": list(self.completion_ids),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SftExample:
        return cls(**_with_tuples(record, "prompt_ids", "completion_ids"))


@dataclass(frozen=True)
class DpoExample:
    """A prompt, the completion to prefer and the one to avoid, their end tokens included."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]
    chosen_node_id: str
    rejected_node_id: str = ""
    role: str = ""
    question_id: str = ""
    node_id: str = ""
    """The node that both completions continue; the question's id for drafts."""
    prompt: str = ""
    chosen: str = ""
    rejected: str = ""
    chosen_value: float = math.nan
    rejected_value: float = math.nan

    @property
    def id(self) -> str:
        return f"{self.chosen_node_id} > {self.rejected_node_id}"

    @property
    def completions(self) -> tuple[tuple[int, ...], ...]:
        return (self.chosen_ids, self.rejected_ids)

    def to_record(self) -> dict[str, Any]:
        """One line of `dpo.jsonl`."""
        return {
            "prompt": self.prompt,
            "chosen": self.chosen,
            "rejected": self.rejected,
            "role": self.role,
            "question_id": self.question_id,
            "node_id": self.node_id,
            "chosen_node_id": self.chosen_node_id,
            "rejected_node_id": self.rejected_node_id,
            "value": self.chosen_value,  # again, because every data file has a `value` column
            "chosen_value": self.chosen_value,
            "rejected_value": self.rejected_value,
            "prompt_ids": list(self.prompt_ids),
            "chosen_ids": list(self.chosen_ids),
            "rejected_ids": list(self.rejected_ids),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DpoExample:
        # A copy of `chosen_value`, which `to_record` adds and the class does not have.
        fields = {name: value for name, value in record.items() if name != "value"}
        return cls(**_with_tuples(fields, "prompt_ids", "chosen_ids", "rejected_ids"))


Example = SftExample | DpoExample


def _with_tuples(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    # JSON gives lists. Tuples can be keys of a dictionary, by which equal prompts are found.
    return {**record, **{name: tuple(record[name]) for name in names}}
