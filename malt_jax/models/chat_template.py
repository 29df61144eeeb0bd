"""Chat templates from strangers, rendered in a process that can be killed.

A template is a program. It runs in a child process with limits on time, memory and output, in the
same sandboxed Jinja environment as transformers' except that its clock stands still
(`chat_template_worker.DATE`), so that a prompt is the same on every day. It runs only a few times:
for one user message a template comes down to a frame, the text before and after the message. Every
later prompt is plain concatenation, whatever is in it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from malt_jax.checks import has_lone_surrogate
from malt_jax.errors import UserError

SECONDS = 20
MEGABYTES = 1024
WORKER = Path(__file__).with_name("chat_template_worker.py")

GIVEN = ("messages", "tools", "documents", "add_generation_prompt")
"""Arguments of every template that a user cannot give."""
SWITCHES = ("/no_think", "/think", "/system_override")
"""Words in a system message that a template obeys and leaves out of the prompt (SmolLM3)."""
# Letters and digits only, which no escaping changes.
MARK = "malt8f31probe"
PROBES = (
    # White space at both ends and inside, then what Jinja, HTML and JSON would change.
    f"  {MARK}\n\n two \n",
    f"{MARK} {{{{ 7 * 7 }}}} {{% raw %}} <b>&amp;\\n'\"é",
    f"# {MARK}",
)
"""Messages that show whether a template keeps the message as it is."""


@dataclass(frozen=True)
class ChatTemplate:
    """A template's Jinja source."""

    text: str
    file: Path
    """The file that holds it, for messages."""

    @cached_property
    def _arguments(self) -> frozenset[str]:
        # Kept, because every reading costs a process.
        return frozenset(_run(self, {}, "arguments"))

    def check_argument(self, name: str) -> None:
        """Refuses an argument that the template does not read, or that this package gives."""
        # Special tokens are given by names that end in `_token`.
        given = name in GIVEN or name.endswith("_token")
        if given or name not in self._arguments:
            raise UserError(
                f"{name!r} is not an argument of the chat template in {self.file}; the model's "
                "card names those that it reads, such as enable_thinking."
            )


@dataclass(frozen=True)
class ChatFrame:
    """What a chat template puts around one user message."""

    before: str
    after: str
    strip: tuple[bool, bool] = (False, False)
    """Whether white space before and after the message is dropped: both in Llama 3 and Gemma, that
    after it where a template first joins it with the system message (Llama 2)."""

    def content(self, message: str) -> str:
        """The message as it appears between `before` and `after`."""
        before, after = self.strip
        message = message.lstrip() if before else message
        return message.rstrip() if after else message

    def render(self, message: str) -> str:
        return self.before + self.content(message) + self.after


def chat_frame(template: ChatTemplate, variables: dict[str, Any], system: str | None) -> ChatFrame:
    """The frame of one user message, after a system message if given, ready for the answer.

    `variables`: the special tokens by name, and arguments such as `enable_thinking`. Raises
    UserError if the template fails, refuses the system role, or rewrites messages.
    """
    # 1. Render the mark alone: what stands before and after it is the frame.
    # 2. Render the probes: the same frame must predict them, outer white space kept or dropped.
    # 3. If it does not, concatenation would give other prompts than the template.
    messages = [] if system is None else [{"role": "system", "content": system}]
    conversations = [[*messages, {"role": "user", "content": text}] for text in (MARK, *PROBES)]
    job = {"variables": variables, "conversations": conversations}
    first, *others = _run(template, job, "texts")
    # The frame is part of every prompt, and a surrogate could not be encoded as UTF-8.
    if has_lone_surrogate(first):
        raise UserError(
            f"{template.file}: the chat template writes half a character (a lone surrogate); "
            "remove it there."
        )
    before, mark, after = first.partition(MARK)
    if system is not None and not _says(first, system, template.text):
        raise UserError(
            f"{template.file}: the chat template leaves out the system message {system[:60]!r}; "
            "put it into the role's template."
        )
    # Exactly once: a template that repeats the message has no frame.
    if mark and MARK not in after:
        for strip in product((False, True), (False, True)):
            frame = ChatFrame(before, after, strip)
            if [frame.render(text) for text in PROBES] == others:
                return frame
    raise UserError(
        f"{template.file}: the chat template does not put the user's message into the prompt as it "
        "is, once; edit the template there, or remove it to prompt in plain text."
    )


def _says(prompt: str, system: str, template: str) -> bool:
    """Whether the prompt holds the system message, or all of it but the template's switches."""
    if system.strip() in prompt:
        return True
    for switch in SWITCHES:
        if switch in template:
            system = system.replace(switch, "")
    return system.strip() in prompt


def _run(template: ChatTemplate, task: dict[str, Any], wanted: str) -> list[str]:
    """What the worker answers under the name `wanted`."""
    job = {"template": template.text, **task, "seconds": SECONDS, "megabytes": MEGABYTES}
    try:
        # -I: nothing of the user's environment or folder is imported.
        done = subprocess.run(
            [sys.executable, "-I", str(WORKER)],
            start_new_session=True,  # a Ctrl-C in the terminal must not end it
            input=json.dumps(job).encode(),
            capture_output=True,
            # Wall-clock time. The worker limits its processor time itself, which a process that
            # only waits never uses up.
            timeout=2 * SECONDS,
            # Nothing of the environment, such as a token of the hub, is within the template's
            # reach.
            env={},
            check=False,
        )
        answer: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
    except subprocess.TimeoutExpired:
        answer = {}
    if wanted in answer:
        return answer[wanted]
    reason = answer.get("error", f"ran past {SECONDS} s or {MEGABYTES} MB")
    raise UserError(
        f"{template.file}: the chat template cannot be used: {reason}; edit the template there."
    )
