"""The bytes of a decode step: read from a program's text, counted by the kernel's work lists."""

from __future__ import annotations

import importlib.util

import jax.numpy as jnp
import pytest

from malt_jax import config
from malt_jax.planning.chips import find_target
from malt_jax.planning.compiler import extended
from malt_jax.planning.traffic import Traffic, program_traffic, step_traffic, total_bytes
from malt_jax.planning.typical_rows import kernel_bytes, typical_extent, valid_tokens
from malt_jax.sampling.memory import CacheShape
from test_sampling import spec

PROGRAM = """
HloModule decode

%update (big: f32[64,128], new: f32[1,128], at: s32[]) -> f32[64,128] {
  %big = f32[64,128]{1,0} parameter(0)
  %new = f32[1,128]{1,0} parameter(1)
  %at = s32[] parameter(2)
  %zero = s32[] constant(0)
  ROOT %in_place = f32[64,128]{1,0} dynamic-update-slice(%big, %new, %at, %zero)
}

%much (a: f32[8,128]) -> f32[8,128] {
  %a = f32[8,128]{1,0} parameter(0)
  %b = f32[8,128]{1,0} add(%a, %a)
  ROOT %c = f32[8,128]{1,0} add(%b, %b)
}

%little (d: f32[8,128]) -> f32[8,128] {
  %d = f32[8,128]{1,0} parameter(0)
  ROOT %e = f32[8,128]{1,0} negate(%d), metadata={op_name="jit(decode)/while/body/draw/neg"}
}

%body (state: (s32[], f32[8,128], f32[64,128])) -> (s32[], f32[8,128], f32[64,128]) {
  %state = (s32[], f32[8,128]{1,0}, f32[64,128]{1,0}) parameter(0)
  %step = s32[] get-tuple-element(%state), index=0
  %x = f32[8,128]{1,0} get-tuple-element(%state), index=1
  %cache = f32[64,128]{1,0} get-tuple-element(%state), index=2
  %weight = bf16[128,128]{1,0:T(8,128)(2,1)} constant(0)
  %sent = (bf16[128,128]{1,0:T(8,128)(2,1)S(1)}, bf16[128,128]{1,0}, u32[]) copy-start(%weight)
  %near = bf16[128,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%sent)
  %y = f32[8,128]{1,0} dot(%x, %near), metadata={op_name="jit(decode)/while/body/dot_general"}, backend_config={"estimated_cycles":"70"}
  %attended = f32[8,128]{1,0} custom-call(%y, %cache), custom_call_target="tpu_custom_call", metadata={op_name="jit(decode)/while/body/attention/tree_attention"}
  %row = f32[1,128]{1,0:S(1)} slice(%attended), slice={[0:1], [0:128]}
  %cache.2 = f32[64,128]{1,0} fusion(%cache, %row, %step), kind=kLoop, calls=%update, metadata={op_name="jit(decode)/while/body/attention/append/dynamic_update_slice"}
  %z = f32[8,128]{1,0} conditional(%step, %attended, %attended), branch_computations={%much, %little}
  ROOT %next = (s32[], f32[8,128]{1,0}, f32[64,128]{1,0}) tuple(%step, %z, %cache.2)
}

%condition (state.1: (s32[], f32[8,128], f32[64,128])) -> pred[] {
  %state.1 = (s32[], f32[8,128]{1,0}, f32[64,128]{1,0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (start: (s32[], f32[8,128], f32[64,128])) -> (s32[], f32[8,128], f32[64,128]) {
  %start = (s32[], f32[8,128]{1,0}, f32[64,128]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[8,128]{1,0}, f32[64,128]{1,0}) while(%start), condition=%condition, body=%body
}
"""  # noqa: E501


def test_a_steps_bytes_are_those_of_main_memory_by_part_without_kernels():
    found = step_traffic(PROGRAM)
    array, row = 8 * 128 * 4, 128 * 4
    # A weight is read once, on its way to the chip; its product reads and writes 8 rows.
    assert found["weights"] == Traffic(2 * array, 70)
    assert found["other"].bytes == 128 * 128 * 2
    # An update in place writes one row, not the cache; the row was on the chip.
    assert found["append"].bytes == row + 4
    # The branch that moves less.
    assert found["head and draw"].bytes == 2 * array
    assert set(found) == {"weights", "other", "append", "head and draw"}


def test_a_slice_of_stacked_weights_inside_of_a_product_is_read_alone():
    stacked = """
%layer (all: bf16[4,64,128]) -> bf16[64,128] {
  %all = bf16[4,64,128]{2,1,0} parameter(0)
  %one = bf16[1,64,128]{2,1,0} slice(%all), slice={[2:3], [0:64], [0:128]}
  ROOT %flat = bf16[64,128]{1,0} bitcast(%one)
}

%product (x: bf16[8,64], weights: bf16[4,64,128]) -> bf16[8,128] {
  %x = bf16[8,64]{1,0} parameter(0)
  %weights = bf16[4,64,128]{2,1,0} parameter(1)
  %inner = bf16[64,128]{1,0} fusion(%weights), kind=kLoop, calls=%layer
  ROOT %y = bf16[8,128]{1,0} convolution(%x, %inner), dim_labels=bf_io->bf
}

ENTRY %main (x: bf16[8,64], weights: bf16[4,64,128]) -> bf16[8,128] {
  %x = bf16[8,64]{1,0} parameter(0)
  %weights = bf16[4,64,128]{2,1,0} parameter(1)
  ROOT %out = bf16[8,128]{1,0} fusion(%x, %weights), kind=kOutput, calls=%product
}
"""
    assert total_bytes(program_traffic(stacked)) == 2 * (8 * 64 + 64 * 128 + 8 * 128)


def test_two_depths_tell_the_bytes_of_all_layers():
    low = {"a": {"bytes": 10, "cycles": 1}}
    high = {"a": {"bytes": 13, "cycles": 3}, "b": {"bytes": 2, "cycles": 0}}
    line = {"a": {"bytes": 100, "cycles": 61}, "b": {"bytes": 60, "cycles": 0}}
    assert extended([low, high], [2, 3], 32) == line


def test_the_branches_that_count_are_a_choice_in_both_spellings():
    array = 8 * 128 * 4
    least, every = step_traffic(PROGRAM), step_traffic(PROGRAM, "all")
    assert total_bytes(every) - total_bytes(least) == 2 * 3 * array  # the other branch's two sums
    two = "true_computation=%much, false_computation=%little"
    spelled = PROGRAM.replace("branch_computations={%much, %little}", two)
    assert (step_traffic(spelled), step_traffic(spelled, "all")) == (least, every)
    # The condition of the loop moves nothing, and nothing is outside of the loop.
    assert program_traffic(PROGRAM, "least") == least
    assert program_traffic(PROGRAM) == every


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_the_kernel_reads_little_beside_what_is_visible(dtype):
    wide = spec(head_dim=128, heads=32, kv_heads=8, num_layers=4, windows=(512, None, 64, None))
    shape = CacheShape(rows=504, entries=252, siblings=3, prefix_tokens=1024, new_tokens=512)
    extent = typical_extent(shape)
    assert extent.suffix.mean() == pytest.approx(512 / 3, abs=2)
    assert 300 < extent.prefix.min() < extent.prefix.max() < 905
    valid = valid_tokens(wide, shape)
    assert valid[1] == valid[3] > valid[0] > valid[2] >= 504 * 60
    token = 8 * (2 * 128 * jnp.dtype(dtype).itemsize + (8 if dtype == "int8" else 0))
    moved = kernel_bytes(wide, shape, jnp.bfloat16, jnp.dtype(dtype), kv_heads=8)
    assert sum(valid) * token < moved < 1.35 * sum(valid) * token


@pytest.mark.parametrize("head_dim", [64, 128])
def test_queries_and_results_are_counted_in_their_own_dtype_and_width(head_dim):
    made = spec(head_dim=head_dim, heads=8, kv_heads=2, num_layers=3)
    shape = CacheShape(rows=16, entries=8, siblings=3, prefix_tokens=256, new_tokens=128)
    half, full = (
        kernel_bytes(made, shape, x, jnp.int8, kv_heads=2) for x in ("bfloat16", "float32")
    )
    # Read and written, 8 heads of 16 rows in 3 layers. A head of 64 is followed by as many zeros,
    # against the values that lie beside the keys.
    assert full - half == 2 * 3 * 16 * 8 * 128 * (4 - 2)


@pytest.mark.skipif(not importlib.util.find_spec("libtpu"), reason="libtpu is not installed")
def test_a_tpus_decode_step_is_counted_with_each_attention():
    from malt_jax.bench import roofline

    made = config.from_dict({"sampler": {"rows": 64}, "mesh": {"data": 2, "tensor": 2}})
    small = spec(
        vocab=32768, d_model=256, heads=4, kv_heads=2, head_dim=64, d_mlp=512, context=4096
    )
    result = roofline.run(made, small, find_target("v5e:2x2"))
    xla, pallas = result["programs"]
    assert (xla["attention"], pallas["attention"]) == ("xla", "pallas")
    # Which of them moves less shows at real sizes only (docs/kernels.md): here the caches are tiny.
    assert xla["floor_bytes"] == pallas["floor_bytes"] < min(pallas["bytes"], xla["bytes"])
    assert pallas["parts"]["kernel"]["bytes"] > result["floor"]["keys and values"]
    assert {"bytes", "floor_bytes", "ratio", "seconds"} <= set(pallas)
    # The head is read once, and the logits are written and read once: none of them is copied.
    head = 32768 * 256 * 2 // 2
    for program in (xla, pallas):
        moved = program["parts"]["head and draw"]["bytes"]
        assert moved < 1.1 * (head + result["floor"]["logits"])
