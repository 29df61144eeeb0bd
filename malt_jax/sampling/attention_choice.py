"""Which attention decodes, by `sampler.attention`, and the caches that it reads."""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

from malt_jax.errors import UserError
from malt_jax.models.spec import ModelSpec
from malt_jax.sampling import memory
from malt_jax.sampling.attention import DecodeAttention, xla_decode_attention
from malt_jax.sampling.cache import KV, Cache, JoinedKV

AUTO = "xla"
"""What `auto` stands for, on every platform. The kernel compiles for TPUs, but its speed was never
measured on one, and what was not measured on its hardware is off by default."""


class AttentionChoice(NamedTuple):
    """An implementation of decode attention with what it asks of the caches."""

    decode: DecodeAttention
    layout: type[Cache]
    block: int
    """Capacities of caches are multiples of it."""
    siblings: int
    """Rows that read one prefix cache entry, at most, unless `sampler.width` says otherwise."""
    widest: int = 1 << 30
    """What `sampler.width` can ask for, at most: the kernel holds all of them on the chip."""

    def width(self, asked: int) -> int:
        """Rows that read one entry, at most, under this `sampler.width`."""
        return min(asked or self.siblings, self.widest)


def choose_attention(name: str, platform: str, spec: ModelSpec, dtype: Any) -> AttentionChoice:
    """The implementation of that name for a platform; raises UserError where there is none.

    `dtype`: of activations.
    """
    if (AUTO if name == "auto" else name) == "xla":
        return AttentionChoice(xla_decode_attention, KV, 1, memory.MAX_SIBLINGS)
    # Here, because importing Pallas takes a noticeable part of a second.
    from malt_jax.sampling import tree_attention, work_list

    if platform not in ("tpu", "cpu"):
        raise UserError(
            f"sampler.attention: pallas is a kernel for TPUs, found {platform!r}; "
            "allowed here: auto or xla."
        )
    if platform == "tpu" and spec.head_dim % 64:
        raise UserError(
            f"sampler.attention: pallas needs heads of a multiple of 64 numbers, this "
            f"{spec.family} model has {spec.head_dim}; set auto or xla."
        )
    # On a CPU the kernel is interpreted, which is slow: it is for tests.
    decode = _kernel(interpret=platform == "cpu")
    limit = tree_attention.siblings_limit(spec, dtype)
    return AttentionChoice(decode, JoinedKV, work_list.BLOCK, limit, limit)


@cache
def _kernel(interpret: bool) -> DecodeAttention:
    """The kernel; the same object each time, since programs are found by what is compiled in."""
    from malt_jax.sampling import tree_attention

    return partial(tree_attention.pallas_decode_attention, interpret=interpret)
