"""The code and commands of a model card run, and say what the pipeline says, however they are set.

vLLM is not installed where the tests run: its command is expanded by a shell and read by a parser
with the arguments of vLLM's published command line.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import pytest

import malt_jax
import tiny
from malt_jax.cli import all_commands
from malt_jax.commands.command import parse
from malt_jax.config.lora import LoraConfig
from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.config.sampler import SamplerConfig
from malt_jax.export.cards import VLLM_RANKS, CardFacts, model_card, vllm_rank
from malt_jax.export.role import export_role
from malt_jax.models.lora import init_adapter
from malt_jax.models.model import load_model
from malt_jax.sampling.sampler import Sampler
from malt_jax.tasks.base import Question

pytest.importorskip("torch", reason="transformers' models need torch")
pytest.importorskip("peft", reason="the cards' PEFT code needs peft")

ROLES = ("generator", "verifier", "refiner")
QUESTION = "1+2=?"
ONE_ROW = SamplerConfig(rows=1, streams=1, prefix_buckets=(64,), new_token_buckets=(32,))
LIMITS = dict(zip(ROLES, (5, 24, 9), strict=True))
CHAT_TEMPLATE = (
    "{% for message in messages %}u {{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %} a {% endif %}"
)


@dataclass(frozen=True)
class Case:
    """One configuration of a run that prints a card."""

    merged: bool = True
    trained: tuple[str, ...] = ROLES
    shared: bool = False
    full: bool = False
    chat: bool = False
    stop: bool = False
    rank: int = 4
    embedded: bool = False
    dtype: str = "float32"


CASES = {
    "defaults": Case(),
    "stop, chat template": Case(stop=True, chat=True),
    "shared, one role untrained": Case(shared=True, trained=ROLES[1:], chat=True),
    "full fine-tuning": Case(full=True, stop=True),
    "nothing trained": Case(trained=(), chat=True),
    "only adapters": Case(merged=False),
    "only adapters, stop, chat template": Case(merged=False, stop=True, chat=True),
    "only adapters, shared": Case(merged=False, shared=True, stop=True),
    "only adapters, one role untrained": Case(merged=False, trained=ROLES[:2], stop=True),
    "only adapters, nothing trained": Case(merged=False, trained=()),
    "embedded model": Case(embedded=True),
    "embedded model, only adapters": Case(embedded=True, merged=False, stop=True),
    "bfloat16": Case(dtype="bfloat16", rank=9),
}


class Exported:
    """The export of one case below a folder, as the stage `export` lays it out."""

    def __init__(self, case: Case, folder: Path):
        self.case = case
        self.model = load_model(
            "quickstart" if case.embedded else base_folder(folder / "base", case.chat),
            dtype=case.dtype,
        )
        lora = LoraConfig(rank=case.rank, alpha=2.0 * case.rank)
        weights = {
            role: self._trained(lora, seed=0 if case.shared else seed)
            for seed, role in enumerate(case.trained)
        }
        self.roles = {
            role: RoleConfig(
                role, max_new_tokens=LIMITS[role], temperature=0.0, branch=1,
                template="R {verifier} {previous} " if role == "refiner" else None,
            )
            for role in ROLES
        }  # fmt: skip
        self.weights = weights
        self.sampler = Sampler(self.model, ONE_ROW)
        self.turns = self._turns()
        if case.stop:
            # In the longest turn, whose prompt then stays the same, so that the stop is met.
            longest = max(self.turns, key=lambda name: len(self.turns[name]))
            stop = self.turns[longest][1:3]
            self.roles[longest] = replace(self.roles[longest], stop=(stop,))
            self.ends, self.before = (longest, stop), self.turns
            self.turns = self._turns()
        self.card = model_card(self._facts())
        for name, role in self.roles.items():
            trained = weights.get(name)
            export_role(
                self.model,
                None if case.full else trained,
                folder / "export" / name,
                lora=lora,
                params=trained if case.full else None,
                role=role,
                merged=case.merged,
                card=self.card,
            )

    def _trained(self, lora: LoraConfig, seed: int):
        """Weights as after training: neither factor of an adapter is zero."""
        key = jax.random.key(seed)
        start = self.model.params if self.case.full else init_adapter(self.model.spec, lora, key)
        leaves, tree = jax.tree.flatten(start)
        noise = [jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
                 for i, x in enumerate(leaves)]  # fmt: skip
        return jax.tree.unflatten(tree, [x + 0.1 * n for x, n in zip(leaves, noise, strict=True)])

    def _facts(self) -> CardFacts:
        case = self.case
        owner = (lambda role: "shared") if case.shared else (lambda role: role)
        return CardFacts(
            role="generator",
            roles=ROLES,
            templates={r: c.template or tiny.LUCK.templates[r] for r, c in self.roles.items()},
            base=self.model.path,
            revision=None,
            license=None,
            task="luck",
            seed=0,
            policies={r: f"000/{owner(r)}/sft" if r in case.trained else "base" for r in ROLES},
            sampling=self.roles,
            rank=None if case.full else case.rank,
            merged=case.merged,
            results=None,
        )

    def blocks(self, language: str) -> list[str]:
        return re.findall(rf"```{language}\n(.*?)\n```", self.card, re.DOTALL)

    def _turns(self) -> dict[str, str]:
        """What the pipeline itself says in each turn."""
        [tree] = malt_jax.search(
            self.model,
            [Question("Q1", QUESTION, "0")],
            PipelineConfig(roles=tuple(self.roles.values())),
            task=tiny.LUCK,
            adapters=self.weights,
            sampler=self.sampler,
        ).trees
        return {node.role: node.completion for node in tree.nodes}


def base_folder(folder: Path, chat: bool) -> Path:
    """A tiny model that only the tokenizer's own end token ends, so that limits are met.

    Its generation_config.json holds settings that a card must not let through.
    """
    tiny.write_model(folder)
    settings = {"eos_token_id": 2, "max_new_tokens": 3, "repetition_penalty": 9.0}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    if chat:
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text()) | {"chat_template": CHAT_TEMPLATE}
        path.write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", CASES)
def test_the_code_and_commands_of_a_card_run(name, tmp_path, monkeypatch):
    case = CASES[name]
    exported = Exported(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    said = None
    for code in exported.blocks("python"):
        names = {}
        exec(code.replace('"question": "..."', f'"question": {QUESTION!r}'), names)
        said = said or names.get("said")
        if "PeftModel" in names:
            adapters = set(case.trained)
            assert set(names["model"].peft_config) == adapters
    turns = exported.turns
    if case.merged or case.trained:
        assert said.keys() == {"question", *ROLES}
        if case.dtype == "float32":  # bfloat16 is rounded elsewhere there
            assert said == {"question": QUESTION, **turns}
    if case.stop:
        role, stop = exported.ends
        assert turns[role].endswith(stop) and len(turns[role]) < len(exported.before[role])
    elif not case.embedded:
        assert len(turns["verifier"]) > len(turns["refiner"]) > len(turns["generator"]) > 3
    for command in exported.blocks("sh"):
        check_command(command, tmp_path, case)
    requests = [
        json.loads(line) for block in exported.blocks("json") for line in block.splitlines()
    ]
    assert [r["max_tokens"] for r in requests] == ([*LIMITS.values()] if requests else [])


def check_command(command: str, folder: Path, case: Case) -> None:
    """Reads a command of a card as the program that it calls would."""
    python = f'python() {{ {sys.executable} "$@"; }}; export PYTHONPATH={Path(__file__).parents[1]}'
    tell = 'malt() { printf "%s\\0" malt "$@"; }; vllm() { printf "%s\\0" vllm "$@"; }'
    done = subprocess.run(
        ["bash", "-euc", f"{python}\n{tell}\n{command}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    program, *words = done.stdout.split("\0")[:-1]
    if program == "malt":
        assert words[0] == "export"
        parse({c.name: c for c in all_commands()}[words[0]], words[1:])
        return
    options = vllm_parser().parse_args(words)
    assert (Path(options.model_tag) / "config.json").is_file()
    assert options.enable_lora
    assert options.max_lora_rank == min(r for r in VLLM_RANKS if r >= case.rank)
    modules = dict(module.split("=") for module in options.lora_modules)
    assert tuple(modules) == case.trained
    for path in modules.values():
        adapter = json.loads((folder / path / "adapter_config.json").read_text())
        assert adapter["r"] <= options.max_lora_rank


def vllm_parser() -> argparse.ArgumentParser:
    """The arguments of `vllm serve` that cards use, as https://docs.vllm.ai/en/latest/cli/serve."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("subcommand", choices=["serve"])
    parser.add_argument("model_tag")
    parser.add_argument("--revision")
    parser.add_argument("--served-model-name", nargs="+")
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--max-lora-rank", type=int, choices=[1, 8, 16, 32, 64, 128, 256, 320, 512])
    parser.add_argument("--lora-modules", nargs="+")
    return parser


@pytest.mark.parametrize(
    ("rank", "allowed"),
    [(1, 1), (2, 8), (4, 8), (8, 8), (9, 16), (129, 256), (257, 320), (512, 512), (513, None)],
)
def test_the_rank_given_to_vllm_is_the_least_it_accepts_that_holds_the_adapter(rank, allowed):
    assert vllm_rank(rank) == allowed


FACTS = CardFacts(
    role="solo",
    roles=["solo"],
    templates={"solo": "{question}"},
    base="org/model",
    revision="abc123",
    license=None,
    task="luck",
    seed=0,
    policies={"solo": "000/solo/sft"},
    sampling={"solo": RoleConfig("solo")},
    rank=600,
    merged=True,
    results=None,
)


def test_an_adapter_beyond_vllms_ranks_gets_no_vllm_command():
    assert "vllm serve" not in model_card(FACTS)
    assert "vllm serve" in model_card(replace(FACTS, rank=512))


def test_the_base_model_is_loaded_at_the_revision_that_was_trained_on():
    card = model_card(replace(FACTS, rank=4))
    assert "from_pretrained('org/model', revision='abc123')" in card
    assert "vllm serve org/model --revision abc123" in card


def test_the_intervals_of_a_card_are_called_by_their_coverage():
    row = {"system": "sa", "label": "single agent", "calls": 1, "tokens": 4.0, "accuracy": 0.5}
    found = {"systems": [row | {"interval": [0.4, 0.6]}], "questions": 9, "confidence": 0.9}
    card = model_card(replace(FACTS, rank=4, results=found))
    assert "| 90% interval |" in card and "| single agent | 1 | 4 | 50.0 | 40.0 to 60.0 |" in card


def test_a_template_with_a_fence_of_its_own_stays_inside_its_block():
    template = "{question}\n```python\nx = 1\n```"
    card = model_card(replace(FACTS, templates={"solo": template}))
    assert f"\n````\n{template}\n````\n" in card


def test_a_local_base_model_is_named_so_that_any_folder_finds_it(tmp_path, monkeypatch):
    (tmp_path / "my models").mkdir()
    monkeypatch.chdir(tmp_path)
    card = model_card(replace(FACTS, base="my models", revision=None, rank=4))
    place = str(tmp_path / "my models")
    assert f"from_pretrained({place!r})" in card and f"vllm serve '{place}'" in card


def test_a_card_prints_no_peft_code_that_cannot_load_the_base():
    """Mistral Small 3.1 is a model of images and text to transformers, without a chat template."""
    card = model_card(replace(FACTS, rank=4, merged=False, causal=False))
    assert "use the merged models" in card and "### PEFT" not in card and "vllm serve" in card
    assert "malt export --export.merged true" in card


def test_a_card_tells_vllm_what_it_would_assume_otherwise():
    card = model_card(replace(FACTS, rank=4, longest=4096))
    assert "--max-model-len 4096" in card and '"repetition_penalty": 1.0' in card
    assert "--max-model-len" not in model_card(replace(FACTS, rank=4))
