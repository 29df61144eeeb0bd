"""Influence against a plain loop over the model's own logits, and where it must be nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import malt_jax as malt
import tiny
from malt_jax import config
from malt_jax.config.pipeline import PipelineConfig
from malt_jax.credit.divergence import divergence
from malt_jax.credit.influence import influence
from malt_jax.models.model import load_model
from malt_jax.tasks.base import Question
from malt_jax.training.scores import completion_logprobs
from malt_jax.tree.prompts import fill
from malt_jax.tree.roles import make_chain

QUESTIONS = [Question(f"q{i}", f"q{i}+{i}=?", "0", {}) for i in range(2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(tiny.write_model(tmp_path_factory.mktemp("influence") / "model"))


def pipeline(refiner_template):
    roles = config.from_dict(tiny.SMALL).pipeline.roles
    roles = [replace(role, branch=2) for role in roles]
    roles[2] = replace(roles[2], template=refiner_template)
    return make_chain(PipelineConfig(tuple(roles)), tiny.LUCK.templates)


def measured(model, chain):
    forest = malt.search(model, QUESTIONS, chain, task=tiny.LUCK)
    score = lambda role, sequences: completion_logprobs(model, None, sequences)  # noqa: E731
    return forest, influence(forest, chain, model.tokenizer, model.spec.context, score)


def by_loop(model, prompt_ids, completion_ids):
    """Summed log-probability of a completion, from the logits of all its tokens at once."""
    tokens = jnp.asarray([[*prompt_ids, *completion_ids]], jnp.int32)
    logits = jax.nn.log_softmax(model(tokens)[0].astype(jnp.float32))
    first = len(prompt_ids)
    return sum(float(logits[first + i - 1, token]) for i, token in enumerate(completion_ids))


def test_influence_is_the_log_probability_that_the_turn_before_adds(model):
    chain = pipeline("R {question} {generator} {verifier} ")
    forest, found = measured(model, chain)
    nodes = {node.id: (tree, node) for tree in forest.trees for node in tree.nodes}
    assert set(found) == {name for name, (_, node) in nodes.items() if node.parent}
    for name in [n for n in found if n.startswith("q0/g0/v")]:
        tree, node = nodes[name]
        said = {"question": tree.question, "generator": nodes["q0/g0"][1].completion}
        # The turn before is left blank: the draft for a critique, the critique for a revision.
        blank = "generator" if node.role == "verifier" else "verifier"
        template = chain.roles[1 if node.role == "verifier" else 2].template
        alone = model.tokenizer.prompt_ids(fill(template, {**said, blank: ""}))
        full = by_loop(model, node.prompt_ids, node.token_ids)
        expected = (full - by_loop(model, alone, node.token_ids)) / len(node.token_ids)
        assert found[name] == pytest.approx(expected, abs=1e-3)
    assert np.ptp(list(found.values())) > 0.01


def test_divergence_is_the_mean_log_ratio_to_the_policy_before(model):
    forest = malt.search(model, QUESTIONS, pipeline("R {question} "), task=tiny.LUCK)
    nodes = {node.id: node for tree in forest.trees for node in tree.nodes}
    # Under a policy that gave every completion 0.5 nats per token less.
    less = lambda role, ones: np.array([stored[one] - 0.5 * len(one[1]) for one in ones])  # noqa: E731
    stored = {(n.prompt_ids, n.token_ids): sum(n.logprobs) for n in nodes.values()}
    assert divergence(forest, less) == pytest.approx(dict.fromkeys(nodes, 0.5), abs=1e-6)


def test_a_turn_that_is_not_shown_has_no_influence(model):
    _, found = measured(model, pipeline("R {question} {generator} "))
    deaf = [number for name, number in found.items() if "/r" in name]
    assert len(deaf) == 2 * 2**3 and np.abs(deaf).max() < 1e-3
