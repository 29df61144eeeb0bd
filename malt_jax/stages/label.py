"""Label: valued trees become what each role learns from (docs/method.md, section 4)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import malt_jax as malt
from malt_jax.config.pipeline import split_phases
from malt_jax.credit.contrast import advice, contrast
from malt_jax.data.card import data_card
from malt_jax.data.examples import EXAMPLES
from malt_jax.data.role_data import STAR, RoleData, star_data, tree_counts
from malt_jax.errors import UserError
from malt_jax.evaluation.credit_table import contrast_table
from malt_jax.stages.credit import measure, records, signals_file
from malt_jax.stages.names import label_stage
from malt_jax.stages.session import Session
from malt_jax.tree.node import Forest

OTHERS = {"kto": "unpaired examples", "pg": "examples for the policy gradient"}
"""Examples that a role's line names if it learns from them."""


def label(session: Session, round: int) -> dict[str, Any]:
    """Writes `data/ROLE/{sft,dpo}.jsonl` and returns the counts, which are also printed.

    Roles that learn by KTO or by policy gradient have `kto.jsonl` or `policy.jsonl` as well. The
    signals of all nodes are written to `credit/signals.jsonl`.
    """
    run, config = session.run, session.config
    summary = run.data(round, "counts").with_suffix(".json")
    with session.journal(label_stage(round)) as journal:
        if journal.done:
            return json.loads(summary.read_text())
        # Values are computed again from the rewards, because the threshold and the backup may
        # differ from the search's, as they do in ablations.
        forest = session.valued(session.forest(round))
        _refuse_repeats(forest)
        stage, scored = label_stage(round), config.data.influence
        signals = measure(session, forest, round - 1, stage, scored=scored)
        theta = config.search.threshold
        data = malt.label(forest, config.data, seed=config.seed, signals=signals, threshold=theta)
        star = star_data(forest.trees, forest.roles[0])
        counts = count(forest, data, star)
        counts["credit"] = contrast(forest.trees, signals, theta)
        trained = {role.name: split_phases(role.train) for role in config.pipeline.roles}
        for role, learned in data.items():
            folder, written = run.data(round, role), {}
            for phase, kind in EXAMPLES.items():
                # These two files are always there, as published.
                if phase in ("sft", "dpo", *trained.get(role, ())):
                    written[kind.FILE.removesuffix(".jsonl")] = len(learned.of(phase))
                    rows = (example.to_record() for example in learned.of(phase))
                    journal.write_lines(folder / kind.FILE, rows)
            card = data_card(role, config.task.name, config.model_of(role).path, written)
            journal.write_text(folder / "README.md", card)
        star_path = run.data(round, STAR) / "sft.jsonl"
        journal.write_lines(star_path, (example.to_record() for example in star.sft))
        journal.write_lines(signals_file(run, round), records(forest, signals))
        journal.write_json(summary, counts)
        for line in lines(counts, trained):
            session.progress.note(line)
    return counts


def count(forest: Forest, data: dict[str, RoleData], star: RoleData) -> dict[str, Any]:
    """The counts of a round as `counts.json` keeps them."""
    roles = {
        role: {
            "sft": len(learned.sft),
            "dpo": len(learned.dpo),
            "kto": len(learned.kto),
            "pg": len(learned.pg),
            "kto_both_labels": learned.both_labels,
            **dict(learned.counts),
        }
        for role, learned in data.items()
    }
    return {"trees": tree_counts(forest.trees), "roles": roles, "star": {"sft": len(star.sft)}}


def lines(counts: dict[str, Any], trained: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """The counts as sentences for people; `trained`: phases by role, by default SFT and DPO."""
    trees = counts["trees"]
    text = [
        f"trees: {trees['trees']}, of which {trees['all_right']} all right, "
        f"{trees['all_wrong']} all wrong, {trees['mixed']} mixed; "
        f"{trees['unparsed']} answers unparsed, {trees['length']} completions cut at their limit, "
        f"{trees['cut_prompts']} prompts shortened"
        + (f", {trees['unclosed']} thoughts not closed" if "unclosed" in trees else "")
    ]
    learned: dict[str, dict[str, int]] = {}
    for number, (role, c) in enumerate(counts["roles"].items()):
        phases = (trained or {}).get(role, ("sft", "dpo"))
        found = {phase: c[phase] for phase in phases}
        learned[role] = found
        more = [f", {found[phase]} {what}" for phase, what in OTHERS.items() if phase in found]
        text.append(
            f"{role}: {c['sft']} SFT examples, {c['dpo']} pairs of {c['pairs_possible']}"
            + "".join(more)
        )
        if c.get("kto_both_labels") and "kto" in found:
            text.append(
                f"{role}: {c['kto_both_labels']} texts are left out of KTO, because what followed "
                "them was right more often than not in one place and not in another"
            )
        if found and not any(found.values()):
            text.append(f"{role}: nothing to learn from, so it keeps the weights it has")
        elif (
            number
            and found.get("sft")
            and sum(found.values()) == found["sft"]
            and not c["positives_behind_negative"]
        ):
            # Not the first role: there is no earlier turn that it could approve.
            text.append(
                f"{role}: ALL ITS EXAMPLES FOLLOW WHAT WAS POSITIVE ALREADY, and it has no pair, "
                "so it learns to approve every earlier turn. More questions or branches find "
                "contrasts; `data.sft: pairs` trains on nothing else"
            )
    if any(learned.values()) and not any(any(found.values()) for found in learned.values()):
        text.append(
            "NOTHING TO TRAIN ON: no answer of the search separates a good turn from a bad one, so "
            "the run will end with the model it began with. Look at the trees in the report: are "
            "the questions within the model's reach, and does the grader read its answers?"
        )
    if credit := counts.get("credit"):
        pairs = {role: c["dpo"] for role, c in counts["roles"].items()}
        text += [*contrast_table(credit, pairs).plain(), *advice(credit)]
    return text


def _refuse_repeats(forest: Forest) -> None:
    times = Counter(tree.question_id for tree in forest.trees)
    repeated = [question for question, count in times.items() if count > 1]
    if repeated:
        raise UserError(
            f"rounds/*/trees: more than one tree of {', '.join(repeated[:5])}; join only slices of "
            "one search."
        )
