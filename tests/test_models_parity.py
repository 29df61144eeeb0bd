"""The decoder gives the logits transformers gives, for every family and both layouts of layers."""

from __future__ import annotations

import numpy as np
import pytest

from malt_jax.models.model import load_model
from tiny_models import FAMILIES, VOCAB, hf_model, save_tokenizer

torch = pytest.importorskip("torch", reason="parity needs torch: pip install '.[test]'")

TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, 40)).astype(np.int32)


def hf_logits(model, tokens=TOKENS) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(tokens.astype(np.int64))).logits.float().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, tmp_path):
    # 40 tokens: beyond the windows (7), the original context (16), and into every rope regime.
    reference = hf_model(family)
    reference.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    expected = hf_logits(reference)
    assert expected.std() > 0.1
    for stacked in (False, True):
        ours = np.asarray(load_model(tmp_path, stacked=stacked)(TOKENS))
        np.testing.assert_allclose(ours, expected, atol=2e-4, rtol=0)
