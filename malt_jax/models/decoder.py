"""The decoder: one Flax NNX transformer for every supported family, described by its ModelSpec.

Read `Layer.__call__` first, then `Decoder.hidden`. Attention itself is passed in (`Attend`), and a
LoRA adapter is one more argument, so that the same compiled program serves every role.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from malt_jax.models.attention import Attend, LayerAttention
from malt_jax.models.lora import Adapter, LayerAdapter, lora_delta
from malt_jax.models.packed_attention import Packing, packed_attention
from malt_jax.models.rope import Angles, rotate, rotation
from malt_jax.models.sharding import constrain
from malt_jax.models.spec import ModelSpec

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
    """`x @ kernel + bias`."""

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

    def __call__(self, x: Float[Array, "B T i"]) -> Float[Array, "B T o"]:
        # The bias gets its other axes explicitly: the tests forbid implicit rank promotion.
        y = x @ self.kernel[...]
        return y if self.bias is None else y + self.bias[...][None, None]


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
        # In bfloat16 the order of rounding matters. Gemma multiplies in float32 and rounds once;
        # Llama rounds to the model's dtype first and multiplies there.
        if self.plus_one:
            return (y * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
        return y.astype(x.dtype) * weight


def _normed(norm: RMSNorm | None, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """`x` through a norm that not every family has."""
    return x if norm is None else norm(x)


class Layer(nnx.Module):
    """Attention and a gated MLP, each between norms and added to the residual stream."""

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
        angles: Angles,
        attend: Attend,
        cache: Any,
        layer: LayerAttention,
        lora: LayerAdapter,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """The residual stream after this layer, and the layer's new cache."""
        # Norms act on the branches only. The residual stream itself is never normed between layers,
        # so that a sum of all layers' outputs reaches the final norm.
        y, cache = self._attention(self.attention_norm(x), angles, attend, cache, layer, lora)
        x = x + _normed(self.attention_post_norm, y)
        x = x + _normed(self.mlp_post_norm, self._mlp(self.mlp_norm(x), lora))
        # Between layers the stream is split by rows only, whatever the products above would prefer.
        return constrain(x, "batch", None, None), cache

    def _attention(self, x, angles, attend, cache, layer, lora):
        q, k, v = (self._heads(self._project(name, x, lora)) for name in "qkv")
        # Before the rotation: the norm has one weight per channel, and a rotation mixes channels,
        # so the two do not commute.
        q, k = _normed(self.q_norm, q), _normed(self.k_norm, k)
        # Positions enter here only: queries and keys are rotated by the angle of their position,
        # so that their products depend on the distance between two tokens.
        q, k = rotate(q, *angles), rotate(k, *angles)
        # Scaling the queries touches T x h numbers per head; scaling the scores would touch T x S.
        q = q * jnp.asarray(self.spec.query_scale, q.dtype)
        out, cache = attend(q, k, v, cache, layer)
        return self._project("o", out.reshape(*x.shape[:2], -1), lora), cache

    def _mlp(self, x, lora):
        # `jax.nn.gelu` is the tanh approximation by default, which is what `gelu_tanh` names.
        activate = jax.nn.silu if self.spec.activation == "silu" else jax.nn.gelu
        gated = activate(self._project("gate", x, lora)) * self._project("up", x, lora)
        return self._project("down", gated, lora)

    def _project(
        self, name: str, x: Float[Array, "B T i"], lora: LayerAdapter
    ) -> Float[Array, "B T o"]:
        """One of the seven projections, with the adapter's update where it has one."""
        y = getattr(self, name)(x)
        pair = lora.pairs.get(name)
        return y if pair is None else y + lora_delta(x, pair, lora.scale)

    def _heads(self, x: Float[Array, "B T w"]) -> Float[Array, "B T N h"]:
        return x.reshape(*x.shape[:2], -1, self.spec.head_dim)


class Decoder(nnx.Module):
    """Embedding, layers, final norm, head.

    `stacked=False` keeps one module per layer: no slice of a weight is ever copied, the choice for
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
        self.layers: Any  # one Layer if stacked, else a list of them
        if stacked:
            # Mapped over split keys, every leaf gets a leading layer axis.
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

        def attend(q, k, v, cache, layer):
            packing = Packing(positions, segments, branches, layer.window)
            return packed_attention(q, k, v, packing, layer.softcap), cache

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
        """Final normed hidden states and the layers' new caches.

        `state`: a list with one cache per layer, or with stacked layers a pytree whose leaves have
        a leading layer axis; None when `attend` keeps none. `remat`: a `jax.checkpoint`-like
        transform put around each layer.
        """
        spec = self.spec
        # The angles are the same in every layer, up to the two kinds that Gemma 3 has.
        wide = rotation(positions, spec.rope, spec.head_dim)
        local = rotation(positions, spec.local_rope, spec.head_dim) if spec.local_rope else wide

        def run(block: Layer, x, cache, pairs, window):
            def step(x, cache, pairs):
                layer = LayerAttention(window, spec.attention_softcap)
                lora = LayerAdapter(pairs, 1.0 if adapter is None else adapter.scale)
                return block(x, _angles(window, wide, local), attend, cache, layer, lora)

            return (step if remat is None else remat(step))(x, cache, pairs)

        pairs = None if adapter is None else adapter.layers
        layers = self._scanned if self.stacked else self._unrolled
        x, state = layers(run, self._embedded(tokens), state, pairs)
        return self.norm(x), state

    def _unrolled(self, run, x, state, pairs):
        """One layer after the other, each with its own arrays and a static window."""
        caches = []
        for i, block in enumerate(self.layers):
            cache, lora = None if state is None else state[i], {} if pairs is None else pairs[i]
            x, cache = run(block, x, cache, lora, self.spec.window(i))
            caches.append(cache)
        return x, caches

    def _scanned(self, run, x, state, pairs):
        """One compiled layer, looped over the leading axis of weights, caches and adapter."""
        graph, weights = nnx.split(self.layers)
        # One traced layer stands for all, so its window is a traced number too. Where no layer has
        # one it stays None, and the mask is built without it.
        windows = None
        if self.spec.has_windows:
            windows = jnp.asarray([w or NO_WINDOW for w in self.spec.windows], jnp.int32)

        def step(x, inputs):
            weights, cache, lora, window = inputs
            return run(nnx.merge(graph, weights), x, cache, lora, window)

        # Neither None nor an empty dictionary has leaves, so the scan loops over what there is.
        return jax.lax.scan(step, x, (weights, state, pairs or {}, windows))

    def _embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        # All-gather the table over its width first, so that the looked-up rows are laid out like
        # the batch.
        x = constrain(self.embed[...], "vocab", None)[tokens]
        if self.spec.embed_scale != 1.0:
            # The factor is rounded to the model's dtype first: a bfloat16 model multiplies by the
            # nearest bfloat16 number.
            x = x * jnp.asarray(self.spec.embed_scale, x.dtype)
        return constrain(x, "batch", None, None)

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Next-token logits, float32, soft-capped where the family says so."""
        head = self.embed[...].T if self.head is None else self.head[...]
        # Float32 comes out of the product itself. Rounded to bfloat16 and cast back, logits that
        # are close would become equal.
        logits = jnp.matmul(hidden, head, preferred_element_type=jnp.float32)
        if self.spec.logit_softcap is not None:
            logits = self.spec.logit_softcap * jnp.tanh(logits / self.spec.logit_softcap)
        return logits


def _angles(window: Int[Array, ""] | int | None, wide: Angles, local: Angles) -> Angles:
    """A layer's rotary angles: `local` with a sliding window, `wide` without."""
    if window is None:
        return wide
    if isinstance(window, int):
        return local
    # Stacked layers: both kinds of angles exist, and the traced window selects one.
    return jax.tree.map(lambda w, s: jnp.where(window == NO_WINDOW, w, s), wide, local)
