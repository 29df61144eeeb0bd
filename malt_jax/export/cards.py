"""Model and data cards: what was trained, on what, how well, and how to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from malt_jax import escape
from malt_jax.config.pipeline import RoleConfig
from malt_jax.models.hub import EMBEDDED
from malt_jax.tree.prompts import fill

METHOD = "[MALT](https://arxiv.org/abs/2412.01928)"


CARD_CHARACTERS = 1 << 16
"""How far into a base model's card its licence is looked for."""


@dataclass(frozen=True)
class CardFacts:
    """What a role's card says, from the run."""

    role: str
    roles: Sequence[str]
    templates: Mapping[str, str]
    base: str
    revision: str | None
    license: str | None
    """Of the base, as its own card or config states it; None when it states none."""
    task: str
    seed: int
    policies: Mapping[str, str]
    """Identity of every role's weights, as `000/refiner/dpo`; `base`: it was not trained."""
    sampling: Mapping[str, RoleConfig]
    """How every role draws its turns."""
    rank: int | None
    merged: bool
    """Whether whole models stand beside the adapters."""
    results: Mapping[str, Any] | None


def model_card(facts: CardFacts) -> str:
    """README.md of one exported role."""
    policy = facts.policies[facts.role]
    trained = policy != "base"
    head = {
        "base_model": facts.base,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["malt", "malt-jax", *(["lora"] if trained and facts.rank else [])],
    }
    if facts.license:
        head["license"] = facts.license
    chain = " -> ".join(facts.roles)
    revision = f", revision `{facts.revision}`" if facts.revision else ""
    text = [
        "---",
        yaml.safe_dump(head, sort_keys=False).strip(),
        "---",
        f"# {escape.markdown(facts.role)}: one role of a {METHOD} pipeline",
        f"The {facts.role} of the chain {chain}, "
        + ("trained" if trained else "NOT trained but left as the base, in a run")
        + f" with malt-jax on `{facts.task}` "
        f"(seed {facts.seed}, weights `{policy}`) over `{facts.base}`{revision}. "
        + (f"The base's licence is {facts.license}." if facts.license else
           "The base states no licence here; look it up before you share this."),
        "Training is on outcomes alone: trees of sampled answers graded at their leaves, values "
        "backed up the tree, SFT on positive nodes and DPO on siblings. It is made for its place "
        "in the chain and was not checked for anything else.",
        "## Results",
        _results(facts.results),
        "## Prompt",
        "One user message (with the chat template where the tokenizer has one); names in braces "
        "are the question and earlier turns:",
        _fenced(facts.templates[facts.role]),
        f"Sampling{', as in generation_config.json' if facts.merged else ''}: "
        f"{_sampling(facts.sampling[facts.role])}.",
        "## The whole chain",
    ]  # fmt: skip
    if facts.merged:
        text += ["### transformers", _fenced(_transformers(facts), "python")]
    else:
        text.append(
            "Only adapters were exported. `malt export --export.merged true "
            "--output-dir RUN` also writes each role as a model that transformers loads by itself."
        )
    if adapters := [role for role in facts.roles if facts.rank and facts.policies[role] != "base"]:
        text += [
            "### PEFT",
            *(
                []
                if facts.base != EMBEDDED
                else [
                    "The base is inside the package `malt-jax`, which this needs, as does the next."
                ]
            ),
            _fenced(_peft(facts.base, adapters), "python"),
            "### vLLM",
            _fenced(_vllm(facts, adapters), "sh"),
            "A request then names its role as the model, and samples as the role does: "
            + "; ".join(f"{role}: {_sampling(facts.sampling[role])}" for role in facts.roles)
            + ".",
        ]
    return "\n\n".join(text).replace("---\n\n", "---\n", 1).replace("\n\n---", "\n---", 1) + "\n"


def data_card(role: str, task: str, base: str, counts: Mapping[str, Any]) -> str:
    """README.md of one role's training data, ready for `load_dataset`."""
    configs = [
        {"config_name": kind, "data_files": f"{kind}.jsonl"}
        for kind in ("sft", "dpo")
        if counts.get(kind)
    ]
    head = {"configs": configs, "tags": ["malt", "malt-jax"]}
    return (
        "\n\n".join(
            [
                "---\n" + yaml.safe_dump(head, sort_keys=False).strip() + "\n---",
                f"# Data of the {escape.markdown(role)}",
                f"Sampled from `{base}` on `{task}` by {METHOD}: {counts.get('sft', 0)} SFT "
                f"examples (positive nodes) and {counts.get('dpo', 0)} preference pairs (siblings "
                "under one prefix). The columns are TRL's, beside provenance: `question_id`, "
                "`node_id`, `value`, and the exact token ids that were trained on. The text was "
                "written by a model.",
            ]
        )
        + "\n"
    )


def base_license(folder: Path) -> str | None:
    """The licence a base model's own card states in its header."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    with open(card, encoding="utf-8", errors="replace") as file:
        parts = file.read(CARD_CHARACTERS).split("---", 2)
    try:
        head = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    found = head.get("license") if isinstance(head, dict) else None
    # Only a text: the aliases of a stranger's YAML can stand for billions of values.
    return found if isinstance(found, str) and found else None


def _results(results: Mapping[str, Any] | None) -> str:
    if not results:
        return "Not evaluated."
    shown = ("sa", "ma", "star-ma", "malt")
    rows = [row for row in results["systems"] if row["system"] in shown]
    lines = [
        "| system | calls | tokens | accuracy % | 95% interval |",
        "| :--- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        low, high = row["interval"]
        lines.append(
            f"| {escape.markdown(row['label'])} | {row['calls']} | {row['tokens']:.0f} "
            f"| {100 * row['accuracy']:.1f} | {100 * low:.1f} to {100 * high:.1f} |"
        )
    return "\n".join(lines) + f"\n\n{results['questions']} questions; calls and tokens a question."


def _fenced(text: str, language: str = "") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _sampling(role: RoleConfig) -> str:
    settings = {name: getattr(role, name) for name in ("temperature", "top_p", "top_k")}
    settings["max_new_tokens"] = role.max_new_tokens
    if role.stop:
        settings["stop"] = [*role.stop]
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _transformers(facts: CardFacts) -> str:
    # `{previous}` by the name of the turn it stands for: the code knows turns by role alone.
    names = {name: "{" + name + "}" for name in ("question", *facts.roles)}
    templates = "\n".join(
        f"    {role!r}: {fill(facts.templates[role], {**names, 'previous': before})!r},"
        for role, before in zip(
            facts.roles, ["", *(names[role] for role in facts.roles)], strict=False
        )
    )
    stops = any(facts.sampling[role].stop for role in facts.roles)
    tokenizer = ", tokenizer=tokenizer" if stops else ""
    return f"""from transformers import AutoModelForCausalLM, AutoTokenizer

prompts = {{
{templates}
}}
said = {{"question": "..."}}
for role, prompt in prompts.items():
    model = AutoModelForCausalLM.from_pretrained(f"export/{{role}}")
    tokenizer = AutoTokenizer.from_pretrained(f"export/{{role}}")
    for name, text in said.items():
        prompt = prompt.replace("{{" + name + "}}", text)
    if tokenizer.chat_template:
        turn = [{{"role": "user", "content": prompt}}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    out = model.generate(**ids{tokenizer})  # samples as the role's generation_config.json says
    said[role] = tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True)
print(said)"""


def _peft(base: str, roles: Sequence[str]) -> str:
    first, *others = roles
    lines = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        *_base_code(base),
        f'model = PeftModel.from_pretrained(base, "export/{first}/adapter", "{first}")',
        *(f'model.load_adapter("export/{role}/adapter", "{role}")' for role in others),
        f'model.set_adapter("{first}")',
    ]
    return "\n".join(lines)


def _base_code(base: str) -> list[str]:
    """Loads the base; the embedded model is where malt-jax is installed."""
    if base != EMBEDDED:
        return [f"base = AutoModelForCausalLM.from_pretrained({base!r})"]
    return [
        "from malt_jax.models.hub import local_folder",
        "",
        "base = AutoModelForCausalLM.from_pretrained(local_folder('quickstart')[0])",
    ]


def _vllm(facts: CardFacts, roles: Sequence[str]) -> str:
    modules = " \\\n".join(f"  {role}=export/{role}/adapter" for role in roles)
    base = facts.base
    if base == EMBEDDED:
        place = "from malt_jax.models.hub import local_folder as f; print(f('quickstart')[0])"
        base = f'$(python -c "{place}")'
    return (
        f"vllm serve {base} --enable-lora --max-lora-rank {facts.rank} --lora-modules \\\n{modules}"
    )
