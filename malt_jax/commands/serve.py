"""`malt serve`: a trained run behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec

from malt_jax.commands.command import TRUST, Command, Invocation, Option
from malt_jax.errors import RunStopped, UserError

KEY = "MALT_API_KEY"
ENDED = "the server has ended"


def run(invocation: Invocation) -> None:
    """Serves until it is told to stop; prints the address once requests are answered."""
    if missing := [name for name in ("starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(
            f"serve: {' and '.join(missing)} missing; `pip install '.[serve]'` in a clone."
        )
    from malt_jax.pipeline import Pipeline
    from malt_jax.progress import open_progress
    from malt_jax.serving.app import Limits, Service, is_loopback
    from malt_jax.serving.engine import Engine
    from malt_jax.serving.metrics import Metrics
    from malt_jax.serving.server import listen, serve
    from malt_jax.storage.signals import graceful_stop

    options = invocation.options
    if options.api_key == "":
        raise UserError("--api-key: found an empty text, as an unset variable gives; name a key.")
    api_key = options.api_key or os.environ.get(KEY) or None
    limits = Limits(
        int(_at_least(1, "max-requests", options.max_requests)),
        int(_at_least(1024, "max-bytes", options.max_bytes)),
        _at_least(1, "timeout", options.timeout),
    )
    grace = _at_least(0, "grace", options.grace)
    if api_key is None and not is_loopback(options.host):
        raise UserError(
            f"--host: {options.host} can be reached by others; give --api-key KEY or the variable "
            f"{KEY}, or serve on 127.0.0.1."
        )
    notice = f"stopping; what has begun may take {grace:g} s more"
    with graceful_stop(notice), open_progress(options.quiet, "serve") as shown:
        pipeline = Pipeline.load(
            options.run, trust_task_code=options.trust_task_code, progress=shown
        )
        # Before the weights are read, so that a port that is taken is named at once.
        listener = listen(options.host, options.port)
        engine = Engine(pipeline.answerer_with, Metrics())
        if not options.cold:
            # Later it would keep everybody waiting, each time a batch has a new size.
            shown.note("serve: compiling for every size of batch")
            engine.answerer.warm_up(pipeline.prompt_tokens())
        _raise_if_stopped()
        host, port = listener.getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        fingerprint = pipeline.made_with(1, None)
        local = is_loopback(options.host)
        service = Service(engine, pipeline.seed, fingerprint, limits, api_key=api_key, local=local)
        serve(
            service,
            engine,
            listener,
            grace=grace,
            on_ready=lambda: print(f"http://{host}:{port}/v1", flush=True),
        )
        _raise_if_stopped()
    raise RunStopped(signal.SIGTERM, ENDED)


def _raise_if_stopped() -> None:
    """A server has no state to continue from, so it says only that it has ended."""
    from malt_jax.storage.signals import raise_if_stopped

    try:
        raise_if_stopped()
    except RunStopped as stop:
        raise RunStopped(stop.signal_number, ENDED) from None


def _at_least(least: float, name: str, value: float) -> float:
    if not least <= value < 1 << 40:
        raise UserError(f"--{name}: found {value:g}, allowed: {least:g} or more.")
    return value


COMMAND = Command(
    name="serve",
    summary="a trained run behind an OpenAI-compatible endpoint",
    about="Answers /v1/chat/completions for the chain (malt, or malt@3 for the vote of three) and "
    "for each role by its name, many requests in one batch. Needs `pip install '.[serve]'`. "
    "Prints its address when it is ready; SIGTERM lets what has begun finish.",
    run=run,
    options=(
        Option("--run", "The trained run.", "DIR", required=True),
        Option("--port", "0 takes a free one.", "N", 8000, int),
        Option("--host", "Where to listen; others than loopback need a key.", "HOST", "127.0.0.1"),
        Option("--api-key", f"What clients must send; default: the variable {KEY}.", "KEY"),
        Option("--max-requests", "Answered at a time; more get 429.", "N", 256, int),
        Option("--max-bytes", "Of one request; more gets 413.", "N", 1 << 18, int),
        Option("--timeout", "Seconds until a request gets 503.", "S", 600.0, float),
        Option(
            "--grace",
            "Seconds that answers may take after SIGTERM; then they get 503.",
            "S",
            30.0,
            float,
        ),
        Option("--cold", "Answer at once and compile on the way."),
        Option("--quiet", "No progress on standard error."),
        TRUST,
    ),
    examples=("malt serve --run runs/quickstart --port 8000",),
    computes=True,
)
