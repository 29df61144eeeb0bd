"""Label: valued trees become each role's SFT examples and DPO pairs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from malt_jax.data.card import data_card
from malt_jax.data.role_data import role_data, star_data, tree_counts
from malt_jax.errors import UserError
from malt_jax.evaluation.systems import STAR
from malt_jax.stages.session import Session, label_stage
from malt_jax.storage.atomic import write_bytes, write_json, write_text
from malt_jax.storage.jsonl import encode
from malt_jax.tree.records import relabel


def label(session: Session, round: int) -> dict[str, Any]:
    """Writes `data/ROLE/{sft,dpo}.jsonl` and returns the counts, which are also printed."""
    stage = label_stage(round)
    run, config = session.run, session.config
    summary = run.data(round, "counts").with_suffix(".json")
    if session.done(stage):
        return _read(summary)
    records = [relabel(record, config.search) for record in session.trees(round)]
    _refuse_repeats(records)
    roles = [role.name for role in session.pipeline.roles]
    data = role_data(records, roles, config.data, config.seed)
    units = []
    counts: dict[str, Any] = {"trees": tree_counts(records), "roles": {}}
    for role in roles:
        for kind, rows in (("sft", data[role].sft), ("dpo", data[role].dpo)):
            path = run.data(round, role) / f"{kind}.jsonl"
            write_bytes(path, b"".join(map(encode, rows)))
            units.append(path)
        counts["roles"][role] = {
            "sft": len(data[role].sft),
            "dpo": len(data[role].dpo),
            **dict(Counter(data[role].counts)),
        }
        card = run.data(round, role) / "README.md"
        write_text(
            card, data_card(role, config.task.name, config.model.path, counts["roles"][role])
        )
        units.append(card)
    path = run.data(round, STAR) / "sft.jsonl"
    rows = star_data(records, roles[0])
    write_bytes(path, b"".join(map(encode, rows)))
    counts["star"] = {"sft": len(rows)}
    write_json(summary, counts)
    for line in lines(counts):
        session.progress.note(line)
    session.seal(stage, [*units, path, summary])
    return counts


def lines(counts: dict[str, Any]) -> list[str]:
    """The counts as sentences for people."""
    trees = counts["trees"]
    text = [
        f"trees: {trees['trees']}, of which {trees['all_right']} all right, "
        f"{trees['all_wrong']} all wrong, {trees['mixed']} mixed; "
        f"{trees['unparsed']} answers unparsed, {trees['length']} completions cut at their limit, "
        f"{trees['cut_prompts']} prompts shortened"
    ]
    for number, (role, c) in enumerate(counts["roles"].items()):
        text.append(f"{role}: {c['sft']} SFT examples, {c['dpo']} pairs of {c['pairs_possible']}")
        if not c["sft"] and not c["dpo"]:
            text.append(f"{role}: nothing to learn from, it stays as it is")
        elif number and not c["dpo"] and not c["positives_behind_negative"]:
            text.append(
                f"{role}: ALL ITS EXAMPLES FOLLOW WHAT WAS POSITIVE ALREADY, and it has no pair, "
                "so it learns to let every turn before it stand. More questions or branches find "
                "contrasts; `data.sft: pairs` trains on nothing else"
            )
    if not any(c["sft"] or c["dpo"] for c in counts["roles"].values()):
        text.append(
            "NOTHING TO TRAIN ON: no answer of the search separates a good turn from a bad one, so "
            "the run will end with the model it began with. Look at the trees in the report: are "
            "the questions within the model's reach, and does the grader read its answers?"
        )
    return text


def _refuse_repeats(records: list[dict[str, Any]]) -> None:
    seen = Counter(record["question_id"] for record in records)
    repeated = [question for question, times in seen.items() if times > 1]
    if repeated:
        raise UserError(
            f"rounds/*/trees: more than one tree of {', '.join(repeated[:5])}; join only shards of "
            "one search."
        )


def _read(path: Any) -> dict[str, Any]:
    import json

    return json.loads(path.read_text())
