"""Token ids are those of the checkpoint's own tokenizer file, in every published layout."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malt_jax.errors import UserError
from malt_jax.models import tokenizer_engines
from malt_jax.models.tokenizer import load_tokenizer
from malt_jax.models.tokenizer_probe import PROBE
from malt_jax.tree.prompts import fill, render
from tokenizer_layouts import (
    LAYOUTS,
    gemma,
    gemma_sentencepiece,
    llama2,
    llama2_sentencepiece,
    qwen2,
    smollm2,
    unigram_sentencepiece,
)

ADDED = tokenizer_engines.JsonEngine.added.fget
TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("ab 19\n\t.,é中🙂▁<s>")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp(name) for name in LAYOUTS}
    for name, folder in made.items():
        LAYOUTS[name](folder)
    return made


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    """Folders that hold only a sentencepiece model, each with the library's own processor."""
    makers = (llama2_sentencepiece, gemma_sentencepiece, unigram_sentencepiece)
    made = {make.__name__: tmp_path_factory.mktemp(make.__name__) for make in makers}
    return {make.__name__: (made[make.__name__], make(made[make.__name__])) for make in makers}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_ids_are_those_of_tokenizer_json(layout, folders):
    folder = folders[layout]
    ours = load_tokenizer(folder)
    own = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = [token.content for token in own.get_added_tokens_decoder().values()]

    @settings(max_examples=60, deadline=None)
    @given(text=TEXT)
    def arbitrary(text):
        assert ours.encode(text) == own.encode(text, add_special_tokens=False).ids

    arbitrary()
    for text in (*PROBE, *(f"a {token}{token} b\n{token}" for token in tokens)):
        assert ours.encode(text) == own.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special=True) == own.encode(text).ids


def test_what_the_layouts_are_told_apart_by(folders):
    def cut(layout, text):
        own = tokenizers.Tokenizer.from_file(str(folders[layout] / "tokenizer.json"))
        return [own.id_to_token(i) for i in load_tokenizer(folders[layout]).encode(text)]

    assert cut("SmolLM2", "\n\n") == ["ĊĊ"] and cut("SmolLM2", "1999") == ["1", "9", "9", "9"]
    assert cut("Qwen2", "e\u0301")[0] == cut("Qwen2", "\u00e9")[0]  # NFC
    assert cut("Llama-2", "<s>[INST]")[:2] == ["<s>", "▁[INST]"]
    assert not cut("Gemma", "[INST]")[0].startswith("▁")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_survives_the_round_trip_in_every_layout(layout, folders):
    tokenizer = load_tokenizer(folders[layout])
    for text in PROBE:
        text = text.replace("e\u0301", "é").replace("n\u0303", "ñ").replace("a\u0323\u0301", "ạ́")
        text = text.replace("Å", "Å")  # NFC, which is all that any of these layouts normalises
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_special_tokens_in_a_message_are_ordinary_text(layout, folders):
    tokenizer = load_tokenizer(folders[layout])
    end = tokenizer.special_tokens["eos_token"]
    assert tokenizer.end_ids[0] in tokenizer.encode(f"a{end}")
    ids = tokenizer.prompt_ids(f"a{end}b")
    assert not set(ids) & set(tokenizer.end_ids)
    assert f"a{end}b" in tokenizer.decode(ids, skip_special=False)


def test_an_end_of_turn_that_the_file_does_not_call_special_is_ordinary_text_too(tmp_path):
    qwen2(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = tmp_path / name
        path.write_text(path.read_text().replace('"special": true', '"special": false'))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.end_ids[0] in tokenizer.encode("a<|im_end|>")
    assert not set(tokenizer.prompt_ids("a<|im_end|>")) & set(tokenizer.end_ids)
    assert tokenizer.decode([*tokenizer.encode("a"), *tokenizer.end_ids]) == "a"


@pytest.mark.parametrize(
    "layout", ["llama2_sentencepiece", "gemma_sentencepiece", "unigram_sentencepiece"]
)
def test_a_sentencepiece_model_alone_reads_as_sentencepiece_does(layout, pieces):
    folder, library = pieces[layout]
    tokenizer = load_tokenizer(folder)
    named = {library.id_to_piece(i) for i in range(library.get_piece_size())
             if library.is_control(i) or library.is_unknown(i)}  # fmt: skip

    @settings(max_examples=100, deadline=None)
    @given(text=TEXT)
    def arbitrary(text):
        if not any(name in text for name in named):
            assert tokenizer.encode(text) == library.encode(text)

    arbitrary()
    for text in PROBE:
        assert tokenizer.encode(text) == library.encode(text)
        assert tokenizer.encode(text, special=True) == [library.bos_id(), *library.encode(text)]
        assert tokenizer.decode(library.encode(text)) == library.decode(library.encode(text))
    assert tokenizer.end_ids == (library.eos_id(),)


def test_each_stretch_after_a_special_token_is_read_by_itself(pieces):
    folder, library = pieces["llama2_sentencepiece"]
    prompt = library.encode("[INST] How many? [/INST]")
    assert library.id_to_piece(prompt[0]).startswith("▁")
    expected = [library.bos_id(), *prompt, *library.encode("Two"), library.eos_id()]
    text = "<s>[INST] How many? [/INST]"
    assert load_tokenizer(folder).encode(text) == expected[: 1 + len(prompt)]
    assert load_tokenizer(folder).encode(f"{text}</s>Two</s>")[len(prompt) + 2 :] == [
        *library.encode("Two"), library.eos_id()]  # fmt: skip


def test_legacy_false_puts_a_blank_in_front_of_the_first_stretch_only(tmp_path):
    library = llama2_sentencepiece(tmp_path, legacy=False, add_bos_token=False)
    tokenizer = load_tokenizer(tmp_path)
    first, *rest = (library.id_to_piece(i) for i in tokenizer.encode("<s>[INST]"))
    assert first == "<s>" and "".join(rest) == "[INST]"
    assert library.id_to_piece(tokenizer.encode("[INST]")[0]).startswith("▁")
    assert tokenizer.encode("[INST]", special=True) == library.encode("[INST]")


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("layout", [llama2, smollm2])
def test_flags_of_other_files_change_no_token_of_tokenizer_json(layout, name, tmp_path):
    layout(tmp_path)
    own = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    own.add_tokens([tokenizers.AddedToken("<|user|>", rstrip=True, normalized=False)])
    own.save(str(tmp_path / "tokenizer.json"))
    ids = {token.content: i for i, token in own.get_added_tokens_decoder().items()}
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["added_tokens_decoder"]
    if name == "added_tokens.json":  # without flags, as transformers wrote it before 4.34
        (tmp_path / name).write_text(json.dumps(ids))
    else:
        flags = {"normalized": True, "rstrip": False, "lstrip": True, "special": True}
        config["added_tokens_decoder"] = {
            str(i): {"content": content, **flags} for content, i in ids.items()
        }
    path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    for content in ids:
        for text in (f"hi {content}\n there{content}", f"{content}{content} a", f"a\n{content}"):
            assert tokenizer.encode(text) == own.encode(text, add_special_tokens=False).ids


def test_a_token_that_becomes_special_keeps_its_other_flags(tmp_path):
    smollm2(tmp_path)
    own = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    own.add_tokens([tokenizers.AddedToken("<|end|>", rstrip=True, normalized=False)])
    own.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": "<|end|>"}))
    text = "a<|end|>\n b"
    ids = own.encode(text, add_special_tokens=False).ids
    assert load_tokenizer(tmp_path).encode(text) == ids


def test_sentencepiece_honours_the_flags_of_declared_tokens(tmp_path):
    library = llama2_sentencepiece(
        tmp_path,
        legacy=False,
        add_bos_token=False,
        added_tokens_decoder={
            "500": {"content": "<|user|>", "rstrip": True, "special": True},
            "700": {"content": "<|end|>", "lstrip": True, "special": True},  # behind a gap
            "701": {"content": "word", "single_word": True},
        },
    )
    assert library.get_piece_size() < 500
    tokenizer = load_tokenizer(tmp_path)
    first, *between, last = tokenizer.encode("<|user|>\n hi \n<|end|>")
    assert (first, last) == (500, 700) and tokenizer.decode(between) == "hi"
    assert 701 in tokenizer.encode("a word here") and 701 not in tokenizer.encode("swords")


def test_a_tiktoken_file_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_text("IQ== 0\nIg== 1\nIw== 2\n")
    with pytest.raises(UserError, match="is a tiktoken file"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_with_thousands_of_added_tokens_loads_in_few_calls(tmp_path, monkeypatch):
    smollm2(tmp_path)
    own = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    after = own.get_vocab_size()
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    for i in range(300):
        config["added_tokens_decoder"][str(after + i)] = {"content": f"<unused{i}>"}
    path.write_text(json.dumps(config))
    calls = []
    monkeypatch.setattr(
        tokenizer_engines.JsonEngine, "added", property(lambda self: calls.append(1) or ADDED(self))
    )
    assert load_tokenizer(tmp_path, rows=after + 300).encode("<unused7>") == [after + 7]
    assert len(calls) < 10


def test_a_token_that_only_the_config_declares_is_added_where_it_says(tmp_path):
    smollm2(tmp_path)
    own = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    after = own.get_vocab_size()
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["added_tokens_decoder"][str(after)] = {"content": "<|tool|>", "special": True}
    path.write_text(json.dumps(config))
    assert load_tokenizer(tmp_path).encode("a<|tool|>") == [*own.encode("a").ids, after]
    config["added_tokens_decoder"][str(after + 7)] = {"content": "<|other|>", "special": True}
    path.write_text(json.dumps(config))
    with pytest.raises(
        UserError, match=rf"'<\|other\|>' is token {after + 7} here but {after + 1}"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "added_tokens.json"])
@pytest.mark.parametrize("text", ["\n\n\n", "  ", "19", "fox"])
def test_a_declared_token_that_changes_other_texts_is_refused_and_shown(name, text, tmp_path):
    smollm2(tmp_path)
    own = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"][str(own.get_vocab_size())] = {"content": text}
    declared = config if name == "tokenizer_config.json" else {text: own.get_vocab_size()}
    (tmp_path / name).write_text(json.dumps(declared))
    with pytest.raises(UserError, match=r"tokenizer\.json: .* ids \[.*but this file says \["):
        load_tokenizer(tmp_path)


def test_settings_of_the_file_that_cut_or_fill_up_texts_have_no_effect(tmp_path):
    qwen2(tmp_path)
    own = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    expected = own.encode("one two three four five six").ids
    own.enable_truncation(3)
    own.enable_padding(length=64)
    own.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("one two three four five six") == expected


def test_an_added_token_beyond_the_embedding_is_an_error_only_where_it_is_used(tmp_path):
    gemma(tmp_path)
    rows = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size() - 1
    tokenizer = load_tokenizer(tmp_path, rows)
    assert tokenizer.encode("an image") and tokenizer.vocab_size == rows + 1
    with pytest.raises(UserError, match=rf"'<image_soft_token>', token {rows}"):
        tokenizer.encode("<image_soft_token>")
    assert tokenizer.prompt_ids("see <image_soft_token>")  # ordinary text in a message


def test_a_padding_token_beyond_the_embedding_is_accepted_and_an_end_of_turn_is_not(tmp_path):
    llama2(tmp_path)
    rows = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab_size()
    (tmp_path / "added_tokens.json").write_text(json.dumps({"[PAD]": rows}))
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"pad_token": "[PAD]"}
    path.write_text(json.dumps(config))
    assert load_tokenizer(tmp_path, rows).encode("a")
    path.write_text(json.dumps(config | {"eos_token": "[PAD]"}))
    with pytest.raises(UserError, match=f"is token {rows} and ends a turn"):
        load_tokenizer(tmp_path, rows)


def test_a_vocabulary_beyond_the_embedding_is_refused(tmp_path, folders):
    for layout in LAYOUTS:
        with pytest.raises(UserError, match="the embedding 200 rows"):
            load_tokenizer(folders[layout], 200)


def replace(content: str, **pattern: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


GREEDY = {
    "one rule": ("normalizer", replace("a" * 1000, String="a")),
    "a rule on rules": (
        "normalizer", {"type": "Sequence", "normalizers": [replace("aa", String="a")] * 60}),
    "an expression that matches anywhere": ("normalizer", replace("b" * 100, Regex="x*")),
    "a long prefix": ("normalizer", {"type": "Prepend", "prepend": "x" * 1000}),
    "a decoder": ("decoder", {"type": "Sequence", "decoders": [replace("bb", String="b")] * 40}),
    "a template that repeats the text": (
        "post_processor",
        {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 500,
         "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
         "special_tokens": {}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GREEDY)
def test_a_step_that_multiplies_text_is_refused(case, tmp_path):
    smollm2(tmp_path)
    step, value = GREEDY[case]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {step: value}))
    with pytest.raises(UserError, match=f"{step} can make"):
        load_tokenizer(tmp_path)


def test_a_token_of_a_million_characters_is_refused(tmp_path):
    smollm2(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["vocab"]["x" * 1_000_000] = len(data["model"]["vocab"])
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="1000000 characters"):
        load_tokenizer(tmp_path)


def test_a_sentencepiece_table_that_multiplies_text_is_refused(tmp_path):
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    unigram_sentencepiece(tmp_path)
    path = tmp_path / "tokenizer.model"
    proto = ModelProto.FromString(path.read_bytes())
    charsmap = proto.normalizer_spec.precompiled_charsmap
    proto.normalizer_spec.precompiled_charsmap = charsmap + b"x" * 1000 + b"\0"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(UserError, match="normalizer can make"):
        load_tokenizer(tmp_path)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_sentencepiece_model_is_refused_or_harmless(data, tmp_path, pieces):
    content = bytearray((pieces["llama2_sentencepiece"][0] / "tokenizer.model").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "tokenizer.model").write_bytes(
        bytes(content[: data.draw(st.integers(0, len(content)))])
    )
    with contextlib.suppress(UserError):
        load_tokenizer(tmp_path).encode("two plus two")


@pytest.mark.parametrize("text", ["44+1=? 5 x 9 = 45. ", "価格は三十五円です。", "5€ each. "])
def test_a_prompt_is_cut_to_any_room_with_every_layout(folders, pieces, text):
    """A cut text that is encoded again may be as long as before: by a dummy prefix, or bytes."""
    places = [*folders.values(), *(folder for folder, _ in pieces.values())]
    template = "Question: {question}\nDraft: {generator}"
    for folder in places:
        tokenizer = load_tokenizer(folder)
        turns = {"generator": text * 8, "verifier": "unused " * 50}
        whole = len(tokenizer.prompt_ids(fill(template, {"question": "1+1?", **turns})))
        least = len(tokenizer.prompt_ids(fill(template, {"question": "1+1?", "generator": ""})))
        for room in range(least + 8, whole, 7):
            prompt = render(
                template, "1+1?", turns, tokenizer, room=room, overflow="truncate", where="x"
            )
            assert len(prompt.ids) <= room and prompt.cut < whole and "unused" not in prompt.text
