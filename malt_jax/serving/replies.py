"""The objects of the OpenAI API: completions, chunks of a stream, models, usage.

What the API has no place for is in fields named `malt`: every turn, every vote. What was written
before the answer is `reasoning_content`, as reasoning models send theirs: the earlier turns, and
in a whole reply also thoughts.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from malt_jax.answering.turns import Answer, Draw, answer
from malt_jax.serving.requests import ChatRequest, model_names
from malt_jax.serving.stops import before_stop
from malt_jax.tree.roles import Chain


class Reply:
    """Makes the objects of one request's answer, which share an id and a time."""

    def __init__(
        self,
        request: ChatRequest,
        draws: Sequence[Draw],
        fingerprint: str,
        unread: Sequence[str] = (),
    ):
        """`unread`: characters of the question that the model has no token for."""
        self._request, self._draws, self._unread = request, draws, unread
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": request.model,
            "system_fingerprint": fingerprint,
        }

    def answer(self, choice: int) -> Answer:
        """The answer of one choice, from its finished draws."""
        votes = self._request.votes
        return answer(self._draws[choice * votes : (choice + 1) * votes])

    def completion(self) -> dict[str, Any]:
        """The whole answer."""
        choices = []
        for index in range(self._request.choices):
            found = self.answer(index)
            content = before_stop(found.text or "", self._request.stop)
            message = {"role": "assistant", "content": content, "refusal": None}
            if not found.error and (before := self._before_answer(found)):
                message["reasoning_content"] = before
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": None,
                    "finish_reason": finish_reason(found),
                    "malt": self.details(found),
                }
            )
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self.usage(),
        }

    def _before_answer(self, found: Answer) -> str:
        """The earlier turns that were sampled for the draw that won, and the thoughts of all."""
        *earlier, last = found.turns[len(self._request.said) :]
        parts = [part for turn in earlier for part in (turn.thought, turn.text)] + [last.thought]
        return "\n\n".join(filter(None, parts))

    def details(self, found: Answer) -> dict[str, Any]:
        """Prediction, votes and every turn that was sampled for a choice.

        `tie` and `unread` only where there is one.
        """
        given = len(self._request.said)
        return {
            "prediction": found.prediction,
            "votes": list(found.votes),
            "winner": found.winner,
            "draws": [[turn.to_record() for turn in draw[given:]] for draw in found.draws],
            **({"tie": True} if found.tie else {}),
            **({"unread": [*self._unread]} if self._unread else {}),
        }

    def usage(self) -> dict[str, int]:
        """Tokens of all prompts and completions, those of every turn and vote."""
        completion = sum(turn.tokens for draw in self._draws for turn in draw.turns)
        prompt = sum(draw.prompt_tokens for draw in self._draws)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def chunk(
        self, choice: int, delta: dict[str, Any], finish: str | None = None, **more: Any
    ) -> bytes:
        """An event of the stream."""
        entry = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish, **more}
        head = {**self._head, "object": "chat.completion.chunk", "choices": [entry]}
        # Where the last event has the usage, the others say that they have none.
        return event({**head, **({"usage": None} if self._request.include_usage else {})})

    def usage_chunk(self) -> bytes:
        """The event with the usage, which has no choice."""
        head = {**self._head, "object": "chat.completion.chunk", "choices": []}
        return event({**head, "usage": self.usage()})


def event(value: Any) -> bytes:
    """A server-sent event with JSON data."""
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": waiting\n\n"


def finish_reason(found: Answer) -> str:
    """`length` if the answer was cut at its limit, else `stop`."""
    return "length" if found.turns[-1].finish == "length" else "stop"


def models(chain: Chain, created: int) -> list[dict[str, Any]]:
    """The entries of `/v1/models`."""
    return [model(name, created) for name in model_names(chain)]


def model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "malt-jax"}
