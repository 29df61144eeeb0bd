"""Model cards: what was trained, on what, with which results, and the code that runs it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from malt_jax import escape
from malt_jax.config.pipeline import RoleConfig
from malt_jax.models.hub import EMBEDDED
from malt_jax.tree.prompts import fill

CARD_CHARACTERS = 1 << 16
"""How much of a base model's card is searched for its licence."""
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values that vLLM accepts for --max-lora-rank (`MaxLoRARanks` in its vllm/config/lora.py)."""
SHOWN_SYSTEMS = ("sa", "ma", "star-ma", "malt")
EMBEDDED_WORD = (
    '"$(python -c "from malt_jax.models.hub import local_folder as f; '
    "print(f('quickstart')[0])\")\""
)


@dataclass(frozen=True)
class CardFacts:
    """What the card of a role says about the run it comes from."""

    role: str
    roles: Sequence[str]
    templates: Mapping[str, str]
    base: str
    """A hub name, a local folder, or `quickstart`."""
    revision: str | None
    license: str | None
    """Licence of the base model, as the header of its own card states it, or None."""
    task: str
    seed: int
    policies: Mapping[str, str]
    """Identity of every role's weights, such as `000/refiner/dpo`; `base` if it was not trained."""
    sampling: Mapping[str, RoleConfig]
    """How every role samples its turns."""
    rank: int | None
    """Rank of its adapter; None after full fine-tuning, which has none."""
    merged: bool
    """Whether whole models are exported beside the adapters."""
    results: Mapping[str, Any] | None
    largest_rank: int | None = None
    """The largest rank of an adapter over this base, where they differ."""
    thinks: bool = False
    """The base model writes thoughts before its answers."""
    causal: bool = True
    """Whether transformers loads the base as a causal language model."""
    longest: int | None = None
    """Tokens that vLLM must be told to serve at most, where its rope would be another one."""
    bases: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    """The base and its revision of every role; left out, all have the same."""


def model_card(facts: CardFacts) -> str:
    """README.md of one exported role. Its code is complete and runs in the run directory."""
    every = [role for role in facts.roles if facts.rank and facts.policies[role] != "base"]
    # PEFT and vLLM load adapters over one base: those of the roles that have this one.
    alike = [role for role in facts.roles if _base_of(facts, role) == (facts.base, facts.revision)]
    adapters = [role for role in every if role in alike]
    several = len(alike) < len(facts.roles)
    systems = facts.results["systems"] if facts.results else []
    return render_card(
        "model_card.md.j2",
        **vars(facts)
        | {
            "results": [row for row in systems if row["system"] in SHOWN_SYSTEMS],
            "sampling": _in_words(facts.sampling[facts.role]),
        },
        header=_header(facts),
        **_chat(facts),
        policy=facts.policies[facts.role],
        trained=facts.policies[facts.role] != "base",
        questions=facts.results["questions"] if facts.results else 0,
        confidence=facts.results["confidence"] if facts.results else 0,
        fence=_fence(facts.templates.values()),
        prompts=_named_turns(facts),
        adapters=adapters,
        elsewhere=[role for role in facts.roles if role not in alike],
        untrained=[role for role in facts.roles if role not in adapters],
        embedded=EMBEDDED in {_base_of(facts, role)[0] for role in facts.roles},
        vllm_rank=vllm_rank(facts.largest_rank or facts.rank or 0),
        requests=[json.dumps(_request(facts, role, role in adapters)) for role in alike],
        every_adapter=every,
        own_bases={
            role: f"({_place(base)}, {revision!r})"
            for role, (base, revision) in facts.bases.items()
            if several
        },
        **_base_as_code(facts),
    )


def render_card(template: str, **parts: Any) -> str:
    """A README.md from its template, in which a name that is not given is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"python": repr, "markdown": escape.markdown, "shell": shlex.quote}
    return environment.get_template(template).render(**parts)


def base_license(folder: Path) -> str | None:
    """The licence that a base model's own card states in its header, or None."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with open(card, encoding="utf-8", errors="replace") as file:
        # The header is between the first two `---`.
        parts = file.read(CARD_CHARACTERS).split("---", 2)
    try:
        head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    found = head.get("license") if isinstance(head, dict) else None
    # Only a string: the aliases of a stranger's YAML can stand for billions of values.
    return found if isinstance(found, str) and found else None


def vllm_rank(rank: int) -> int | None:
    """The smallest --max-lora-rank of vLLM that holds adapters of this rank; None if none does."""
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def _header(facts: CardFacts) -> str:
    """The YAML that the hub reads."""
    trained = facts.policies[facts.role] != "base"
    head: dict[str, Any] = {
        "base_model": facts.base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["malt", "malt-jax", *(["lora"] if trained and facts.rank else [])],
    }
    if facts.license:
        head["license"] = facts.license
    return yaml.safe_dump(head, sort_keys=False).strip()


def _named_turns(facts: CardFacts) -> dict[str, str]:
    """Templates with `{previous}` replaced by the name of the turn that it stands for."""
    # All other placeholders stand for themselves, so `fill` replaces only `{previous}`.
    names = {name: "{" + name + "}" for name in ("question", *facts.roles)}
    before = ["", *(names[role] for role in facts.roles)]
    return {
        role: fill(facts.templates[role], {**names, "previous": previous})
        for role, previous in zip(facts.roles, before, strict=False)
    }


def _base_of(facts: CardFacts, role: str) -> tuple[str, str | None]:
    return facts.bases.get(role, (facts.base, facts.revision))


def _absolute(base: str) -> str:
    # The commands run in the run directory, where a relative path would name another folder.
    return str(Path(base).absolute()) if Path(base).is_dir() else base


def _place(base: str) -> str:
    """A base model as Python code that names its folder or repository."""
    return "local_folder('quickstart')[0]" if base == EMBEDDED else repr(_absolute(base))


def _base_as_code(facts: CardFacts) -> dict[str, str]:
    """The base model as the arguments of `from_pretrained` and as a word of a shell."""
    if facts.base == EMBEDDED:
        return {"base_arguments": _place(facts.base), "base_word": EMBEDDED_WORD}
    revision = f", revision={facts.revision!r}" if facts.revision else ""
    word = shlex.quote(_absolute(facts.base))
    return {"base_arguments": f"{_place(facts.base)}{revision}", "base_word": word}


def _request(facts: CardFacts, role: str, has_adapter: bool) -> dict[str, Any]:
    """The fields of an OpenAI-compatible request that make vLLM sample as the role does."""
    config = facts.sampling[role]
    request = {
        "model": role if has_adapter else facts.base,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "max_tokens": config.max_new_tokens,
        # vLLM takes what a request leaves out from the base's generation_config.json, under whose
        # penalties the role was not trained.
        "repetition_penalty": 1.0,
        "min_p": 0.0,
    }
    if config.chat_template_kwargs:
        request["chat_template_kwargs"] = config.chat_template_kwargs
    if config.stop:
        request |= {"stop": list(config.stop), "include_stop_str_in_output": True}
    return request


def _chat(facts: CardFacts) -> dict[str, Any]:
    """System messages and template arguments: of all roles, where one has any, and of this one."""
    settings = {
        name: (role.system, dict(role.chat_template_kwargs))
        for name, role in facts.sampling.items()
    }
    system, arguments = settings[facts.role]
    return {
        "chats": settings if any(s is not None or a for s, a in settings.values()) else {},
        "system": system,
        "arguments": arguments,
        "thoughts": facts.thinks and not facts.sampling[facts.role].thinking.pass_on,
    }


def _in_words(role: RoleConfig) -> str:
    settings = {name: getattr(role, name) for name in ("temperature", "top_p", "top_k")}
    settings["max_new_tokens"] = role.max_new_tokens
    if role.stop:
        settings["stop"] = [*role.stop]
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _fence(texts: Any) -> str:
    """A Markdown fence longer than every run of backticks in the texts."""
    runs = [len(run) for text in texts for run in re.findall("`+", text)]
    return "`" * max([3, *(length + 1 for length in runs)])
