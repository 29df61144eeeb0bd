"""The body of `/v1/chat/completions`: parsed, checked, and made into draws of the chain.

The models are the chain (`malt`: one draw; `malt@3`: the vote of three) and each role by its name.
A role is asked with the question as the user's message, and the turns of the roles before it as
the assistant's messages, in their order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from malt_jax.answering.turns import Answerer, Draw, Turn
from malt_jax.checks import has_lone_surrogate, no_constant, show, whole_number
from malt_jax.sampling.request import SamplingParams
from malt_jax.serving.errors import ApiError, wrong
from malt_jax.tree.roles import Chain, Role

CHAIN = "malt"
MAX_DRAWS = 64
"""The most draws of one request: its choices times its votes."""
MAX_STOPS = 16
MEANINGLESS = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "verbosity",
}  # fmt: skip
"""Fields of the API that say nothing about the answer; they are accepted."""
ONLY = {
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "reasoning_effort": (),
    "prediction": (),
    "web_search_options": (),
}
"""Fields of the API that are not supported, with the values that ask for nothing, as null does."""
STREAM_OPTIONS = ("include_usage", "include_obfuscation")
"""The second one pads the events against readers on the way; only leaving it out is supported."""
READ = {
    "model", "messages", "n", "seed", "temperature", "top_p", "top_k", "max_tokens",
    "max_completion_tokens", "stop", "stream", "stream_options",
}  # fmt: skip


@dataclass(frozen=True)
class ChatRequest:
    """A checked request: which roles take turns, on what, and how they sample."""

    model: str
    roles: tuple[Role, ...]
    question: str
    said: tuple[Turn, ...]
    """Turns of earlier roles that the request brings along."""
    votes: int
    choices: int
    seed: int
    stream: bool
    include_usage: bool
    temperature: float | None
    top_p: float | None
    top_k: int | None
    max_tokens: int | None
    stop: tuple[str, ...]

    def params(self, role: Role, answerer: Answerer) -> SamplingParams:
        """How a role samples: its own parameters, with those of the request over them.

        `max_tokens` only lowers a role's limit. Stop texts end the last turn, because those before
        it are not the answer; nor is its thought, in which they end nothing.
        """
        own = answerer.params(role)
        given = {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        changed: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        if self.max_tokens is not None:
            changed["max_new_tokens"] = min(self.max_tokens, own.max_new_tokens)
        if role is self.roles[-1] and self.stop:
            changed["stop"] = tuple(dict.fromkeys((*own.stop, *self.stop)))
            changed["thoughts"] = answerer.tokenizer(role).thoughts
        return replace(own, **changed)

    def draws(self) -> list[Draw]:
        """The draws of all choices, choice by choice; each has a number and so a key of its own."""
        return [
            Draw(self.question, number, self.seed, list(self.said))
            for number in range(self.choices * self.votes)
        ]


def parse_request(raw: bytes, chain: Chain, seed: int) -> ChatRequest:
    """The request in a body; raises ApiError that names the field that is wrong."""
    body = _json(raw)
    for name, value in body.items():
        if value is None or name in READ | MEANINGLESS:
            continue
        if name not in ONLY:
            raise wrong(name, "unknown field.", code="unknown_parameter")
        if value not in ONLY[name]:
            raise wrong(name, f"found {show(value)}, which is not supported here; leave it out")
    model = body.get("model")
    if model is None:
        raise wrong("model", f"is missing; there are {', '.join(model_names(chain))}.")
    roles, votes = find_model(model, chain)
    question, texts = _messages(body.get("messages"))
    before = chain.roles[: chain.roles.index(roles[0])]
    if texts and not before:
        raise wrong(
            "messages",
            "a chain holds no conversation; send one question without assistant messages.",
        )
    if len(texts) != len(before):
        wanted = ", ".join(role.name for role in before)
        raise wrong(
            "messages",
            f"found {len(texts)} assistant messages; {model!r} answers after these turns: "
            f"{wanted}. Give each as one assistant message.",
        )
    said = [Turn(r.name, text, 0, "given", None) for r, text in zip(before, texts, strict=True)]
    choices = _integer(body, "n", 1, 1, MAX_DRAWS) or 1
    if choices * votes > MAX_DRAWS:
        raise wrong("n", f"{choices} choices of {votes} votes, allowed: {MAX_DRAWS} draws together")
    stream = _boolean(body, "stream")
    options = _stream_options(body.get("stream_options"), stream)
    lengths = [
        _integer(body, name, None, 1, (1 << 31) - 1)
        for name in ("max_tokens", "max_completion_tokens")
    ]
    return ChatRequest(
        model=str(model),
        roles=roles,
        question=question,
        said=tuple(said),
        votes=votes,
        choices=choices,
        seed=_integer(body, "seed", seed, -(1 << 63), (1 << 64) - 1) or 0,
        stream=stream,
        include_usage=_boolean(options, "include_usage"),
        temperature=_number(body, "temperature", 0, 10),
        top_p=_number(body, "top_p", 0, 1, above=True),
        # Some servers write -1 for all tokens.
        top_k=0 if body.get("top_k") == -1 else _integer(body, "top_k", None, 0, (1 << 31) - 1),
        max_tokens=min((n for n in lengths if n is not None), default=None),
        stop=_stops(body.get("stop")),
    )


def model_names(chain: Chain) -> list[str]:
    """The models that clients are told of: the chain, a vote of it, and each role alone."""
    return list(dict.fromkeys([CHAIN, f"{CHAIN}@3", *(role.name for role in chain.roles)]))


def find_model(name: Any, chain: Chain) -> tuple[tuple[Role, ...], int]:
    """The roles that answer for a model's name, and the votes; raises ApiError with status 404."""
    if isinstance(name, str):
        base, separator, count = name.partition("@")
        votes = (whole_number(count) or 0) if separator else 1
        if base == CHAIN and 1 <= votes <= MAX_DRAWS:
            return chain.roles, votes
        for role in chain.roles:
            if role.name == name:
                return (role,), 1
    known = ", ".join(model_names(chain))
    raise ApiError(
        404, f"model: {show(name)} does not exist here; there are {known}.",
        code="model_not_found", param="model",
    )  # fmt: skip


def _json(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON in UTF-8: {error}") from None
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is {show(body)}, expected an object.")
    return body


def _messages(messages: Any) -> tuple[str, list[str]]:
    """The question, and the assistant's messages after it.

    System and user messages are joined with an empty line between them: a chain answers a question
    and holds no conversation.
    """
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", "expected a list of messages, at least one.")
    asked: list[str] = []
    said: list[str] = []
    for index, message in enumerate(messages):
        where = f"messages.{index}"
        if not isinstance(message, dict):
            raise wrong(where, f"found {show(message)}, expected an object.")
        role, text = message.get("role"), _text(message.get("content"), where)
        if role in ("system", "developer", "user"):
            asked.append(text)
        elif role == "assistant":
            said.append(text)
        else:
            raise wrong(where, f"role {show(role)}, allowed: system, developer, user, assistant.")
    # As `ask` does: what is around a question is no part of it.
    question = "\n\n".join(asked).strip()
    if not question:
        raise wrong("messages", "no question: a user's message is missing or empty.")
    return question, said


def _text(content: Any, where: str) -> str:
    """A message's content: a text, or parts of type `text`."""
    if isinstance(content, list):
        parts = [p for p in content if isinstance(p, dict) and p.get("type") == "text"]
        texts = [p["text"] for p in parts if isinstance(p.get("text"), str)]
        if len(texts) < len(content):
            raise wrong(where, "content: only parts of type text are supported.")
        content = "".join(texts)
    if not isinstance(content, str):
        raise wrong(where, f"content: found {show(content)}, expected a text.")
    if has_lone_surrogate(content):
        raise wrong(where, "content: holds half a character (a lone surrogate).")
    return content


def _stream_options(options: Any, stream: bool) -> Mapping[str, Any]:
    if options is None:
        return {}
    if not isinstance(options, dict):
        raise wrong("stream_options", f"found {show(options)}, expected an object.")
    if not stream:
        raise wrong("stream_options", "belongs to a stream; add stream: true, or leave it out.")
    for name in options:
        if name not in STREAM_OPTIONS:
            raise wrong(
                "stream_options", f"{show(name)} is unknown; allowed: {', '.join(STREAM_OPTIONS)}.",
                code="unknown_parameter",
            )  # fmt: skip
    if _boolean(options, "include_obfuscation"):
        raise wrong("stream_options", "include_obfuscation is not supported here; leave it out.")
    return options


def _stops(stop: Any) -> tuple[str, ...]:
    if stop is None or stop in ("", []):
        return ()
    stops: Sequence[Any] = [stop] if isinstance(stop, str) else stop
    whole = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not whole or not all(isinstance(text, str) and text for text in stops):
        raise wrong("stop", f"found {show(stop)}, expected at most {MAX_STOPS} texts.")
    return tuple(stops)


def _number(
    body: Mapping[str, Any], name: str, least: float, most: float, above: bool = False
) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not least <= value <= most or (above and value == least):
        allowed = f"above {least}" if above else f"{least}"
        raise wrong(name, f"found {show(value)}, allowed: {allowed} to {most}.")
    return float(value)


def _integer(
    body: Mapping[str, Any], name: str, default: int | None, least: int, most: int
) -> int | None:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(name, f"found {show(value)}, allowed: a whole number from {least} to {most}.")
    return value


def _boolean(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(name, f"found {show(value)}, expected true or false.")
    return bool(value)
