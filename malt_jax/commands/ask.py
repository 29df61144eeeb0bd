"""`malt ask`: a trained pipeline answers questions in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from malt_jax.commands.command import TRUST, Argument, Command, Invocation, Option
from malt_jax.errors import UserError
from malt_jax.escape import one_line, visible

if TYPE_CHECKING:
    from malt_jax.pipeline import Answer, Pipeline


def run(invocation: Invocation) -> None:
    """Answers the question of the command line, or one question per line of standard input."""
    from malt_jax.pipeline import Pipeline

    options = invocation.options
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


def _ask(pipeline: Pipeline, question: str, votes: int, seed: int | None) -> None:
    """Prints every turn while it is written, then the vote."""
    # Bytes that are not UTF-8 reach Python as lone surrogates.
    if any("\ud800" <= character <= "\udfff" for character in question):
        raise UserError(f"the question is not text in UTF-8: {one_line(question)[:60]}")
    if unread := pipeline.unread(question):
        print(
            f"malt: this model has no token for {visible(' '.join(unread))}, so the answer means "
            f"little; it was trained on {visible(pipeline.trained_on)}",
            file=sys.stderr,
        )
    current: tuple[int, str] | None = None

    def on_text(draw: int, role: str, text: str) -> None:
        nonlocal current
        if current != (draw, role):
            print("" if current is None else "\n")
            print(f"[{draw + 1}/{votes}] {role}")
            current = (draw, role)
        print(visible(text), end="", flush=True)

    answer = pipeline.ask(question, votes=votes, seed=seed, on_text=on_text)
    print("\n")
    print(vote(answer), flush=True)


def vote(answer: Answer) -> str:
    """The prediction of each draw and the answer they vote for."""
    from malt_jax.evaluation.statistics import majority_vote

    each = ", ".join("no answer" if v is None else one_line(v) for v in answer.votes)
    final = "no answer" if answer.prediction is None else one_line(answer.prediction)
    if len(answer.votes) == 1:
        return f"answer: {final}"
    tie = " (a tie; the first drawn counts)" if majority_vote(answer.votes).tie else ""
    return f"votes: {each}\nanswer: {final}{tie}"


def _lines() -> Iterator[str]:
    """The questions on standard input, one per line, with a prompt on a terminal."""
    terminal = sys.stdin.isatty()
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
        if line.strip():
            yield line.strip()


COMMAND = Command(
    name="ask",
    summary="answers with a trained run's pipeline, each turn as it is written",
    about="Runs the roles one after the other, several times, and takes the majority vote. "
    "Without a question it reads questions line by line, from the terminal or a pipe.",
    run=run,
    arguments=(Argument("question", "What to ask, in quotes.", required=False),),
    options=(
        Option("--run", "The trained run.", "DIR", required=True),
        Option("--votes", "How often the whole pipeline is sampled for the vote.", "N", 3, int),
        Option("--seed", "Seed of the samples; default: the run's.", "N", None, int),
        TRUST,
    ),
    examples=('malt ask "2+9+3+3+2+8+9+6" --run runs/quickstart',),
    computes=True,
)
