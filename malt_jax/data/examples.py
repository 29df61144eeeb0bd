"""Training examples as a role's data files hold them: what TRL reads, and where each came from.

Every kind has `completions`, its token ids, of which the first `imitated` are made likelier; `cut`,
itself with shorter ones; and `signals`, what else its loss reads (empty where that changes
nothing), by which stored results are recognised.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

_Single = TypeVar("_Single", bound="_OneCompletion")


@dataclass(frozen=True)
class _OneCompletion:
    """What examples with one completion have in common."""

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    """The tokens of the completion, its end token included."""
    node_id: str
    """The node of the tree that holds the completion."""

    @property
    def id(self) -> str:
        return self.node_id

    @property
    def completions(self) -> tuple[tuple[int, ...], ...]:
        return (self.completion_ids,)

    @property
    def imitated(self) -> int:
        return 1

    def cut(self: _Single, completions: Sequence[tuple[int, ...]]) -> _Single:
        return replace(self, completion_ids=completions[0])

    @classmethod
    def from_record(cls: type[_Single], record: Mapping[str, Any]) -> _Single:
        return cls(**_with_tuples(record, "prompt_ids", "completion_ids"))


@dataclass(frozen=True)
class SftExample(_OneCompletion):
    """A prompt and a completion to imitate, its end token included."""

    role: str = ""
    question_id: str = ""
    """All examples of a question are held out together or not at all."""
    prompt: str = ""
    completion: str = ""
    value: float = math.nan
    weight: float = 1.0
    """Weight of each of its tokens in the batch's mean."""

    FILE: ClassVar[str] = "sft.jsonl"

    @property
    def signals(self) -> tuple[Any, ...]:
        return () if self.weight == 1.0 else (self.weight,)

    def to_record(self) -> dict[str, Any]:
        """One line of `sft.jsonl`."""
        return _single(self) | _unless(1.0, weight=self.weight)


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
    margin: float = 0.0
    """By how much the chosen one is better; DPO with an offset (ODPO) asks for as wide a gap."""

    FILE: ClassVar[str] = "dpo.jsonl"

    @property
    def id(self) -> str:
        return f"{self.chosen_node_id} > {self.rejected_node_id}"

    @property
    def completions(self) -> tuple[tuple[int, ...], ...]:
        return (self.chosen_ids, self.rejected_ids)

    @property
    def imitated(self) -> int:
        return 1

    @property
    def signals(self) -> tuple[Any, ...]:
        return () if self.margin == 0.0 else (self.margin,)

    def cut(self, completions: Sequence[tuple[int, ...]]) -> DpoExample:
        return replace(self, chosen_ids=completions[0], rejected_ids=completions[1])

    def to_record(self) -> dict[str, Any]:
        """One line of `dpo.jsonl`."""
        record = {
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
        return record | _unless(0.0, margin=self.margin)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DpoExample:
        # A copy of `chosen_value`, which `to_record` adds and the class does not have.
        fields = {name: value for name, value in record.items() if name != "value"}
        return cls(**_with_tuples(fields, "prompt_ids", "chosen_ids", "rejected_ids"))


@dataclass(frozen=True)
class UnpairedExample(_OneCompletion):
    """A completion that is desirable or not, without another to compare it with (KTO)."""

    label: bool
    """Whether the completion is desirable."""
    role: str = ""
    question_id: str = ""
    prompt: str = ""
    completion: str = ""
    value: float = math.nan
    weight: float = 1.0
    """Weight of its loss in the batch's mean, beside the weight of its kind."""

    FILE: ClassVar[str] = "kto.jsonl"

    @property
    def imitated(self) -> int:
        return int(self.label)

    @property
    def signals(self) -> tuple[Any, ...]:
        return (self.label, self.weight)

    def to_record(self) -> dict[str, Any]:
        """One line of `kto.jsonl`."""
        return {**_single(self), "label": self.label, **_unless(1.0, weight=self.weight)}


@dataclass(frozen=True)
class PolicyExample(_OneCompletion):
    """A sampled completion with its advantage, for the policy gradient."""

    logprobs: tuple[float, ...]
    """Log-probability of each completion token under the policy that sampled it, unfiltered and at
    temperature 1, as `Node.logprobs` has them."""
    advantage: float
    """How much better the completion was than its siblings, or with `data.advantage: global` than
    all other leaves."""
    role: str = ""
    question_id: str = ""
    prompt: str = ""
    completion: str = ""
    value: float = math.nan

    FILE: ClassVar[str] = "policy.jsonl"

    def __post_init__(self) -> None:
        if len(self.logprobs) != len(self.completion_ids):
            raise ValueError(
                f"{self.node_id}: {len(self.logprobs)} log-probabilities for "
                f"{len(self.completion_ids)} completion tokens; each token has one."
            )

    @property
    def imitated(self) -> int:
        # Its advantage is that of the tokens which were sampled, however many are kept.
        return 0

    @property
    def signals(self) -> tuple[Any, ...]:
        return (self.advantage, self.logprobs)

    def cut(self, completions: Sequence[tuple[int, ...]]) -> PolicyExample:
        (ids,) = completions
        return replace(self, completion_ids=ids, logprobs=self.logprobs[: len(ids)])

    def to_record(self) -> dict[str, Any]:
        """One line of `policy.jsonl`."""
        return {**_single(self), "advantage": self.advantage, "logprobs": list(self.logprobs)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> PolicyExample:
        return cls(**_with_tuples(record, "prompt_ids", "completion_ids", "logprobs"))


Example = SftExample | DpoExample | UnpairedExample | PolicyExample
E = TypeVar("E", SftExample, DpoExample, UnpairedExample, PolicyExample)
"""One kind of example."""

EXAMPLES: dict[str, type[Example]] = {
    "sft": SftExample,
    "dpo": DpoExample,
    "kto": UnpairedExample,
    "pg": PolicyExample,
}
"""What each phase of training learns from, in the order of the phases."""


def _single(example: SftExample | UnpairedExample | PolicyExample) -> dict[str, Any]:
    """The columns of every file with one completion a line."""
    return {
        "prompt": example.prompt,
        "completion": example.completion,
        "role": example.role,
        "question_id": example.question_id,
        "node_id": example.node_id,
        "value": example.value,
        "prompt_ids": list(example.prompt_ids),
        "completion_ids": list(example.completion_ids),
    }


def _unless(default: float, **field: float) -> dict[str, float]:
    """The field, or nothing where it has its default, so that published data keep their bytes."""
    return {name: value for name, value in field.items() if value != default}


def _with_tuples(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    # JSON gives lists. Tuples can be keys of a dictionary, by which equal prompts are found.
    return {**record, **{name: tuple(record[name]) for name in names}}
