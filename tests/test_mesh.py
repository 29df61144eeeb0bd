"""Layouts: every device is used once, the weights fit, and a wrong one is refused by field."""

import dataclasses
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.config.mesh import MeshConfig
from malt_jax.errors import UserError
from malt_jax.models.mesh import Layout, choose_layout, make_mesh, rules
from malt_jax.models.spec import ModelSpec, Rope

SPEC = ModelSpec("llama", 128256, 4096, 32, 32, 8, 128, 14336, 8192, Rope(5e5))
GIB = 2**30


@given(st.integers(0, 8), st.sampled_from([1, 2, 4]), st.integers(1, 200), st.integers(8, 96))
def test_auto_uses_every_device_once(power, slices, weights, memory):
    devices = slices * 2**power
    layout = choose_layout(MeshConfig(), devices, slices, SPEC, weights * GIB, memory * GIB)
    total = layout.slices * layout.data * layout.fsdp * layout.tensor
    assert total == devices and layout.slices == slices
    assert SPEC.kv_heads % layout.tensor == 0


def test_weights_are_split_no_further_than_they_must():
    one = choose_layout(MeshConfig(), 8, 1, SPEC, 16 * GIB, 95 * GIB)
    assert one.shape == (1, 8, 1, 1)
    split = choose_layout(MeshConfig(), 16, 1, SPEC, 16 * GIB, 16 * GIB)
    assert split.fsdp * split.tensor >= 2 and "16.0 GiB" in split.why


def test_a_cpu_replicates():
    assert choose_layout(MeshConfig(), 8, 1, SPEC, 99 * GIB, None).shape == (1, 8, 1, 1)


def test_what_is_given_is_kept_and_the_rest_filled_in():
    layout = choose_layout(MeshConfig(fsdp=4), 8, 1, SPEC, GIB, None)
    assert layout.shape == (1, 2, 4, 1)
    layout = choose_layout(MeshConfig(data=1, tensor=2), 8, 1, SPEC, GIB, None)
    assert layout.shape == (1, 1, 4, 2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": 3}, "mesh: data x fsdp x tensor"),
        ({"data": 2, "fsdp": 2, "tensor": 1}, "set one of them to 0"),
        ({"slices": 3}, "mesh.slices"),
    ],
)
def test_a_layout_that_does_not_make_up_the_devices_is_refused(fields, words):
    with pytest.raises(UserError, match=words):
        choose_layout(dataclasses.replace(MeshConfig(), **fields), 8, 1, SPEC, GIB, None)


def test_rules_are_laid_over_the_built_in_ones():
    mine = rules(MeshConfig(rules={"embed": "", "mlp": "tensor,fsdp"}))
    assert (
        mine["embed"] == () and mine["mlp"] == ("tensor", "fsdp") and mine["heads"] == ("tensor",)
    )
    with pytest.raises(UserError, match=r"mesh\.rules\.mlp: 'sideways'"):
        rules(MeshConfig(rules={"mlp": "sideways"}))
    with pytest.raises(UserError, match=r"mesh\.rules\.heds: .*Did you mean 'heads'"):
        rules(MeshConfig(rules={"heds": "tensor"}))


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the layout of a torus asks of a device."""

    id: int
    coords: tuple[int, int, int]
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v6 lite"
    process_index: int = 0


@pytest.mark.parametrize("shape", [(1, 8, 1, 8), (1, 4, 2, 8), (1, 2, 4, 8), (1, 64, 1, 1)])
def test_a_mesh_whose_axes_are_parts_of_the_torus_axes(shape):
    chips = [Chip(x + 8 * y, (x, y, 0)) for y in range(8) for x in range(8)]
    grid = make_mesh(Layout(*shape, why=""), chips).devices
    assert grid.shape == shape
    assert {chip.id for chip in grid.flat} == set(range(64))
    if shape[-1] == 8:  # chips that exchange most, those of the last axis, are a ring of neighbours
        for line in grid.reshape(-1, 8):
            coords = [chip.coords for chip in line]
            assert all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a, b in pairwise(coords))
