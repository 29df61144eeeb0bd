"""Training examples of real lengths, so that the benchmark needs no data set.

The lengths are those of 128 of GSM8K's 7,473 training questions, drawn at random (arXiv 2110.14168,
MIT licence): tokens of the question in SmolLM2's chat template, and of the worked answer with its
end token.
"""

from __future__ import annotations

import numpy as np

from malt_jax.data.examples import DpoExample, PolicyExample, SftExample, UnpairedExample

# fmt: off
GSM8K = (
    (74, 90), (77, 165), (99, 140), (71, 87), (104, 142), (77, 120), (67, 51), (70, 93),
    (55, 120), (96, 208), (92, 148), (86, 185), (98, 209), (75, 77), (92, 213), (77, 93),
    (184, 252), (84, 105), (132, 73), (67, 72), (80, 106), (111, 67), (103, 82), (107, 131),
    (73, 64), (118, 139), (79, 114), (60, 76), (71, 91), (109, 138), (77, 124), (81, 129),
    (111, 101), (78, 152), (111, 120), (97, 160), (90, 155), (100, 218), (76, 118), (91, 155),
    (66, 82), (115, 182), (103, 158), (76, 92), (121, 197), (66, 64), (129, 151), (72, 91),
    (103, 74), (80, 86), (82, 160), (125, 181), (120, 306), (98, 241), (72, 151), (69, 93),
    (122, 242), (103, 154), (71, 61), (89, 139), (80, 74), (76, 63), (127, 221), (98, 174),
    (129, 143), (96, 171), (144, 212), (89, 202), (134, 105), (78, 136), (61, 114), (109, 129),
    (75, 92), (79, 139), (97, 131), (80, 107), (90, 104), (96, 213), (82, 32), (94, 91),
    (80, 115), (84, 134), (80, 112), (115, 203), (61, 68), (90, 58), (140, 236), (65, 99),
    (90, 140), (59, 74), (79, 139), (86, 101), (89, 156), (104, 116), (90, 60), (79, 145),
    (93, 114), (72, 177), (93, 190), (146, 141), (90, 94), (66, 53), (75, 138), (70, 94),
    (116, 104), (70, 80), (114, 158), (82, 130), (87, 129), (131, 260), (67, 168), (78, 146),
    (102, 146), (109, 121), (78, 245), (112, 202), (148, 258), (92, 235), (82, 87), (70, 99),
    (112, 216), (67, 81), (82, 104), (92, 153), (119, 218), (91, 131), (79, 74), (88, 56),
)
# fmt: on
"""(prompt tokens, completion tokens); their means over the whole set are 90 and 126."""


def sft_examples(count: int, vocab: int, seed: int) -> list[SftExample]:
    """Random tokens in real lengths."""
    rng = np.random.default_rng(seed)
    return [
        SftExample(_ids(rng, vocab, prompt), _ids(rng, vocab, answer), f"Q{i}", question_id=f"Q{i}")
        for i, (prompt, answer) in enumerate(_lengths(count))
    ]


def dpo_examples(count: int, vocab: int, seed: int) -> list[DpoExample]:
    """Random tokens in real lengths; the rejected completion is 0.7 to 1.3 times the chosen."""
    rng = np.random.default_rng(seed)
    examples = []
    for i, (prompt, answer) in enumerate(_lengths(count)):
        other = max(1, round(answer * rng.uniform(0.7, 1.3)))
        prompt_ids, chosen, rejected = (_ids(rng, vocab, n) for n in (prompt, answer, other))
        ids = (prompt_ids, chosen, rejected)
        examples.append(DpoExample(*ids, chosen_node_id=f"Q{i}", question_id=f"Q{i}"))
    return examples


def kto_examples(count: int, vocab: int, seed: int) -> list[UnpairedExample]:
    """The completions of `sft_examples`, every other one undesirable."""
    return [
        UnpairedExample(e.prompt_ids, e.completion_ids, e.id, i % 2 == 0, question_id=e.id)
        for i, e in enumerate(sft_examples(count, vocab, seed))
    ]


def policy_examples(count: int, vocab: int, seed: int) -> list[PolicyExample]:
    """The completions of `sft_examples` with made-up log-probabilities and advantages."""
    return [
        PolicyExample(
            e.prompt_ids, e.completion_ids, (-1.0,) * len(e.completion_ids), (-1.0) ** i, e.id,
            question_id=e.id,
        )
        for i, e in enumerate(sft_examples(count, vocab, seed))
    ]  # fmt: skip


def _lengths(count: int) -> list[tuple[int, int]]:
    return [GSM8K[i % len(GSM8K)] for i in range(count)]


def _ids(rng: np.random.Generator, vocab: int, length: int) -> tuple[int, ...]:
    # The first ids are left out, since vocabularies often begin with special tokens.
    return tuple(rng.integers(3, vocab, length).tolist())
