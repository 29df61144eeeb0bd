"""`malt completion`: shell scripts that complete commands, flags and config fields."""

from __future__ import annotations

from collections.abc import Sequence

from malt_jax.commands.command import CONFIG_FLAGS, Argument, Command, Invocation

SHELLS = ("bash", "zsh", "fish")

BASH = """\
# malt completion for bash: source <(malt completion bash)
_malt() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words
  if (( COMP_CWORD == 1 )); then
    words="{commands}"
  elif [[ "$word" == -* ]]; then
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  else
    case "${{COMP_WORDS[1]}}" in
{arguments}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _malt malt
"""
ZSH = """\
#compdef malt
# malt completion for zsh: source <(malt completion zsh)
autoload -U +X bashcompinit && bashcompinit
{bash}"""


def run(invocation: Invocation) -> None:
    from malt_jax.cli import all_commands

    commands = all_commands()
    scripts = {"bash": bash, "zsh": lambda c: ZSH.format(bash=bash(c)), "fish": fish}
    print(scripts[invocation.options.shell](commands), end="")


def bash(commands: Sequence[Command]) -> str:
    """A script for bash; zsh reads it too."""
    cases = [f'      {c.name}) words="{" ".join(f for f, _ in flags(c))}" ;;' for c in commands]
    of_words = {c.name: [choice for a in c.arguments for choice in a.choices] for c in commands}
    choices = [f'      {n}) words="{" ".join(words)}" ;;' for n, words in of_words.items() if words]
    return BASH.format(
        commands=" ".join(c.name for c in commands),
        cases="\n".join(cases),
        arguments="\n".join(choices),
    )


def fish(commands: Sequence[Command]) -> str:
    """A script for fish, with the help of every flag."""
    lines = ["# malt completion for fish: malt completion fish | source"]
    for command in commands:
        first = "complete -c malt -n __fish_use_subcommand -f"
        lines.append(f"{first} -a {command.name} -d {_quoted(command.summary)}")
        inside = f"complete -c malt -n '__fish_seen_subcommand_from {command.name}'"
        for flag, text in flags(command):
            lines.append(f"{inside} -l {flag[2:]} -d {_quoted(text)}")
        for choice in (choice for a in command.arguments for choice in a.choices):
            lines.append(f"{inside} -f -a {choice}")
    return "\n".join(lines) + "\n"


def flags(command: Command) -> list[tuple[str, str]]:
    """Every flag of a command with its help, config fields last; entries of lists are left out."""
    found = {option.flag: option.help for option in command.own_options}
    if command.takes_config:
        from malt_jax.commands.fields import config_fields

        found |= {option.flag: option.help for option in CONFIG_FLAGS}
        for field in config_fields():
            if ".N." not in field.path:
                found.setdefault(field.flag, field.help)
    return [*found.items(), ("--help", "Help.")]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


COMMAND = Command(
    name="completion",
    summary="a completion script for bash, zsh or fish",
    about="Prints the script; the first lines of it say where it goes.",
    run=run,
    arguments=(Argument("shell", "Which shell.", SHELLS),),
    examples=("malt completion bash > ~/.local/share/bash-completion/completions/malt",),
)
