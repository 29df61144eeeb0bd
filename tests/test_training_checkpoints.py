"""A checkpoint is whole, fits, and is what was saved; or it is refused."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config.lora import LoraConfig
from malt_jax.config.training import DpoConfig
from malt_jax.errors import UserError
from malt_jax.models.lora import init_adapter, unstack_adapter
from malt_jax.storage.checkpoints import SEAL, CheckpointFolder
from malt_jax.storage.references import load_or_compute
from malt_jax.training.fit import train_phase
from malt_jax.training.references import weights_hash
from malt_jax.training.saver import load_weights, save_weights
from training_model import SPEC, dpo_examples, tiny_model

TREE = {"w": jnp.arange(600.0).reshape(20, 30), "n": {"count": jnp.int32(3)}}

KEY = dict.fromkeys(("base", "adapter", "data"), "as it was")


def saved(folder, tree, facts):
    CheckpointFolder(folder).save("step-1", tree, facts)
    return folder / "step-1"


def restore(path, like):
    return CheckpointFolder(path.parent).restore(path.name, like)


def facts(path):
    return CheckpointFolder(path.parent).facts(path.name)


def test_what_is_restored_is_what_was_saved(tmp_path):
    path = saved(tmp_path, TREE, {"step": 1})
    restored = restore(path, jax.tree.map(jnp.zeros_like, TREE))
    jax.tree.map(np.testing.assert_array_equal, restored, TREE)
    assert facts(path) == {"step": 1}
    assert CheckpointFolder(tmp_path).names("step-") == ["step-1"]


def test_a_save_cut_short_does_not_count(tmp_path):
    path = saved(tmp_path, TREE, {})
    (path / SEAL).unlink()
    assert CheckpointFolder(tmp_path).names() == []
    with pytest.raises(UserError, match="not a complete checkpoint"):
        restore(path, TREE)


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path):
    path = saved(tmp_path, TREE, {})
    files = [f for f in sorted(path.rglob("*")) if f.is_file()]
    assert path / SEAL in files and len(files) > 1
    for file in files:
        content = bytearray(file.read_bytes())
        if not content:
            continue
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"is not what was saved|not a complete checkpoint"):
            restore(path, TREE)
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    restore(path, TREE)


def test_no_bit_of_a_seal_can_be_flipped_unseen(tmp_path):
    path = saved(tmp_path, TREE, {"identity": "a" * 64, "progress": {"n": 1}})
    whole = (path / SEAL).read_bytes()
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        (path / SEAL).write_bytes(content)
        with pytest.raises(UserError, match="not a complete checkpoint"):
            facts(path)


def test_a_checkpoint_leaves_whole_even_if_deleting_it_is_cut_short(tmp_path, monkeypatch):
    """Killed while it is deleted, a checkpoint is gone: no seal stands over half of its files."""
    from malt_jax.storage import atomic

    folder = CheckpointFolder(tmp_path)
    for name in ("step-1", "step-2"):
        folder.save(name, TREE, {})
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda *_, **__: None)
    folder.remove("step-", keep=("step-2",))
    assert folder.names("step-") == ["step-2"]
    monkeypatch.undo()
    atomic.clean_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


@pytest.mark.parametrize(
    "like",
    [
        {"w": jnp.zeros((20, 30), jnp.bfloat16), "n": {"count": jnp.int32(0)}},
        {"w": jnp.zeros((30, 20)), "n": {"count": jnp.int32(0)}},
        {"w": jnp.zeros((20, 30))},
        {**TREE, "more": jnp.zeros(1)},
    ],
    ids=["dtype", "shape", "missing", "extra"],
)
def test_another_dtype_shape_or_set_of_arrays_is_refused(tmp_path, like):
    path = saved(tmp_path, TREE, {})
    with pytest.raises(UserError, match="does not fit"):
        restore(path, like)


def test_an_adapter_is_restored_stacked_or_not_and_with_its_scale(tmp_path):
    adapter = init_adapter(SPEC, LoraConfig(rank=4), jax.random.key(0), stacked=True)
    folder = CheckpointFolder(tmp_path)
    save_weights(folder, "final", adapter, {"role": "verifier"})
    listed = unstack_adapter(adapter)
    blank = jax.tree.map(jnp.zeros_like, listed)
    jax.tree.map(np.testing.assert_array_equal, load_weights(folder, "final", blank), listed)
    other = init_adapter(SPEC, LoraConfig(rank=4, alpha=8.0), jax.random.key(0))
    with pytest.raises(UserError, match="scaled by 8"):
        load_weights(folder, "final", other)
    with pytest.raises(UserError, match="adapter weights, expected full"):
        load_weights(folder, "final", TREE)


def test_references_made_for_anything_else_are_refused_by_name(tmp_path):
    path, key = (
        tmp_path / "references.npz",
        dict.fromkeys(("base", "adapter", "data"), "as it was"),
    )
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(load_or_compute(path, key, lambda: values), values)
    again = load_or_compute(path, key, lambda: pytest.fail("computed twice"))
    assert np.array_equal(again, values)
    for name in ("base", "adapter", "data"):
        other = {**key, name: "changed"}
        with pytest.raises(UserError, match=f"computed with another {name};"):
            load_or_compute(path, other, lambda: values)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot be read"):
        load_or_compute(path, key, lambda: values)


def test_other_numbers_under_the_same_key_are_refused(tmp_path):
    """As the archive's own checksum would not: a whole file with another file's numbers."""
    paths = [tmp_path / name for name in ("a.npz", "b.npz")]
    key = KEY
    for number, path in enumerate(paths):
        load_or_compute(path, key, lambda n=number: np.full((3, 2), n, np.float32))
    mixed = dict(np.load(paths[0])) | {"logprobs": np.load(paths[1])["logprobs"]}
    np.savez(paths[0], **mixed)
    with pytest.raises(UserError, match="not those that were stored"):
        load_or_compute(paths[0], key, lambda: pytest.fail("computed again"))


def test_reference_log_probabilities_that_are_no_numbers_are_refused_and_not_stored(tmp_path):
    model, pairs = tiny_model(), dpo_examples(3)
    broken = jax.tree.map(
        lambda x: x * jnp.nan,
        init_adapter(SPEC, LoraConfig(rank=4), jax.random.key(0), stacked=True),
    )
    with pytest.raises(UserError, match="NaN or infinity for 3 of 3 pairs"):
        train_phase(model, broken, pairs, DpoConfig(), saver=CheckpointFolder(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_weights_hash_tells_one_changed_number():
    adapter = init_adapter(SPEC, LoraConfig(rank=4), jax.random.key(0), stacked=True)
    changed = jax.tree.map(lambda x: x.at[(0,) * x.ndim].add(1e-6), adapter)
    assert weights_hash(adapter) != weights_hash(changed)
    assert weights_hash(adapter) == weights_hash(jax.tree.map(jnp.array, adapter))
    # The scale is no array, but the adapter's update is a multiple of it.
    assert weights_hash(adapter) != weights_hash(replace(adapter, scale=2 * adapter.scale))
