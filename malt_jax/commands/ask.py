"""`malt ask`: a trained pipeline answers questions in the terminal, or file to file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from malt_jax.checks import has_lone_surrogate
from malt_jax.commands.command import TRUST, Argument, Command, Invocation, Option
from malt_jax.errors import UserError
from malt_jax.escape import one_line, visible

if TYPE_CHECKING:
    from malt_jax.pipeline import Answer, Pipeline


def run(invocation: Invocation) -> None:
    """Answers the question of the command line, a file of questions, or those of standard input."""
    from malt_jax.pipeline import Pipeline

    options = invocation.options
    if options.input or options.output:
        _in_bulk(invocation)
        return
    pipeline = Pipeline.load(options.run, trust_task_code=options.trust_task_code)
    if sys.stderr.isatty():
        print(f"malt: trained on {visible(pipeline.trained_on)}", file=sys.stderr)
    if options.question is not None:
        _ask(pipeline, options.question, options.votes, options.seed)
        return
    for question in _lines():
        try:
            _ask(pipeline, question, options.votes, options.seed)
        except UserError as error:
            # At a terminal the next question may do better; in a pipe a refusal sets the exit
            # status.
            if not sys.stdin.isatty():
                raise
            print(f"malt: {error}", file=sys.stderr)


def _in_bulk(invocation: Invocation) -> None:
    """Answers the questions of a file, or those that are left, and prints the output's path."""
    from itertools import islice

    from malt_jax.answering import bulk
    from malt_jax.pipeline import Pipeline
    from malt_jax.progress import counted, open_progress
    from malt_jax.storage.rundir import run_around
    from malt_jax.storage.signals import graceful_stop

    options = invocation.options
    if not (options.input and options.output) or options.question is not None:
        raise UserError("--input FILE and --output FILE go together, without a question.")
    if options.votes < 1:
        raise UserError(f"--votes: found {options.votes}, allowed: 1 or more.")
    source, output = Path(options.input), Path(options.output)
    if not source.is_file():
        if found := _other_than_file(source):
            raise UserError(
                f"--input: {source} is {found}, not a regular file; write the questions to a file, "
                "because they are read more than once."
            )
        raise UserError(f"--input: {source}: there is no such file.")
    if not output.parent.is_dir():
        raise UserError(f"--output: {output.parent}: there is no such folder; make it first.")
    if output.is_symlink() or (output.exists() and not output.is_file()):
        found = "a link" if output.is_symlink() else _other_than_file(output)
        raise UserError(
            f"--output: {output} is {found}; name a regular file, because the command continues "
            "the output where it was interrupted."
        )
    if output.exists() and output.samefile(source):
        raise UserError(f"--output: {output} is the input; choose another file.")
    if folder := run_around(output):
        raise UserError(f"--output: {output} is in the run {folder}; choose a place outside it.")
    # The file is read before the weights are, so that a malformed line is named at once.
    total = bulk.check_questions(source)
    with graceful_stop(), open_progress(options.quiet, "ask") as shown:
        trusted = options.trust_task_code
        pipeline = Pipeline.load(options.run, trust_task_code=trusted, progress=shown)
        made_with = pipeline.made_with(options.votes, options.seed)
        with bulk.only_writer(output):
            count = bulk.answered(output, source, made_with)
            if done := count.answers:
                shown.note(f"ask: {counted(done, 'question')} answered before")
            if done < total:
                pipeline.meter()
            bulk.write_answers(
                islice(bulk.read_questions(source), done, None),
                lambda some: pipeline.ask_many(some, options.votes, options.seed),
                output,
                made_with,
                pipeline.block,
                lambda number: shown.update("ask", number, total),
                pipeline.unread,
                count,
            )
    print(output)
    if count.unread:
        print(
            "malt: this model has no token for some characters of "
            f"{counted(count.unread, 'question')}, which their `unread` names, so their answers "
            "mean little",
            file=sys.stderr,
        )
    if count.failed:
        raise UserError(
            f"{output}: {counted(count.failed, 'question')} could not be answered; their `error` "
            "says why."
        )


def _other_than_file(path: Path) -> str:
    """What a path leads to that is no regular file; empty if there is nothing."""
    kinds = {"a folder": path.is_dir, "a pipe": path.is_fifo, "a device": path.is_char_device}
    found = (kind for kind, is_kind in kinds.items() if is_kind())
    return next(found, "a special file" if path.exists() else "")


def _ask(pipeline: Pipeline, question: str, votes: int, seed: int | None) -> None:
    """Prints every turn, the first draw's while it is written, then the vote."""
    # Bytes that are not UTF-8 reach Python as lone surrogates.
    if has_lone_surrogate(question):
        raise UserError(f"the question is not text in UTF-8: {one_line(question)[:60]}")
    if unread := pipeline.unread(question):
        print(
            f"malt: this model has no token for {visible(' '.join(unread))}, so the answer means "
            f"little; it was trained on {visible(pipeline.trained_on)}",
            file=sys.stderr,
        )
    printer = TurnPrinter(votes)
    answer = pipeline.ask(question, votes=votes, seed=seed, on_text=printer.add)
    printer.finish()
    print("\n")
    print(vote(answer), flush=True)


class TurnPrinter:
    """Prints draws that are written side by side one after the other.

    Of each role, the first draw's text is printed as it comes; the others' follow once the role is
    finished.
    """

    def __init__(self, votes: int):
        self._votes, self._first = votes, True
        self._role = ""
        self._texts: dict[int, str] = {}
        self._live: int | None = None

    def add(self, draw: int, role: str, text: str) -> None:
        """Takes new text of a turn."""
        if role != self._role:
            self.finish()
            self._role, self._live = role, draw
            self._head(draw)
        if draw == self._live:
            print(visible(text), end="", flush=True)
        else:
            self._texts[draw] = self._texts.get(draw, "") + text

    def finish(self) -> None:
        """Prints what has waited for the live turn to end."""
        for draw, text in self._texts.items():
            self._head(draw)
            print(visible(text), end="", flush=True)
        self._texts = {}

    def _head(self, draw: int) -> None:
        print("" if self._first else "\n")
        print(f"[{draw + 1}/{self._votes}] {self._role}")
        self._first = False


def vote(answer: Answer) -> str:
    """The prediction of each draw and the answer they vote for."""
    each = ", ".join("no answer" if v is None else one_line(v) for v in answer.votes)
    final = "no answer" if answer.prediction is None else one_line(answer.prediction)
    if len(answer.votes) == 1:
        return f"answer: {final}"
    tie = " (a tie; the first drawn counts)" if answer.tie else ""
    return f"votes: {each}\nanswer: {final}{tie}"


def _lines() -> Iterator[str]:
    """The questions on standard input, one per line, with a prompt on a terminal."""
    terminal, first = sys.stdin.isatty(), True
    if terminal:
        print("One question per line; Ctrl-D ends.", file=sys.stderr)
    while True:
        if terminal:
            print("? ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
        except UnicodeDecodeError:
            raise UserError("standard input is not text in UTF-8; convert it first.") from None
        if not line:
            return
        if first:  # some editors begin a file with a byte order mark
            line, first = line.removeprefix("\ufeff"), False
        if line.strip():
            yield line.strip()


COMMAND = Command(
    name="ask",
    summary="answers with a trained run's pipeline, in the terminal or file to file",
    about="Runs the roles one after the other, several times, and takes the majority vote. "
    "Without a question it reads questions line by line, from the terminal or a pipe. With --input "
    "and --output it answers a file in large batches, and continues an output that was "
    "interrupted.",
    run=run,
    arguments=(Argument("question", "What to ask, in quotes.", required=False),),
    options=(
        Option("--run", "The trained run.", "DIR", required=True),
        Option("--input", 'JSONL of {"question": ..., "id": ...}; the id may be left out.', "FILE"),
        Option("--output", "JSONL of answers with every turn, line for line.", "FILE"),
        Option("--votes", "How often the whole pipeline is sampled for the vote.", "N", 3, int),
        Option("--seed", "Seed of the samples; default: the run's.", "N", None, int),
        Option("--quiet", "No progress on standard error."),
        TRUST,
    ),
    examples=(
        'malt ask "2+9+3+3+2+8+9+6" --run runs/quickstart',
        "malt ask --run runs/quickstart --input questions.jsonl --output answers.jsonl",
    ),
    computes=True,
)
