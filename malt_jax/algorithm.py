"""MALT on one page (arXiv 2412.01928): search -> values -> role data -> SFT -> DPO.

    forest = search(model, questions)            trees of g -> v -> r, graded at their leaves
    data = label(forest)                         each role's SFT examples and DPO pairs
    policies = train(model, data)                each role's weights
    forest = search(model, questions, adapters=policies, round=1)         and so on

Pure functions over typed records (`tree.node`, `data.examples`), which a run directory calls (with
`search.streaming` another form of `search`). docs/method.md has the formulas, with their sources.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from jax.sharding import Mesh

from malt_jax.credit.rules import get_rule, in_training
from malt_jax.credit.signals import Signals
from malt_jax.data.examples import EXAMPLES
from malt_jax.data.role_data import DataConfig, RoleData, by_policy, policy_name, role_data
from malt_jax.models.model import Model
from malt_jax.sampling.sampler import Sampler, samplers_of
from malt_jax.tasks import get_task
from malt_jax.tasks.base import Question, Task
from malt_jax.training import fit
from malt_jax.training.loop import OnStep, TrainOutcome
from malt_jax.training.saver import Saver
from malt_jax.training.step import Trainable
from malt_jax.training.weights import LoraConfig, initial_weights, start_by_policy
from malt_jax.tree import adaptive
from malt_jax.tree.expand import expand
from malt_jax.tree.grading import grade
from malt_jax.tree.node import Forest
from malt_jax.tree.prompts import Overflow
from malt_jax.tree.roles import Chain, PipelineConfig, check_loaded, make_chain, of_role
from malt_jax.tree.values import Backup, value_forest


def search(
    model: Model | Mapping[str, Model],
    questions: Sequence[Question],
    pipeline: Chain | PipelineConfig | None = None,
    *,
    task: Task | str = "gsm8k",
    adapters: Mapping[str, Any] | None = None,
    seed: int = 0,
    round: int | str = 0,
    backup: Backup = "mean",
    softness: float = 0.25,
    threshold: float = 0.5,
    sampler: Sampler | Mapping[str, Sampler] | None = None,
    overflow: Overflow = "refuse",
    spare: int = 0,
    on_level: Callable[[str, int], None] = lambda role, completions: None,
) -> Forest:
    """One valued tree per question.

    `model`: the base of all roles, or each role's by name. `pipeline`: the chain of roles, by
    default generator, verifier and refiner with n = 3 branches each and the prompts of `task`,
    whose grader gives the rewards. `adapters`: each role's trained policy; the base where there is
    none. The same arguments give the same trees, in whatever order the questions come.
    `spare`: siblings of each prefix that go to the questions whose outcomes differ most, so that a
    tree depends on the others (`tree.adaptive`). `on_level` is called at each role's turn.
    """
    task = get_task(task) if isinstance(task, str) else task
    if not isinstance(pipeline, Chain):
        check_loaded(pipeline or PipelineConfig(), None, adapters or {}, model)
        pipeline = make_chain(pipeline, task.templates)
    # Paper, section 3.1. From each question q sample n drafts g_i ~ G(. | q), from each draft n
    # critiques v_ij ~ V(. | q, g_i), and from each critique n answers r_ijk ~ R(. | q, g_i, v_ij):
    # n + n^2 + n^3 completions and n^3 trajectories.
    sampled = partial(
        expand, model, sampler or samplers_of(model), questions, pipeline, adapters=adapters or {},
        seed=seed, round=round, overflow=overflow, on_level=on_level)  # fmt: skip
    # Section 3.2. Only outcomes are rewarded: T reads the answer of a leaf, 1[T(r_ijk) = a*].
    graded = partial(grade, questions=questions, grader=task.grader)
    forest = adaptive.grow(sampled, graded, pipeline, spare) if spare else graded(sampled())
    # Backed up the tree: V(r_ijk) = reward, V(v_ij) = mean_k V(r_ijk), V(g_i) = mean_j V(v_ij).
    return value_forest(forest, backup, softness, threshold)


def label(
    forest: Forest,
    selection: DataConfig | None = None,
    *,
    rule: str | None = None,
    seed: int = 0,
    signals: Signals | None = None,
    threshold: float = 0.5,
) -> dict[str, RoleData]:
    """What each role learns from: SFT examples, DPO pairs, KTO and policy-gradient examples.

    Paper, section 3.3. A node is positive iff V > theta = 0.5, strictly; `Node.label` says so.
    SFT imitates the positive nodes of a role. DPO prefers a positive node to a negative sibling,
    that is, under the same prefix: q for the generator, (q, g) for the verifier, (q, g, v) for the
    refiner. `selection` says which examples and pairs, or `rule`, a name of `credit.rules` by which
    `train` then trains; another one there is a ValueError. `seed` draws among the pairs. `signals`:
    the forest's, or they are computed. `threshold`: the theta that the forest was searched with.
    """
    if rule is not None and selection:
        raise ValueError("give a selection or the name of a rule, not both")
    chosen = get_rule(rule).selection() if rule is not None else selection or DataConfig()
    return role_data(forest.trees, forest.roles, chosen, seed, signals, threshold, rule)


def train(
    model: Model | Mapping[str, Model],
    data: Mapping[str, RoleData],
    *,
    pipeline: PipelineConfig | None = None,
    rule: str | None = None,
    sharing: str = "adapters",
    lora: LoraConfig | None = None,
    sft: fit.SftConfig | None = None,
    dpo: fit.DpoConfig | None = None,
    kto: fit.KtoConfig | None = None,
    pg: fit.PgConfig | None = None,
    start: Mapping[str, Trainable] | None = None,
    saver: Saver | None = None,
    on_policy: bool = True,
    seed: int = 0,
    mesh: Mesh | None = None,
    on_step: OnStep | None = None,
    on_phase: Callable[[str, TrainOutcome], None] = lambda policy, outcome: None,
) -> dict[str, Trainable]:
    """Each role's trained weights, one policy after the other over its base.

    Paper, section 3.4. `model`: the base of all policies, or each one's by name. `pipeline` says
    what each role learns by (`RoleConfig.train`): as published, the generator by SFT and the others
    by SFT and then DPO, like a role that it does not name. `sft` to `pg` are the fields of each
    phase, unless a role has its own (`RoleConfig.training`). `rule`, by default the data's, sets
    the phases and the offset of DPO instead. `sharing`: an adapter for each role, or one policy for
    all (`shared`). `start`: weights to continue from, by role or policy; by default an adapter that
    changes nothing yet. `saver` keeps one phase of one policy. `on_policy`: `start` drew the data.
    """
    given = {"lora": lora, "sft": sft, "dpo": dpo, "kto": kto, "pg": pg}
    settings = fit.TrainConfig(**{name: one for name, one in given.items() if one})  # type: ignore[arg-type]
    rules = {role: learned.rule for role, learned in data.items()}
    phases, pipeline, settings = in_training(rule, rules, pipeline or PipelineConfig(), settings)
    policies: dict[str, Trainable] = {}
    trained = by_policy(data, phases, sharing)
    begin = start_by_policy(start or {}, [*trained, *data, *phases], sharing)
    check_loaded(pipeline, data, [role for role in data if policy_name(role, sharing) in begin], {})
    if saver and sum(bool(d.of(phase)) for d in trained.values() for phase in EXAMPLES) > 1:
        raise ValueError("a saver keeps one phase of one policy; train them one by one")
    for name, learned in trained.items():
        base = of_role(model, name)
        own = settings.with_fields(pipeline.training_of(name))
        policy = begin.get(name) or initial_weights(base, own.lora, seed=seed, name=name, mesh=mesh)
        sampled_by = policy if on_policy else None
        # Each phase starts from the weights that the one before left, and minimises:
        # sft  -log p(y | x; theta), averaged over completion tokens, as in the paper.
        # dpo  -log sigmoid(beta * (log-ratio of y+  -  log-ratio of y-)), each log-ratio that of
        #      the policy to the frozen policy it starts from; beta = 0.2, as in the paper.
        # Beyond it: kto  1 - sigmoid(+-beta * (log-ratio of y  -  KL)), + if y is desirable.
        # pg   -min(rho A, clip(rho) A), rho the probability ratio of a token to the policy that
        #      sampled it, A the advantage of y over its siblings.
        for phase in EXAMPLES:
            if examples := learned.of(phase):
                outcome = fit.train_phase(
                    base, policy, examples, own.phase(phase), saver=saver, seed=seed, mesh=mesh,
                    dropout=own.lora.dropout, on_policy=policy is sampled_by, on_step=on_step,
                )  # fmt: skip
                policy = outcome.trainable
                on_phase(name, outcome)
        policies[name] = policy
    return {role: policies[policy_name(role, sharing)] for role in data}
