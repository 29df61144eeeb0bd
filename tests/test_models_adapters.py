"""PEFT adapters made elsewhere: read as they are, fitted to a run without a change, or refused."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import tiny
from closeness import assert_near
from malt_jax.config.lora import LoraConfig
from malt_jax.errors import UserError
from malt_jax.export.peft import write_peft
from malt_jax.models.adapters import check_room, fitted, load_adapter
from malt_jax.models.lora import init_adapter, unstack_adapter
from malt_jax.models.model import load_model
from malt_jax.models.peft_layout import exported_rank, from_peft, to_peft, without_zeros
from tiny_models import save_checkpoint

LORA = LoraConfig(rank=3, alpha=5.0, targets=("q", "down"), rslora=True)
TOKENS = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny.write_model(tmp_path_factory.mktemp("base"), layers=2))


def random_adapter(spec, lora: LoraConfig, seed: int = 0):
    adapter = init_adapter(spec, lora, jax.random.key(seed))
    leaves, tree = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    drawn = [0.2 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, drawn)


@pytest.fixture
def folder(model, tmp_path):
    write_peft(tmp_path / "made", model.spec, random_adapter(model.spec, LORA), LORA, "base", None)
    return tmp_path / "made"


def logits(model, adapter):
    adapter = jax.tree.map(jnp.asarray, adapter)
    return np.asarray(nnx.merge(model.graph, model.params)(TOKENS, adapter=adapter))


def test_an_exported_adapter_reads_back_bit_by_bit(model, folder):
    adapter, lora = load_adapter(folder, model.spec)
    assert replace(lora, targets=tuple(sorted(lora.targets))) == replace(
        LORA, targets=("down", "q")
    )
    original = random_adapter(model.spec, LORA)
    assert adapter.scale == original.scale
    for found, expected in zip(adapter.layers, original.layers, strict=True):
        jax.tree.map(np.testing.assert_array_equal, found, dict(expected))


@pytest.mark.parametrize("side", ["a", "b"])
def test_a_larger_structure_changes_nothing_but_can_learn_more(model, folder, side):
    adapter, own = load_adapter(folder, model.spec)
    lora = LoraConfig(rank=8, alpha=32.0, zero_side=side)
    fresh = init_adapter(model.spec, lora, jax.random.key(9))
    grown = fitted(adapter, own, fresh, lora, "here")
    assert jax.tree.structure(grown) == jax.tree.structure(fresh)
    assert_near(logits(model, grown), logits(model, adapter))
    assert np.abs(logits(model, adapter) - logits(model, None)).max() > 1e-2

    def loss(adapter):
        return nnx.merge(model.graph, model.params)(TOKENS, adapter=adapter)[..., 3].sum()

    slope = jax.grad(loss)(grown).layers[0]["q"]
    rest = slope["b"][3:] if side == "b" else slope["a"][:, 3:]
    assert np.abs(np.asarray(rest)).max() > 0


def test_a_layer_that_the_adapter_skips_can_learn_as_a_new_one_can(model, folder):
    weights = load_file(folder / "adapter_model.safetensors")
    kept = {name: x for name, x in weights.items() if "layers.0.self_attn" not in name}
    save_file(kept, folder / "adapter_model.safetensors")
    adapter, own = load_adapter(folder, model.spec)
    assert not adapter.layers[0]["q"]["a"].any()
    lora = LoraConfig(rank=4, targets=("q", "down"))
    fresh = init_adapter(model.spec, lora, jax.random.key(9))
    grown = fitted(adapter, own, fresh, lora, "here")
    jax.tree.map(np.testing.assert_array_equal, grown.layers[0]["q"], fresh.layers[0]["q"])
    assert_near(logits(model, grown), logits(model, adapter))


def test_what_the_run_has_no_room_for_is_refused_with_what_to_set():
    with pytest.raises(UserError, match=r"rank is 3 .* targets are q, down.*train\.lora\.rank"):
        check_room(LORA, LoraConfig(rank=2), "here")
    with pytest.raises(UserError, match="targets q, v"):
        check_room(LORA, LoraConfig(rank=8, targets=("q", "v")), "here")


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
WRONG = {
    "dora": ({"use_dora": True}, {}, "use_dora"),
    "another method": ({"peft_type": "LOHA"}, {}, "peft_type"),
    "ranks by layer": ({"rank_pattern": {"q_proj": 4}}, {}, "rank_pattern"),
    "saved modules": ({"modules_to_save": ["lm_head"]}, {}, "modules_to_save"),
    "a changed base": ({"init_lora_weights": "pissa"}, {}, "init_lora_weights"),
    "a part of the text": ({"alora_invocation_tokens": [1, 2]}, {}, "alora_invocation_tokens"),
    "layers used twice": ({"layer_replication": [[0, 2], [0, 2]]}, {}, "layer_replication"),
    "grouped inputs": ({"use_qalora": True}, {}, "use_qalora"),
    "a bias": ({"bias": "lora_only"}, {}, "bias"),
    "biases of factors": ({"lora_bias": True}, {}, "lora_bias"),
    "a newer method": ({"use_newer": 3}, {}, "use_newer"),
    "an embedding": (
        {}, {"base_model.model.model.embed_tokens.weight": np.ones((3, 32), np.float32)},
        "embed_tokens.weight is no LoRA factor"),
    "no rank": ({"r": None}, {}, "r is missing"),
    "another width": ({}, {NAME: np.ones((3, 7), np.float32)}, r"\[7, 3\].*made for 'base'"),
    "another layer": (
        {}, {NAME.replace("layers.0", "layers.99"): np.ones((3, 32), np.float32)}, "no place"),
    "another module": (
        {}, {"base_model.model.lm_head.lora_A.weight": np.ones((3, 32), np.float32)}, "no place"),
    "NaN": ({}, {NAME: np.full((3, 32), np.nan, np.float32)}, "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_plain_lora_or_of_another_base_is_refused_in_one_sentence(case, model, folder):
    change, tensors, named = WRONG[case]
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    weights = load_file(folder / "adapter_model.safetensors") | tensors
    save_file(weights, folder / "adapter_model.safetensors")
    with pytest.raises(UserError, match=named) as caught:
        load_adapter(folder, model.spec)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_the_names_of_an_adapter_saved_by_hand_are_read(model, folder):
    path = folder / "adapter_model.safetensors"
    expected = load_adapter(folder, model.spec)[0].layers
    named = {
        name.replace(".weight", ".default.weight"): value for name, value in load_file(path).items()
    }
    save_file(named, path)
    for one, other in zip(expected, load_adapter(folder, model.spec)[0].layers, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("change", [
    # PEFT 0.2, which lacked most fields and had two of its own.
    {key: None for key in ("use_rslora", "rank_pattern", "use_dora", "lora_bias", "revision")}
    | {"enable_lora": None, "merge_weights": False},
    # A newer one: what is switched off, or says which modules there are.
    {"use_newer": False, "newer_config": None, "newer_pattern": {}, "qalora_group_size": 16,
     "target_modules": r".*\.(q|down)_proj", "layers_to_transform": [0, 1], "peft_version": "9"},
])  # fmt: skip
def test_fields_that_do_not_change_the_adapter_are_read_over(change, model, folder):
    path = folder / "adapter_config.json"
    expected, config = load_adapter(folder, model.spec)[0].layers, json.loads(path.read_text())
    path.write_text(json.dumps({"use_rslora": True} | config | change))
    jax.tree.map(
        np.testing.assert_array_equal, load_adapter(folder, model.spec)[0].layers, expected
    )


def test_a_folder_without_an_adapter_and_an_unknown_name_are_refused(model, tmp_path):
    with pytest.raises(UserError, match=r"no adapter_config\.json"):
        load_adapter(tmp_path, model.spec)
    with pytest.raises(UserError, match="no such folder"):
        load_adapter(tmp_path / "missing", model.spec)


@pytest.mark.parametrize("family", ["qwen2", "phi3"])
def test_an_adapter_that_peft_made_gives_pefts_logits(family, tmp_path):
    torch = pytest.importorskip("torch", reason="parity needs torch: pip install '.[test]'")
    peft = pytest.importorskip("peft", reason="parity needs peft: pip install '.[test]'")
    from transformers import AutoModelForCausalLM

    base = save_checkpoint(tmp_path / "base", family)
    theirs = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules="all-linear", init_lora_weights=False
    )
    theirs = peft.get_peft_model(theirs, config)
    theirs.save_pretrained(tmp_path / "adapter")
    model = load_model(base)
    adapter, lora = load_adapter(tmp_path / "adapter", model.spec)
    assert (lora.rank, lora.alpha, lora.rslora, len(lora.targets)) == (4, 6.0, True, 7)
    with torch.no_grad():
        expected = theirs(torch.tensor(np.asarray(TOKENS, np.int64))).logits.numpy()
    assert_near(logits(model, adapter), expected, 2e-4)


def test_an_exported_adapter_of_a_fused_model_is_read_at_its_own_rank(tmp_path):
    """Its file has the parts' blocks one after the other, and each part needs its own alone."""
    spec = load_model(save_checkpoint(tmp_path / "base", "phi3")).spec
    rng = np.random.default_rng(0)
    lora = LoraConfig(rank=2)
    shapes = init_adapter(spec, lora, jax.random.key(0))
    draw = lambda x: rng.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    layers = jax.tree.map(draw, unstack_adapter(shapes).layers)
    tensors = to_peft(spec, layers)
    rank = exported_rank(spec, lora.targets, lora.rank)
    assert rank > lora.rank
    read, smaller = without_zeros(from_peft(spec, tensors), rank)
    assert smaller == lora.rank
    for ours, theirs in zip(layers, read, strict=True):
        for target, pair in ours.items():
            np.testing.assert_allclose(
                theirs[target]["a"] @ theirs[target]["b"], pair["a"] @ pair["b"], atol=1e-5
            )


def test_patterns_that_say_what_holds_anyway_are_none(model, folder):
    path = folder / "adapter_config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"rank_pattern": {"q_proj": saved["r"]}}))
    assert load_adapter(folder, model.spec)[1].rank == saved["r"]
