"""Thinking models: their templates, their thoughts, and budgets that end a thought."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import malt_jax as malt
from malt_jax.answering.turns import TextStream
from malt_jax.commands.launch import check_chat
from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.config.thinking import ThinkingConfig
from malt_jax.data.role_data import tree_counts
from malt_jax.errors import UserError
from malt_jax.evaluation.records import DrawRecord, TurnRecord
from malt_jax.evaluation.results import SystemInfo, summarise
from malt_jax.models.thoughts import ThoughtFormat, WrittenThoughts, find_format
from malt_jax.models.tokenizer import load_tokenizer
from malt_jax.report.prompts import Templates
from malt_jax.report.trees import Uses, compact
from malt_jax.sampling.memory import CacheShape
from malt_jax.sampling.reference import _closing
from malt_jax.sampling.request import Completion, SamplingParams, ThoughtBudget
from malt_jax.sampling.sampler import Sampler
from malt_jax.sampling.scheduler import Growth, PartialCompletion, Scheduler
from malt_jax.sampling.thoughts import DRAWN as DRAWN_TOKEN
from malt_jax.sampling.thoughts import advance, budget_arrays, first_thoughts, forced_token
from malt_jax.tree.expand import sampling_params
from malt_jax.tree.node import Tree
from malt_jax.tree.outside import complete
from malt_jax.tree.roles import make_chain
from malt_jax.tree.thoughts import read_completion
from test_sampling import DRAWN, SMALL, assert_same, make_model, make_requests, spec
from tiny import LUCK
from tiny_models import CHATML, save_thinking_tokenizer, save_tokenizer

# TRL ships the published templates unchanged, to recognise a model by them: its README names their
# checkpoints (Qwen/Qwen3-*, deepseek-ai/DeepSeek-R1-Distill-*, openai/gpt-oss-*).
PUBLISHED = {
    "qwen3": "qwen3",
    "r1": "deepseek_r1_distill",
    "gpt-oss": "gptoss",
    "llama3.1": "llama3_1",
}


def published(name: str) -> str:
    found = find_spec("trl")
    if found is None or found.submodule_search_locations is None:
        pytest.skip("trl is not installed, which holds the published templates")
    folder = Path(found.submodule_search_locations[0], "chat_templates")
    return (folder / f"{PUBLISHED[name]}.jinja").read_text()


def make_tokenizer(folder: Path, template: str | None):
    """A tokenizer with the markers, which answers like the model of a template."""
    save_thinking_tokenizer(folder, template)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    return make_tokenizer(tmp_path_factory.mktemp("qwen"), published("qwen3"))


SETTINGS = [
    ("qwen3", {}),
    ("qwen3", {"enable_thinking": False}),
    ("r1", {}),
    ("gpt-oss", {}),
    ("gpt-oss", {"reasoning_effort": "low", "model_identity": "You are MALT."}),
    ("llama3.1", {"date_string": "1 Jan 2025"}),
]


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize(("name", "arguments"), SETTINGS)
def test_published_thinking_templates_render_as_transformers_renders_them(
    name, arguments, system, tmp_path, monkeypatch
):
    from transformers import AutoTokenizer

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 7, 26)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    own = make_tokenizer(tmp_path, published(name))
    own = own if system is None and not arguments else own.with_chat(system, arguments)
    conversation = [] if system is None else [{"role": "system", "content": system}]
    conversation.append({"role": "user", "content": "2+2?"})
    expected = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=True, **arguments
    )
    assert own.render("2+2?") == expected
    assert own.prompt_ids("2+2?") == own.encode(expected)


def said(tokenizer, text: str, finish: str = "eos"):
    """A completion of this text, read as the tokenizer's model writes it."""
    end = tokenizer.end_ids[:1] if finish == "eos" else ()
    return read_completion((*tokenizer.encode(text), *end), finish, tokenizer, tokenizer.thoughts)


@pytest.mark.parametrize(
    ("name", "thought", "answer", "unclosed"),
    [
        ("qwen3", "<think>\n2 and 2\n</think>\n\n", "4", False),
        ("qwen3", "<think>\nhmm, 4", "", True),
        ("qwen3", None, "The answer is 4", False),
        ("qwen3", "\n<think>\n2 and 2\n</think>\n\n", "4", False),
        ("qwen3", None, "</think>The answer is 4", False),
        ("qwen3", "The answer <think>or so</think> ", "is 4", False),
        ("r1", "2 and 2\n</think>\n\n", "4", False),
        ("r1", "2 and 2 is 4", "", True),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>2+2<|end|><|start|>assistant<|channel|>final<|message|>",
            "4",
            False,
        ),
        ("gpt-oss", "<|channel|>analysis<|message|>2+2 is 4<|end|>", "", True),
        ("gpt-oss", "<|channel|>final<|message|>", "4", False),
    ],
)
def test_the_answer_is_what_follows_the_thought(name, thought, answer, unclosed, tmp_path):
    found = said(make_tokenizer(tmp_path, published(name)), (thought or "") + answer)
    assert found[:3] == (answer, thought, unclosed)


# The end of OLMo 3 Think's template, whose tokenizer has no such token, as two of its spellings.
OLMO_THINK = CHATML.replace("assistant\\n", "assistant\\n<think>")
SPLIT = {"</th": 1, "ink>4": 2, "ink>\n\n": 3, "2 and 2": 4, "4": 5}


@pytest.mark.parametrize(
    ("thought", "answer", "unclosed"),
    [("2 and 2</think>\n\n", "4", False), ("2 and 2</think>", "4", False), ("2 and 2", "", True)],
)
def test_markers_that_are_no_tokens_are_read_as_text(thought, answer, unclosed, tmp_path):
    save_tokenizer(tmp_path / "own", OLMO_THINK)
    own = load_tokenizer(tmp_path / "own")
    assert own.thoughts.inside and said(own, thought + answer)[:3] == (answer, thought, unclosed)
    sent: list[str] = []
    stream = TextStream(own, own.thoughts, 0, lambda _, new: sent.append(new))
    for token in own.encode(thought + answer):
        stream.add([token])
    assert "".join(sent) == answer
    begun = replace(own.thoughts, inside=False)
    for text, start in (("", None), (" <thi", None), ("<think>a", None), ("No.", 0)):
        assert begun.answer_start(own.encode(text)) == start
    budget = chain(thinking=ThinkingConfig(budget=8))
    with pytest.raises(UserError, match=r"thinking\.budget: .* </think> is no token"):
        check_chat(make_chain(PipelineConfig(budget), LUCK.templates), own)


def test_a_token_of_marker_and_answer_belongs_to_both():
    names = {index: text for text, index in SPLIT.items()}
    read = SimpleNamespace(decode=lambda ids, **_: "".join(names[i] for i in ids), end_ids=())
    form = WrittenThoughts("<think>", "</think>", True, read.decode)
    for ids, text, thought in (([4, 1, 2], "4", "2 and 2</think>"),
                               ([4, 1, 3, 5], "4", "2 and 2</think>\n\n")):  # fmt: skip
        assert read_completion(ids, "length", read, form)[:3] == (text, thought, False)


def test_a_template_argument_moves_where_a_thought_begins(qwen, tmp_path):
    quiet = qwen.with_chat(None, {"enable_thinking": False})
    assert not qwen.thoughts.inside and not quiet.thoughts.inside
    assert make_tokenizer(tmp_path, published("r1")).thoughts.inside
    assert qwen.with_chat("S", {}) is qwen.with_chat("S", {}) is not qwen


def test_a_channel_ends_a_message_and_not_the_turn(tmp_path):
    tokenizer = make_tokenizer(tmp_path, published("gpt-oss"))
    assert not set(tokenizer.encode("<|end|>")) & set(tokenizer.end_ids)


def test_a_template_that_only_cuts_thoughts_off_speaks_of_them(tmp_path):
    """As that of Llama-3.1-Nemotron-Nano, whose markers are no tokens."""
    cuts = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    assert cuts != CHATML
    tokenizer = make_tokenizer(tmp_path, cuts)
    thought = "<think>\n2 and 2\n</think>\n\n"
    assert said(tokenizer, f"{thought}4")[:3] == ("4", thought, False)
    assert said(tokenizer, "<think>\nit is 18, but let me check")[::2] == ("", True)
    assert said(tokenizer, "The answer is 4").text == "The answer is 4"


def test_templates_without_thoughts_leave_completions_whole(tmp_path):
    tokenizer = make_tokenizer(tmp_path, CHATML)
    assert tokenizer.thoughts is None
    assert said(tokenizer, "<think>a</think>b").thought is None


@pytest.fixture(scope="module")
def sampler():
    return Sampler(make_model(spec()), SMALL)


def test_a_budget_closes_thoughts_as_the_plain_sampler_does(sampler):
    model, requests = sampler.model, make_requests(3, 2)
    closing = (9, 11, 12, 13)
    for inside, temperature in ((True, 0.0), (True, 1.0), (False, 1.0)):
        budget = ThoughtBudget(3, begin=33, end=(11, 12), closing=closing, inside=inside)
        params = replace(DRAWN, thought=budget, temperature=temperature, end_ids=(60, 5))
        drawn = sampler.sample(requests, params)
        assert_same(model, requests, params, drawn)
        long = [c.tokens for group in drawn for c in group if len(c.tokens) >= 7]
        if inside:  # none of these ends its thought by itself, so that all are closed
            assert long and {tokens[3:7] for tokens in long} == {closing}


def test_budgets_and_stop_texts_know_thoughts_at_the_beginning_only():
    blank, begin, end, other, closing = 0, 1, (2, 3), 4, (2, 3)
    rng = np.random.default_rng(0)
    begun = 0
    for inside in (False, True):
        budget = ThoughtBudget(2, begin, end, closing, inside, frozenset({blank}))
        form = ThoughtFormat(begin, end, "", inside, frozenset({blank}))
        arrays, start = jax.tree.map(
            jnp.asarray, (budget_arrays(budget), first_thoughts(budget, 1))
        )
        for _ in range(40):
            drawn = rng.choice([blank, begin, *end, other], size=7).tolist()
            device, plain, state = [], [], start
            for length, token in enumerate(drawn):
                found = jax.jit(forced_token)(arrays, state, jnp.array([length], jnp.int32))
                device.append(int(found[0]) if found[0] != DRAWN_TOKEN else token)
                state = jax.jit(advance)(arrays, state, jnp.array(device[-1:], jnp.int32), found)
                plain.append(_closing(plain, budget).get(length, token))
            assert device == plain
            first = next((token for token in drawn if token != blank), None)
            answers_at_once = not inside and first not in (None, begin)
            assert (form.answer_start(drawn) == 0) == answers_at_once
            begun += device != drawn
    assert begun > 20


def test_stop_texts_count_after_the_thought_only(qwen):
    for text, kept in (
        ("\n<think>\nStop\n</think>\n\nNo. Stop now", "\n<think>\nStop\n</think>\n\nNo. Stop"),
        ("<think>\nStop", "<think>\nStop"),
        ("\nStop <think>", "\nStop"),  # no thought: it is not at the beginning
    ):
        ids, params = qwen.encode(text), SamplingParams(stop=("Stop",), thoughts=qwen.thoughts)
        shape = CacheShape(rows=1, entries=1, siblings=1, prefix_tokens=8, new_tokens=64)
        for size in (1, 3, len(ids)):
            scheduler = Scheduler([], params, shape)
            one = PartialCompletion(0, 0)
            for first in range(0, len(ids), size):
                if one.finish is None:
                    one.tokens += ids[first : first + size]
                    one.logprobs += [0.0] * len(ids[first : first + size])
                    scheduler.end_at_stop_text(Growth(one, first), qwen)
            assert qwen.decode(one.tokens, skip_special=False) == kept


def test_a_stream_of_tokens_sends_what_the_turn_keeps(qwen):
    for text in (
        "\n<think>\nhm</think>\n\n4",
        "</think> is 4",
        "<think>a</think>\n<think>b</think>4",
    ):
        sent, ids = [], qwen.encode(text)
        stream = TextStream(qwen, qwen.thoughts, 0, lambda _, new: sent.append(new))  # noqa: B023
        for token in ids:
            stream.add([token])
        assert "".join(sent) == read_completion(ids, "length", qwen, qwen.thoughts).text != ""


def test_calls_without_a_budget_keep_their_program_and_completions(sampler):
    requests = make_requests(3, 2)
    budget = ThoughtBudget(3, begin=33, end=(11,), closing=(11,), inside=True)
    before = sampler.sample(requests, DRAWN)
    sampler.sample(requests, replace(DRAWN, thought=budget))
    count = sampler.stats.executables
    sampler.sample(requests, replace(DRAWN, thought=replace(budget, tokens=5, closing=(2, 11))))
    assert sampler.sample(requests, DRAWN) == before and sampler.stats.executables == count


class Scripted:
    """A sampler whose completions are texts, the same for every request."""

    def __init__(self, tokenizer, *texts: str):
        self.tokenizer, self.texts, self.prompts = tokenizer, list(texts), []

    def sample(self, requests, params, adapter=None, on_tokens=None, siblings=0):
        ids = (*self.tokenizer.encode(self.texts.pop(0)), params.end_ids[0])
        self.prompts.append(self.tokenizer.decode(requests[0].prompt, skip_special=False))
        one = Completion(ids, (-1.0,) * len(ids), "eos")
        return [[one] * len(request.keys) for request in requests]


def search(tokenizer, roles, *texts: str):
    """A tree of these roles with these completions, and the prompts that were asked."""
    sampler = Scripted(tokenizer, *texts)
    model = SimpleNamespace(spec=SimpleNamespace(context=4096), tokenizer=tokenizer)
    forest = malt.search(
        model, LUCK.load("train", limit=1), PipelineConfig(roles), task=LUCK, sampler=sampler
    )
    return forest, sampler.prompts


def chain(**first):
    small = {"branch": 1, "max_new_tokens": 64}
    writer = RoleConfig("writer", template="W {question}", **small, **first)
    return (writer, RoleConfig("refiner", template="R {question} {writer}", **small))


def test_later_roles_read_the_answer_alone_unless_thoughts_are_passed_on(qwen):
    texts = ("<think>\nhmm\n</think>\n\nsix", "<think>\nno\n</think>\n\nseven")
    forest, prompts = search(qwen, chain(), *texts)
    assert "six" in prompts[1] and "hmm" not in prompts[1]
    (tree,) = forest.trees
    assert [node.completion for node in tree.nodes] == ["six", "seven"]
    assert [node.full_text for node in tree.nodes] == list(texts)
    # Training reads token ids, so that thoughts are imitated with their answers.
    assert tree.nodes[0].token_ids == (*qwen.encode(texts[0]), qwen.end_ids[0])
    assert Tree.from_record(json.loads(json.dumps(tree.to_record()))) == tree
    _, prompts = search(qwen, chain(thinking=ThinkingConfig(pass_on=True)), *texts)
    assert "<think>\nhmm\n</think>\n\nsix" in prompts[1]


def test_each_role_has_its_own_system_message_and_template_arguments(qwen):
    roles = chain(system="Be brief.", chat_template_kwargs={"enable_thinking": False})
    _, prompts = search(qwen, roles, "six", "seven")
    assert prompts[0].startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert prompts[0].endswith("<think>\n\n</think>\n\n")
    assert "system" not in prompts[1] and "<think>" not in prompts[1]


def test_a_thought_that_is_not_closed_is_no_answer_and_is_counted(qwen):
    # An empty text has an even number of vowels, which this grader calls right.
    forest, prompts = search(qwen, chain(), "<think>\nsix", "<think>\nseven, or so")
    (tree,) = forest.trees
    assert [(n.parsed, n.correct, n.reward) for n in tree.nodes] == [
        (None, False, None), (None, False, 0.0)
    ]  # fmt: skip
    assert all(node.unclosed for node in tree.nodes) and "six" not in prompts[1]
    assert tree_counts([tree])["unclosed"] == 2
    data = malt.label(forest)
    assert not any(learned.sft for learned in data.values())

    def draw(unclosed: bool) -> DrawRecord:
        turn = TurnRecord(
            "g", "base", "p", "", 3, -1.0, "length", None, False, None, "hm", unclosed
        )
        again = TurnRecord(**turn.to_record())
        assert again == turn
        return DrawRecord(f"q{unclosed}", 0, None, False, (turn,))

    found = summarise({"sa": [draw(True), draw(False)]}, {"sa": SystemInfo("single")}, "sa")
    assert found["systems"][0]["unclosed"] == 1


def test_the_report_keeps_a_thought_apart_from_the_text(qwen):
    forest, _ = search(qwen, chain(), "<think>\nhmm\n</think>\n\nsix", "seven")
    shown = compact(forest.trees[0], Uses(), Templates())["nodes"]
    assert shown[0]["thought"].startswith("<think>") and shown[0]["text"] == "six"
    assert "thought" not in shown[1]


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ({"thinking": ThinkingConfig(budget=60)}, "closing a thought takes"),
        ({"chat_template_kwargs": {"enable_thinkin": False}}, "is not an argument of the chat"),
        ({"chat_template_kwargs": {"messages": []}}, "is not an argument of the chat"),
        # The variable of a loop, a word of the text, and a special token.
        ({"chat_template_kwargs": {"message": ""}}, "is not an argument of the chat"),
        ({"chat_template_kwargs": {"assistant": ""}}, "is not an argument of the chat"),
        ({"chat_template_kwargs": {"eos_token": ""}}, "is not an argument of the chat"),
    ],
)
def test_settings_that_do_not_fit_the_template_are_refused_by_name(role, words, qwen):
    with pytest.raises(UserError, match=r"pipeline\.roles\.0\.(thinking|chat)") as caught:
        check_chat(make_chain(PipelineConfig(chain(**role)), LUCK.templates), qwen)
    assert words in str(caught.value)


def test_models_without_thoughts_or_template_refuse_the_settings_of_thinking_models(tmp_path):
    budget = chain(thinking=ThinkingConfig(budget=8))
    plain = make_tokenizer(tmp_path / "plain", CHATML)
    with pytest.raises(UserError, match=r"roles\.0\.thinking\.budget: .* writes no thoughts"):
        check_chat(make_chain(PipelineConfig(budget), LUCK.templates), plain)
    bare = make_tokenizer(tmp_path / "bare", None)
    for field in ({"system": "S"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        with pytest.raises(UserError, match="no chat template"):
            check_chat(make_chain(PipelineConfig(chain(**field)), LUCK.templates), bare)


def test_a_budget_is_written_with_its_conclusion(qwen):
    thinking = ThinkingConfig(budget=8, conclusion="Time is up.")
    role = make_chain(PipelineConfig(chain(thinking=thinking)), LUCK.templates).roles[0]
    budget = sampling_params(role, qwen).thought
    assert qwen.decode(budget.closing, skip_special=False) == "Time is up.\n</think>\n\n"
    assert np.array_equal(budget.end, qwen.encode("</think>"))


def test_imported_trees_have_the_prompts_and_thoughts_of_a_search(qwen):
    settings = {"system": "Be brief.", "thinking": ThinkingConfig(pass_on=True)}
    roles = chain(**settings)
    texts = ("<think>\nhmm\n</think>\n\nsix", "<think>\nno\n</think>\n\nseven")
    forest, _ = search(qwen, roles, *texts)
    (tree,) = forest.trees
    [question] = LUCK.load("train", limit=1)
    pipeline = make_chain(PipelineConfig(roles), {})
    bare = [
        {"id": node.id, "completion": text} for node, text in zip(tree.nodes, texts, strict=True)
    ]
    full = [node.to_record() for node in tree.nodes]
    for nodes in (bare, full):
        made = complete(
            {"question_id": question.id, "nodes": nodes}, question, pipeline, qwen, 4096
        )
        for own, node in zip(made.nodes, tree.nodes, strict=True):
            for name in ("prompt", "prompt_ids", "completion", "thought", "unclosed", "token_ids"):
                assert getattr(own, name) == getattr(node, name), name
    other = make_chain(PipelineConfig(chain(thinking=ThinkingConfig(pass_on=True))), {})
    with pytest.raises(ValueError, match="other prompt_ids"):
        complete({"question_id": question.id, "nodes": full}, question, other, qwen, 4096)
    full[0]["thought"] = "<think>another</think>"
    with pytest.raises(ValueError, match="to this model's tokenizer"):
        complete({"question_id": question.id, "nodes": full}, question, pipeline, qwen, 4096)


def test_a_template_that_only_opens_a_thought_speaks_of_it():
    """As that of some fine-tuned models, whose prompts end in `<think>`."""
    vocabulary = {"<think>": 1, "</think>": 2}
    found = find_format(
        "... <|assistant|><think>\n", vocabulary, lambda: "<|assistant|><think>\n", list, str
    )
    assert found is not None and found.inside
    assert find_format("... <|assistant|>", vocabulary, lambda: "", list, str) is None
