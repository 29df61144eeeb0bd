"""Prompts: one-pass filling, the overflow rule, node ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.errors import UserError
from malt_jax.tree.keys import draw_order, node_key
from malt_jax.tree.prompts import fill, render, unknown
from malt_jax.tree.roles import abbreviations, make_chain


class Characters:
    """A tokenizer with a token a character."""

    def prompt_ids(self, text):
        return [ord(c) for c in text]

    encode = prompt_ids

    def decode(self, ids):
        return "".join(map(chr, ids))


@given(st.text(), st.text())
def test_braces_in_model_text_are_inert(question, draft):
    assert fill("{question}|{generator}", {"question": question, "generator": draft}) == (
        f"{question}|{draft}"
    )
    assert fill("{question}", {"question": "{generator}", "generator": "x"}) == "{generator}"


def test_a_prompt_that_does_not_fit_is_refused_by_name():
    with pytest.raises(UserError, match=r"Q7, verifier.*40 fit.*truncate"):
        render(
            "V {question} {generator}",
            "q" * 10,
            {"generator": "d" * 60},
            Characters(),
            room=40,
            where="Q7, verifier",
        )


def test_truncation_cuts_the_longest_turn_at_its_front_and_counts_it():
    turns = {"generator": "a" * 30 + "END", "verifier": "short"}
    made = render(
        "{question}{generator}{verifier}", "q", turns, Characters(), room=20, overflow="truncate"
    )
    assert len(made.ids) == 20 and made.cut == 19
    assert made.text == "q" + "a" * 11 + "END" + "short"


def test_a_question_too_long_on_its_own_is_refused_either_way():
    with pytest.raises(UserError, match="leave the question out"):
        render("{question}", "q" * 50, {}, Characters(), room=40, overflow="truncate")


def test_ids_are_paths_of_shortest_distinct_names():
    assert abbreviations(["generator", "verifier", "refiner"]) == ["g", "v", "r"]
    assert abbreviations(["reader", "refiner"]) == ["rea", "ref"]
    roles = tuple(RoleConfig(n) for n in ("generator", "verifier", "refiner"))
    pipeline = make_chain(PipelineConfig(roles), {n.name: "{question}" for n in roles})
    assert pipeline.node_id("Q17", (2, 0, 1)) == "Q17/g2/v0/r1"
    assert pipeline.calls == 39


def test_a_template_may_only_name_the_question_and_earlier_turns():
    roles = (RoleConfig("generator", template="{question} {verifier}"), RoleConfig("verifier"))
    with pytest.raises(UserError, match=r"roles\.0\.template: \{verifier\}"):
        make_chain(PipelineConfig(roles), {"verifier": "{question}"})
    with pytest.raises(UserError, match="no template for a role named 'poet'"):
        make_chain(PipelineConfig((RoleConfig("poet"),)), {"generator": ""})


def test_keys_depend_on_seed_and_path_alone():
    assert (node_key(0, "search", 0, "Q1/g0") == node_key(0, "search", 0, "Q1/g0")).all()
    paths = [
        (s, "search", r, n) for s in (0, 1) for r in (0, 1) for n in ("Q1/g0", "Q1/g1", "Q10/g0")
    ]
    assert len({tuple(node_key(*path)) for path in paths}) == len(paths)
    assert sorted(draw_order(3, 20, "x")) == list(range(20))


@pytest.mark.parametrize("template", ["hello=", "{ question }", "{{question}}", "{{ question }}"])
def test_a_first_role_that_is_not_told_the_question_is_refused(template):
    with pytest.raises(UserError, match=r"pipeline\.roles\.0\.template"):
        make_chain(PipelineConfig((RoleConfig("a", template),)), {})


def test_a_placeholder_is_the_exact_name_of_a_role():
    assert fill("{First} {first} {QUESTION}", {"First": "1", "question": "?"}) == (
        "1 {first} {QUESTION}"
    )


def test_the_arguments_of_latex_are_no_placeholders():
    template = r"{question} in \text{cm}, as \frac{a}{b} or \boxed{answer}"
    assert unknown(template, ["question"]) == []
    assert fill(template, {"question": "2"}) == r"2 in \text{cm}, as \frac{a}{b} or \boxed{answer}"
    assert unknown("{question} {critic} \\textbf{question}", ["question"]) == ["critic"]
