"""Runs one chat template under limits: a JSON job on standard input, a JSON answer on output.

Started by chat_template.py as a process of its own; imports nothing of this package.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import meta, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 1 << 20
DATE = datetime(2024, 7, 26)
"""What `strftime_now` calls now: the day that Llama 3's templates fall back on without a clock."""


class Generation(Extension):
    """`{% generation %}...{% endgeneration %}` marks training spans; its body renders as it is."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """transformers' `tojson`, which unlike Jinja's own escapes no HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def make_environment() -> ImmutableSandboxedEnvironment:
    # transformers' settings, for which templates are written: other rules for the white space
    # around blocks would give other tokens.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = DATE.strftime
    return environment


def arguments(job: dict[str, Any]) -> list[str]:
    """Names that the template reads, unless it has set them before in any case."""
    # Under the limits too: a template may be written to overwhelm the parser.
    environment = make_environment()
    return sorted(meta.find_undeclared_variables(environment.parse(job["template"])))


def render(job: dict[str, Any]) -> list[str]:
    """The prompt of each of the job's conversations."""
    template = make_environment().from_string(job["template"])
    texts = []
    for messages in job["conversations"]:
        text = ""
        # Piece by piece, so that an endless loop is stopped at the limit and not by a full memory.
        for piece in template.generate(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **job["variables"],
        ):
            text += piece
            if len(text) > MAX_CHARACTERS:
                raise TemplateError(f"it writes more than {MAX_CHARACTERS:,} characters")
        texts.append(text)
    return texts


def main() -> None:
    job = json.load(sys.stdin)
    # Before the template is parsed. Soft and hard limits are equal, so that none can be raised
    # again. At the processor limit the kernel kills the process.
    resource.setrlimit(resource.RLIMIT_CPU, (job["seconds"], job["seconds"]))
    resource.setrlimit(resource.RLIMIT_AS, (job["megabytes"] << 20,) * 2)
    try:
        answer: dict[str, Any] = (
            {"texts": render(job)} if "conversations" in job else {"arguments": arguments(job)}
        )
    except MemoryError:
        answer = {"error": "it needs too much memory"}
    except Exception as error:  # whatever a stranger's template raises is its own fault
        answer = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
