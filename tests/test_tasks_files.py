"""Question files from strangers: every fault is one `UserError` that names the place."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from malt_jax.errors import UserError
from malt_jax.tasks import get_task
from malt_jax.tasks.files import MAX_LINE_BYTES, read_rows

GOOD = {"question": "How many?", "answer": "Two.\n#### 2"}

BAD_LINES = [  # (bytes of line 2, words the message must hold)
    (b"{", "line 2, column"),
    (b"not json", "not JSON"),
    (b"[1, 2]", "found a list, not an object"),
    (b'"text"', "found a text, not an object"),
    (b"17", "found a number, not an object"),
    (b"null", "found null, not an object"),
    (b'{"question": "a\x00b", "answer": "#### 1"}', "NUL"),
    (b'{"question": "a\xffb", "answer": "#### 1"}', "not UTF-8 (0xff)"),
    (b'{"question": "a\nb", "answer": "#### 1"}', "not JSON"),
    (b'{"question": "q", "question": "r", "answer": "#### 1"}', "appears twice"),
    (b'{"question": "q", "answer": NaN}', "NaN is not a JSON value"),
    (b'{"question": "q", "answer": ' + b"9" * 5000 + b"}", "a number of thousands of digits"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"question": "' + b"x" * MAX_LINE_BYTES + b'"}', "longer than 10,000,000 bytes"),
]

UNUSABLE_ROWS = [  # the same for lines that are JSON objects
    (b'{"question": "q"}', "no column `answer` (found: question)"),
    (b'{"answer": "#### 1"}', "no column `question`"),
    (b"{}", "found: none"),
    (b'{"question": 3, "answer": "#### 1"}', "`question` is a number"),
    (b'{"question": null, "answer": "#### 1"}', "`question` is null"),
    (b'{"question": ["q"], "answer": "#### 1"}', "`question` is a list"),
    (b'{"question": "q", "answer": true}', "`answer` is a true/false value"),
    (b'{"question": "  ", "answer": "#### 1"}', "`question` is empty"),
    (b'{"question": "q", "answer": "1"}', "no `####`"),
    (b'{"question": "q", "answer": "#### many"}', "not one number"),
    (b'{"question": "q", "answer": "#### 1 or 2"}', "not one number"),
    (b'{"question": "q", "answer": "####"}', "not one number"),
    (b'{"question": "a\\u0000b", "answer": "#### 1"}', "NUL"),
    (b'{"question": "a\\ud800b", "answer": "#### 1"}', "lone surrogate"),
    (b'{"id": "", "question": "q", "answer": "#### 1"}', "`id` is empty"),
    (b'{"id": "a\\u001b[2J", "question": "q", "answer": "#### 1"}', "control characters"),
    (b'{"id": "' + b"x" * 300 + b'", "question": "q", "answer": "#### 1"}', "200 characters"),
    (b'{"id": [1], "question": "q", "answer": "#### 1"}', "`id` is a list"),
]

BAD_FILES = [  # (name, bytes or None, words)
    ("missing.jsonl", None, "no such file"),
    ("empty.jsonl", b"", "holds no questions"),
    ("blank.jsonl", b"\n \n\r\n", "holds no questions"),
    ("bom.jsonl", b"\xef\xbb\xbf", "holds no questions"),
    ("utf16.jsonl", '{"question": "q"}'.encode("utf-16"), "UTF-16"),
    ("array.json", b'[{"question": "q", "answer": "#### 1"}]', "jq -c"),
    ("pretty.json", b'[\n  {\n    "question": "q"\n  }\n]', "jq -c '.[]'"),
    ("pretty.jsonl", b'{\n  "question": "q",\n  "answer": "#### 1"\n}', "jq -c ."),
    ("pointer.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "Git LFS"),
    ("pointer.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    ("pointer.parquet", b"version https://git-lfs.github.com/spec/v1\nsize 1\n", "Git LFS"),
    ("annex.jsonl", b"/annex/objects/SHA256E-s1--ab.jsonl\n", "git-annex"),
    ("link.jsonl", b"../.git/annex/objects/zz/K9/SHA256E-s1--a/SHA256E-s1--a", "git annex get"),
    ("mark.jsonl", b"\xef\xbb\xbf\nversion https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ("error.jsonl", b"404: Not Found", "a server's error"),
    ("denied.jsonl", b"<?xml version='1.0'?><Error/>", "a server's error"),
    ("packed.bz2.jsonl", b"BZh91AY&SY", "bunzip2"),
    ("packed.xz.jsonl", b"\xfd7zXZ\x00", "unxz"),
    ("packed.zst.jsonl", b"\x28\xb5\x2f\xfd", "unzstd"),
    ("old.csv", b"\xd0\xcf\x11\xe0\xa1", "save it as CSV"),
    ("arrow.parquet", b"ARROW1\x00\x00", "save it as Parquet"),
    ("page.jsonl", b"<!DOCTYPE html>\n<html></html>", "a web page"),
    ("packed.jsonl", b"\x1f\x8b\x08\x00abc", "gunzip"),
    ("sheet.csv", b"PK\x03\x04abc", "save it as CSV"),
    ("table.jsonl", b"PAR1abc", "name it .parquet"),
    ("semicolon.csv", b"question;answer\nq;#### 1\n", "semicolons; save the file with commas"),
    ("quoted.csv", b'"question";"answer"\n"q, r";"#### 1"\n', "semicolons; save the file"),
    ("commas.csv", b'"question, long";"answer"\nq;#### 1\n', "semicolons; save the file"),
    ("tabs.csv", b"question\tanswer\nq\t#### 1\n", "tabs; save the file with commas"),
    ("data.txt", b"text", "give a .jsonl, .csv or .parquet file"),
    ("data", b"text", "give a .jsonl, .csv or .parquet file"),
    ("data.jsonl.gz", b"\x1f\x8b", "give a .jsonl, .csv or .parquet file"),
    ("empty.csv", b"", "holds no questions"),
    ("header.csv", b"question,answer\n", "holds no questions"),
    ("short.csv", b"question,answer\nq\n", "row 1: 1 fields, the header has 2"),
    ("long.csv", b"question,answer\nq,#### 1,x\n", "row 1: 3 fields"),
    ("twice.csv", b"question,question\nq,r\n", "'question' appears twice"),
    ("trailing.csv", b"question,answer,,\nq,#### 2,,\n", "'' appears twice"),
    ("open.csv", b'question,answer\n"q,#### 1\n', "not CSV"),
    ("column.csv", b"question,reply\nq,r\n", "no column `answer`"),
    ("nul.csv", b"question,answer\nq\x00,r\n", "NUL"),
    ("empty.parquet", b"", "not a readable Parquet file"),
    ("text.parquet", b"question,answer", "not a readable Parquet file"),
    ("torn.parquet", b"PAR1" + b"\x00" * 40 + b"PAR1", "not a readable Parquet file"),
]


def load(path):
    return get_task("gsm8k").load("eval", str(path))


@pytest.mark.parametrize(("line", "words"), BAD_LINES, ids=[w for _, w in BAD_LINES])
def test_a_bad_line_is_named(tmp_path, line, words):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps({"id": "one", **GOOD}).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserError) as error:
        load(path)
    assert words in str(error.value) and "line 2" in str(error.value)
    assert str(path) in str(error.value) and "\x1b" not in str(error.value)


def test_a_repeated_id_leaves_its_row_out_and_does_not_stop_the_benchmark(tmp_path, caplog):
    path = tmp_path / "data.jsonl"
    lines = [{"id": name, **GOOD} for name in ("one", "one", "two")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [question.id for question in load(path)] == ["one", "two"]
    assert "1 rows left out: " in caplog.text and "is already at line 1" in caplog.text


@pytest.mark.parametrize(("line", "words"), UNUSABLE_ROWS, ids=[w for _, w in UNUSABLE_ROWS])
def test_an_unusable_row_is_left_out_by_name_and_does_not_stop_the_benchmark(
    tmp_path, caplog, line, words
):
    path = tmp_path / "data.jsonl"
    path.write_bytes(json.dumps({"id": "one", **GOOD}).encode() + b"\n" + line + b"\n")
    assert [question.id for question in load(path)] == ["one"]
    assert "1 rows left out: " in caplog.text and words in caplog.text
    assert f"{path}, line 2" in caplog.text and "\x1b" not in caplog.text
    # A file that holds nothing else is refused in the same words.
    path.write_bytes(b"\n" + line + b"\n")
    with pytest.raises(UserError) as error:
        load(path)
    assert words in str(error.value) and "line 2" in str(error.value)


@pytest.mark.parametrize(("name", "content", "words"), BAD_FILES, ids=[f[0] for f in BAD_FILES])
def test_a_bad_file_is_named(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        load(path)
    assert words in str(error.value) and name in str(error.value)


def test_a_folder_is_refused(tmp_path):
    folder = tmp_path / "data.jsonl"
    folder.mkdir()
    with pytest.raises(UserError, match="can't be read"):
        load(folder)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize(
    "end", [b"\n", b"\r\n", b"\n\n\n", b""], ids=["LF", "CRLF", "blank", "none"]
)
def test_ordinary_files_are_read(tmp_path, start, end):
    path = tmp_path / "data.jsonl"
    rows = [json.dumps(GOOD | {"question": f"How many {i}?"}).encode() for i in range(3)]
    path.write_bytes(start + (end or b"\n").join(rows) + end)
    questions = load(path)
    assert [q.text for q in questions] == [f"How many {i}?" for i in range(3)]
    assert {q.answer for q in questions} == {"2"}


def test_all_formats_give_the_same_questions(tmp_path):
    import csv

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"question": f'How "many", {i}?\nSay.', "answer": f"So {i}.\n#### {i}"} for i in range(4)
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    with open(tmp_path / "data.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(rows)
    answers = [load(tmp_path / f"data.{ending}") for ending in ("jsonl", "csv", "parquet")]
    assert answers[0] == answers[1] == answers[2]
    assert [q.answer for q in answers[0]] == ["0", "1", "2", "3"]


def test_blanks_around_the_header_of_a_table_change_nothing(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("\n\nquestion, answer\nHow many?,#### 2\n")
    assert [q.answer for q in load(path)] == ["2"]


def test_a_column_twice_in_parquet_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(["q"]), pa.array(["r"]), pa.array(["#### 2"])]
    table = pa.table(columns, names=["question", "question", "answer"])
    pq.write_table(table, tmp_path / "data.parquet")
    with pytest.raises(UserError, match="'question' appears twice"):
        load(tmp_path / "data.parquet")


def test_repeated_questions_are_counted_in_the_log(tmp_path, caplog):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(GOOD) + "\n" for _ in range(3)))
    assert len(load(path)) == 3
    assert "2 questions repeat the text of another" in caplog.text


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(lambda s: s.encode("utf-8", "surrogatepass")),
        st.lists(
            st.dictionaries(
                st.sampled_from(["question", "answer", "id", "x"]),
                st.one_of(
                    st.text(), st.integers(), st.none(), st.just("#### 4"), st.lists(st.text())
                ),
            ),
            max_size=4,
        ).map(lambda rows: "\n".join(json.dumps(row) for row in rows).encode()),
    )
)
def test_any_bytes_give_questions_or_a_user_error(tmp_path, ending, content):
    path = tmp_path / f"data.{ending}"
    path.write_bytes(content)
    for task in ("gsm8k", "csqa", "math500", "strategyqa"):
        try:
            questions = get_task(task).load("eval", str(path))
        except UserError as error:
            assert str(error).isprintable()
        else:
            for question in questions:
                (question.id + question.text + question.answer).encode("utf-8")


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_damaged_parquet_gives_rows_or_a_user_error(tmp_path, data):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "data.parquet"
    pq.write_table(pa.Table.from_pylist([GOOD] * 3), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        read_rows(path)
