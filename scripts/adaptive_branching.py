"""Adaptive against fixed branching at equal calls: the tables of docs/credit.md.

python scripts/adaptive_branching.py            # simulated forests, where the truth is known
python scripts/adaptive_branching.py --search   # the embedded model on its 300 questions

take some seconds and some minutes of one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from planted_forests import EFFECTS, Planted, drawn, plant

import malt_jax as malt
from malt_jax.config.run import load
from malt_jax.evaluation.table import Table, numbers, texts
from malt_jax.sampling.sampler import Sampler
from malt_jax.tasks import get_task
from malt_jax.tree.adaptive import first_pass
from malt_jax.tree.node import VALUE_DIGITS, WIDEST, Forest
from malt_jax.tree.values import back_up_ragged

BRANCHES = (3, 3, 3)
ROLES = ("draft", "critique", "refinement")
KINDS = {"fixed": 0, "adaptive": 1}
"""`search.spare` of both."""


def simulated(questions: int) -> Table:
    """Contrast and errors of values, by which turn matters and how many questions are settled."""
    columns = [
        *(f"{role}: prefixes, questions with contrast" for role in ROLES),
        *(f"{role}: RMSE, outward error" for role in ROLES[:2]),
    ]
    rows = []
    wide = [WIDEST * branch for branch in BRANCHES]
    for name in ("draft", "critique", "critique and refinement"):
        for settled in (0.0, 0.5, 0.8):
            planted = plant(jax.random.key(0), questions, wide, EFFECTS[name], settled=settled)
            rewards = np.asarray(planted.rewards)
            leaves = {kind: drawn(rewards, BRANCHES, spare) for kind, spare in KINDS.items()}
            # What the adaptive search has seen when it allocates: 14 of its 39 calls a question.
            first = first_pass(BRANCHES, KINDS["adaptive"])
            leaves["first pass"] = rewards[(slice(None), *map(slice, first))]
            for kind, found in leaves.items():
                rows.append([name, f"{settled:.0%}", kind, *measures(found, planted)])
    return Table(texts("what matters", "settled", "branching") + numbers(*columns), rows)


def measures(rewards: Float[np.ndarray, "Q *wide"], planted: Planted) -> Iterator[str]:
    """Per role the contrast, then per role above the leaves the errors of its values."""
    levels = [np.asarray(level) for level in back_up_ragged(jnp.asarray(rewards))]
    for values in levels:
        yield contrast(values.round(VALUE_DIGITS) > 0.5, ~np.isnan(values))
    for depth, values in enumerate(levels[:-1], start=1):
        # Of the nodes that both kinds of branching have.
        common = (slice(None), *[slice(0, 2)] * depth)
        true = np.asarray(planted.values[depth - 1])[common]
        error = values[common] - true
        outward = np.sign(true - 0.5) * error
        yield f"{np.sqrt((error**2).mean()):.3f}, {outward.mean():+.3f}"


def contrast(positive: np.ndarray, present: np.ndarray) -> str:
    """How many prefixes have siblings of both labels, and in how many questions there are some."""
    some = [(kind & present).any(axis=-1) for kind in (positive, ~positive)]
    both = np.logical_and(*some).reshape(len(positive), -1)
    return f"{both.sum()}, {both.any(axis=1).sum()}"


def searched(questions: int) -> Table:
    """What both kinds of search make of the quickstart's questions."""
    config = load("quickstart")
    model = malt.load_model(config.model.path)
    train = get_task(config.task.name).load("train", limit=questions)
    rows = []
    for kind, spare in KINDS.items():
        sampler = Sampler(model, config.sampler)
        forest = malt.search(
            model, train, config.pipeline, task=config.task.name, sampler=sampler, spare=spare
        )
        prompts = f"{sampler.stats.prefill_tokens_computed:,}"
        for at, (role, learned) in enumerate(malt.label(forest, config.data).items()):
            calls = sum(len(tree.levels[at]) for tree in forest.trees)
            examples = map(len, (learned.sft, learned.dpo, learned.pg))
            cells = [calls, *contrasts(forest, role), *examples]
            rows.append([*((kind, role) if at == 0 else ("", role)), *map(str, cells), prompts])
            prompts = ""
    columns = numbers(
        "calls", "prefixes with contrast", "questions with contrast", "SFT", "pairs",
        "for policy gradient", "prompt tokens computed",
    )  # fmt: skip
    return Table(texts("branching", "role") + columns, rows)


def contrasts(forest: Forest, role: str) -> Sequence[int]:
    """A role's prefixes whose siblings have both labels, and the questions that have one."""
    found = [
        sum(
            siblings[0].role == role and len({node.label for node in siblings}) == 2
            for siblings in tree.children.values()
        )
        for tree in forest.trees
    ]
    return sum(found), sum(count > 0 for count in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=None)
    parser.add_argument("--search", action="store_true")
    options = parser.parse_args()
    make, usual = (searched, 300) if options.search else (simulated, 1000)
    print(make(options.questions or usual).markdown())


if __name__ == "__main__":
    main()
