"""A trained run as a model of inspect_ai: `inspect eval TASK --model malt/runs/quickstart`.

inspect_ai finds this module by its entry point. Samples are answered by the engine of `malt serve`,
which batches whatever waits, so many connections are asked for.
"""

from __future__ import annotations

import json
import queue
from collections import Counter
from typing import Any

import anyio
import anyio.to_thread
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from malt_jax.answering.turns import Draw
from malt_jax.pipeline import Pipeline
from malt_jax.serving.engine import Engine, Failed, Finished, Ticket
from malt_jax.serving.errors import ApiError
from malt_jax.serving.metrics import Metrics
from malt_jax.serving.replies import Reply
from malt_jax.serving.requests import CHAIN, ChatRequest, parse_request

CONNECTIONS = 64
"""Samples that are answered at a time, unless inspect_ai is told otherwise."""
FIELDS = ("temperature", "top_p", "top_k", "max_tokens", "seed")
"""Fields of inspect_ai's config that mean what they mean to the endpoint."""
REFUSED = (
    "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs",
    "response_schema", "reasoning_effort", "reasoning_tokens", "best_of",
)  # fmt: skip
"""Fields that would change the answer, and that a chain of roles does not have."""


@modelapi(name="malt")
class TrainedRun(ModelAPI):
    """The chain of a run, or one of its roles."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),
        answers: str = CHAIN,
        trust_task_code: bool = False,
    ):
        """`model_name`: the run directory. `answers`: `malt`, `malt@3` or a role's name."""
        super().__init__(model_name, base_url, api_key, [], config)
        self._pipeline = Pipeline.load(model_name, trust_task_code=trust_task_code)
        self._answers = answers
        self._engine = Engine(self._pipeline.answerer_with, Metrics())
        self._engine.start()
        self._asked: Counter[tuple[Any, ...]] = Counter()
        """Requests by question, turns given and seed."""
        # By default 40 threads may wait at a time, fewer than connections.
        self._threads = anyio.CapacityLimiter(CONNECTIONS)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        body: dict[str, Any] = {
            "model": self._answers,
            "messages": [{"role": m.role, "content": m.text} for m in input],
            "stop": config.stop_seqs,
            "n": config.num_choices,
            **{name: getattr(config, name) for name in FIELDS},
        }
        try:
            if tools:
                raise ApiError(400, "tools: a chain of roles calls none.")
            for name in REFUSED:
                if getattr(config, name, None) not in (None, False, 0):
                    raise ApiError(400, f"{name}: not supported by a chain of roles; leave it out.")
            for message in input:
                if not isinstance(message.content, str):
                    _check_parts(message.content)
            chain, seed = self._engine.answerer.chain, self._pipeline.seed
            request = parse_request(json.dumps(body).encode(), chain, seed)
            reply = await self._sampled(request, self._draws(request))
        except ApiError as error:
            if error.code == "context_length_exceeded":
                return ModelOutput.from_content(
                    self.model_name, "", stop_reason="model_length", error=error.message
                )
            raise RuntimeError(error.message) from error
        return self._output(reply.completion())

    def _draws(self, request: ChatRequest) -> list[Draw]:
        """The draws of a request, other ones than those of the same request before it.

        Epochs of inspect_ai repeat a request, seed included, to get independent answers.
        """
        draws = request.draws()
        asked = (request.question, *(turn.text for turn in request.said)), request.seed
        for draw in draws:
            draw.number += self._asked[asked]
        self._asked[asked] += len(draws)
        return draws

    async def _sampled(self, request: ChatRequest, draws: list[Draw]) -> Reply:
        """Waits for all draws of a request; the engine samples them beside those of others."""
        events: queue.Queue[Any] = queue.Queue()
        answerer = self._engine.answerer
        params = tuple(request.params(role, answerer) for role in request.roles)
        ticket = Ticket(draws, request.roles, params, events.put)

        def wait() -> None:
            left = len(ticket.draws)
            while left:
                found = events.get()
                if found is None:
                    return
                if isinstance(found, Failed):
                    raise found.error
                left -= isinstance(found, Finished)

        self._engine.submit(ticket)
        try:
            # A sample that runs out of time is given up at once.
            await anyio.to_thread.run_sync(wait, abandon_on_cancel=True, limiter=self._threads)
        finally:
            self._engine.cancel(ticket)
            events.put(None)  # wakes a thread that was abandoned
        return Reply(request, ticket.draws, self._pipeline.made_with(request.votes, None))

    def _output(self, completion: dict[str, Any]) -> ModelOutput:
        choices, used = completion["choices"], completion["usage"]
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(
                        content=choice["message"]["content"], source="generate"
                    ),
                    stop_reason="max_tokens" if choice["finish_reason"] == "length" else "stop",
                )
                for choice in choices
            ],
            usage=ModelUsage(
                input_tokens=used["prompt_tokens"],
                output_tokens=used["completion_tokens"],
                total_tokens=used["total_tokens"],
            ),
            metadata=choices[0]["malt"],
        )

    def max_connections(self) -> int:
        return CONNECTIONS

    def connection_key(self) -> str:
        return f"malt/{self.model_name}"

    async def aclose(self) -> None:
        await anyio.to_thread.run_sync(self._engine.close, 1.0)


def _check_parts(parts: list[Any]) -> None:
    """Refuses what a text model cannot read, such as an image."""
    for part in parts:
        if part.type not in ("text", "reasoning"):
            raise ApiError(400, f"messages: a part of type {part.type!r}; a chain reads text.")
