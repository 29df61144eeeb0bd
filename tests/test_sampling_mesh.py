"""Eight fake devices draw what one does, in a process of their own: devices are set up once."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
    import sys
    sys.path.insert(0, sys.argv[1])
    import jax, numpy as np
    from dataclasses import replace
    from types import SimpleNamespace
    from flax import nnx
    from jax.sharding import AxisType
    from malt_jax.models.decoder import Decoder
    from malt_jax.models.sharding import named
    from malt_jax.sampling.sampler import Sampler
    from test_sampling import DRAWN, SMALL, make_model, make_requests, spec

    model = make_model(spec(vocab=64))
    config = replace(SMALL, rows=16, prefill_tokens=32)
    requests = make_requests(20, 3)
    alone = Sampler(model, config).sample(requests, DRAWN)
    names = ("data", "fsdp", "tensor")
    for shape in ((8, 1, 1), (2, 2, 2)):
        mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * 3)
        axes = nnx.state(nnx.eval_shape(lambda: Decoder(model.spec, rngs=nnx.Rngs(0))))

        def place(x, like):
            return like.replace(jax.device_put(x[...], named(like.axes, x[...].shape, mesh)))

        is_param = lambda x: isinstance(x, nnx.Variable)
        params = jax.tree.map(place, model.params, axes, is_leaf=is_param)
        split = SimpleNamespace(**{**vars(model), "params": params})
        sampler = Sampler(split, config, mesh=mesh)
        drawn = sampler.sample(requests, DRAWN)
        for split_group, group in zip(drawn, alone, strict=True):
            for a, b in zip(split_group, group, strict=True):
                assert (a.tokens, a.finish) == (b.tokens, b.finish)
                np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)
        caches = sampler.shapes(20, 12)[-1]
        with jax.set_mesh(mesh):
            held = sampler.device(caches)._prefix[0].k
        assert held.addressable_shards[0].data.size * 8 == held.size
        print("same", shape)
"""


@pytest.mark.timeout(600)
def test_same_tree_on_a_mesh_and_caches_are_split():
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(Path(__file__).parent)],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "8"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == ["same (8, 1, 1)", "same (2, 2, 2)"]
