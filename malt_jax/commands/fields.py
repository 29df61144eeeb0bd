"""`malt fields`: every field of the config with its type, default and help."""

from __future__ import annotations

from malt_jax.checks import nearest
from malt_jax.commands.command import Argument, Command, Invocation
from malt_jax.commands.help import fields_help
from malt_jax.config.fields import Field
from malt_jax.config.run import all_fields
from malt_jax.errors import UserError


def run(invocation: Invocation) -> None:
    """Prints the fields of a section, or those with a word in their name, by section."""
    word = (invocation.options.prefix or "").lstrip("-").replace("-", "_")
    known = all_fields()
    below = f"{word}." if word else ""
    # A section or a field by its whole name; only if there is none, every name with the word in it.
    chosen = [f for f in known if f.path == word or f.path.startswith(below)]
    chosen = chosen or [f for f in known if word in f.path]
    if not chosen:
        parts = dict.fromkeys(part for f in known for part in _names(f.path))
        raise UserError(
            f"fields: no field's name holds {word!r}.{nearest(word, parts, cutoff=0.7)} "
            "`malt fields` lists all of them."
        )
    sections: dict[str, list[Field]] = {}
    for field in chosen:
        sections.setdefault(_section(field), []).append(field)
    print(fields_help(sections), end="")


def _section(field: Field) -> str:
    """The section a field is listed under; entries of a list belong to the list's own section."""
    return field.path.rpartition(".")[0].replace(".N", "") or "the run as a whole"


def _names(path: str) -> list[str]:
    """The names that a user may have meant: every section above the field, and every part."""
    parts = path.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))] + parts


COMMAND = Command(
    name="fields",
    summary="every field of the config, with its default and meaning",
    about="A field is set in the YAML file (`search:` and, indented below it, `threshold: 0.5`) or "
    "on the command line (--search.threshold 0.5), which wins. N is the index of an entry of a "
    "list, from 0 (--pipeline.roles.0.branch 5).",
    run=run,
    arguments=(
        Argument("prefix", "Only these: a section, a field or a part of its name.", required=False),
    ),
    examples=("malt fields train.dpo", "malt fields learning_rate"),
)
