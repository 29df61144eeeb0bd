"""A realistic run directory made without a model: trees, role data, eval records, metrics.

Used by the tests of tables and report, and good to look at:
`python tests/synthetic_run.py FOLDER [QUESTIONS]` writes one with its report.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from malt_jax.evaluation.calibration import calibration
from malt_jax.evaluation.records import DrawRecord
from malt_jax.evaluation.results import SystemInfo, summarise
from malt_jax.tree.node import Tree

ROLES = ("generator", "verifier", "refiner")
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<!-- <script> ]]> &lt;b&gt; &amp;",
    "\x1b[31mred\x1b[0m \x07 \u2028 \u202e reversed",
    "\ud800 lone \udfff surrogates",
    '=HYPERLINK("http://example.com") | `code` **bold** [link](javascript:alert(1)) {question}',
    "${7*7} {{7*7}} {% raw %} \\input{/etc/passwd} %s \0",
)
SYSTEMS = {  # draft skill, chance that checking mends, turns, draws
    "sa": ("single agent", 0.50, 0.0, ROLES[:1], 27, (1, 3, 9)),
    "self-correction": ("self-correction, 3 turns", 0.50, 0.03, ("generator", "retry"), 3, (1,)),
    "ma": ("pipeline, untrained", 0.48, 0.10, ROLES, 3, (1, 3)),
    "star-sa": ("STaR single agent", 0.54, 0.0, ROLES[:1], 9, (1, 9)),
    "star-ma": ("STaR pipeline (SFT only)", 0.52, 0.16, ROLES, 3, (1, 3)),
    "malt": ("MALT", 0.58, 0.45, ROLES, 3, (1, 3)),
    "malt-untrained-verifier": ("MALT, verifier untrained", 0.58, 0.2, ROLES, 3, (1, 3)),
    "malt-generator": ("MALT, generator only", 0.58, 0.0, ROLES[:1], 9, (1, 9)),
}


def make_run(
    path: Path, questions: int = 60, *, seed: int = 0, rounds: int = 1, words: int = 0
) -> Path:
    """Writes a run of `questions` trees and as many evaluation questions; returns its folder.

    The first questions carry hostile text everywhere text can stand. `words` more words are
    appended to every turn, to reach the sizes of real runs.
    """
    path.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    (path / "config.yaml").write_text(
        "model: {path: SmolLM2-135M-Instruct}\ntask: {name: gsm8k}\nseed: 3\n"
        "search: {threshold: 0.5, backup: mean}\n"
    )
    (path / "manifest.json").write_text(json.dumps({"git_commit": "2b6f12c0ffee", "versions": {}}))
    for round in range(rounds):
        folder = path / "rounds" / f"{round:03d}"
        trees = [_tree(rng, f"Q{i}", i, 0.08 * round, words) for i in range(questions)]
        _write(folder / "trees" / "00000.jsonl", trees)
        for role in ROLES:
            sft, dpo = _role_data(trees, role)
            _write(folder / "data" / role / "sft.jsonl", sft)
            if role != "generator":
                _write(folder / "data" / role / "dpo.jsonl", dpo)
    for when, gain in (("before", 0.0), ("after", 0.3)):
        held_out = [_tree(rng, f"E{i}", i, gain, words) for i in range(min(questions, 8))]
        _write(path / "eval" / "trees" / f"{when}.jsonl", held_out)
    records = {
        name: [
            record
            for i in range(questions)
            for record in _answers(random.Random(f"{seed}/{name}/{i}"), name, i, words)
        ]
        for name in SYSTEMS
    }
    for name, rows in records.items():
        _write(path / "eval" / f"{name}.jsonl", rows)
    _write(path / "metrics.jsonl", _metrics(rng, rounds))
    results = summarise(
        {name: list(map(DrawRecord.from_record, rows)) for name, rows in records.items()},
        {
            name: SystemInfo(label, votes, seconds=0.02 * len(turns))
            for name, (label, _, _, turns, _, votes) in SYSTEMS.items()
        },
        "sa@9",
        levels={f"E{i}": 1 + i % 5 for i in range(questions)},
        run={"model": "SmolLM2-135M-Instruct", "task": "gsm8k", "seed": seed},
        cost=_cost(questions),
        labels={
            "search": {"trees": questions, "unparsed": 7, "length": 3},
            "verifier": {"positives": 240, "negatives": 300, "repeats": 12},
        },
        calibration=calibration(map(Tree.from_record, trees)),
        sources={f"eval/{name}.jsonl": "" for name in records},
    )
    (path / "results.json").write_text(json.dumps(results))
    return path


def _problem(index: int) -> tuple[str, int, random.Random]:
    rng = random.Random(index)
    name = rng.choice(("Maya", "Tom", "Ines", "Kofi", "Lena", "Omar"))
    thing = rng.choice(("pencils", "stickers", "apples", "beads", "stamps"))
    a, b, c = rng.randint(3, 12), rng.randint(4, 24), rng.randint(2, 40)
    text = (
        f"{name} buys {a} boxes with {b} {thing} in each box. Then {name} gives {c} {thing} to a "
        f"friend and finds 3 more at home. How many {thing} does {name} have now?"
    )
    if index < len(HOSTILE):
        text += " " + HOSTILE[index]
    return text, a * b - c + 3, rng


def _draft(rng: random.Random, index: int, right: bool, words: int) -> tuple[str, int]:
    _, answer, _ = _problem(index)
    # A question has one tempting mistake, which voting alone cannot wash out.
    tempting = random.Random(index).choice((-3, 3, -10, 10))
    said = answer if right else answer + rng.choice((tempting, tempting, tempting, 1))
    text = (
        "First I count what was bought, the boxes times the things in each box. Then I take away "
        f"what was given to the friend{'' if right else ' and forget something on the way'}, and "
        f"at last I add the ones found at home.\n\nThe answer is {said}."
    )
    if index < len(HOSTILE):
        text = HOSTILE[index] + "\n" + text
    return text + " and so on" * (words // 3), said


def _critique(rng: random.Random, index: int, found: bool, words: int) -> str:
    text = (
        "The product is right, but one step is missing: check the sum at the end again."
        if found
        else "I followed each step and the calculation looks right to me."
    )
    return text + (HOSTILE[index] if index < len(HOSTILE) else "") + " and so on" * (words // 3)


def _node(rng: random.Random, name: str, role: str, parent: str | None, text: str, **rest: Any):
    tokens = max(4, len(text) // 4)
    finish = "length" if rng.random() < 0.02 else "eos"
    return {
        **{"id": name, "role": role, "parent": parent, "prompt_ids": [1, 2]},
        **{"cut": 0, "completion": text, "token_ids": [rng.randrange(999) for _ in range(tokens)]},
        "logprobs": [round(-rng.expovariate(4), 5) for _ in range(tokens)],
        "finish": finish,
        **rest,
    }


def _tree(rng: random.Random, question_id: str, index: int, gain: float, words: int) -> dict:
    question, answer, _ = _problem(index)
    skill = min(1.0, rng.choice((0.0, 0.15, 0.35, 0.5, 0.65, 0.85, 1.0)) + gain)
    levels: list[list[dict]] = [[], [], []]
    for i in range(3):
        drafted = rng.random() < skill
        text, said = _draft(rng, index, drafted, words)
        graded = {"parsed": str(said), "correct": drafted}
        draft = _node(rng, f"{question_id}/g{i}", ROLES[0], None, text, **graded)
        levels[0].append(draft)
        for j in range(3):
            found = rng.random() < (0.15 if drafted else 0.5)
            name = f"{draft['id']}/v{j}"
            text = _critique(rng, index, found, words)
            graded = {"parsed": None, "correct": None}
            levels[1].append(_node(rng, name, ROLES[1], draft["id"], text, **graded))
            for k in range(3):
                change = rng.random() < (0.8 if found else 0.05)
                right = (not drafted and skill > 0) if change else drafted
                text, said = _draft(rng, index, right, words)
                parsed = None if rng.random() < 0.03 else str(said)
                right = right and parsed is not None
                graded = {"parsed": parsed, "correct": right, "reward": int(right)}
                leaf = _node(rng, f"{name}/r{k}", ROLES[2], name, text, **graded)
                levels[2].append({**leaf, "value": float(right)})
    for level, below in ((levels[1], levels[2]), (levels[0], levels[1])):
        for node in level:
            values = [child["value"] for child in below if child["parent"] == node["id"]]
            node["value"] = round(sum(values) / len(values), 6)
    by_id = {node["id"]: node for level in levels for node in level}
    for node in by_id.values():
        node["prompt"] = _prompt(node, question, by_id)
    nodes = [{**node, "label": node["value"] > 0.5} for level in levels for node in level]
    return {
        **{"question_id": question_id, "question": question, "answer": str(answer)},
        **{"meta": {"level": 1 + index % 5}, "branches": [3, 3, 3], "roles": list(ROLES)},
        "nodes": nodes,
    }


def _prompt(node: dict, question: str, by_id: dict[str, dict]) -> str:
    parts, here = [], node
    while here["parent"] is not None:
        here = by_id[here["parent"]]
        parts.insert(0, f"{here['role']}: {here['completion']}")
    return "\n\n".join([f"You are the {node['role']}. {question}", *parts])


def _role_data(trees: list[dict], role: str) -> tuple[list[dict], list[dict]]:
    sft, dpo = [], []
    for tree in trees:
        nodes = [node for node in tree["nodes"] if node["role"] == role]
        seen = set()
        for node in nodes:
            if node["label"] and node["completion"] not in seen and node["finish"] != "length":
                seen.add(node["completion"])
                common = {"role": role, "question_id": tree["question_id"]}
                sft.append({**common, "node_id": node["id"], "value": node["value"]})
        for parent in dict.fromkeys(node["parent"] for node in nodes):
            family = [node for node in nodes if node["parent"] == parent]
            chosen = next((node for node in family if node["label"]), None)
            rejected = next((node for node in family if not node["label"]), None)
            if chosen and rejected:
                dpo.append(
                    {
                        **{"role": role, "question_id": tree["question_id"]},
                        "node_id": parent or tree["question_id"],
                        "chosen_node_id": chosen["id"],
                        "rejected_node_id": rejected["id"],
                        "chosen_value": chosen["value"],
                        "rejected_value": rejected["value"],
                    }
                )
    return sft, dpo


def _answers(rng: random.Random, system: str, index: int, words: int) -> list[dict]:
    _, skill, mends, roles, draws, _ = SYSTEMS[system]
    ease = random.Random(f"ease/{index}").uniform(-0.7, 0.7)
    skill = min(0.97, max(0.03, skill + ease))
    records = []
    for draw in range(draws):
        drafted = rng.random() < skill
        right = drafted if rng.random() < 0.03 else drafted or rng.random() < mends
        turns = []
        for role in roles:
            graded = {"parsed": None, "correct": None}
            if role == "verifier":
                text = _critique(rng, index, not drafted and right, words)
            else:
                correct = right if role == roles[-1] else drafted
                text, said = _draft(rng, index, correct, words)
                graded = {"parsed": str(said), "correct": correct}
            turns.append(
                {
                    **{"role": role, "policy": system.partition("-")[0]},
                    "prompt": f"You are the {role}. {_problem(index)[0]}",
                    **{"text": text, "tokens": len(text) // 4, "finish": "eos", **graded},
                    "logprob": -rng.expovariate(0.1),
                }
            )
        prediction = turns[-1]["parsed"] if rng.random() > 0.02 else None
        records.append(
            {
                **{"question_id": f"E{index}", "draw": draw, "prediction": prediction},
                "correct": turns[-1]["correct"] and prediction is not None,
                **{"calls": len(turns), "tokens": sum(turn["tokens"] for turn in turns)},
                "turns": turns,
            }
        )
    return records


def _metrics(rng: random.Random, rounds: int) -> list[dict]:
    lines = []
    for round in range(rounds):
        for role in ROLES:
            for phase in ("sft", "dpo") if role != "generator" else ("sft",):
                key = {"stage": "train", "round": round, "role": role, "phase": phase}
                for step in range(80):
                    noise, fall = rng.gauss(0, 0.04), 0.97**step
                    numbers = {"loss": 0.35 + 0.9 * fall + noise, "learning_rate": 1e-4 * fall}
                    if phase == "dpo":
                        numbers["loss"] = 0.32 + 0.373 * fall + noise / 2
                        numbers["accuracy"] = min(1.0, 0.86 - 0.36 * fall + noise)
                        numbers["margin"] = 1.6 * (1 - fall) + noise
                    lines.append({"time": 1.0 + step, **key, "step": step, **numbers})
    return lines


def _cost(questions: int) -> dict[str, dict[str, float]]:
    cost: dict[str, dict[str, float]] = {
        "search": {
            **{"seconds": 84.2, "tokens": questions * 4100, "peak_bytes": 1.9e9},
            **{"padding_waste": 0.071, "calls": questions * 39},
        }
    }
    for role, seconds in (("generator", 11.0), ("verifier", 14.2), ("refiner", 13.1)):
        cost[f"train/{role}/sft"] = {"seconds": seconds, "tokens": 91_000, "peak_bytes": 1.2e9}
        if role != "generator":
            numbers = {"seconds": 2 * seconds, "tokens": 120_000, "padding_waste": 0.12}
            cost[f"train/{role}/dpo"] = {**numbers, "peak_bytes": 1.4e9}
    cost["eval"] = {"seconds": 96.0, "tokens": questions * 9000, "calls": questions * 90}
    return cost


def _write(path: Path, records: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_text(text)


if __name__ == "__main__":
    from malt_jax.report import build_report

    folder = make_run(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 60)
    print(build_report(folder))
