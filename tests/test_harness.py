"""A trained run as a model of inspect_ai, found by its entry point's module."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

import cli_run
from malt_jax.pipeline import Pipeline

inspect_ai = pytest.importorskip("inspect_ai", reason="inspect_ai is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    cli_run.trained()
    return Path(shutil.copytree(cli_run.as_trained(), tmp_path_factory.mktemp("run") / "run"))


def test_samples_are_answered_as_the_pipeline_answers_them(run):
    from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model

    import malt_jax.harness  # noqa: F401  (what the entry point loads)

    own = Pipeline.load(run, trust_task_code=True)
    model = get_model(f"malt/{run}", answers="malt@3", trust_task_code=True)
    questions = ["1+1=?", "2+2=?", "3+3=?"]

    async def ask():
        config = GenerateConfig(max_tokens=64)  # it only lowers a role's own limit, which is 8
        asked = ([ChatMessageUser(content=q)] for q in [*questions, questions[0]])
        return await asyncio.gather(*(model.generate(one, config=config) for one in asked))

    *outputs, repeated = asyncio.run(ask())
    for question, output in zip(questions, outputs, strict=True):
        expected = own.ask(question, votes=3)
        assert output.metadata["prediction"] == expected.prediction
        assert len(output.metadata["draws"]) == 3 and output.usage.output_tokens > 0
    # A question that is asked again, as an epoch does, continues its draws.
    six = own.ask(questions[0], votes=6).draws
    for output, draws in ((outputs[0], six[:3]), (repeated, six[3:])):
        told = [[turn["text"] for turn in draw] for draw in output.metadata["draws"]]
        assert told == [[turn.text for turn in draw] for draw in draws]


def test_settings_are_taken_or_refused_and_a_cancelled_sample_is_given_up(run):
    import anyio
    from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model

    model = get_model(f"malt/{run}", answers="malt", trust_task_code=True)
    asked = [ChatMessageUser(content="1+1=?")]
    engine, given_up = model.api._engine, []

    async def ask() -> None:
        several = await model.generate(asked, config=GenerateConfig(num_choices=2, max_tokens=4))
        assert len(several.choices) == 2
        with pytest.raises(RuntimeError, match="frequency_penalty: not supported"):
            await model.generate(asked, config=GenerateConfig(frequency_penalty=0.5))
        cancel = engine.cancel
        engine.cancel = lambda ticket: (given_up.append(len(ticket.draws)), cancel(ticket))
        submit = engine.submit
        with anyio.CancelScope() as scope:
            engine.submit = lambda ticket: (submit(ticket), scope.cancel())
            await model.generate(asked, config=GenerateConfig(num_choices=3))
        assert scope.cancelled_caught and given_up == [3]

    asyncio.run(ask())
