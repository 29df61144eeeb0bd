"""Checkpoints that differ from the usual ones in what does not matter load as those do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from malt_jax.errors import UserError
from malt_jax.models.hf_config import read_spec
from malt_jax.models.model import load_model
from malt_jax.models.tokenizer import load_tokenizer
from test_models_refusals import CONFIG, Q, checkpoint, index, refused, split, tensors
from tiny_models import VOCAB, hf_model, save_thinking_tokenizer, save_tokenizer

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TIED = {"tie_word_embeddings": True}
TOKENS = np.arange(6, dtype=np.int32).reshape(1, 6)


def logits(folder) -> np.ndarray:
    return np.asarray(load_model(folder)(TOKENS))


def test_tensors_of_the_model_without_its_head_load_without_their_prefix(tmp_path):
    bare = {name.removeprefix("model."): value for name, value in tensors().items()}
    assert "layers.0.mlp.up_proj.weight" in bare
    found = logits(checkpoint(tmp_path / "bare", weights=bare))
    np.testing.assert_array_equal(found, logits(checkpoint(tmp_path / "usual")))


@pytest.mark.parametrize("stacked", [False, True])
def test_a_tied_model_may_store_its_one_matrix_as_the_head(stacked, tmp_path):
    plain = {name: value for name, value in tensors().items() if name != HEAD}
    usual = logits(checkpoint(tmp_path / "usual", config=TIED, weights=plain))
    plain[HEAD] = plain.pop(EMBEDDING)
    folder = checkpoint(tmp_path / "head", config=TIED, weights=plain)
    found = np.asarray(load_model(folder, stacked=stacked)(TOKENS))
    np.testing.assert_allclose(found, usual, atol=1e-5)


def test_an_index_may_list_a_tied_head_that_no_shard_holds(tmp_path):
    weight_map = split(tmp_path)
    shard = weight_map[HEAD]
    kept = {name: x for name, x in tensors().items() if weight_map[name] == shard and name != HEAD}
    save_file(kept, tmp_path / shard)
    index(tmp_path, weight_map)
    refused(tmp_path, HEAD, "tie_word_embeddings")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | TIED))
    assert load_model(tmp_path).spec.tied


def test_an_untied_model_without_a_head_is_told_of_the_field_that_ties_it(tmp_path):
    plain = {name: value for name, value in tensors().items() if name != HEAD}
    refused(checkpoint(tmp_path, weights=plain), HEAD, "set it to true", "tie_word_embeddings")


def test_tables_that_are_no_weights_may_have_any_dtype(tmp_path):
    tables = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float64),
        "model.rotary_emb.inv_freq": np.ones(2, np.float64),
        "model.layers.1.self_attn.bias": np.ones((1, 1, 4, 4), np.bool_),
        "model.layers.1.self_attn.masked_bias": np.array(-1e9, np.float64),
    }
    found = logits(checkpoint(tmp_path / "old", weights=tensors() | tables))
    np.testing.assert_array_equal(found, logits(checkpoint(tmp_path / "usual")))


@pytest.mark.parametrize(
    ("name", "dtype", "code", "quantised"),
    [
        (Q, np.float64, "F64", False),
        (Q, np.int64, "I64", False),
        (Q, np.bool_, "BOOL", False),
        (Q, np.uint8, "U8", True),
        (Q.replace("weight", "qweight"), np.int32, "I32", True),
    ],
)
def test_a_dtype_that_is_not_read_is_called_quantised_only_if_it_is(
    name, dtype, code, quantised, tmp_path
):
    folder = checkpoint(tmp_path, weights=tensors() | {name: np.ones((8, 8), dtype)})
    with pytest.raises(UserError, match=f"is stored as {code}") as caught:
        load_model(folder)
    assert ("quantised" in str(caught.value)) == quantised


def generation_config(folder, ends) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))


def test_an_end_without_a_text_is_left_out_beside_one_that_has_one(tmp_path):
    save_tokenizer(tmp_path)
    ends = load_tokenizer(tmp_path, VOCAB).end_ids
    unused = VOCAB - 1
    generation_config(tmp_path, [unused, *ends])
    assert load_tokenizer(tmp_path, VOCAB).end_ids == ends
    for wrong in ([*ends, VOCAB], [*ends, -1], [*ends, "2"], [unused], unused):
        generation_config(tmp_path, wrong)
        with pytest.raises(UserError, match="is not in the tokenizer's vocabulary"):
            load_tokenizer(tmp_path, VOCAB)


def test_an_attention_cap_in_a_config_of_gemma_3_has_no_effect(tmp_path):
    """As in transformers, which reads the field of Gemma 2 only."""
    torch = pytest.importorskip("torch", reason="parity needs torch: pip install '.[test]'")
    model = hf_model("gemma3", attn_logit_softcapping=0.5)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attn_logit_softcapping"] == 0.5
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()
    np.testing.assert_allclose(logits(tmp_path), expected, atol=2e-4 * np.abs(expected).max())


def test_an_empty_rope_scaling_is_none(tmp_path):
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4}
    config = CONFIG | experts | {"model_type": "gpt_oss", "architectures": None}
    specs = []
    for scaling in (None, {}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"rope_scaling": scaling}))
        specs.append(read_spec(tmp_path))
    assert specs[0] == specs[1] and specs[0].rope.kind == "yarn"


SMOLLM3 = (
    "{%- set system = messages[0].content if messages[0].role == 'system' else '' -%}"
    "{{- '<|im_start|>system\\nReasoning Mode: ' + ('/no_think' if '/no_think' in system else "
    "'/think') + '\\n\\n' -}}"
    "{{- system.replace('/no_think', '').replace('/think', '').rstrip() + '<|im_end|>\\n' -}}"
    "{%- for m in messages if m.role == 'user' -%}"
    "{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{{- '<|im_start|>assistant\\n' -}}"
)
"""What SmolLM3's template does with a system message."""


def test_switches_that_a_template_obeys_may_be_missing_from_its_prompt(tmp_path):
    save_thinking_tokenizer(tmp_path / "switches", SMOLLM3)
    tokenizer = load_tokenizer(tmp_path / "switches")
    for system in ("Be brief. /no_think", "/no_think", "/think Be brief.", "Be brief."):
        assert "Be brief" not in system or "Be brief." in tokenizer.render("hi", system)
        assert ("Mode: /no_think" in tokenizer.render("hi", system)) == ("/no_think" in system)
    without = SMOLLM3.replace("system.replace('/no_think', '')", "''")
    save_thinking_tokenizer(tmp_path / "without", without)
    with pytest.raises(UserError, match="leaves out the system message"):
        load_tokenizer(tmp_path / "without").render("hi", "Be brief. /no_think")
