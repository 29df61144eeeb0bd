"""The decoder: one Flax NNX transformer for every supported family, told apart by its ModelSpec.

The forward pass does not know where keys and values live. `hidden` takes an `attend` function that
gets each layer's queries, keys and values with that layer's state and returns the attention output
with the new state: training masks, prefill, and decoding against a shared prefix are three such
functions over the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from malt_jax.models.attention import LayerAttention
from malt_jax.models.lora import Adapter, lora_delta
from malt_jax.models.packed_attention import Packing, packed_attention
from malt_jax.models.rope import rotate, rotation
from malt_jax.models.sharding import constrain
from malt_jax.models.spec import ModelSpec

Attend = Callable[[Array, Array, Array, Any, LayerAttention], tuple[Array, Any]]
"""(q [B T H h], k [B T K h], v [B T K h], layer state, layer) -> (out [B T H h], layer state)."""

NO_WINDOW = 1 << 30
"""The window of a full-attention layer where layers are stacked and some have windows."""


def param(
    rngs: nnx.Rngs,
    init: nnx.Initializer,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    dtype: Any,
) -> nnx.Param:
    """The one declaration of a parameter: initialiser, shape, logical axes, dtype."""
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes)


def _normal(fan_in: int) -> nnx.Initializer:
    return nnx.initializers.normal(fan_in**-0.5)


_ZEROS, _ONES = nnx.initializers.zeros, nnx.initializers.ones


class Linear(nnx.Module):
    """`x @ kernel + bias`, with an optional LoRA contribution."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        axes: tuple[str, str],
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
        dtype: Any,
    ):
        self.kernel = param(rngs, _normal(d_in), (d_in, d_out), axes, dtype)
        self.bias = param(rngs, _ZEROS, (d_out,), (axes[1],), dtype) if bias else None

    def __call__(
        self, x: Float[Array, "B T i"], lora: dict[str, Array] | None, scale: float
    ) -> Float[Array, "B T o"]:
        y = x @ self.kernel[...]
        if self.bias is not None:
            y = y + self.bias[...][None, None]
        return y if lora is None else y + lora_delta(x, lora, scale)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, spec: ModelSpec, *, rngs: nnx.Rngs, dtype: Any):
        init = _ZEROS if spec.norm_plus_one else _ONES
        self.weight = param(rngs, init, (width,), (None,), dtype)
        self.eps, self.plus_one = spec.norm_eps, spec.norm_plus_one

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        weight = jnp.broadcast_to(self.weight[...], y.shape)
        if self.plus_one:
            return (y * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
        # Llama's order: back to the model's dtype first, then the weight.
        return y.astype(x.dtype) * weight


class Layer(nnx.Module):
    """Attention and gated MLP with pre-norms, and post-norms where the family has them."""

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs, dtype: Any):
        self.spec = spec
        kw = {"rngs": rngs, "dtype": dtype}
        d, q_dim, kv_dim = spec.d_model, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.q = Linear(d, q_dim, ("embed", "heads"), bias=spec.qkv_bias, **kw)
        self.k = Linear(d, kv_dim, ("embed", "kv_heads"), bias=spec.qkv_bias, **kw)
        self.v = Linear(d, kv_dim, ("embed", "kv_heads"), bias=spec.qkv_bias, **kw)
        self.o = Linear(q_dim, d, ("heads", "embed"), bias=spec.out_bias, **kw)
        self.gate = Linear(d, spec.d_mlp, ("embed", "mlp"), bias=spec.mlp_bias, **kw)
        self.up = Linear(d, spec.d_mlp, ("embed", "mlp"), bias=spec.mlp_bias, **kw)
        self.down = Linear(spec.d_mlp, d, ("mlp", "embed"), bias=spec.mlp_bias, **kw)
        self.attention_norm = RMSNorm(d, spec, **kw)
        self.mlp_norm = RMSNorm(d, spec, **kw)
        self.attention_post_norm = RMSNorm(d, spec, **kw) if spec.sandwich_norms else None
        self.mlp_post_norm = RMSNorm(d, spec, **kw) if spec.sandwich_norms else None
        self.q_norm = RMSNorm(spec.head_dim, spec, **kw) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, spec, **kw) if spec.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: tuple[Array, Array],
        attend: Attend,
        state: Any,
        layer: LayerAttention,
        lora: dict[str, dict[str, Array]],
        scale: float,
    ) -> tuple[Float[Array, "B T D"], Any]:
        spec, (batch, time, _) = self.spec, x.shape
        y = self.attention_norm(x)
        q = self.q(y, lora.get("q"), scale).reshape(batch, time, spec.heads, spec.head_dim)
        k = self.k(y, lora.get("k"), scale).reshape(batch, time, spec.kv_heads, spec.head_dim)
        v = self.v(y, lora.get("v"), scale).reshape(batch, time, spec.kv_heads, spec.head_dim)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q, *angles) * jnp.asarray(spec.query_scale, q.dtype)
        out, state = attend(q, rotate(k, *angles), v, state, layer)
        y = self.o(out.reshape(batch, time, -1), lora.get("o"), scale)
        x = x + (y if self.attention_post_norm is None else self.attention_post_norm(y))
        y = self.mlp_norm(x)
        activate = jax.nn.silu if spec.activation == "silu" else jax.nn.gelu
        y = activate(self.gate(y, lora.get("gate"), scale)) * self.up(y, lora.get("up"), scale)
        y = self.down(y, lora.get("down"), scale)
        x = x + (y if self.mlp_post_norm is None else self.mlp_post_norm(y))
        return constrain(x, "batch", None, None), state


class Decoder(nnx.Module):
    """Embedding, layers, final norm, head.

    `stacked=False` keeps one module a layer: no slice of a weight is ever copied, the choice for
    sampling. `stacked=True` keeps one module with a leading layer axis and scans it: compile time
    does not grow with depth, the choice for very deep models.
    """

    def __init__(
        self, spec: ModelSpec, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, stacked: bool = False
    ):
        self.spec, self.stacked = spec, stacked
        kw = {"rngs": rngs, "dtype": dtype}
        init = _normal(spec.d_model)
        self.embed = param(rngs, init, (spec.vocab, spec.d_model), ("vocab", "embed"), dtype)
        if stacked:
            build = nnx.vmap(lambda r: Layer(spec, rngs=r, dtype=dtype), in_axes=0, out_axes=0)
            self.layers = build(rngs.split(spec.num_layers))
        else:
            self.layers = nnx.List([Layer(spec, **kw) for _ in range(spec.num_layers)])
        self.norm = RMSNorm(spec.d_model, spec, **kw)
        self.head = (
            None
            if spec.tied
            else param(rngs, init, (spec.d_model, spec.vocab), ("embed", "vocab"), dtype)
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        branches: Int[Array, "B T"] | None = None,
        adapter: Adapter | None = None,
    ) -> Float[Array, "B T V"]:
        """Float32 logits of whole sequences, uncached; see `Packing` for packed rows."""
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        hidden = self.hidden_packed(tokens, positions, segments, branches, adapter)
        return self.logits(hidden)

    def hidden_packed(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"] | None = None,
        branches: Int[Array, "B T"] | None = None,
        adapter: Adapter | None = None,
        remat: Callable | None = None,
    ) -> Float[Array, "B T D"]:
        """Final hidden states of packed rows, uncached."""
        segments = jnp.ones_like(tokens) if segments is None else segments
        branches = jnp.zeros_like(tokens) if branches is None else branches

        def attend(q, k, v, state, layer):
            packing = Packing(positions, segments, branches, layer.window)
            return packed_attention(q, k, v, packing, layer.softcap), state

        return self.hidden(tokens, positions, attend, None, adapter, remat)[0]

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Attend,
        state: Any = None,
        adapter: Adapter | None = None,
        remat: Callable | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Final normed hidden states and the layers' new states.

        `state`: a list with one entry a layer, or with stacked layers a pytree whose leaves have
        a leading layer axis; None when `attend` keeps none. `remat`: a `jax.checkpoint`-like
        transform put around each layer.
        """
        spec = self.spec
        # Gathered over its width first, the table gives rows that lie as the batch does.
        x = constrain(self.embed[...], "vocab", None)[tokens]
        if spec.embed_scale != 1.0:
            x = x * jnp.asarray(spec.embed_scale, x.dtype)
        x = constrain(x, "batch", None, None)
        wide = rotation(positions, spec.rope, spec.head_dim)
        local = rotation(positions, spec.local_rope, spec.head_dim) if spec.local_rope else wide
        scale = 1.0 if adapter is None else adapter.scale
        wrap = remat or (lambda f: f)
        if self.stacked:
            return self._scan(x, wide, local, attend, state, adapter, scale, wrap)
        new_state = []
        for i, block in enumerate(self.layers):
            graph, weights = nnx.split(block)
            window = spec.window(i)
            layer = LayerAttention(window, spec.attention_softcap)

            def run(weights, x, angles, state, lora, graph=graph, layer=layer):
                block = nnx.merge(graph, weights)
                return block(x, angles, attend, state, layer, lora, scale)

            lora = {} if adapter is None else adapter.layers[i]
            angles = wide if window is None else local
            x, layer_state = wrap(run)(
                weights, x, angles, None if state is None else state[i], lora
            )
            new_state.append(layer_state)
        return self.norm(x), new_state

    def _scan(self, x, wide, local, attend, state, adapter, scale, wrap):
        spec = self.spec
        graph, weights = nnx.split(self.layers)
        windows = None
        if spec.has_windows:
            windows = jnp.asarray([w or NO_WINDOW for w in spec.windows], jnp.int32)

        def run(x, inputs):
            weights, state, lora, window = inputs
            layer = LayerAttention(window, spec.attention_softcap)
            angles = wide
            if window is not None:
                angles = jax.tree.map(
                    lambda w, s: jnp.where(window == NO_WINDOW, w, s), wide, local
                )
            block = nnx.merge(graph, weights)
            return block(x, angles, attend, state, layer, lora, scale)

        lora = {} if adapter is None else adapter.layers
        x, state = jax.lax.scan(wrap(run), x, (weights, state, lora, windows))
        return self.norm(x), state

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Next-token logits, float32, soft-capped where the family says so."""
        head = self.embed[...].T if self.head is None else self.head[...]
        logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
        if self.spec.logit_softcap is not None:
            logits = self.spec.logit_softcap * jnp.tanh(logits / self.spec.logit_softcap)
        return logits
