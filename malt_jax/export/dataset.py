"""The forest of a run as a dataset: a row per node with its value, label and credit signals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from malt_jax.credit.signals import SIGNALS
from malt_jax.export.cards import render_card
from malt_jax.tree.node import Tree

BATCH = 4096
"""Nodes that are written at a time."""


class Round(NamedTuple):
    """One round of a run: its valued trees, and the signals of their nodes by node id."""

    number: int
    trees: Iterable[Tree]
    signals: Mapping[str, Mapping[str, Any]]


def write_dataset(
    folder: Path, rounds: Iterable[Round], data: Path, results: Iterable[Path], **facts: str
) -> None:
    """Writes what `load_dataset(folder)` reads into an empty folder, with a card.

    The trees become `nodes/*.parquet` and the role data of the last round `data/ROLE/*.parquet`:
    `load_dataset` reads all configurations of a folder in one format. The files of `results` are
    copied. `facts`: `run`, `task` and `base` for the card.
    """
    (folder / "nodes").mkdir(parents=True)
    nodes = sum(_write_nodes(folder / "nodes", one) for one in rounds)
    configs: list[dict[str, Any]] = [
        {"config_name": "nodes", "data_files": "nodes/*.parquet", "default": True}
    ]
    for path in sorted(data.glob("*/*.jsonl")):
        if path.stat().st_size:
            place = Path("data", path.parent.name, path.stem + ".parquet")
            (folder / place.parent).mkdir(parents=True, exist_ok=True)
            _write_role_data(path, folder / place)
            name = f"{path.parent.name}_{path.stem}"
            configs.append({"config_name": name, "data_files": place.as_posix()})
    for path in results:
        shutil.copyfile(path, folder / path.name)
    (folder / "README.md").write_text(_card(configs, nodes, facts), encoding="utf-8")


def node_rows(one: Round) -> Iterator[dict[str, Any]]:
    """The rows of a round, tree after tree and level after level."""
    for tree in one.trees:
        for node in tree.nodes:
            record = node.to_record()
            yield {
                "question_id": tree.question_id,
                "question": tree.question,
                "answer": tree.answer,
                "round": one.number,
                "node_id": record.pop("id"),
                "depth": tree.roles.index(node.role),
                "thought": None,
                "unclosed": False,
                **record,
                "reward": node.reward,
                "value": float(node.value),
                **{name: _number(one.signals.get(node.id, {}).get(name)) for name in SIGNALS},
            }


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _write_nodes(folder: Path, one: Round) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number, whole = pa.string(), pa.float64(), pa.int32()
    types = {
        **dict.fromkeys(("question_id", "question", "answer"), text),
        **{"round": whole, "node_id": text, "depth": whole, "role": text, "parent": text},
        **{"prompt": text, "prompt_ids": pa.list_(whole), "cut": whole, "completion": text},
        **{"thought": text, "unclosed": pa.bool_()},
        **{"token_ids": pa.list_(whole), "logprobs": pa.list_(pa.float32()), "finish": text},
        **{"parsed": text, "correct": pa.bool_(), "value": number, "label": pa.bool_()},
        # A signal is empty where a node has none.
        **{"reward": number, **dict.fromkeys(SIGNALS, number)},
    }
    schema, written = pa.schema(list(types.items())), 0
    with pq.ParquetWriter(folder / f"round-{one.number:03d}.parquet", schema) as writer:
        rows: list[dict[str, Any]] = []
        for row in node_rows(one):
            # PyArrow would leave a column out that the schema lacks, without a word.
            assert row.keys() <= set(schema.names), row.keys() - set(schema.names)
            rows.append(_storable(row))
            if len(rows) == BATCH:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows, written = [], written + BATCH
        writer.write_table(pa.Table.from_pylist(rows, schema))
    return written + len(rows)


def _write_role_data(path: Path, place: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with path.open(encoding="utf-8") as lines:
        rows = [_storable(json.loads(line)) for line in lines]
    # PyArrow takes the first row's columns, and some columns are only in rows that need them.
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.Table.from_pylist([{**names, **row} for row in rows]), place)


def _storable(row: dict[str, Any]) -> dict[str, Any]:
    """Lone surrogates, which Parquet's UTF-8 lacks, as escapes."""
    return {
        name: value.encode("utf-8", "backslashreplace").decode() if type(value) is str else value
        for name, value in row.items()
    }


def _card(configs: list[dict[str, Any]], nodes: int, facts: Mapping[str, str]) -> str:
    header = {"configs": configs, "tags": ["malt", "malt-jax"]}
    return render_card(
        "dataset_card.md.j2",
        **facts,
        header=yaml.safe_dump(header, sort_keys=False).strip(),
        nodes=f"{nodes:,}",
        others=[one["config_name"] for one in configs[1:]],
    )
