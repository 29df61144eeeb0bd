"""Where a thought ends: at the last end marker, and what is around an answer is no part of it."""

from __future__ import annotations

import pytest

from malt_jax.answering.turns import TextStream
from malt_jax.models.tokenizer import load_tokenizer
from malt_jax.tree.thoughts import read_completion
from test_thinking import make_tokenizer, published, said
from tiny_models import CHATML, save_tokenizer

CASES = [
    ("<think>a</think>\n\n<think>b</think>\n\n", "4", False),
    # The model goes on after its thought was closed in its place.
    ("<think>a\n</think>\n\nso, b\n</think>\n\n", "4", False),
    ("<think>a <think>b</think>c</think>", "4", False),
    ("<think>a</think>b <think>c", "", True),
    ("Okay. <think>c", "", True),
    ("Okay. <think>a</think>", "4", False),
    ("reason...\n</think>\n\n", "4", False),
    # Nothing was thought here, and nothing opened what the marker closes.
    (None, "</think>The answer is 4", False),
    (None, "\n</think>The answer is 4", False),
    ("<think>", "", True),
    ("<think></think>", "", False),
]


@pytest.mark.parametrize(("thought", "answer", "unclosed"), CASES)
def test_a_thought_ends_at_its_last_end_marker(thought, answer, unclosed, tmp_path):
    tokens = make_tokenizer(tmp_path / "tokens", published("qwen3"))
    save_tokenizer(tmp_path / "texts", CHATML + "{# <think></think> #}")
    texts = load_tokenizer(tmp_path / "texts")
    assert type(tokens.thoughts) is not type(texts.thoughts)
    for tokenizer in (tokens, texts):
        found = said(tokenizer, (thought or "") + answer)
        assert found[:3] == (answer, thought, unclosed)
        assert tokenizer.decode(tokenizer.encode(thought or "")) == (thought or "")
        assert found.thought_tokens == len(tokenizer.encode(thought or ""))


@pytest.mark.parametrize(
    ("thought", "answer"),
    [("a</think>\n<think>b</think>", "4"), ("</think>", "4"), ("a</think>b</think>\n\n", "4")],
)
def test_so_does_one_that_the_prompt_has_opened(thought, answer, tmp_path):
    tokens = make_tokenizer(tmp_path / "tokens", published("r1"))
    save_tokenizer(tmp_path / "texts", CHATML.replace("assistant\\n", "assistant\\n<think>"))
    for tokenizer in (tokens, load_tokenizer(tmp_path / "texts")):
        assert tokenizer.thoughts.inside
        assert said(tokenizer, thought + answer)[:3] == (answer, thought, False)


ANALYSIS = "<|channel|>analysis<|message|>2+2<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>"


@pytest.mark.parametrize(
    ("thought", "answer", "rest"),
    [
        (f"{ANALYSIS}<|channel|>final <|constrain|>json<|message|>", "4", ""),
        (f"{ANALYSIS}<|channel|>final<|constrain|>json<|message|>", "4", ""),
        (FINAL, "4", f"<|end|><|start|>assistant{ANALYSIS}"),
        (FINAL, "4", "<|channel|>analysis<|message|>no"),
        (f"{FINAL}3<|end|><|start|>assistant{ANALYSIS}{FINAL}", "4", "<|end|>"),
    ],
)
def test_the_answer_of_gpt_oss_is_its_last_final_message_alone(thought, answer, rest, tmp_path):
    tokenizer = make_tokenizer(tmp_path, published("gpt-oss"))
    found = said(tokenizer, thought + answer + rest)
    assert found[:3] == (answer, thought, False)


@pytest.mark.parametrize(
    "text",
    [
        "<|channel|>finalise<|message|>4",
        "<|channel|>final",
        "<|channel|>final<|start|>assistant<|channel|>analysis<|message|>4",
        "<|channel|>commentary to=functions.final <|constrain|>json<|message|>4",
    ],
)
def test_no_other_message_of_gpt_oss_is_an_answer(text, tmp_path):
    tokenizer = make_tokenizer(tmp_path, published("gpt-oss"))
    assert said(tokenizer, text)[:3] == ("", text, True)
    assert tokenizer.thoughts.answer_start(tokenizer.encode(text)) is None


GRANITE = CHATML + (
    "{# Write your thoughts between <think></think> and write your response between "
    "<response></response> for each user query. #}"
)
"""As the template of Granite 3.3 asks for it with `thinking: true`."""


@pytest.mark.parametrize(
    ("thought", "answer", "rest"),
    [
        ("<think>a</think>\n\n<response>\n", "4", "</response>"),
        ("<think>a</think><response>", "4", ""),
        ("<think>a</think><response>", "4", "</resp"),
        ("<think>a</think>\n", "4 in <response>", ""),
        ("<think>a</think><respon", "", ""),
        ("<response>", "4", "</response>\n"),
        (None, "4", ""),
    ],
)
@pytest.mark.parametrize("markers", ["texts", "tokens"])
def test_the_wrapper_of_a_response_is_no_part_of_it(thought, answer, rest, markers, tmp_path):
    if markers == "texts":
        save_tokenizer(tmp_path, GRANITE)
    tokenizer = (
        load_tokenizer(tmp_path) if markers == "texts" else make_tokenizer(tmp_path, GRANITE)
    )
    found = said(tokenizer, (thought or "") + answer + rest)
    assert found[:3] == (answer, thought, False)
    assert found.thought_tokens == len(tokenizer.encode(thought or ""))
    sent: list[str] = []
    stream = TextStream(tokenizer, tokenizer.thoughts, 0, lambda _, new: sent.append(new))
    for token in tokenizer.encode((thought or "") + answer + rest):
        stream.add([token])
    if thought != "<response>":  # only the end shows that this was no plain answer
        assert "".join(sent) == answer


def test_a_wrapper_that_no_template_speaks_of_is_text(tmp_path):
    tokenizer = make_tokenizer(tmp_path, published("qwen3"))
    ids = tokenizer.encode("<think>a</think><response>4</response>")
    found = read_completion(ids, "length", tokenizer, tokenizer.thoughts)
    assert found.text == "<response>4</response>"
