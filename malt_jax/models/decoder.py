"""The decoder: one Flax NNX transformer for every supported family, described by its ModelSpec.

Read `Layer.__call__` first, then `Decoder.hidden`. Attention itself is passed in (`Attend`), and a
LoRA adapter is one more argument, so that the same compiled program serves every role.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from malt_jax.models.attention import Attend, LayerAttention
from malt_jax.models.experts import ExpertLinear, mix_experts
from malt_jax.models.head import blocked_product, product, product_of_loop
from malt_jax.models.linear import ONES, ZEROS, Linear, activation, normal, param
from malt_jax.models.lora import Adapter, LayerAdapter, lora_delta, times
from malt_jax.models.packed_attention import Packing, packed_attention
from malt_jax.models.quantized import QuantizedMatrix
from malt_jax.models.rope import Angles, rotate, rotation
from malt_jax.models.sharding import constrain
from malt_jax.models.spec import ModelSpec

NO_WINDOW = 1 << 30
"""The window of a full-attention layer where layers are stacked and some have windows."""


class LayerKind(NamedTuple):
    """In what a layer may differ from the others of its model; traced where layers are stacked."""

    window: Int[Array, ""] | int | None
    rotated: Bool[Array, ""] | bool
    """Whether its queries and keys are rotated by their positions."""


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, spec: ModelSpec, *, rngs: nnx.Rngs, dtype: Any):
        init = ZEROS if spec.norm_plus_one else ONES
        self.weight = param(rngs, init, (width,), (None,), dtype)
        self.eps, self.plus_one, self.in_float32 = (
            spec.norm_eps,
            spec.norm_plus_one,
            spec.norm_in_float32,
        )

    def __call__(self, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        weight = jnp.broadcast_to(self.weight[...], y.shape)
        # In bfloat16 the order of rounding matters. Gemma and OLMo multiply in float32 and round
        # once; Llama rounds to the model's dtype first and multiplies there.
        if self.plus_one:
            return (y * (1.0 + weight.astype(jnp.float32))).astype(x.dtype)
        if self.in_float32:
            return (y * weight.astype(jnp.float32)).astype(x.dtype)
        return y.astype(x.dtype) * weight


def _normed(norm: RMSNorm | None, x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """`x` through a norm that not every family has."""
    return x if norm is None else norm(x)


class Layer(nnx.Module):
    """Attention and a gated MLP, each between norms and added to the residual stream.

    In a mixture of experts, the MLP is the weighted sum of a few among many.
    """

    def __init__(self, spec: ModelSpec, *, rngs: nnx.Rngs, dtype: Any):
        self.spec = spec
        kw: dict[str, Any] = {"rngs": rngs, "dtype": dtype}
        d, q_dim, kv_dim = spec.d_model, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
        self.q = Linear(d, q_dim, ("embed", "heads"), bias=spec.qkv_bias, **kw)
        self.k = Linear(d, kv_dim, ("embed", "kv_heads"), bias=spec.qkv_bias, **kw)
        self.v = Linear(d, kv_dim, ("embed", "kv_heads"), bias=spec.qkv_bias, **kw)
        self.o = Linear(q_dim, d, ("heads", "embed"), bias=spec.out_bias, **kw)
        if spec.mixture is None:
            self.gate = Linear(d, spec.d_mlp, ("embed", "mlp"), bias=spec.mlp_bias, **kw)
            self.up = Linear(d, spec.d_mlp, ("embed", "mlp"), bias=spec.mlp_bias, **kw)
            self.down = Linear(spec.d_mlp, d, ("mlp", "embed"), bias=spec.mlp_bias, **kw)
        else:
            experts, inner = spec.mixture.experts, spec.d_mlp
            kw["bias"] = spec.mixture.bias
            self.router = Linear(d, experts, ("embed", None), **kw)
            self.expert_gate = ExpertLinear(experts, d, inner, ("embed", "mlp"), **kw)
            self.expert_up = ExpertLinear(experts, d, inner, ("embed", "mlp"), **kw)
            self.expert_down = ExpertLinear(experts, inner, d, ("mlp", "embed"), **kw)
            del kw["bias"]
        self.attention_norm = RMSNorm(d, spec, **kw) if spec.pre_norms else None
        self.mlp_norm = RMSNorm(d, spec, **kw) if spec.pre_norms else None
        self.attention_post_norm = RMSNorm(d, spec, **kw) if spec.post_norms else None
        self.mlp_post_norm = RMSNorm(d, spec, **kw) if spec.post_norms else None
        q_width, k_width = (q_dim, kv_dim) if spec.qk_norm_all_heads else (spec.head_dim,) * 2
        self.q_norm = RMSNorm(q_width, spec, **kw) if spec.qk_norm else None
        self.k_norm = RMSNorm(k_width, spec, **kw) if spec.qk_norm else None
        self.sinks = (
            param(rngs, ZEROS, (spec.heads,), ("heads",), dtype) if spec.attention_sinks else None
        )

    def __call__(
        self,
        x: Float[Array, "B T D"],
        angles: Angles | None,
        attend: Attend,
        cache: Any,
        layer: LayerAttention,
        lora: LayerAdapter,
    ) -> tuple[Float[Array, "B T D"], Any, Float[Array, "E"] | None]:
        """The residual stream after this layer, its new cache, and the load of its experts."""
        # Norms act on the branches only. The residual stream itself is never normed between layers,
        # so that a sum of all layers' outputs reaches the final norm.
        y = _normed(self.attention_norm, x)
        y, cache = self._attention(y, angles, attend, cache, layer, lora)
        x = x + self._scaled(_normed(self.attention_post_norm, y))
        y = _normed(self.mlp_norm, x)
        y, load = self._mlp(y, lora)
        x = x + self._scaled(_normed(self.mlp_post_norm, y))
        # Between layers the stream is split by rows only, whatever the products above would prefer.
        return constrain(x, "batch", None, None), cache, load

    def _attention(self, x, angles, attend, cache, layer, lora):
        q, k, v = (self._heads(self._project(name, x, lora)) for name in "qkv")
        # Before the rotation: the norm has one weight per channel, and a rotation mixes channels,
        # so the two do not commute.
        q, k = self._qk_normed(self.q_norm, q), self._qk_normed(self.k_norm, k)
        # Positions enter here only: queries and keys are rotated by the angle of their position,
        # so that their products depend on the distance between two tokens.
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        # Scaling the queries touches T x h numbers per head; scaling the scores would touch T x S.
        q = times(q, self.spec.query_scale)
        if self.sinks is not None:
            layer = layer._replace(sinks=self.sinks[...])
        out, cache = attend(q, k, v, cache, layer)
        return self._project("o", out.reshape(*x.shape[:2], -1), lora), cache

    def _mlp(self, x, lora):
        if self.spec.mixture is not None:
            names = ("gate", "up", "down")
            experts = {name: getattr(self, f"expert_{name}") for name in names}
            return mix_experts(self.spec, x, self.router, experts, lora)
        activate = activation(self.spec)
        gated = activate(self._project("gate", x, lora)) * self._project("up", x, lora)
        return self._project("down", gated, lora), None

    def _project(
        self, name: str, x: Float[Array, "B T i"], lora: LayerAdapter
    ) -> Float[Array, "B T o"]:
        """One of a layer's projections, with the adapter's update where it has one."""
        y = getattr(self, name)(x)
        pair = lora.pairs.get(name)
        return y if pair is None else y + lora_delta(x, pair, lora.scale)

    def _scaled(self, y: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """A branch's output as it is added to the residual stream."""
        scale = self.spec.residual_scale
        return y if scale == 1.0 else times(y, scale)

    def _qk_normed(
        self, norm: RMSNorm | None, x: Float[Array, "B T N h"]
    ) -> Float[Array, "B T N h"]:
        """Queries or keys through their norm: over each head, or over all heads together."""
        if not self.spec.qk_norm_all_heads:
            return _normed(norm, x)
        return self._heads(_normed(norm, x.reshape(*x.shape[:2], -1)))

    def _heads(self, x: Float[Array, "B T w"]) -> Float[Array, "B T N h"]:
        return x.reshape(*x.shape[:2], -1, self.spec.head_dim)


class Decoder(nnx.Module):
    """Embedding, layers, final norm, head.

    `stacked=False` keeps one module per layer. `stacked=True` keeps one module whose arrays have a
    leading layer axis. Without caches, as in training, these layers are scanned, so that compile
    time does not grow with depth. With caches, as in sampling, each layer takes its slice of the
    arrays (what that costs: docs/scaling.md). `ModelSpec.stacks_layers` chooses.
    """

    def __init__(
        self, spec: ModelSpec, *, rngs: nnx.Rngs, dtype: Any = jnp.float32, stacked: bool = False
    ):
        self.spec, self.stacked = spec, stacked
        kw = {"rngs": rngs, "dtype": dtype}
        init = normal(spec.d_model)
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
            else param(rngs, init, (spec.vocab, spec.d_model), ("vocab", "embed"), dtype)
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
        return self._hidden_packed(tokens, positions, segments, branches, adapter, remat)[0]

    def _hidden_packed(self, tokens, positions, segments, branches, adapter, remat):
        segments = jnp.ones_like(tokens) if segments is None else segments
        branches = jnp.zeros_like(tokens) if branches is None else branches

        def attend(q, k, v, cache, layer):
            packing = Packing(positions, segments, branches, layer.window)
            return packed_attention(q, k, v, packing, layer.softcap, layer.sinks), cache

        return self.hidden(tokens, positions, attend, None, adapter, remat)

    def expert_load(
        self, tokens: Int[Array, "B T"], adapter: Adapter | None = None
    ) -> Float[Array, "L E"]:
        """The share of the tokens that choose each expert of each layer; sums to `chosen`."""
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
        load = self._hidden_packed(tokens, positions, None, None, adapter, None)[2]
        assert load is not None, "this model has no experts"
        return load

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        attend: Attend,
        state: Any = None,
        adapter: Adapter | None = None,
        remat: Callable | None = None,
    ) -> tuple[Float[Array, "B T D"], Any, Float[Array, "L E"] | None]:
        """Final normed hidden states, the layers' new caches, and the experts' load.

        `state`: a list with one cache per layer; None when `attend` keeps none. `remat`: a
        `jax.checkpoint`-like transform put around each layer. The load is the share of each layer's
        tokens that chose each expert; None in a model without experts.
        """
        spec = self.spec
        # The angles are the same in every layer, up to the two kinds that Gemma 3 has.
        wide = rotation(positions, spec.rope, spec.head_dim)
        local = rotation(positions, spec.local_rope, spec.head_dim) if spec.local_rope else wide

        def run(block: Layer, x, cache, pairs, kind: LayerKind):
            def step(x, cache, pairs):
                layer = LayerAttention(kind.window, spec.attention_softcap)
                lora = LayerAdapter(pairs, 1.0 if adapter is None else adapter.scale)
                return block(x, _angles(kind, wide, local), attend, cache, layer, lora)

            return (step if remat is None else remat(step))(x, cache, pairs)

        pairs = None if adapter is None else adapter.layers
        x = self._embedded(tokens)
        if self.stacked and state is None:
            x, load = self._scanned(run, x, pairs)
        else:
            x, state, load = self._unrolled(run, x, state, pairs)
        return self.norm(x), state, load

    def _unrolled(self, run, x, state, pairs):
        """One layer after the other, each with a static kind."""

        # Traced and lowered once for all layers of a kind; the compiler then inlines the calls.
        @partial(jax.jit, static_argnums=(0, 1))
        def layer(graph, kind: LayerKind, weights, x, cache, lora):
            return run(nnx.merge(graph, weights), x, cache, lora, kind)

        caches, loads = [], []
        for i in range(self.spec.num_layers):
            cache = None if state is None else state[i]
            lora = {} if pairs is None else _layer_of(pairs, i)
            kind = LayerKind(self.spec.window(i), self.spec.rotated(i))
            graph, weights = nnx.split(self.layers if self.stacked else self.layers[i])
            weights = _layer_of(weights, i) if self.stacked else weights
            x, cache, load = layer(graph, kind, weights, x, cache, lora)
            caches.append(cache)
            loads.append(load)
        return x, caches, jnp.stack(loads) if self.spec.mixture else None

    def _scanned(self, run, x, pairs):
        """One compiled layer, looped over the leading axis of weights and adapter, uncached."""
        graph, weights = nnx.split(self.layers)
        # One traced layer stands for all, so what its kind is becomes a traced value too. Where all
        # layers are alike it stays static, and the program has no trace of it.
        windows = rotated = None
        if self.spec.has_windows:
            windows = jnp.asarray([w or NO_WINDOW for w in self.spec.windows], jnp.int32)
        if self.spec.rope_layers:
            rotated = jnp.asarray(self.spec.rope_layers)

        def step(x, inputs):
            weights, lora, window, rotated = inputs
            kind = LayerKind(window, True if rotated is None else rotated)
            x, _, load = run(nnx.merge(graph, weights), x, None, lora, kind)
            return x, load

        # Neither None nor an empty dictionary has leaves, so the scan loops over what there is.
        return jax.lax.scan(step, x, (weights, pairs or {}, windows, rotated))

    def _embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        # All-gather the table over its width first, so that the looked-up rows are laid out like
        # the batch.
        table = jax.tree.map(lambda x: constrain(x, "vocab", None), self.embed[...])
        if isinstance(table, QuantizedMatrix):
            x = table.rows(tokens, self.norm.weight[...].dtype)
        else:
            x = table[tokens]
        if self.spec.embed_scale != 1.0:
            # The factor is rounded to the model's dtype first: a bfloat16 model multiplies by the
            # nearest bfloat16 number.
            x = x * jnp.asarray(self.spec.embed_scale, x.dtype)
        return constrain(x, "batch", None, None)

    def logits(self, hidden: Float[Array, "*b D"]) -> Float[Array, "*b V"]:
        """Next-token logits, float32, soft-capped where the family says so."""
        return self._finished(product(hidden, self._head()))

    def logits_of_loop(self) -> Callable[[Float[Array, "*b D"]], Float[Array, "*b V"]]:
        """`logits` for a loop on a CPU: what must be copied for its product is copied here."""
        times_head = product_of_loop(self._head())
        return lambda hidden: self._finished(times_head(hidden))

    def logit_blocks(self, hidden: Float[Array, "R D"]) -> Float[Array, "R n w"]:
        """The same in `n` blocks of `w` tokens, -inf after the end of the vocabulary."""
        return self._finished(blocked_product(hidden, self._head()))

    def _head(self) -> Float[Array, "V D"] | QuantizedMatrix:
        return self.embed[...] if self.head is None else self.head[...]

    def _finished(self, logits: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.spec.logit_divisor != 1.0:
            logits = logits / self.spec.logit_divisor
        if self.spec.logit_softcap is not None:
            logits = self.spec.logit_softcap * jnp.tanh(logits / self.spec.logit_softcap)
        return logits


def _layer_of(layers: Any, i: int) -> Any:
    """Layer `i` of a list of layers, or of arrays with a leading layer axis."""
    return layers[i] if isinstance(layers, list) else jax.tree.map(lambda x: x[i], layers)


def _angles(kind: LayerKind, wide: Angles, local: Angles) -> Angles | None:
    """A layer's rotary angles: `local` with a sliding window, `wide` without, None unrotated."""
    if kind.rotated is False:
        return None
    if kind.window is None or local is wide:
        angles = wide
    elif isinstance(kind.window, int):
        angles = local
    else:
        # Stacked layers: both kinds of angles exist, and the traced window selects one.
        full = kind.window == NO_WINDOW
        angles = jax.tree.map(lambda w, s: jnp.where(full, w, s), wide, local)
    if kind.rotated is True:
        return angles
    # A rotation by zero: every channel is multiplied by 1 and nothing is added to it.
    return jnp.where(kind.rotated, angles[0], 1.0), jnp.where(kind.rotated, angles[1], 0.0)
