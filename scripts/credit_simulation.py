"""Which signal credits which turn, on simulated forests with planted effects: docs/credit.md.

python scripts/credit_simulation.py

takes about 1.5 minutes on one core and prints the four tables of the page.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from planted_forests import EFFECTS, Planted, estimate, heard, judged, plant

from malt_jax.credit.advantage import global_advantage, normalised_advantage, sibling_advantage
from malt_jax.evaluation.table import Table, numbers, texts
from malt_jax.tree.values import back_up

ROLES = ("draft", "critique", "refinement")
BRANCHINGS = range(2, 10)
SIGNALS = ("value", "advantage", "normalised", "global")


def signals(planted: Planted, depth: int) -> dict[str, jax.Array]:
    values = back_up(planted.rewards)[depth]
    found = (
        values,
        sibling_advantage(values),
        normalised_advantage(values),
        global_advantage(planted.rewards, depth + 1),
    )
    return dict(zip(SIGNALS, found, strict=True))


def grown(needed: tuple[int, ...], n: int, questions: int, **effect: float) -> Planted:
    return plant(jax.random.key(n), questions, (n, n, n), needed, **effect)


def credit_table(questions: int, n: int) -> Table:
    """Credit and leak of each signal at each turn, for every planted effect."""
    rows = []
    for number, (name, needed) in enumerate(EFFECTS.items()):
        planted = grown(needed, n, questions)
        verdicts = judged(jax.random.key(number), planted)
        for depth, role in enumerate(ROLES):
            true = estimate(planted.advantages[depth], planted, depth)
            found = [*signals(planted, depth).values(), jnp.asarray(verdicts[depth])]
            cells = [credited(signal, planted, depth) for signal in found]
            rows.append([name, role, f"{true.credit:.2f}", *cells])
            name = ""
    columns = texts("what matters", "turn") + numbers("planted", *SIGNALS, "verdict")
    return Table(columns, rows)


def credited(signal: jax.Array, planted: Planted, depth: int) -> str:
    """Credit and leak; nothing where the turns of a level do not have the signal."""
    if bool(jnp.isnan(signal).any()):
        return ""
    found = estimate(signal, planted, depth)
    return f"{found.credit:.2f}, {found.leak:.2f}"


def influence_table(questions: int, n: int) -> Table:
    """How much a refinement depends on its critique, for every planted effect."""
    rows = []
    for name, needed in EFFECTS.items():
        planted = grown(needed, n, questions)
        found = heard(planted)
        after = np.broadcast_to(np.asarray(planted.good[1])[..., None], found.shape)
        means = [float(part.mean()) for part in (found, found[after], found[~after])]
        cells = [f"{round(mean, 3) + 0.0:.3f}" for mean in means]  # no -0.000
        rows.append([name, *cells])
    columns = texts("what matters") + numbers("influence", "after a good one", "after a bad one")
    return Table(columns, rows)


def bias_table(questions: int) -> Table:
    """Bias and deviation of the signals at each turn, where only that turn matters."""
    rows = []
    for depth, role in enumerate(ROLES):
        for n in BRANCHINGS:
            planted = grown(EFFECTS[role], n, questions)
            found = [
                estimate(signal, planted, depth) for signal in signals(planted, depth).values()
            ]
            cells = [f"{one.bias:+.2f}, {one.deviation:.2f}" for one in found]
            rows.append([role if n == BRANCHINGS[0] else "", str(n), *cells])
    return Table(texts("turn that matters") + numbers("n", *SIGNALS), rows)


def trust_table(questions: int, branchings: Iterable[int] = BRANCHINGS) -> Table:
    """Share of the labels, and of the signs of the advantage, that are those of the true values."""
    rows = []
    for n in branchings:
        cells = []
        for effect in (0.6, 0.3):
            base = 0.5 - effect / 2
            for depth, name in enumerate(("draft", "critique")):
                planted = grown(EFFECTS[name], n, questions, base=base, effect=effect)
                cells += list(trusted(planted, depth))
        rows.append([str(n), *(f"{100 * share:.0f}" for share in cells)])
    columns = [
        f"{kind} of a {role}, {values}"
        for values in ("0.2 or 0.8", "0.35 or 0.65")
        for role in ("draft", "critique")
        for kind in ("label", "sign")
    ]
    return Table(numbers("n", *columns), rows)


def trusted(planted: Planted, depth: int) -> Iterator[float]:
    found, true = back_up(planted.rewards)[depth], planted.values[depth]
    yield float(jnp.mean((found > 0.5) == (true > 0.5)))
    # Where siblings differ in truth; a sign of 0 counts as wrong.
    advantage, real = sibling_advantage(found), sibling_advantage(true)
    yield float(jnp.mean(jnp.sign(advantage) == jnp.sign(real), where=jnp.abs(real) > 1e-6))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--questions", type=int, default=2000)
    questions = parser.parse_args().questions
    print("Credit of a good turn over a bad one, and leak from the turn before (n = 3)\n")
    print(credit_table(questions, 3).markdown())
    print("\nInfluence of a critique on the refinement after it, nats (n = 3)\n")
    print(influence_table(questions, 3).markdown())
    print("\nBias and deviation at the turn that matters\n")
    print(bias_table(questions).markdown())
    print("\nLabels and signs of the advantage that are right, in %\n")
    print(trust_table(questions).markdown())


if __name__ == "__main__":
    main()
