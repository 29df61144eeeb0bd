"""Balance: turns after right answers weigh as much as those after wrong ones.

Siblings are a pair where they end differently. After a wrong answer a critic's word can change the
end; after a right one it hardly can. So most pairs of a critic say: here it was better to find a
mistake. A model can learn that without reading the answer, and raises false alarms. Positives err
the other way: what follows a right answer is mostly right, so imitation teaches to approve. With
equal weights on both sides a verdict alone says nothing any more; whether it is true does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TypeVar

from malt_jax.credit.verdict import judged_answers
from malt_jax.data.examples import DpoExample, SftExample, UnpairedExample
from malt_jax.tree.node import VALUE_DIGITS, Tree

E = TypeVar("E", SftExample, DpoExample, UnpairedExample)


def after_right(trees: Iterable[Tree]) -> dict[str, bool | None]:
    """By node id, whether the latest earlier answer is right; None where there is none."""
    return {
        node_id: answer.correct if answer else None
        for tree in trees
        for node_id, answer in judged_answers(tree).items()
    }


def balance(
    examples: list[E], after: Mapping[str, bool | None], node_of: Callable[[E], str]
) -> None:
    """Scales the weights, so that those after right and after wrong answers have equal sums.

    Desirable and undesirable completions (KTO) are balanced apart. The sum of all weights stays
    what it is. Where one of the two sides has no example, there is nothing to balance.
    """
    sides: dict[bool, dict[bool, float]] = defaultdict(lambda: defaultdict(float))
    for example in examples:
        if (right := after[node_of(example)]) is not None:
            sides[_desirable(example)][right] += example.weight
    for at, example in enumerate(examples):
        sums, right = sides[_desirable(example)], after[node_of(example)]
        if right is not None and len(sums) == 2:
            factor = sum(sums.values()) / 2 / sums[right]
            examples[at] = replace(example, weight=round(example.weight * factor, VALUE_DIGITS))


def _desirable(example: SftExample | DpoExample | UnpairedExample) -> bool:
    return getattr(example, "label", True)
