"""Plans for GPUs: what the compiler is asked, and what is read from its text."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys

import pytest

from malt_jax import cli
from malt_jax.errors import UserError
from malt_jax.planning import gpus, hlo
from malt_jax.planning.chips import CHIPS, find_target
from malt_jax.planning.traffic import program_traffic, total_bytes
from malt_jax.sampling import device

PLUGIN = pytest.mark.skipif(
    not importlib.util.find_spec(gpus.PLUGIN), reason="the compiler for GPUs is not installed"
)
HLO = """HloModule jit_f
%fused (p.0: f32[8,4], p.1: s32[]) -> f32[1,4] {
  %p.0 = f32[8,4]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %b = f32[8,4]{1,0} bitcast(%p.0)
  ROOT %row = f32[1,4]{1,0} dynamic-slice(%b, %p.1, %p.1), dynamic_slice_sizes={1,4}
}
%update (q.0: f32[8,4], q.1: f32[1,4], q.2: s32[]) -> f32[8,4] {
  %q.0 = f32[8,4]{1,0} parameter(0)
  %q.1 = f32[1,4]{1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  ROOT %u = f32[8,4]{1,0} dynamic-update-slice(%q.0, %q.1, %q.2, %q.2)
}
%weights (w.0: bf16[4,8], w.1: bf16[4,2]) -> bf16[4,10] {
  %w.0 = bf16[4,8]{1,0} parameter(0)
  %w.1 = bf16[4,2]{1,0} parameter(1)
  ROOT %both = bf16[4,10]{1,0} concatenate(%w.0, %w.1), dimensions={1}
}
%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %r = f32[1,4]{1,0} fusion(%x, %i), kind=kLoop, calls=%fused
  %y = f32[8,4]{1,0} fusion(%x, %r, %i), kind=kLoop, calls=%update
  %a = bf16[4,8]{1,0} constant({...})
  %c = bf16[4,2]{1,0} constant({...})
  %m = bf16[4,10]{1,0} fusion(%a, %c), kind=kLoop, calls=%weights
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %y)
}
%cond (p.2: (s32[], f32[8,4])) -> pred[] {
}
ENTRY %main (p: f32[8,4]) -> f32[8,4] {
  %start = f32[8,4]{1,0} parameter(0)
  %n = f32[8,4]{1,0} negate(%start)
  %w = (s32[], f32[8,4]{1,0}) while(%n), condition=%cond, body=%body
  ROOT %out = f32[8,4]{1,0} get-tuple-element(%w), index=1
}
"""


def test_a_kernel_moves_the_parts_of_arrays_that_it_uses():
    negate = 2 * 128
    row = 16 + 4 + 16  # reads one row and its number, writes one row
    update = 16 + 4 + 16  # reads a row and its number, writes the row in place
    weights = 64 + 16 + 80
    assert total_bytes(program_traffic(HLO)) == negate + row + update + weights
    many = HLO.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}')
    assert total_bytes(program_traffic(many)) == negate + 5 * (row + update + weights)


def loop_concatenations(text: str) -> list[str]:
    """The types of what loops concatenate, of two dimensions as weights have."""
    program = hlo.read(text)
    inside = [name for lines in program.computations.values() for one in lines
              if one.op == "while" for name in one.called]  # fmt: skip
    reached: set[str] = set()
    while inside:
        name = inside.pop()
        if name not in reached:
            reached.add(name)
            inside += [called for one in program[name] for called in one.called]
    return [
        one.type
        for name in sorted(reached)
        for one in program[name]
        if one.op == "concatenate" and one.type.split("]")[0].count(",") == 1
    ]


def test_weights_that_a_loop_concatenates_are_found():
    assert loop_concatenations(HLO) == ["bf16[4,10]{1,0}"]
    outside = HLO.replace("body=%body", "body=%other")
    assert loop_concatenations(outside) == []


def test_every_gpu_with_a_name_is_described():
    assert set(gpus.GPUS) == {name for name, chip in CHIPS.items() if chip.platform == "gpu"}
    for name, facts in gpus.GPUS.items():
        text = gpus._CONFIG.format(**facts)
        assert f"device_memory_size: {facts['memory']}" in text and "{{" not in text
        assert abs(facts["memory"] / CHIPS[name].memory - 1) < 0.02
        rate = CHIPS[name].bandwidth
        assert rate is None or rate == facts["bandwidth"]


def test_a_plan_counts_the_memory_that_jax_takes(monkeypatch):
    for name in gpus.MEMORY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    whole = gpus.GPUS["h100"]["memory"]
    assert find_target("h100:1", compiles=False).chip.memory == int(0.75 * whole)
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert find_target("h100:1", compiles=False).chip.memory == int(0.5 * whole)
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
    assert find_target("h100:1", compiles=False).chip.memory == int(0.9 * whole)
    for wrong in ("2", "most"):
        monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", wrong)
        with pytest.raises(UserError, match="XLA_CLIENT_MEM_FRACTION: found"):
            find_target("h100:1", compiles=False)


def test_jax_is_told_of_gpus_only_while_programs_are_compiled_for_them():
    from jax._src import xla_bridge

    before = xla_bridge.canonicalize_platform
    with pytest.raises(ValueError, match="failed"), gpus.known_to_jax(), gpus.known_to_jax():
        assert xla_bridge.canonicalize_platform("gpu") in ("cuda", "rocm", "oneapi")
        assert xla_bridge.canonicalize_platform("cpu") == "cpu"
        raise ValueError("failed")
    assert xla_bridge.canonicalize_platform is before


def test_without_the_compiler_one_sentence_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(gpus, "find_spec", lambda name: None)
    assert cli.main(["plan", "--config", "quickstart", "--topology", "h200:1"]) == 2
    said = capsys.readouterr().err
    assert "pip install '.[plan-gpu]'" in said and "--estimate" in said


def test_an_estimate_is_called_one(capsys):
    assert cli.main(["plan", "--config", "quickstart", "--topology", "a100:1", "--estimate"]) == 0
    shown = capsys.readouterr().out
    assert "an estimate" in shown and "compiled with" not in shown
    assert re.search(r"│ search +│ +[\d.]+ to [\d.]+ │", shown)


@PLUGIN
def test_the_decode_loop_concatenates_no_weights_on_a_gpu():
    """In a process of its own: the compiler for GPUs stays loaded, and JAX is told of it."""
    code = """
import json, jax
jax.config.update("jax_platforms", "cpu")
from malt_jax import config
from malt_jax.planning import compiler
from malt_jax.planning.chips import find_target
from malt_jax.planning.plan import lay_out
from malt_jax.planning.specs import find_spec
made = config.load("quickstart", ["--sampler.rows", "8"])
spec, _ = find_spec(made.model.path)
run = lay_out(made, spec, find_target("h100:1"))
program = next(p for p in run.programs if p.name == "decode")
function, args = program.build(1)
with jax.set_mesh(run.mesh), compiler.gpus.known_to_jax():
    lowered = jax.jit(function, donate_argnums=program.donate).lower(*args)
texts = [lowered.compile(compiler_options=o).as_text()
         for o in (compiler.compile_options(program, run.mesh), compiler.gpus.COMPILER_OPTIONS)]
print(json.dumps(texts))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr
    ours, default = map(loop_concatenations, json.loads(done.stdout.splitlines()[-1]))
    assert ours == [] and default  # with XLA's own choice there are some
    assert device.COMPILER_OPTIONS["gpu"]
