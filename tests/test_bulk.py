"""Answers in bulk: the same answers as one by one, whole after any interruption, in order."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cli_run
from malt_jax import cli
from malt_jax.answering import bulk
from malt_jax.answering.turns import Answerer, Draw, Turn, answer
from malt_jax.errors import UserError
from malt_jax.pipeline import Pipeline
from malt_jax.sampling.sampler import Sampler

TRUST = "--trust-task-code"


@pytest.fixture(scope="module")
def run() -> Path:
    return cli_run.trained()


@pytest.fixture(scope="module")
def pipeline(run) -> Pipeline:
    return Pipeline.load(run, trust_task_code=True)


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bulk") / "questions.jsonl"
    rows = [{"question": f"e{n}+{n}=?", "id": f"q{n}", "level": n} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ask(run: Path, source: Path, output: Path, *words: str) -> int:
    files = ["--input", str(source), "--output", str(output)]
    return cli.main(["ask", "--run", str(run), TRUST, "--quiet", *files, *words])


def test_many_are_answered_as_each_alone_whatever_the_block(pipeline, monkeypatch):
    texts = [f"e{n}+{n}=?" for n in range(5)]
    alone = [pipeline.ask(text, votes=2) for text in texts]
    assert list(pipeline.ask_many(texts, votes=2)) == alone
    assert list(pipeline.ask_many(iter(texts), votes=2, block=2)) == alone


def test_the_draws_of_a_question_are_sampled_in_one_call_per_role(pipeline, monkeypatch):
    calls: list[int] = []
    sample = Sampler.sample

    def counted(self, requests, *rest, **more):
        calls.append(sum(len(request.keys) for request in requests))
        return sample(self, requests, *rest, **more)

    monkeypatch.setattr(Sampler, "sample", counted)
    pipeline.ask("e1+1=?", votes=3)
    assert calls == [3, 3, 3]
    calls.clear()
    list(pipeline.ask_many([f"e{n}+{n}=?" for n in range(4)], votes=3))
    assert calls[0] == 6  # the run's block is two questions


def test_an_answer_with_an_error_has_no_text():
    failed = Draw("a question", 0, 0, error=UserError("too long"))
    found = answer([failed])
    assert (found.text, found.prediction, found.error) == (None, None, "too long")


def test_many_answer_a_question_that_is_too_long_with_an_error(pipeline):
    first, second = pipeline.ask_many(["e1+1=?", "e" * 5000], votes=1)
    assert first.text and not first.error
    assert second.text is None and "tokens" in second.error


def test_a_question_fits_if_it_does_behind_turns_that_say_nothing(pipeline, monkeypatch):
    shown: list[dict[str, str]] = []
    prompt = Answerer._prompt

    def noted(self, role, params, question, said):
        shown.append(dict(said))
        return prompt(self, role, params, question, said)

    monkeypatch.setattr(Answerer, "_prompt", noted)
    pipeline.check("e1+1=?")
    assert shown == [{}, {"generator": ""}, {"generator": "", "verifier": ""}]


def test_a_prompt_that_draws_share_is_rendered_once(pipeline, monkeypatch):
    rendered: list[str] = []
    prompt = Answerer._prompt

    def counted(self, role, params, question, said):
        rendered.append(role.name)
        return prompt(self, role, params, question, said)

    monkeypatch.setattr(Answerer, "_prompt", counted)
    pipeline.ask("e1+1=?", votes=5)
    assert rendered.count("generator") <= 2  # once to check the question, once to ask it


def test_a_file_of_questions_becomes_one_of_answers_line_for_line(run, questions, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    assert ask(run, questions, output) == 0
    assert capsys.readouterr().out == f"{output}\n"
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["id"] for record in records] == [f"q{n}" for n in range(5)]
    pipeline = Pipeline.load(run, trust_task_code=True)
    for record in records:
        answer = pipeline.ask(record["question"], votes=3)
        assert record["answer"] == answer.prediction and record["votes"] == list(answer.votes)
        assert record["text"] == answer.text and record["calls"] == 9
        told = [[turn["text"] for turn in draw] for draw in record["draws"]]
        assert told == [[turn.text for turn in draw] for draw in answer.draws]
    # Asked again, nothing is left to do and not a byte changes.
    whole = output.read_bytes()
    assert ask(run, questions, output) == 0 and output.read_bytes() == whole


def test_an_output_cut_anywhere_is_continued_to_the_same_bytes(run, questions, tmp_path):
    whole = tmp_path / "whole.jsonl"
    assert ask(run, questions, whole, "--votes", "1") == 0
    expected = whole.read_bytes()
    first = expected.index(b"\n") + 1
    for cut in (0, 1, first - 1, first, first + 10, len(expected) - 1):
        output = tmp_path / f"{cut}.jsonl"
        output.write_bytes(expected[:cut])
        assert ask(run, questions, output, "--votes", "1") == 0
        assert output.read_bytes() == expected, cut


def test_killed_and_told_to_stop_it_goes_on_without_repeating_a_line(run, tmp_path):
    source, output = tmp_path / "many.jsonl", tmp_path / "answers.jsonl"
    rows = [{"question": f"e{n % 10}+{n}=?"} for n in range(60)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [sys.executable, "-m", "malt_jax.cli", "ask", "--run", str(run), TRUST, "--votes", "1"]
    words += ["--input", str(source), "--output", str(output), "--quiet"]
    here = str(Path(__file__).parent)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, os.getcwd()])}
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 143)):
        before = output.stat().st_size if output.exists() else 0
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)
        while process.poll() is None and (not output.exists() or output.stat().st_size == before):
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
        assert process.returncode in (status, 0), err
    assert ask(run, source, output, "--votes", "1") == 0
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [r["question"] for r in records] == [row["question"] for row in rows]
    assert [r["id"] for r in records] == [str(n + 1) for n in range(60)]


@pytest.mark.parametrize(
    "content",
    [
        b"Notes of Monday\nand of Tuesday",
        b"one line without an end",
        b'{"id":"q1","question":"e1+1=?"}',
        b'{"id":"q1","question":"e1+1=?"}\n{"id":"q2","question":"e2',
        b"[1, 2]\n[3",
        b"\n",
        b"\xff\xfe",
    ],
)
def test_an_output_that_holds_something_else_is_refused_and_kept(content, tmp_path, questions):
    output = tmp_path / "notes.txt"
    output.write_bytes(content)
    with pytest.raises(UserError, match="something other than answers"):
        bulk.answered(output, questions, "a run")
    assert output.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b'{"i', b'{"id":"q0","question":"e0+0=?","ma'])
def test_an_output_whose_first_answer_is_torn_begins_again(content, tmp_path, questions):
    output = tmp_path / "answers.jsonl"
    output.write_bytes(content)
    assert bulk.answered(output, questions, "a run") == bulk.Count()
    assert output.read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "not JSON"),
        (b'\n{"question": "2+2"}', "no JSON"),
        (b'"1+1"', "not an object"),
        (b"[", "jq -c '.[]' FILE"),
        (b'{"question": "a", "question": "b"}', "question"),
        (b'{"question": "a", "n": NaN}', "NaN"),
        (b'{"questoin": "1+1"}', "Rename 'questoin' to"),
        (b'{"question": ""}', "expected a text"),
        (b'{"question": 3}', "expected a text"),
        (b'{"question": "a", "id": [1]}', "`id`"),
        (b'{"question": "a", "id": "q1"}', "already on line 1"),
        (b'{"question": "\\ud83d"}', "half a character"),
        (b'{"question": "\xff"}', "UTF-8"),
        (b'{"question": "' + b"a" * (1 << 20) + b'"}', "longer than"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_malformed_line_is_named_before_any_work(run, line, message, tmp_path, capsys):
    source, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    source.write_bytes(b'{"question": "1+1", "id": "q1"}\n' + line + b"\n")
    assert ask(run, source, output) == 2
    err = capsys.readouterr().err
    assert f"{source}:2" in err and message in err and err.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x1f\x8b\x08\x00", "gunzip"),
        ('{"question": "1+1"}'.encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_of_something_else_is_named_with_what_to_do(content, message, tmp_path):
    source = tmp_path / "questions.jsonl"
    source.write_bytes(content)
    with pytest.raises(UserError, match=message):
        bulk.check_questions(source)


def test_an_output_in_a_run_directory_is_refused(run, questions, capsys):
    output = run / "answers.jsonl"
    assert ask(run, questions, output) == 2
    assert "is in the run" in capsys.readouterr().err and not output.exists()


def test_empty_lines_at_the_end_are_no_questions(tmp_path):
    source = tmp_path / "questions.jsonl"
    source.write_bytes(b'{"question": "1+1"}\n{"question": "2+2"}\n\n  \n')
    assert [line.question for line in bulk.read_questions(source)] == ["1+1", "2+2"]
    source.write_bytes(b"\n\n")
    with pytest.raises(UserError, match="found no question"):
        bulk.check_questions(source)


def test_an_id_is_kept_as_it_is_and_compared_as_a_text(tmp_path):
    source, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    source.write_bytes(
        b'{"id": 7, "question": "a"}\r\n{"id": null, "question": "b"}\r\n{"question": "c"}'
    )
    assert [line.id for line in bulk.read_questions(source)] == [7, "2", "3"]
    made = {"made_with": "x"}
    rows = [{"id": "7", "question": "a"} | made, {"id": "2", "question": "b"} | made]
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert bulk.answered(output, source, "x") == bulk.Count(answers=2)
    source.write_bytes(b'{"id": 7, "question": "a"}\n{"id": "7", "question": "b"}')
    with pytest.raises(UserError, match="already on line 1"):
        bulk.check_questions(source)


def test_an_output_of_other_answers_is_refused(run, questions, tmp_path, capsys):
    output = tmp_path / "answers.jsonl"
    assert ask(run, questions, output, "--votes", "1") == 0
    before = output.read_bytes()
    for words in (["--votes", "2"], ["--votes", "1", "--seed", "7"]):
        assert ask(run, questions, output, *words) == 2
        assert "another run, or with another --votes" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "e9+9=?"}\n')
    assert ask(run, other, output, "--votes", "1") == 2
    assert "answers another question than line 1" in capsys.readouterr().err
    with bulk.only_writer(output):
        assert ask(run, questions, output, "--votes", "1") == 2
    assert "another process is writing it" in capsys.readouterr().err
    assert ask(run, questions, questions) == 2 and "is the input" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_a_question_that_fits_no_prompt_is_the_only_one_without_an_answer(run, tmp_path, capsys):
    source, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    texts = ["e1+1=?", "e" * 5000, "e2+2=?"]
    source.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
    for _ in range(2):  # the second time nothing is left to do
        assert ask(run, source, output, "--votes", "1") == 2
        assert "1 question could not be answered" in capsys.readouterr().err
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["question"] for record in records] == texts
    assert ["error" in record for record in records] == [False, True, False]
    assert records[1]["error"].endswith("shorten the question.")
    assert "max_new_tokens" not in records[1]["error"]
    assert records[1]["answer"] is None and records[1]["draws"] == [[]]


def test_characters_that_the_model_cannot_read_are_named_in_the_line(run, tmp_path, capsys):
    source, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    texts = ["e1+1=?", "wo ist €?", "e2+2=?"]
    source.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
    for _ in range(2):
        assert ask(run, source, output, "--votes", "1") == 0
        err = capsys.readouterr().err
        assert "no token for some characters of 1 question" in err and err.count("\n") == 1
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record.get("unread") for record in records] == [None, ["€"], None]
    assert records[1]["answer"] is None or records[1]["text"] is not None


def test_a_tie_is_marked_and_nothing_else_is():
    def turn(said: str) -> Turn:
        return Turn("generator", said, 1, "eos", said)

    def record(*said: str) -> dict:
        draws = [Draw("q", n, 0, [turn(text)]) for n, text in enumerate(said)]
        return bulk.to_record(bulk.Line(1, "1", "q"), answer(draws), "x")

    assert record("1", "2")["tie"] is True
    assert "tie" not in record("1", "2", "2") and "tie" not in record("1")


def test_white_space_around_a_question_is_no_part_of_it(run, pipeline, tmp_path):
    source, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    source.write_text(json.dumps({"question": " \te1+1=?\n"}) + "\n")
    assert ask(run, source, output, "--votes", "1") == 0
    [record] = [json.loads(line) for line in output.read_text().splitlines()]
    expected = pipeline.ask("e1+1=?", votes=1)
    assert record["text"] == expected.text and record["question"] == " \te1+1=?\n"
    assert pipeline.ask("\u00a0e1+1=? ", votes=1) == expected


def test_an_output_of_other_settings_is_refused_before_it_is_repaired(tmp_path, questions, capsys):
    output = tmp_path / "answers.jsonl"
    whole = b'{"id":"q0","question":"e0+0=?","made_with":"a run"}'
    for torn in (whole + b'\n{"id":"q1","question"', whole + b"\n" + whole[:-1], whole):
        output.write_bytes(torn)
        with pytest.raises(UserError, match="was answered by another run"):
            bulk.answered(output, questions, "another run")
        assert output.read_bytes() == torn and capsys.readouterr().err == ""
        assert bulk.answered(output, questions, "a run") == bulk.Count(answers=1)
        assert output.read_bytes() == whole + b"\n"
        capsys.readouterr()


def test_a_last_answer_that_lacks_only_its_newline_is_kept(run, questions, tmp_path, monkeypatch):
    output = tmp_path / "answers.jsonl"
    assert ask(run, questions, output, "--votes", "1") == 0
    whole = output.read_bytes()
    output.write_bytes(whole[:-1])
    monkeypatch.setattr(Sampler, "sample", lambda *_, **__: pytest.fail("asked again"))
    assert ask(run, questions, output, "--votes", "1") == 0
    assert output.read_bytes() == whole


def test_what_is_no_regular_file_is_named_with_the_reason(run, questions, tmp_path, capsys):
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to(tmp_path / "target")
    os.mkfifo(fifo)
    for output in ("/dev/stdout", str(link), str(fifo), "/dev/null", str(tmp_path)):
        assert ask(run, questions, Path(output)) == 2
        err = capsys.readouterr().err
        assert "name a regular file" in err and "continues" in err and "remove it" not in err
    for source in (fifo, tmp_path):
        assert ask(run, source, tmp_path / "out.jsonl") == 2
        assert "not a regular file" in capsys.readouterr().err
    assert ask(run, tmp_path / "nothing", tmp_path / "out.jsonl") == 2
    assert "there is no such file" in capsys.readouterr().err
    assert not (tmp_path / "target").exists() and not (tmp_path / "out.jsonl").exists()


def test_a_question_whose_later_prompt_leaves_no_room_is_the_only_one_without_an_answer(
    run, tmp_path, capsys, monkeypatch
):
    source, output = tmp_path / "questions.jsonl", tmp_path / "answers.jsonl"
    questions = ["e1+1=?", "e2+2=?", "e3+3=?"]
    source.write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))
    prompt = Answerer._prompt

    def crowded(self, role, params, question, said):
        if question == questions[1] and len(said) == 2 and any(said.values()):
            raise UserError("the prompt has too many tokens")
        return prompt(self, role, params, question, said)

    monkeypatch.setattr(Answerer, "_prompt", crowded)
    assert ask(run, source, output, "--votes", "2") == 2
    assert "1 question could not be answered; their `error` says why" in capsys.readouterr().err
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["question"] for record in records] == questions
    assert ["error" in record for record in records] == [False, True, False]
    assert records[1]["answer"] is None and len(records[1]["draws"][0]) == 2
    # Asked again, nothing is left to do; the output still holds a question without an answer.
    assert ask(run, source, output, "--votes", "2") == 2
    assert "1 question could not be answered" in capsys.readouterr().err
    with pytest.raises(UserError, match="too many tokens"):
        Pipeline.load(run, trust_task_code=True).ask(questions[1], votes=1)
