"""The host's index of the prefix cache: which prompt tokens each entry holds, and who reads them.

Keys and values depend on the tokens before them alone, so what two prompts share is computed once.
A new prompt goes to a free entry and is grown from the entry that holds the longest prefix of it:
in place if that one is free, else after a copy of the shared prefix. Nothing is ever copied for a
completion, since all completions of a prompt read its entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from malt_jax.sampling.memory import CacheShape

EMPTY = -1


@dataclass(frozen=True)
class Prefill:
    """Fills entry `target`: the first `start` tokens from entry `source`, the others computed."""

    source: int
    target: int
    start: int
    tokens: tuple[int, ...]
    batch: int  # it reads only what prefills of earlier batches wrote
    policy: int = 0  # whose adapter it is computed with


class PrefixCache:
    """The entries of one run. On a mesh, each shard has an equal range of them."""

    def __init__(self, shape: CacheShape, shards: int):
        self.tokens = np.full((shape.entries, shape.prefix_tokens), EMPTY, np.int32)
        """The tokens whose keys and values each entry holds, also after its last reader."""
        self.readers = np.zeros(shape.entries, np.int32)
        """Per entry, its completions that have not ended; 0: free."""
        self.policies = np.zeros(shape.entries, np.int32)
        """Per entry, whose adapter its keys and values were computed with."""
        self._shards = shards

    def has_free(self, shard: int) -> bool:
        return not np.all(self.readers[self._range(shard)])

    def admit(
        self,
        prefix: tuple[int, ...],
        readers: int,
        shard: int,
        batches: dict[int, int],
        policy: int = 0,
    ) -> tuple[int, Prefill | None]:
        """Chooses a free entry of the shard for a prefix, and what it is filled from.

        Prefixes are shared within a policy. `batches`: entry -> batch of its planned prefill;
        updated here. Prefills of one batch read nothing that the same batch writes.
        """
        own = self._range(shard)
        held, wanted = self.tokens[own, : len(prefix)], np.asarray(prefix, np.int32)
        # Each entry's common prefix with the prompt: the position of the first difference, of which
        # there is one after the end.
        differs = np.ones((len(held), len(prefix) + 1), bool)
        np.not_equal(held, wanted[None], out=differs[:, :-1])
        differs[self.policies[own] != policy] = True
        shared = np.argmax(differs, axis=1)
        batch_of = np.zeros(len(held), np.int64)
        for entry in batches.keys() & range(own.start, own.stop):
            batch_of[entry - own.start] = batches[entry]
        source = int(np.lexsort((batch_of, -shared))[0])  # the longest, then the earliest written
        start = int(shared[source])
        free = np.flatnonzero(self.readers[own] == 0)
        as_good = free[shared[free] == start]
        if len(as_good):
            source = target = int(as_good[0])
        else:
            # Overwrite the free entry that shares least with this prompt: what later prompts could
            # reuse of the others is still there.
            target = int(free[np.argmin(shared[free])])
        in_place = source == target
        source, target = own.start + source, own.start + target
        self.readers[target] = readers
        self.tokens[target] = EMPTY
        self.tokens[target, : len(prefix)] = wanted
        self.policies[target] = policy
        if in_place and start == len(prefix):
            return target, None
        batches[target] = 0 if in_place else batches.get(source, -1) + 1
        return target, Prefill(source, target, start, prefix[start:], batches[target], policy)

    def keep(self, entries: Int[np.ndarray, "P"], new: Bool[np.ndarray, "P"]) -> None:
        """Forgets all other entries; those kept are renumbered in their order. `new` are empty."""
        self.tokens, self.readers = self.tokens[entries], self.readers[entries]
        self.policies = self.policies[entries]
        self.tokens[new], self.readers[new] = EMPTY, 0

    def _range(self, shard: int) -> slice:
        count = len(self.readers) // self._shards
        return slice(shard * count, (shard + 1) * count)
