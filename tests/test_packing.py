"""Packed rows with shared prompts give every sequence the numbers it gets alone."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.config.training import SftConfig
from malt_jax.data.packing import Segment, Shape, lay, pack_rows, share_prompts
from malt_jax.training.plan import plan_steps
from malt_jax.training.step import make_program, policy_logprobs, score_rows, scoring
from training_model import SPEC, ids, tiny_model

token = st.integers(1, 40)
segments_of = st.lists(
    st.builds(
        lambda prompt, branches: (tuple(prompt), tuple(map(tuple, branches))),
        st.lists(token, min_size=1, max_size=5),
        st.lists(st.lists(token, min_size=1, max_size=6), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=12,
)


def _numbered(drawn) -> list[Segment]:
    segments, number = [], 0
    for prompt, branches in drawn:
        segments.append(Segment(prompt, branches, tuple(range(number, number + len(branches)))))
        number += len(branches)
    return segments


@given(segments_of)
def test_rows_hold_every_segment_once_and_never_overflow(drawn):
    segments = _numbered(drawn)
    rows = pack_rows(segments, 32)
    assert sorted(s.sequences for row in rows for s in row) == [s.sequences for s in segments]
    assert all(sum(s.tokens for s in row) <= 32 for row in rows)
    # First fit: no row could be emptied into an earlier one.
    assert len(rows) == 1 or sum(s.tokens for row in rows[-2:] for s in row) > 32


@given(segments_of)
def test_each_target_follows_its_source_in_its_own_sequence(drawn):
    segments = _numbered(drawn)
    packed = pack_rows(segments, 32)
    rows = lay(packed, Shape(len(packed), 32, 32, 32))
    found: dict[int, list[int]] = {}
    for r in range(len(packed)):
        for c in np.flatnonzero(rows.weights[r]):
            sequence = int(rows.sequences[r, rows.slots[r, c]])
            source = rows.sources[r, c]
            segment = next(s for s in packed[r] if sequence in s.sequences)
            so_far = found.setdefault(sequence, [])
            whole = [*segment.prompt, *so_far]
            assert rows.tokens[r, source] == whole[-1]
            assert rows.positions[r, source] == len(whole) - 1
            so_far.append(int(rows.targets[r, c]))
    expected = {n: b for s in segments for n, b in zip(s.sequences, s.branches, strict=True)}
    assert {n: tuple(t) for n, t in found.items()} == expected


@given(segments_of, st.integers(12, 60))
def test_sharing_prompts_keeps_every_branch_and_the_limit(drawn, longest):
    segments = _numbered(drawn)
    joined = share_prompts(segments, longest)

    def pairs(many):
        return sorted(
            (number, s.prompt, branch)
            for s in many
            for number, branch in zip(s.sequences, s.branches, strict=True)
        )

    assert pairs(joined) == pairs(segments)
    assert all(s.tokens <= longest or s in segments for s in joined)


@pytest.mark.parametrize("windows", [(), (4, None)], ids=["full", "sliding"])
@pytest.mark.parametrize("stacked", [True, False])
def test_packed_and_shared_equal_alone(stacked, windows):
    spec = replace(SPEC, windows=windows)
    model = tiny_model(spec, stacked=stacked)
    rng = np.random.default_rng(0)
    prompts = [ids(rng, n) for n in (3, 7, 5)]
    texts = [(p, ids(rng, n)) for p in prompts for n in (2, 9, 6)]
    segments = share_prompts((Segment(p, (c,), (i,)) for i, (p, c) in enumerate(texts)), 64)
    assert len(segments) == 3
    (micros,) = plan_steps([segments], spec, 256, row_length=64).steps
    program = make_program(model.graph, jnp.float32, SftConfig(), 0.0, "cpu")

    # One sequence a row, padded at its end, where causal attention cannot see it.
    width = max(len(p) + len(c) for p, c in texts)
    tokens = jnp.asarray([[*p, *c] + [0] * (width - len(p) - len(c)) for p, c in texts])
    wanted = jnp.asarray(
        [[len(p) - 1 <= t < len(p) + len(c) - 1 for t in range(width - 1)] for p, c in texts]
    )

    @jax.jit
    def alone(params: nnx.State) -> jax.Array:
        logprobs = jax.nn.log_softmax(nnx.merge(model.graph, params)(tokens)[:, :-1])
        picked = jnp.take_along_axis(logprobs, tokens[:, 1:, None], axis=2)[:, :, 0]
        return jnp.sum(jnp.where(wanted, picked, 0.0), axis=1)

    expected = np.asarray(alone(model.params))
    got = np.full(len(texts), np.nan)
    for micro in micros:
        rows = micro.arrays()
        sums, _ = score_rows(scoring(program), None, model.params, rows)
        there = rows.sequences >= 0
        got[rows.sequences[there]] = np.asarray(sums)[there]
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-6)

    def packed_total(params: nnx.State) -> jax.Array:
        rows = [jax.tree.map(jnp.asarray, micro.arrays()) for micro in micros]
        return sum(jnp.sum(policy_logprobs(program, params, None, r, None)) for r in rows)

    ours = jax.jit(jax.grad(packed_total))(model.params)
    each = jax.jit(jax.grad(lambda params: jnp.sum(alone(params))))(model.params)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(each), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-4, rtol=1e-4)


def test_the_plan_reports_its_waste_and_computes_a_shared_prompt_once():
    prompt, other = (1,) * 20, (2,) * 30
    segments = share_prompts(
        [Segment(prompt, ((3,) * 5,), (0,)), Segment(prompt, ((4,) * 7,), (1,)),
         Segment(other, ((5,) * 2,), (2,))], 64
    )  # fmt: skip
    plan = plan_steps([segments], SPEC, 64, row_length=64)
    assert plan.useful_tokens == 25 + 27 + 32
    assert plan.padding_waste == pytest.approx(1 - (32 + 32) / plan.row_tokens)


def test_a_segment_too_long_for_a_row_is_refused_and_long_ones_get_rows_of_their_own():
    with pytest.raises(ValueError, match="40 tokens in rows of 32"):
        pack_rows([Segment((1,) * 30, ((1,) * 10,), (0,))], 32)
    rng = np.random.default_rng(0)
    short = [
        [Segment(ids(rng, 8), (ids(rng, 20),), (8 * b + i,)) for i in range(8)] for b in range(200)
    ]
    short[7].append(Segment(ids(rng, 8), (ids(rng, 900),), (9999,)))
    plan = plan_steps(short, SPEC, 1024)
    lengths = {m.shape.time for step in plan.steps for m in step}
    assert max(lengths) >= 908 and min(lengths) < 300, lengths
    rows = [row for step in plan.steps for micro in step for row in micro.rows]
    assert sorted(n for row in rows for s in row for n in s.sequences) == [*range(1600), 9999]
