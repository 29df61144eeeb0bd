"""Systems and rollouts, with a fake sampler whose completions depend on prompt, weights and key."""

import gc
import itertools
import json
import weakref
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.config.evaluation import EvalConfig, SystemConfig
from malt_jax.config.pipeline import PipelineConfig, RoleConfig
from malt_jax.errors import UserError
from malt_jax.evaluation.records import DrawRecord
from malt_jax.evaluation.results import SystemInfo, summarise
from malt_jax.evaluation.rollouts import RolloutContext, run_systems
from malt_jax.evaluation.statistics import draws_to_certainty, majority_vote
from malt_jax.evaluation.systems import make_systems, speaker
from malt_jax.sampling.request import Completion
from malt_jax.sampling.stats import Stats
from malt_jax.storage.jsonl import encode
from malt_jax.tasks.base import Grade, Question
from malt_jax.tree.policies import POLICIES
from malt_jax.tree.roles import make_chain

TEMPLATES = {
    "generator": "G {question}",
    "verifier": "V {question} {generator}",
    "refiner": "R {question} {generator} {verifier}",
    "retry": "T {question} {previous}",
    "debate": "D {question} {previous} [{others}]",
}
ROLES = (
    RoleConfig("generator", train="sft"),
    RoleConfig("verifier", answers=False),
    RoleConfig("refiner"),
)
PIPELINE = make_chain(PipelineConfig(ROLES), TEMPLATES)
QUESTIONS = [Question(f"q{i}", f"<{i}>", str(i)) for i in range(3)]


class Characters:
    end_ids, thoughts = (0,), None

    def prompt_ids(self, text):
        return [ord(c) for c in text]

    encode = prompt_ids

    def decode(self, ids):
        return "".join(map(chr, ids))


@dataclass
class FakeSampler:
    """Answers with a digit that is a function of prompt, weights and key; remembers every call."""

    calls: list = field(default_factory=list)
    stats: Stats = field(default_factory=Stats)

    def sample(self, requests, settings, adapter=None):
        drawn = []
        for request in requests:
            group = []
            for key in np.asarray(request.keys):
                call = (adapter, request.prompt, tuple(int(k) for k in key))
                self.calls.append(call)
                digit = ord("0") + hash(call) % 3
                group.append(Completion((digit, 0), (-0.5, -0.25), "eos"))
            drawn.append(group)
        return drawn


class DigitGrader:
    def extract(self, text):
        return text

    def grade(self, texts, questions):
        return [Grade(t, t == q.answer) for t, q in zip(texts, questions, strict=True)]


IDENTITIES = {(p, r): f"{p}/{r}" if p != "base" else "base" for p in POLICIES for r in TEMPLATES}
# The generator is SFT only: its MALT weights are its SFT weights.
IDENTITIES["malt", "generator"] = IDENTITIES["sft", "generator"]


def load(identity):
    return {"base": None, "sft": "S", "malt": "M", "star": "T"}[identity.partition("/")[0]]


def roll_out(config=EvalConfig(), weights=load, sampler=None, certain=False):
    systems = make_systems(config, PIPELINE, TEMPLATES)
    sampler = sampler or FakeSampler()
    tokenizer, grader = Characters(), DigitGrader()
    context = RolloutContext(
        sampler, IDENTITIES, weights, tokenizer, grader, seed=0, context=1 << 20
    )
    records, seconds = run_systems(systems, QUESTIONS, context, stop_when_certain=certain)
    return systems, records, seconds, sampler


def test_every_published_system_is_standard_with_its_number_of_calls():
    systems = {s.name: s for s in make_systems(EvalConfig(), PIPELINE, TEMPLATES)}
    calls = {name: system.calls for name, system in systems.items()}
    assert calls == {
        "sa": 1,
        "self-correction": 3,
        "debate": 9,
        "ma": 3,
        "star-sa": 1,
        "star-ma": 3,
        "malt": 3,
        "malt-untrained-generator": 3,
        "malt-untrained-verifier": 3,
        "malt-untrained-refiner": 3,
        "malt-generator": 1,
        "malt-generator-refiner": 2,
        "malt-generator-verifier": 2,
    }
    assert systems["sa"].draws == 9


def test_calls_shared_by_systems_are_sampled_once():
    _, records, _, sampler = roll_out()
    assert len(set(sampler.calls)) == len(sampler.calls)
    counted = sum(r.calls for rows in records.values() for r in rows)
    assert len(sampler.calls) < counted


def test_draws_end_where_no_vote_can_change_and_the_table_keeps_its_votes():
    systems, full, _, sampler = roll_out()
    _, fewer, _, sparing = roll_out(certain=True)
    assert len(set(sparing.calls)) == len(sparing.calls) < len(sampler.calls)
    for name, rows in fewer.items():
        for row, whole in zip(rows, full[name], strict=True):
            assert row == (whole if row.turns else DrawRecord.left_out(row.question_id, row.draw))
    infos = {s.name: SystemInfo(s.label, s.votes) for s in systems}
    tables = [summarise(draws, infos, "sa@9")["systems"] for draws in (full, fewer)]
    for row, whole in zip(tables[1], tables[0], strict=True):
        for same in ("name", "calls", "accuracy", "tests", "equal_calls_baseline"):
            assert row[same] == whole[same]
        assert "pass_at_k" in whole
        # Every call of the fake sampler writes two tokens, so that the estimate is exact.
        assert row["tokens"] == pytest.approx(whole["tokens"])
        same_tokens = [r["equal_tokens"]["row"] for r in (row, whole) if "equal_tokens" in r]
        assert len(set(same_tokens)) <= 1
    for name, rows in fewer.items():
        left_out = sum(not row.turns for row in rows)
        most = max((row for row in tables[1] if row["system"] == name), key=lambda r: r["votes"])
        assert most.get("left_out", 0) == left_out
        assert ("pass_at_k" in most) == (not left_out)


@given(st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=9), st.integers(0, 4))
def test_a_vote_is_certain_where_every_end_gives_the_same_one(drawn, left):
    ends = itertools.product(["a", "b", "c", "d", None], repeat=left)
    votes = {majority_vote([*drawn, *end]) for end in ends}
    missing = draws_to_certainty(drawn, len(drawn) + left)
    assert (missing == 0) == (len(votes) == 1)
    # So many draws are enough if they all agree with the majority.
    best = majority_vote(drawn).answer or "a"
    assert draws_to_certainty([*drawn, *[best] * missing], len(drawn) + left) == 0


def test_the_first_three_drafts_of_sa_are_those_of_the_untrained_pipeline():
    _, records, _, _ = roll_out()
    drafts = {(r.question_id, r.draw): r.turns[0].text for r in records["sa"]}
    for record in records["ma"]:
        assert record.turns[0].text == drafts[record.question_id, record.draw]


def test_records_hold_calls_tokens_and_every_turn():
    systems, records, seconds, _ = roll_out()
    for system in systems:
        rows = records[system.name]
        assert len(rows) == len(QUESTIONS) * system.draws
        for row in rows:
            assert row.calls == system.calls == len(row.turns)
            assert row.tokens == 2 * row.calls
            assert all(t.logprob == -0.75 for t in row.turns)
        assert seconds[system.name] >= 0


def test_the_prediction_is_that_of_the_last_answering_turn():
    _, records, _, _ = roll_out()
    for row in records["malt-generator-verifier"]:
        assert row.prediction == row.turns[0].text  # a verifier does not answer
    for row in records["malt"]:
        assert row.prediction == row.turns[2].text


def test_debating_agents_read_each_other_and_vote():
    _, records, _, _ = roll_out()
    row = records["debate"][0]
    first = [row.turns[agent * 3].text for agent in range(3)]
    shown = row.turns[4].prompt  # agent 1, round 2
    assert shown == f"D <0> {first[1]} [{first[0]}\n{first[2]}]"
    finals = [row.turns[agent * 3 + 2].text for agent in range(3)]
    assert row.prediction in finals


def test_each_identity_is_loaded_once_per_turn_and_freed_before_the_next():
    loaded, alive = [], []

    class Weights:
        """Loaded weights; equal identities draw equal completions."""

        def __init__(self, identity):
            self.identity = identity

        def __hash__(self):
            return hash(self.identity)

        def __eq__(self, other):
            return self.identity == other.identity

    class ForgetfulSampler(FakeSampler):
        def sample(self, requests, settings, adapter=None):
            drawn = super().sample(requests, settings, adapter)
            self.calls.clear()  # else the fake would keep the weights alive
            return drawn

    def weights(identity):
        assert [one() for one in alive if one() is not None] == []
        found = Weights(identity)
        loaded.append(identity)
        alive.append(weakref.ref(found))
        return found

    systems, _, _, _ = roll_out(weights=weights, sampler=ForgetfulSampler())
    gc.collect()
    assert all(one() is None for one in alive)
    expected = [
        {IDENTITIES[s.turns[t].policy, s.turns[t].role.name] for s in systems if t < len(s.turns)}
        for t in range(3)
    ]
    assert len(loaded) == sum(map(len, expected))
    for identities in expected:
        assert set(loaded[: len(identities)]) == identities
        del loaded[: len(identities)]


def test_a_draw_is_one_line_of_json_and_is_read_back_as_it_was():
    _, records, _, _ = roll_out()
    for record in records["malt"]:
        line = encode(record.to_record())
        assert list(json.loads(line)) == [
            *("question_id", "draw", "prediction", "correct", "calls", "tokens", "turns")
        ]
        assert DrawRecord.from_record(json.loads(line)) == record
        assert encode(DrawRecord.from_record(json.loads(line)).to_record()) == line


@pytest.mark.parametrize("field", ["question_id", "draw", "prediction", "correct", "turns"])
def test_a_draw_without_a_field_is_refused_by_its_name(field):
    _, records, _, _ = roll_out()
    record = records["malt"][0].to_record()
    del record[field]
    with pytest.raises(ValueError, match=f"without '{field}'"):
        DrawRecord.from_record(record)


@pytest.mark.parametrize("turn", [{"role": "generator"}, "text", None])
def test_a_malformed_turn_is_refused(turn):
    _, records, _, _ = roll_out()
    record = records["malt"][0].to_record() | {"turns": [turn]}
    with pytest.raises(ValueError, match="malformed turn"):
        DrawRecord.from_record(record)


def test_results_have_an_equal_call_baseline_for_every_row():
    systems, records, seconds, _ = roll_out()
    infos = {s.name: SystemInfo(s.label, s.votes, seconds[s.name]) for s in systems}
    results = summarise(records, infos, "sa@9")
    rows = {row["name"]: row for row in results["systems"]}
    for row in rows.values():
        assert row["equal_calls_baseline"] in rows
        assert rows[row["equal_calls_baseline"]]["calls"] == row["calls"]


def test_a_users_own_system_is_a_line_of_config():
    mine = SystemConfig("mine", ("generator:base", "refiner:malt"), votes=(1,))
    systems, records, _, _ = roll_out(EvalConfig(systems=("ma",), extra=(mine,)))
    assert [s.name for s in systems] == ["sa", "ma", "mine"]
    assert all(len(r.turns) == 2 for r in records["mine"])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (EvalConfig(systems=("malted",)), "eval.systems.0: 'malted'"),
        (EvalConfig(extra=(SystemConfig("x", ("generator:best",)),)), "generator:best"),
        (EvalConfig(extra=(SystemConfig("x", ("poet:base",)),)), "'poet'"),
        (EvalConfig(extra=(SystemConfig("x", ("verifier:base",)),)), "answers"),
        (EvalConfig(extra=(SystemConfig("sa", ("generator:base",)),)), "twice"),
    ],
)
def test_a_wrong_system_is_refused_by_name(config, words):
    with pytest.raises(UserError) as error:
        make_systems(config, PIPELINE, TEMPLATES)
    assert words in str(error.value)


def test_a_chain_may_begin_with_a_role_that_does_not_answer():
    """The single agent is then the first role that answers, and no further turn lacks its text."""
    roles = (
        RoleConfig("planner", template="P {question}", answers=False),
        RoleConfig("solver", template="S {question} {planner}"),
        RoleConfig("critic", template="C {question} {solver}", answers=False),
        RoleConfig("editor", template="E {question} {critic}"),
    )
    pipeline = make_chain(PipelineConfig(roles), TEMPLATES)
    templates = {**TEMPLATES, "judge": "J {question} {generator}"}
    systems = {s.name: s for s in make_systems(EvalConfig(models=("m",)), pipeline, templates)}
    for name in ("sa", "self-correction", "debate", "m"):
        assert systems[name].turns[0].role.name == "solver"
    assert "star-sa" not in systems and "malt-planner" not in systems
    last = systems["malt-planner-solver-critic"].turns[-1].role
    assert last.template == "J {question} {solver}" and speaker("judge", pipeline).name == "critic"
    star = EvalConfig(extra=(SystemConfig("x", ("solver:star",)),))
    with pytest.raises(UserError, match="that one does not answer"):
        make_systems(star, pipeline, templates)


def test_other_models_are_called_by_as_much_of_their_paths_as_tells_them_apart():
    paths = ("runs/a/export/generator", "runs/b/export/generator/", "Org/Model", "../x")
    names = [s.name for s in make_systems(EvalConfig(("sa",), models=paths), PIPELINE, TEMPLATES)]
    assert names[1:] == ["a-export-generator", "b-export-generator", "Org-Model", "x"]


def test_two_rows_that_are_each_others_baseline_have_one_test():
    _, records, _, _ = roll_out(EvalConfig(systems=("malt",)))
    infos = {"sa": SystemInfo("sa", (9,)), "malt": SystemInfo("malt", (3,))}
    rows = {row["name"]: row for row in summarise(records, infos, "malt@3")["systems"]}
    one, other = rows["malt@3"]["tests"]["sa@9"], rows["sa@9"]["tests"]["malt@3"]
    assert one["p_holm"] == other["p_holm"] == pytest.approx(one["p"])


def test_a_role_may_have_the_name_of_a_further_turn():
    """It is then that role in every system, by its own weights; the further turn has no system."""
    roles = (
        RoleConfig("solver", template="S {question}"),
        RoleConfig("critic", template="C {question} {solver}", answers=False),
        RoleConfig("judge", template="J {question} {critic}"),
        RoleConfig("debate", template="B {question} {judge}"),
    )
    pipeline = make_chain(PipelineConfig(roles), {**TEMPLATES, "judge": "other"})
    systems = make_systems(EvalConfig(), pipeline, {**TEMPLATES, "judge": "other"})
    assert "debate" not in {system.name for system in systems}
    said = [turn.role for system in systems for turn in system.turns]
    assert {role.template for role in said if role.name == "judge"} == {"J {question} {critic}"}
    assert speaker("judge", pipeline).name == "judge"
