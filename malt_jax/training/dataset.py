"""Training examples of a phase: length filtering, held-out split, order of the epochs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np

from malt_jax.data.examples import E, Example
from malt_jax.data.packing import Segment


def admit(examples: Sequence[E], max_length: int) -> tuple[list[E], dict[str, int]]:
    """Filters examples by length: those kept, after truncation, and counts of the others.

    Completions are cut at their end so that prompt and completion fit `max_length`. Dropped are
    prompts that leave no room (`no_room`), empty completions (`empty`), pairs whose completions are
    equal after the cut (`equal`), and examples of which a completion to imitate would be cut: they
    would teach not to end (`too_long`). `truncated` counts those that were cut and kept.
    """
    kept: list[E] = []
    counts: Counter[str] = Counter(no_room=0, empty=0, equal=0, too_long=0, truncated=0)
    for example in examples:
        # A prompt is never cut, because the completion was sampled given all of it.
        room = max_length - len(example.prompt_ids)
        cut = tuple(ids[: max(room, 0)] for ids in example.completions)
        if room < 1 or not example.prompt_ids:
            counts["no_room"] += 1
        elif not all(cut):
            counts["empty"] += 1
        elif cut[: example.imitated] != example.completions[: example.imitated]:
            counts["too_long"] += 1
        elif len(cut) == 2 and cut[0] == cut[1]:
            # Whatever the weights are, the gap of such a pair is 0 and has no gradient.
            counts["equal"] += 1
        else:
            counts["truncated"] += cut != example.completions
            kept.append(example.cut(cut))
    return kept, dict(counts)


def segment(example: Example, number: int) -> Segment:
    """The example as a segment to pack; completion i of k is sequence `k * number + i`."""
    # For pairs, chosen is 2 * number and rejected 2 * number + 1, as in a flat array [pairs, 2].
    branches = example.completions
    first = number * len(branches)
    numbers = tuple(range(first, first + len(branches)))
    return Segment(example.prompt_ids, branches, numbers)


def split(examples: Sequence[Example], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and indices to hold out; the examples of a question stay together.

    A question is held out if its seeded hash, a number in [0, 1), is below `share`: by itself, so
    that a later phase with the same share, which has other examples, does not measure on what an
    earlier one learnt. At least one is held out if `share` is above 0 and there are two questions,
    and never all; where that one is not below `share`, an earlier phase may have learnt it.
    """
    # Without a question's id, the examples of one prompt count as one question.
    names = [example.question_id or repr(example.prompt_ids) for example in examples]
    places = {name: _place(f"{seed}/{name}") for name in names}
    ranked = sorted(places, key=places.__getitem__)
    count = 0
    if share > 0 and len(ranked) > 1:
        below = sum(place < share for place in places.values())
        count = min(max(1, below), len(ranked) - 1)
    held = set(ranked[:count])
    train = [i for i, name in enumerate(names) if name not in held]
    return train, [i for i, name in enumerate(names) if name in held]


def mismatched(
    examples: Sequence[Example], max_length: int, first: int, others: Sequence[Example] = ()
) -> list[Segment]:
    """Each prompt of a batch with another prompt's completion, numbered from `first`.

    KTO estimates the divergence of policy and reference on them. As in TRL the completion is that
    of the example before it in the batch, and the last one's for the first; but an example of the
    same prompt is passed over, and a batch of one prompt takes it from `others`. Where all have one
    prompt, each keeps its own completion.
    """
    segments = []
    for place, example in enumerate(examples):
        before = chain(examples[:place][::-1], examples[place:][::-1], others)
        other = next((one for one in before if one.prompt_ids != example.prompt_ids), example)
        room = max_length - len(example.prompt_ids)
        segments.append(
            Segment(example.prompt_ids, (other.completions[0][:room],), (first + place,))
        )
    return segments


def epoch_order(
    examples: Sequence[Example], seed: int, epoch: int, *, siblings_together: bool = False
) -> list[int]:
    """Order of the examples in one epoch: a seeded shuffle that mixes the roles evenly.

    Each role's examples are shuffled and spread evenly over the epoch (the i-th of n at
    (i + 1/2) / n), so that with shared weights no batch consists of one role. With one role it is
    a plain shuffle. `siblings_together` shuffles prompts instead, each with its completions.
    """
    # Made anew for each epoch, so the order of an epoch does not depend on those before it.
    rng = np.random.default_rng([seed, epoch])
    # Sorted, because the order of a set of strings differs from process to process.
    roles = sorted({example.role for example in examples})
    spread: list[tuple[float, int, int]] = []
    for rank, role in enumerate(roles):
        units: dict[object, list[int]] = {}
        for index, example in enumerate(examples):
            if example.role == role:
                units.setdefault(example.prompt_ids if siblings_together else index, []).append(
                    index
                )
        blocks = list(units.values())
        order = [index for block in rng.permutation(len(blocks)) for index in blocks[block]]
        spread += [((i + 0.5) / len(order), rank, index) for i, index in enumerate(order)]
    # Roles of equal size meet at equal positions; there the rank decides which comes first.
    return [index for _, _, index in sorted(spread, key=lambda item: item[:2])]


def digest(examples: Sequence[Example]) -> str:
    """SHA-256 of what training reads of the examples, and of their ids, in order."""
    sha = hashlib.sha256()
    for example in examples:
        # The texts are left out: training reads token ids only. Roles decide the order of an epoch,
        # questions what is held out.
        where = (example.id, example.role, example.question_id)
        read = (*where, example.prompt_ids, example.completions, *example.signals)
        sha.update(repr(read).encode())
    return sha.hexdigest()


def _place(text: str) -> float:
    """A hash of the text as a number in [0, 1)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
