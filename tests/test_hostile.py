"""Files and answers from strangers: parsers that end, and never run or believe what they read."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malt_jax import config
from malt_jax.config import fields, strict_yaml
from malt_jax.errors import UserError
from malt_jax.export.cards import base_license
from malt_jax.storage import selfsealed
from malt_jax.tasks.base import Question
from malt_jax.tasks.graders import get_grader
from malt_jax.tasks.graders.latex import final_formula

RELAXED = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
PIECES = (
    *("0123456789.,-+%$/(){}[] \n"),
    *("####", "\\boxed{", "answer is", "(A)", "**B**", "\\frac{", "^{", "```python\n"),
    *("1e999", "\u0661", "\u221e", "NaN", "inf"),
)
ANSWERS = st.text(max_size=300) | st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@RELAXED
@given(st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(
    st.sampled_from([*fields.field_types(config.Config), "roles", "lora", "sft", "x"]),
    x, max_size=4), max_leaves=12))  # fmt: skip
def test_any_tree_of_values_is_a_config_or_a_refusal(data):
    try:
        config.from_dict(data if isinstance(data, dict) else {"search": data})
    except UserError as error:
        assert str(error).strip()


@RELAXED
@given(st.text(max_size=200))
def test_any_text_is_a_config_file_or_a_refusal(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    try:
        config.load(str(path))
    except UserError as error:
        assert str(path) in str(error) or ":" in str(error)


@RELAXED
@given(ANSWERS)
@pytest.mark.parametrize("name", ["number", "choice", "exact", "set"])
def test_any_answer_is_read_or_is_none_and_the_same_twice(name, answer):
    grader = get_grader(name)
    read = grader.extract(answer)
    assert read is None or isinstance(read, str)
    assert grader.extract(answer) == read
    question = Question(
        "q", "?", "17" if name != "choice" else "A", {"choices": {"A": "17", "B": "2"}}
    )
    (grade,) = grader.grade([answer], [question])
    assert grade.correct in (True, False)


@RELAXED
@given(ANSWERS)
def test_any_answer_holds_a_formula_or_none(answer):
    started = time.perf_counter()
    found = final_formula(answer)
    assert found is None or isinstance(found, str)
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize(
    "answer",
    ["(" * 50_000, "{" * 50_000, "\\boxed{" * 20_000, "9" * 100_000, "1," * 50_000, "a " * 100_000,
     "####" * 50_000, "```" * 50_000, "\\frac{1}{" * 10_000, "-" * 100_000],
    ids=lambda text: text[:8],
)  # fmt: skip
@pytest.mark.parametrize("name", ["number", "choice", "exact", "set", "latex"])
def test_long_answers_are_read_in_bounded_time(name, answer):
    """The model writes at most as many characters as it has tokens, a few each."""
    grader = get_grader(name)
    started = time.process_time()
    grader.extract(answer)
    assert time.process_time() - started < 5


def test_a_licence_is_a_text_or_none(tmp_path):
    bomb = "\n".join(
        ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
        + ["license: *a11"]
    )
    card = tmp_path / "README.md"
    for head, licence in (
        ("license: mit", "mit"),
        ("license: [mit]", None),
        ("license: 2020-99-99", None),
        ("license: !!python/name:os.system", None),
        ("license: " + "[" * 20_000, None),
        (bomb, None),
    ):
        card.write_text(f"---\n{head}\n---\ntext\n")
        assert base_license(tmp_path) == licence


@RELAXED
@given(st.dictionaries(st.text(max_size=8).filter(lambda key: key != selfsealed.KEY), SCALARS))
def test_what_is_sealed_reads_back_or_cannot_be_written(data):
    try:
        raw = selfsealed.encode(data)
    except ValueError:
        return
    decoded = selfsealed.decode(raw)
    assert {key: decoded[key] for key in data} == data
    for place in range(0, len(raw), 7):
        flipped = bytearray(raw)
        flipped[place] ^= 4
        with pytest.raises(ValueError):
            selfsealed.decode(bytes(flipped))


def test_yaml_of_strangers_is_never_code():
    for text in ("!!python/object/apply:os.system [echo]", "!!python/name:os.system"):
        with pytest.raises(yaml.YAMLError):
            yaml.load(text, Loader=strict_yaml.Loader)


@RELAXED
@given(st.binary(max_size=200))
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_any_bytes_in_a_checkpoints_json_are_an_object_or_a_refusal(tmp_path, name, content):
    from malt_jax.models.hf_fields import read_json

    path = Path(tmp_path, name)
    path.write_bytes(content)
    try:
        assert isinstance(read_json(path), dict)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert isinstance(json.loads(content.decode("utf-8-sig")), dict)
