"""What is fetched of a repository: the files that are read, one set of weights, and no others."""

from __future__ import annotations

import json

import pytest
from huggingface_hub.utils import filter_repo_objects

from malt_jax.errors import UserError
from malt_jax.export.cards import base_license
from malt_jax.models.hub import local_folder

COMMIT = "c" * 40
OWN, _ = local_folder("quickstart")
CARD = "---\nlicense: apache-2.0\n---\nA model."
TEXT = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
        "tokenizer.model", "special_tokens_map.json", "chat_template.jinja", "README.md",
        "tekken.json")  # fmt: skip
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
OTHERS = (
    "LICENSE", "params.json", "preprocessor_config.json",
    "consolidated.safetensors", "consolidated.safetensors.index.json", "consolidated.00.pth",
    "original/consolidated.00.pth", "original/model.safetensors", "original/tokenizer.model",
    "original/params.json", "onnx/config.json", "onnx/model.onnx", "pytorch_model.bin",
    "model.fp16.safetensors", "adapter_model.safetensors", "modeling_x.py", "flax_model.msgpack",
)  # fmt: skip
INDEX = "model.safetensors.index.json"
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8,
    "vocab_size": 1024,
    "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 8,
}  # fmt: skip


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository of given files behind the client's own function; returns what was fetched."""

    def serve(*files: str, config: dict | None = None) -> list[str]:
        config = CONFIG if config is None else config
        fetched: list[str] = []

        def snapshot_download(name, *, revision=None, allow_patterns=None, **_):
            assert revision in ("main", COMMIT)
            for file in filter_repo_objects(files, allow_patterns=allow_patterns):
                path = tmp_path / COMMIT / file
                path.parent.mkdir(parents=True, exist_ok=True)
                weights = dict.fromkeys(("a", "b"), SHARDS[0]) | {"c": SHARDS[1]}
                contents = {INDEX: {"weight_map": weights}, "config.json": config}
                text = json.dumps(contents.get(file, {}))
                if file in ("tokenizer.json", "README.md"):
                    text = {"README.md": CARD}.get(file) or (OWN / file).read_text()
                elif file == "chat_template.jinja":
                    text = ""
                path.write_text(text)
                fetched.append(file)
            return str(tmp_path / COMMIT)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        return fetched

    return serve


def test_one_file_of_weights_is_fetched(hub):
    fetched = hub(*TEXT, *OTHERS, "model.safetensors")
    folder, revision = local_folder("org/model", "main")
    assert revision == folder.name == COMMIT
    assert set(fetched) == {*TEXT, "model.safetensors"}
    assert base_license(folder) == "apache-2.0"


def test_the_shards_that_the_index_names_are_fetched(hub):
    fetched = hub(*TEXT, *OTHERS, INDEX, *SHARDS, "model-00003-of-00002.safetensors")
    local_folder("org/model", "main")
    assert sorted(fetched) == sorted((*TEXT, INDEX, *SHARDS))


def test_a_single_file_is_preferred_to_shards_as_in_transformers(hub):
    fetched = hub(*TEXT, INDEX, *SHARDS, "model.safetensors")
    local_folder("org/model", "main")
    assert set(fetched) == {*TEXT, INDEX, "model.safetensors"}


def test_a_repository_without_a_config_is_refused_before_any_weight(hub):
    fetched = hub("model.safetensors", "README.md")
    with pytest.raises(UserError, match=r"no config\.json on the hub"):
        local_folder("org/model", "main")
    assert fetched == ["README.md"]


def test_a_repository_without_a_tokenizer_is_refused_before_any_weight(hub):
    fetched = hub("config.json", "tekken.json", "model.safetensors")
    with pytest.raises(UserError, match=r"of tekken\.json transformers makes one.*save_pretrained"):
        local_folder("org/model", "main")
    assert "model.safetensors" not in fetched


@pytest.mark.parametrize("quantised", [True, False])
def test_a_model_that_is_not_supported_is_refused_before_any_weight(quantised, hub):
    files = (*TEXT, "model.safetensors", *(["hf_quant_config.json"] if quantised else []))
    fetched = hub(*files, config=CONFIG if quantised else {"model_type": "falcon"})
    with pytest.raises(UserError, match="quantised" if quantised else "'falcon' is not supported"):
        local_folder("org/model", "main")
    assert "model.safetensors" not in fetched
