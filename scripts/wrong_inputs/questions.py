"""Question files that are missing, damaged or of another format, and wrong rows in them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from wrong_inputs.world import HELD_OUT, ROWS, case, data, file, flag, made, row


def _parquet(folder: Path) -> None:
    (folder / "q.parquet").write_bytes(b"PAR1" + b"\x15" * 400 + b"PAR1")


def _one_row_a_million_times(folder: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def same(text: str) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(30_000, np.int32)), [text])

    table = pa.table({"question": same("a" * 1_000_000), "answer": same("1")})
    pq.write_table(table, folder / "q.parquet")


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n"
"""What git leaves of a large file when git-lfs is not installed."""

FILES = (
    case("questions: no such file", flag("--task.train-path", "no.jsonl"), "no.jsonl", "no such"),
    case(
        "questions: a folder",
        made(lambda f: (f / "d.jsonl").mkdir(), "--task.train-path", "{here}/d.jsonl"),
        "d.jsonl",
    ),
    case(
        "questions: a pipe",
        made(lambda f: os.mkfifo(f / "p.jsonl"), "--task.train-path", "{here}/p.jsonl"),
        "p.jsonl",
    ),
    case(
        "questions: an endless device",
        made(
            lambda f: (f / "z.jsonl").symlink_to("/dev/zero"), "--task.train-path", "{here}/z.jsonl"
        ),
        "z.jsonl",
    ),
    case("questions: an unknown ending", file("q.txt", "1+1=?"), "q.txt", ".jsonl"),
    case("questions: empty file", file("q.jsonl", ""), "q.jsonl", "no questions"),
    case("questions: blank lines only", file("q.jsonl", "\n\n  \n"), "no questions"),
    case("questions: a column is missing", row()(id="x", question="1+1=?"), "line 4", "answer"),
    case("questions: an empty question", row()(question=" ", answer="1"), "line 4", "empty"),
    case("questions: null", row()(question=None, answer="1"), "line 4", "null"),
    case("questions: a list for a text", row()(question=["1"], answer="1"), "line 4", "a list"),
    case("questions: NUL character", row()(question="1\0", answer="1"), "line 4", "NUL"),
    case("questions: NUL byte", file("q.jsonl", b'{"question": "\0"}'), "line 1", "NUL"),
    case("questions: lone surrogate", row()(question="\ud800", answer="1"), "line 4", "surrogate"),
    case("questions: Latin-1", file("q.jsonl", b'{"question": "\xe9"}'), "line 1", "UTF-8"),
    case("questions: UTF-16", file("q.jsonl", '{"a": 1}'.encode("utf-16")), "UTF-16"),
    case(
        "questions: a byte-order mark, then nothing",
        file("q.jsonl", b"\xef\xbb\xbf"),
        "no questions",
    ),
    case("questions: compressed", file("q.jsonl", b"\x1f\x8b\x08\x00" + b"\xf3" * 40), "q.jsonl"),
    case(
        "questions: a line of 10 MB", file("q.jsonl", b"[" + b"1," * 5_100_000), "line 1", "longer"
    ),
    case("questions: a torn line", file("q.jsonl", '{"question": "1'), "line 1", "not JSON"),
    case("questions: one array", file("q.jsonl", json.dumps(ROWS)), "line 1", "jq"),
    case("questions: NaN", file("q.jsonl", '{"question": "a", "answer": NaN}'), "line 1", "NaN"),
    case("questions: a name twice", file("q.jsonl", '{"a": 1, "a": 2}'), "line 1", "twice"),
    case("questions: nested 5,000 deep", file("q.jsonl", '{"a": ' + "[" * 5000), "line 1"),
    case("questions: an id twice", row()(**ROWS[0]), "line 4", "is already at"),
    case(
        "questions: an id of 300 characters", row()(id="x" * 300, question="a", answer="1"), "200"
    ),
    case("questions: an answer that does not parse", row()(question="a", answer="six"), "line 4"),
    case(
        "questions: an answer that is no choice",
        file(
            "q.jsonl",
            json.dumps({"question": "a", "answer": "1", "choices": ["x", "y"]}),
            grader="choice",
        ),
        "line 1",
    ),
    case(
        "questions: more than one file's worth", flag("--task.num-train", "99"), "num_train", "99"
    ),
    case(
        "questions: trained on and evaluated on",
        row()(question=HELD_OUT[0]["question"], answer="1"),
        "evaluation",
    ),
    case(
        "questions: longer than the context",
        row()(question="1+" * 300 + "1", answer="1"),
        "tokens",
    ),
    case(
        "questions: CSV with a cell too few",
        file("q.csv", "question,answer\n1+1\n"),
        "row 1",
        "header",
    ),
    case("questions: CSV with a column twice", file("q.csv", "question,question\n1,2\n"), "twice"),
    case(
        "questions: CSV with an open quote", file("q.csv", 'question,answer\n"1+1,2\n'), "not CSV"
    ),
    case(
        "questions: damaged Parquet",
        made(_parquet, "--task.train-path", "{here}/q.parquet"),
        "Parquet",
    ),
    case("later: a task of Python's own", data(task={"name": "os:abort", "grader": None}), "os"),
    case(
        "later: only characters of no width",
        row()(question="\u200b", answer="1"),
        "line 4",
        "empty",
    ),
    case(
        "later: Parquet that repeats itself",
        made(_one_row_a_million_times, "--task.train-path", "{here}/q.parquet"),
        "bytes",
    ),
    case("questions: a Git LFS pointer as JSONL", file("q.jsonl", POINTER), "LFS"),
    case("questions: a Git LFS pointer as CSV", file("q.csv", POINTER), "LFS"),
    case("questions: a Git LFS pointer as Parquet", file("q.parquet", POINTER), "LFS"),
    case(
        "questions: CSV with semicolons",
        file("q.csv", "question;answer\n1+1;2\n"),
        "semicolon",
    ),
    case(
        "questions: CSV with semicolons and quotes",
        file("q.csv", '"question";"answer"\n"1+1, please";"2"\n'),
        "semicolon",
    ),
    case("questions: CSV with tabs", file("q.csv", "question\tanswer\n1+1\t2\n"), "tab"),
    case("questions: an array over many lines", file("q.jsonl", json.dumps(ROWS, indent=2)), "jq"),
    case(
        "questions: an object over many lines", file("q.json", json.dumps(ROWS[0], indent=1)), "jq"
    ),
    case("questions: a page of a website", file("q.jsonl", "<!DOCTYPE html>\n<p>"), "web page"),
    case("questions: a zip file", file("q.csv", b"PK\x03\x04" + bytes(40)), "q.csv"),
)
