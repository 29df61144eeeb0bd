"""The TPU kernel of decode attention, interpreted, against XLA's products and the plain sampler."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.errors import UserError
from malt_jax.models.attention import LayerAttention
from malt_jax.sampling.attention import Extent, group_rows, xla_decode_attention
from malt_jax.sampling.attention_choice import choose_attention
from malt_jax.sampling.cache import KV, JoinedKV, to_int8
from malt_jax.sampling.request import SamplingParams
from malt_jax.sampling.sampler import Sampler
from malt_jax.sampling.tree_attention import pallas_decode_attention, siblings_limit
from malt_jax.sampling.work_list import BLOCK, PART, tokens_read, work_list
from test_sampling import FAMILIES, SMALL, assert_same, make_model, make_requests, spec

FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""For the compiler: an interpreted kernel is a large program that runs once."""


def drawn_rows(rng, rows: int, entries: int, siblings: int, capacity: int, ring: int):
    """Rows at entries in any order, the first idle; an entry that is full and one without tokens;
    rows that have drawn nothing yet, and as much as the ring holds."""
    entry = np.repeat(np.arange(entries), siblings)[:rows]
    rng.shuffle(entry)
    entry[0] = entries
    prompts = rng.integers(0, capacity + 1, entries)
    prompts[[0, -1]] = capacity, 0
    drawn = rng.integers(0, ring, rows)
    drawn[-2:] = 0, ring - 1
    prompt = np.where(entry < entries, prompts[np.minimum(entry, entries - 1)], 3)
    return (jnp.asarray(x, jnp.int32) for x in (entry, prompt, drawn))


# Each case joins several of what must work: (rows, entries, siblings, key heads, group, head width,
# capacity, ring, cursor) and what is particular to the layer or the cache.
CASES = {
    "one sibling, 128 wide, bfloat16": ((5, 5, 1, 2, 4, 128, 256, 256, 100), {}),
    "3 siblings, 64 wide, soft-cap, one turn of the ring": (
        (9, 3, 3, 2, 7, 64, 128, 256, 255), {"softcap": 30.0},
    ),
    "window, an odd number of entries": ((6, 3, 2, 1, 12, 16, 384, 256, 5), {"window": 70}),
    "window shorter than a part, sinks": (
        (6, 2, 4, 2, 2, 8, 256, 384, 300), {"window": 7, "sinks": True},
    ),
    "16 siblings, 256 wide, int8": ((33, 3, 16, 1, 2, 256, 128, 128, 60), {"int8": True}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_agrees_with_xla(name):
    (rows, entries, siblings, kv_heads, group, head_dim, capacity, ring, cursor), layer = CASES[
        name
    ]
    dtype = jnp.bfloat16 if "bfloat16" in name else jnp.float32
    rng = np.random.default_rng(0)
    entry, prompt, drawn = drawn_rows(rng, rows, entries, siblings, capacity, ring)

    def random(*shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    def cache(count, length):
        kv = [random(count, kv_heads, length, head_dim) for _ in range(2)]
        if not layer.get("int8"):
            return kv
        (k, k_scale), (v, v_scale) = map(to_int8, kv)
        return k, v, k_scale, v_scale

    prefix, suffix = cache(entries, capacity), cache(rows, ring)
    heads = kv_heads * group
    q = random(rows, 1, heads, head_dim) * jnp.asarray(head_dim**-0.5, dtype)
    sinks = random(heads) if layer.get("sinks") else None
    kind = LayerAttention(layer.get("window"), layer.get("softcap"), sinks)
    extent = Extent(entry, prompt, drawn, jnp.int32(cursor))

    def both(q, prefix, suffix, extent, sinks):
        groups = group_rows(extent.entry, entries, siblings)
        by_layer = kind._replace(sinks=sinks)
        want = xla_decode_attention(q, KV.of(*prefix), KV.of(*suffix), groups, extent, by_layer)
        joined = JoinedKV.of(*prefix), JoinedKV.of(*suffix)
        got = pallas_decode_attention(q, *joined, groups, extent, by_layer, interpret=True)
        return want, got

    inputs = (q, prefix, suffix, extent, sinks)
    want, got = jax.jit(both).lower(*inputs).compile(FAST)(*inputs)
    busy = np.asarray(entry) < entries
    difference = np.abs(np.asarray(want, np.float32) - np.asarray(got, np.float32))[busy]
    assert difference.max() < (2e-2 if dtype == jnp.bfloat16 else 2e-6)
    assert np.isfinite(np.asarray(got, np.float32)).all()


@pytest.mark.parametrize("window", [None, 7, 40, 300])
def test_the_work_list_holds_the_parts_with_a_visible_token_and_no_others(window):
    rng = np.random.default_rng(1)
    rows, entries, siblings, capacity, ring = 40, 16, 3, 512, 256
    for cursor in (0, 31, 32, 100, 128, 255):
        entry, prompt, drawn = drawn_rows(rng, rows, entries, siblings, capacity, ring)
        groups = group_rows(entry, entries, siblings)
        work = work_list(
            groups, Extent(entry, prompt, drawn, jnp.int32(cursor)), capacity, ring, window
        )
        read = {}
        for word in np.asarray(work.items)[: int(work.starts[-1])]:
            source = int(work.source[word >> 16])
            for part in range(BLOCK // PART):
                if word >> 12 + part & 1:
                    read.setdefault(source, []).append(int(word & 4095) * BLOCK // PART + part)
        visible = {}
        for row in range(rows):
            if entry[row] == entries:
                continue
            query, far = int(prompt[row] + drawn[row]), window or 10**9
            tokens = [t for t in range(int(prompt[row])) if query - t < far]
            visible.setdefault(-1 - int(entry[row]), set()).update(t // PART for t in tokens)
            ages = range(min(int(drawn[row]) + 1, far))
            visible[row] = {(cursor - age) % ring // PART for age in ages}
        for source, parts in read.items():
            assert len(set(parts)) == len(parts), "a part is read twice"
            assert set(parts) == visible[source]
        assert {source for source, parts in visible.items() if parts} == set(read)
        assert int(tokens_read(work)) == PART * sum(map(len, read.values()))


TINY = replace(SMALL, attention="pallas", chunk_steps=4)
DRAWN = SamplingParams(temperature=1.0, max_new_tokens=6, end_ids=tuple(range(4)))


@pytest.mark.parametrize("family", ["gemma2", "one kv head"])
def test_the_sampler_with_the_kernel_draws_what_the_plain_sampler_draws(family):
    model = make_model(FAMILIES[family])
    requests = make_requests(2, 5)
    sampler = Sampler(model, TINY)
    assert sampler.shapes(20, 6, 5)[-1].siblings == 5, "all siblings share one copy"
    assert_same(model, requests, DRAWN, sampler.sample(requests, DRAWN))


MESH = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from functools import partial
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType
    from malt_jax.models.attention import LayerAttention
    from malt_jax.sampling.attention import Extent
    from malt_jax.sampling.attention_choice import choose_attention
    from malt_jax.sampling.decode import DecodeProgram, _attend
    from test_sampling import spec
    from test_tree_attention import FAST

    # Two shards of two entries and four rows each; the third row of each is idle.
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    q, k, v = draw(8, 1, 4, 16), draw(8, 1, 2, 16), draw(8, 1, 2, 16)
    prefix, suffix = [(draw(n, 2, 128, 16), draw(n, 2, 128, 16)) for n in (4, 8)]
    numbers = lambda *x: jnp.asarray(x, jnp.int32)
    extent = Extent(numbers(0, 0, 4, 1, 2, 3, 4, 2), numbers(9, 9, 0, 128, 40, 0, 0, 40),
                    numbers(0, 5, 0, 127, 60, 3, 0, 80), jnp.int32(70))

    def run(name, mesh):
        chosen = choose_attention(name, "cpu", spec(), jnp.float32)
        program = DecodeProgram(None, 1, 2, chosen)
        layer = partial(_attend, program, layer=LayerAttention(None, None))
        caches = tuple(chosen.layout.of(*cache) for cache in (prefix, suffix))
        given = (extent, q, k, v, caches)
        with jax.set_mesh(mesh):
            out, new = jax.jit(layer).lower(*given).compile(FAST)(*given)
        return np.asarray(out), [np.asarray(x) for x in new.apart()[:2]]

    auto = (AxisType.Auto,) * 2
    one = jax.make_mesh((1, 1), ("data", "tensor"), axis_types=auto)
    want, caches = run("xla", one)
    for shape in ((2, 2), (1, 2)):
        mesh = jax.make_mesh(shape, ("data", "tensor"), axis_types=auto)
        got, new = run("pallas", mesh)
        busy = np.asarray(extent.entry) < 4
        np.testing.assert_allclose(got[busy], want[busy], atol=2e-6)
        for a, b in zip(new, caches, strict=True):
            np.testing.assert_array_equal(a, b)
    print("same")
"""


def test_the_kernel_agrees_on_a_mesh_and_appends_one_token():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MESH), str(Path(__file__).parent)],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "4"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["same"], done.stderr[-3000:]


def test_the_kernel_is_refused_where_it_cannot_run():
    with pytest.raises(UserError, match="kernel for TPUs, found 'gpu'"):
        choose_attention("pallas", "gpu", spec(), jnp.float32)
    with pytest.raises(UserError, match="multiple of 64 numbers"):
        choose_attention("pallas", "tpu", spec(head_dim=80), jnp.bfloat16)


def test_auto_is_xla_until_the_kernel_was_measured():
    for platform in ("cpu", "gpu", "tpu"):
        chosen = choose_attention("auto", platform, spec(head_dim=64), jnp.bfloat16)
        assert chosen.decode is xla_decode_attention and chosen.layout is KV


def test_sixteen_siblings_have_room_on_a_chip_whatever_the_heads():
    for heads, kv_heads, head_dim in ((32, 8, 128), (14, 2, 64), (64, 8, 128), (16, 8, 256)):
        made = spec(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        assert siblings_limit(made, jnp.bfloat16) >= 16
