"""The product with the head, whose logits come out along one axis or in blocks of the vocabulary.

A TPU keeps an array in tiles of 128 along its last axis, so splitting the logits of all rows into
blocks there would copy them all. Out of the product they can come split. (This is also why a head
is kept as [V, D]: the rows of a block lie together.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from malt_jax.models import quantized
from malt_jax.models.matmul import blocked_matmul, by_transpose, float32_matmul
from malt_jax.models.quantized import QuantizedMatrix
from malt_jax.models.sharding import constrain, mesh_parts

WIDEST, NARROWEST = 128, 32
"""Tokens of a block. Narrower ones would leave most of a tile unused."""


def product(
    hidden: Float[Array, "*b D"], head: Float[Array, "V D"] | QuantizedMatrix
) -> Float[Array, "*b V"]:
    """`hidden @ head.T` in float32.

    Float32 comes out of the product itself. Rounded to bfloat16 and cast back, logits that are
    close would become equal.
    """
    if isinstance(head, QuantizedMatrix):
        return quantized.product(hidden, head.T)
    return float32_matmul(hidden, head.T)


def product_of_loop(
    head: Float[Array, "V D"] | QuantizedMatrix,
) -> Callable[[Float[Array, "*b D"]], Float[Array, "*b V"]]:
    """`product` as a function of the hidden states, for a loop on a CPU."""
    return partial(product, head=head) if isinstance(head, QuantizedMatrix) else by_transpose(head)


def blocked_product(
    hidden: Float[Array, "R D"], head: Float[Array, "V D"] | QuantizedMatrix
) -> Float[Array, "R n w"]:
    """The same in `n` blocks of `w` tokens, -inf after the end of the vocabulary.

    On a mesh each device has the blocks of its part of the head.
    """
    vocab = head.shape[0]
    parts = mesh_parts(jax.sharding.get_abstract_mesh(), "vocab")
    n, w = vocab_blocks(vocab, parts if vocab % parts == 0 else 1)
    if n * w == vocab and not isinstance(head, QuantizedMatrix):
        # As one product of [D] with [n, w, D]: a head that is transposed first would be copied.
        blocks = head.reshape(n, w, -1)
        logits = blocked_matmul(hidden, blocks)
    else:
        logits = in_blocks(product(hidden, head), n, w)
    return constrain(logits, "batch", "vocab", None)


def vocab_blocks(vocab: int, parts: int = 1) -> tuple[int, int]:
    """Blocks and tokens of a block, of which each of `parts` has as many, where that is possible.

    Where no width fits, the last block is longer than what is left of the vocabulary.
    """
    share = vocab // parts
    for w in range(min(WIDEST, share), min(NARROWEST, share) - 1, -1):
        if share % w == 0:
            return vocab // w, w
    return -(-vocab // WIDEST), WIDEST


def in_blocks(logits: Float[Array, "R V"], n: int, w: int) -> Float[Array, "R n w"]:
    """Logits along one axis, split; -inf after their end."""
    missing = n * w - logits.shape[-1]
    padded = jnp.pad(logits, ((0, 0), (0, missing)), constant_values=-jnp.inf)
    return padded.reshape(-1, n, w)
