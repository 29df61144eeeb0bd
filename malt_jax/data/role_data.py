"""What each role learns from, for every phase, out of valued trees (docs/method.md, section 4)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from malt_jax.config.data import DataConfig
from malt_jax.config.pipeline import split_phases
from malt_jax.credit.selection import Selection
from malt_jax.credit.signals import Signals, node_signals
from malt_jax.data.examples import DpoExample, PolicyExample, SftExample, UnpairedExample
from malt_jax.tree.keys import draw_order
from malt_jax.tree.node import EQUAL, VALUE_DIGITS, Forest, Node, Tree
from malt_jax.tree.policies import STAR

SHARED = "shared"
"""Name of the one policy of `sharing: shared`, whose weights all roles use."""


@dataclass(frozen=True)
class RoleData:
    """What one role learns from, and counts of what was selected and left out."""

    sft: list[SftExample] = field(default_factory=list)
    dpo: list[DpoExample] = field(default_factory=list)
    kto: list[UnpairedExample] = field(default_factory=list)
    pg: list[PolicyExample] = field(default_factory=list)
    """Sampled completions with their advantages, for the policy gradient."""
    counts: Counter = field(default_factory=Counter)
    both_labels: int = 0
    """Texts that KTO leaves out, because they are desirable here and undesirable there."""
    rule: str | None = None
    """The name of the credit rule that selected the examples, by which `train` then learns; None if
    they were selected by single fields."""

    def of(self, phase: str) -> list[Any]:
        """What a phase of training (`sft`, `dpo`, `kto`, `pg`) learns from."""
        examples: list[Any] = getattr(self, phase)
        return examples


def role_data(
    trees: Sequence[Tree],
    roles: Sequence[str],
    config: DataConfig,
    seed: int,
    signals: Signals | None = None,
    threshold: float = 0.5,
    rule: str | None = None,
) -> dict[str, RoleData]:
    """What every role learns from: all four kinds of examples, of which its phases use some.

    SFT: all positive nodes, the same token ids under the same prompt once. DPO: a positive and a
    negative sibling, that is, two completions of the same prompt; `config.pairs` says which. KTO:
    every positive and negative node, unless repeats of it have both labels. Policy gradient: every
    node whose advantage is not 0.
    A completion cut at its length limit is never an example to imitate, because it has no end
    token, but it may be a rejected or undesirable one. Siblings with the same tokens are no pair.
    `signals`: those of the trees, if they are known already; otherwise they are computed.
    `threshold`: that which the trees are labelled by. `rule`: the name of the rule that `config` is
    of.
    """
    if signals is None:
        signals = node_signals(Forest(trees), threshold=threshold)
    selection = Selection(config, signals, threshold)
    data = {role: RoleData(rule=rule) for role in roles}
    for tree in trees:
        tree = selection.tree(tree)
        labels = {node.id: node.label for node in tree.nodes}
        for parent, siblings in tree.children.items():
            # Siblings are at one depth, so they are of one role.
            learned = data[siblings[0].role]
            _add_siblings(learned, tree.question_id, siblings, selection, seed)
            # Counts turns that repaired a bad prefix: positives that continue a negative node.
            after_negative = parent is not None and not labels[parent]
            positives = sum(selection.sign(node) > 0 for node in siblings)
            learned.counts["positives_behind_negative"] += after_negative * positives
    for role, learned in data.items():
        if config.sft == "pairs":
            chosen = {pair.chosen_node_id for pair in learned.dpo}
            learned.sft[:] = [example for example in learned.sft if example.node_id in chosen]
        # Last, so that an example dropped by `pairs` never stands for an equal one that is kept.
        learned.counts["repeats"] += _drop_repeats(learned.sft)
        _drop_repeats(learned.kto)
        data[role] = replace(learned, both_labels=_drop_both_labels(learned.kto))
        if config.weights != "none":
            _set_mean_to_one(learned.sft)
            _set_mean_to_one(learned.kto)
    return data


def star_data(trees: Iterable[Tree], role: str) -> RoleData:
    """The single-agent STaR baseline's examples: the first role's drafts that are right."""
    examples = [
        SftExample(**_of_node(tree.question_id, node) | {"role": STAR})
        for tree in trees
        for node in tree.nodes
        # The draft's own grade and not its value: STaR knows of no later turn. Only how many drafts
        # a question has depends on later turns, with `search.spare`.
        if node.role == role and node.correct and node.ended
    ]
    data = RoleData(sft=examples)
    data.counts["repeats"] += _drop_repeats(data.sft)
    return data


def policy_name(role: str, sharing: str) -> str:
    """Whose weights a role, or the STaR baseline, answers with."""
    if sharing not in ("adapters", SHARED):
        raise ValueError(f"sharing: found {sharing!r}, allowed: adapters, {SHARED}")
    # The baseline is a single agent, so it never shares the weights of the roles.
    return SHARED if sharing == "shared" and role != STAR else role


def by_policy(
    data: Mapping[str, RoleData], phases: Mapping[str, str], sharing: str
) -> dict[str, RoleData]:
    """The examples that each policy is trained on.

    `phases`: `RoleConfig.train` by role, phases joined with `+`, or `none`; a role that is not
    named learns by `sft+dpo`. With `sharing` `adapters` every role has a policy of its own, with
    `shared` they have one together.
    """
    policies: dict[str, RoleData] = {}
    for role, learned in data.items():
        policy = policies.setdefault(policy_name(role, sharing), RoleData())
        for phase in split_phases(phases.get(role, "sft+dpo")):
            policy.of(phase).extend(learned.of(phase))
    return policies


def tree_counts(trees: Iterable[Tree]) -> dict[str, int]:
    """Counts to log: trees by outcome, nodes, unparsed answers, cut completions and prompts.

    Thinking models also have `unclosed`: completions that ended within their thought, if any did.
    """
    counts: Counter = Counter(
        trees=0, all_right=0, all_wrong=0, mixed=0, nodes=0, unparsed=0, length=0, cut_prompts=0
    )
    for tree in trees:
        # A tree that is right nowhere but has some reward counts as mixed.
        some = any(leaf.reward or leaf.correct for leaf in tree.leaves)
        right = all(leaf.correct for leaf in tree.leaves)
        kind = "all_right" if right else "mixed" if some else "all_wrong"
        counts["trees"] += 1
        counts[kind] += 1
        counts["unparsed"] += sum(leaf.parsed is None for leaf in tree.leaves)
        counts["nodes"] += len(tree.nodes)
        if unclosed := sum(node.unclosed for node in tree.nodes):
            counts["unclosed"] += unclosed
        counts["length"] += sum(node.finish == "length" for node in tree.nodes)
        counts["cut_prompts"] += sum(node.cut > 0 for node in tree.nodes)
    return dict(counts)


def _add_siblings(
    data: RoleData, question_id: str, siblings: list[Node], selection: Selection, seed: int
) -> None:
    config = selection.config
    signs = {node.id: selection.sign(node) for node in siblings}
    positives = [node for node in siblings if signs[node.id] > 0]
    negatives = [node for node in siblings if signs[node.id] < 0]
    whole = [node for node in positives if node.ended]
    data.counts["positives"] += len(positives)
    data.counts["negatives"] += len(negatives)
    data.counts["positives_cut_at_limit"] += len(positives) - len(whole)
    data.sft.extend(
        SftExample(**_of_node(question_id, node), weight=selection.weight(node, desirable=True))
        for node in whole
    )
    pairs = [(p, n) for p in whole for n in negatives]
    distinct = [(p, n) for p, n in pairs if p.token_ids != n.token_ids]
    data.counts["pairs_of_equal_text"] += len(pairs) - len(distinct)
    wide = [(p, n) for p, n in distinct if p.value - n.value > config.min_gap - EQUAL]
    data.counts["pairs_possible"] += len(wide)
    for chosen, rejected in _select_pairs(wide, config, seed):
        data.dpo.append(_pair(question_id, chosen, rejected, config.margins == "gap"))
    for node in siblings:
        desirable = signs[node.id] > 0
        unfit = signs[node.id] == 0 or (desirable and not node.ended)
        if not unfit:
            about = _of_node(question_id, node)
            weight = selection.weight(node, desirable=desirable)
            data.kto.append(UnpairedExample(**about, label=desirable, weight=weight))
        if advantage := selection.advantage(node):
            # Trees from elsewhere may lack what the sampler stores; the ratio needs every token's.
            if len(node.logprobs) == len(node.token_ids):
                about = _of_node(question_id, node) | {"logprobs": node.logprobs}
                data.pg.append(PolicyExample(**about, advantage=advantage))
            else:
                data.counts["without_logprobs"] += 1


def _select_pairs(
    pairs: list[tuple[Node, Node]], config: DataConfig, seed: int
) -> list[tuple[Node, Node]]:
    if config.pairs == "all" or not pairs:
        return pairs
    # Drafts have no parent, so their draw key is the first positive's node id.
    parent = pairs[0][0].parent or pairs[0][0].id
    order = draw_order(seed, len(pairs), "pairs", parent)
    if config.pairs == "best_worst":
        # Ascending by rejected minus chosen value: the widest gap comes first.
        # Python's sort is stable: equal gaps stay in the drawn order.
        order.sort(key=lambda i: pairs[i][1].value - pairs[i][0].value)
    return [pairs[i] for i in order[: config.pairs_per_prefix]]


def _of_node(question_id: str, node: Node) -> dict[str, Any]:
    """The fields of every example with one completion."""
    return {
        "prompt_ids": node.prompt_ids,
        "completion_ids": node.token_ids,
        "node_id": node.id,
        "role": node.role,
        "question_id": question_id,
        "prompt": node.prompt,
        "completion": node.full_text,
        "value": node.value,
    }


def _pair(question_id: str, chosen: Node, rejected: Node, with_margin: bool) -> DpoExample:
    return DpoExample(
        prompt_ids=chosen.prompt_ids,
        chosen_ids=chosen.token_ids,
        rejected_ids=rejected.token_ids,
        chosen_node_id=chosen.id,
        rejected_node_id=rejected.id,
        role=chosen.role,
        question_id=question_id,
        node_id=chosen.parent or question_id,
        prompt=chosen.prompt,
        chosen=chosen.full_text,
        rejected=rejected.full_text,
        chosen_value=chosen.value,
        rejected_value=rejected.value,
        margin=round(chosen.value - rejected.value, VALUE_DIGITS) if with_margin else 0.0,
    )


def _drop_repeats(examples: list[Any]) -> int:
    """Keeps the first of the examples with equal token ids and label; returns how many go.

    Its weight becomes the mean of theirs, since each was earned after another prefix. After that
    examples of weight 0 are left out.
    """
    equal: dict[tuple, list[Any]] = defaultdict(list)
    for example in examples:
        key = (example.prompt_ids, example.completion_ids, getattr(example, "label", True))
        equal[key].append(example)
    dropped = len(examples) - len(equal)
    examples[:] = [
        replace(same[0], weight=weight)
        for same in equal.values()
        if (weight := fmean(example.weight for example in same))
    ]
    return dropped


def _drop_both_labels(examples: list[UnpairedExample]) -> int:
    """Drops the texts that are desirable here and undesirable there; returns how many go."""
    times = Counter((example.prompt_ids, example.completion_ids) for example in examples)
    kept = [e for e in examples if times[e.prompt_ids, e.completion_ids] == 1]
    dropped = len(examples) - len(kept)
    examples[:] = kept
    return dropped // 2


def _set_mean_to_one(examples: list[Any]) -> None:
    """Scales the weights of a role's examples, so that the step size stays what it was."""
    mean = sum(example.weight for example in examples) / max(len(examples), 1)
    examples[:] = [
        replace(example, weight=round(example.weight / mean, VALUE_DIGITS)) for example in examples
    ]
