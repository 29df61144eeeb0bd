"""All fields of training: optimiser, batches, the four phases and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from malt_jax.checks import check, check_range
from malt_jax.config import reading
from malt_jax.config.fields import field_types
from malt_jax.config.lora import LoraConfig


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning-rate schedule."""

    name: Literal["adamw", "adafactor", "lion"] = "adamw"
    """AdamW (arXiv 1711.05101), Adafactor without momentum (1804.04235) or Lion (2302.06675)."""
    learning_rate: float = 1e-4
    """The peak of the learning rate, after warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate goes from the peak at the end of warm-up to `final` after the last step."""
    warmup: float = 0.1
    """Share of all steps in which the rate rises linearly to the peak."""
    final: float = 0.0
    """The rate at the end of the decay, which would be that of one more step, as a share of the
    peak (not for `constant`)."""
    weight_decay: float = 0.0
    """Decoupled decay: each step shrinks the weights by learning rate x this."""
    beta1: float = 0.9
    """Decay of the average gradient (AdamW, Lion)."""
    beta2: float = 0.999
    """Decay of the average squared gradient (AdamW), or of Lion's momentum; 0.99 is usual there."""
    clip: float = 1.0
    """The largest global norm of a step's gradient; longer gradients are scaled to it. 0: off."""

    def __post_init__(self):
        check_range(self, "learning_rate", above=0, most=1)
        check_range(self, "warmup", "final", least=0, most=1)
        check_range(self, "weight_decay", "clip", least=0)
        check_range(self, "beta1", "beta2", least=0, below=1)


@dataclass(frozen=True)
class LoopConfig:
    """The training loop of a phase. What changes its result: `steps`, `max_length`, `held_out`, and
    with held-out questions `eval_every` and `patience`."""

    steps: int = 0
    """Optimiser steps in all, in as many passes over the examples as that takes, so that phases
    with different numbers of examples can be compared; 0: the phase's `epochs` decide."""
    max_length: int = 2048
    """The longest sequence in tokens. A longer completion that would be imitated is left out, since
    its end was cut off; another one is cut at its end. Both are counted."""
    micro_tokens: int = 0
    """Padded tokens per micro-batch. Gradients are summed over the micro-batches of a batch, so
    this changes memory and not the result, except for what `lora.dropout` draws. 0: 1024 on a CPU,
    16384 per device elsewhere."""
    row_length: int = 0
    """Tokens per packed row, unless an example is longer; 0: the length that computes least. Roles
    with the same length share compiled programs."""
    remat: Literal["auto", "none", "dots", "full"] = "auto"
    """What the backward pass recomputes: nothing, all but matrix products, or whole layers.
    auto: `dots`; on a CPU `none`, as long as that keeps at most 1 GiB of activations."""
    logit_chunk: int = 0
    """Completion tokens whose logits are in memory at once; 0: as many as take about 64 MiB on a
    CPU and 512 MiB elsewhere."""
    held_out: float = 0.0
    """Share of questions kept out of training to choose the best step and to stop early. The
    weights before the first step are no candidate."""
    eval_every: int = 0
    """Steps between evaluations of the held-out questions; 0: as many as make at most eight."""
    patience: int = 0
    """Stop after this many evaluations in a row without an improvement; 0: never."""
    save_every: int = 0
    """Steps between checkpoints; 0: only at the end and when the run is asked to stop."""
    explode: float = 1e4
    """Training stops with an error if the gradient's global norm exceeds this or is not finite."""

    def __post_init__(self):
        check_range(self, "steps", least=0, zero="by epochs")
        check_range(self, "max_length", least=8)
        check_range(self, "micro_tokens", "row_length", "logit_chunk", least=0)
        check_range(self, "eval_every", "patience", "save_every", least=0)
        check_range(self, "held_out", least=0, most=0.5)
        for name in ("eval_every", "patience"):
            check(
                self.held_out > 0 or not getattr(self, name),
                f"{name}: found {getattr(self, name)}, but held_out: 0, and nothing is measured "
                "without held-out questions; set held_out, or leave it out.",
            )
        check_range(self, "explode", above=0)


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on a role's positive completions (docs/method.md, section 5)."""

    epochs: int = 2
    """Passes over the role's examples."""
    batch_size: int = 8
    """Examples per step; the paper uses 8."""
    siblings_together: bool = False
    """Keep completions of the same prompt in one batch, where the prompt is computed once. Those
    that reach over a batch's end are divided."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=2e-4))
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        check_range(self, "epochs", least=1, most=1000)
        check_range(self, "batch_size", least=1)


@dataclass(frozen=True)
class DpoConfig:
    """Direct preference optimisation against the frozen policy that the phase starts from, SFT's as
    published (docs/method.md, section 5)."""

    epochs: int = 1
    """Passes over the role's pairs."""
    batch_size: int = 8
    """Pairs per step."""
    beta: float = 0.2
    """Strength of the pull to the reference policy; the paper uses 0.2. For `ipo` it is tau."""
    loss: Literal["sigmoid", "ipo", "nll"] = "sigmoid"
    """DPO (arXiv 2305.18290, equation 7), IPO (2310.12036, equation 17), or `nll`: the negative
    log-likelihood of the chosen completions alone, a mean over the tokens of each and then over
    pairs (in SFT over all tokens of a batch), to see what the preferences add."""
    label_smoothing: float = 0.0
    """Assumed share of swapped preferences, conservative DPO (only with `sigmoid`)."""
    length_normalised: bool = False
    """Log-ratios per token (2411.15124, equation 6); `ipo` always does (only with `sigmoid`)."""
    nll_weight: float = 0.0
    """Weight of an added negative log-likelihood of the chosen completion, RPO (2404.19733)."""
    offset: float = 0.0
    """DPO with an offset, ODPO (2402.10571): this times the pair's margin is subtracted inside the
    sigmoid, so a pair that is further apart must get a wider gap (only with `sigmoid`). 0: off."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=5e-5))
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        check_range(self, "epochs", least=1, most=1000)
        check_range(self, "batch_size", least=1)
        check_range(self, "beta", above=0, most=100)
        check_range(self, "label_smoothing", least=0, below=0.5)
        check_range(self, "nll_weight", "offset", least=0, most=100)
        plain = self.label_smoothing == 0 and not self.length_normalised and self.offset == 0
        check(
            self.loss == "sigmoid" or plain,
            f"loss: {self.loss} takes neither label_smoothing nor length_normalised nor offset; "
            "remove them.",
        )
        check(
            self.loss != "nll" or self.nll_weight == 0,
            f"nll_weight: found {self.nll_weight:g}, but loss: nll is that term alone; remove it.",
        )


@dataclass(frozen=True)
class KtoConfig:
    """Kahneman-Tversky optimisation on unpaired completions (docs/method.md, section 5)."""

    epochs: int = 1
    """Passes over the role's completions."""
    batch_size: int = 16
    """Completions per step. The KL estimate comes from a batch, so larger ones are steadier."""
    beta: float = 0.1
    """Strength of the pull to the reference policy."""
    desirable_weight: float = 1.0
    """Weight of the loss of desirable completions. Its authors advise weights with which desirable
    and undesirable completions count in a ratio of 1 to 4/3, or the inverse."""
    undesirable_weight: float = 1.0
    """Weight of the loss of undesirable completions."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=5e-5))
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        check_range(self, "epochs", least=1, most=1000)
        # The KL estimate pairs each prompt with the completion of another example of the batch.
        check_range(self, "batch_size", least=2)
        check_range(self, "beta", above=0, most=100)
        check_range(self, "desirable_weight", "undesirable_weight", least=0, most=100)


@dataclass(frozen=True)
class PgConfig:
    """Clipped policy gradient on sampled completions (docs/method.md, section 5)."""

    epochs: int = 2
    """Passes over the same completions."""
    batch_size: int = 32
    """Completions per step. Siblings follow each other; those that reach over a batch's end are
    divided."""
    clip: float = 0.2
    """PPO (1707.06347): a token's probability ratio gains nothing beyond 1 - clip and 1 + clip."""
    kl_weight: float = 0.0
    """Weight of a penalty on the divergence from the policy that the phase starts from. 0: off."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=5e-5))
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        check_range(self, "epochs", least=1, most=1000)
        check_range(self, "batch_size", least=1)
        check_range(self, "clip", above=0, below=1)
        check_range(self, "kl_weight", least=0, most=100)


PhaseConfig = SftConfig | DpoConfig | KtoConfig | PgConfig


@dataclass(frozen=True)
class TrainConfig:
    """Training of every role."""

    full: bool = False
    """Train all weights instead of a LoRA adapter."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    kto: KtoConfig = field(default_factory=KtoConfig)
    pg: PgConfig = field(default_factory=PgConfig)

    def with_fields(self, fields: Mapping[str, Any]) -> TrainConfig:
        """The same with nested fields of a role laid over it (`RoleConfig.training`).

        Raises UserError for one that does not exist, and for `full`, which is the whole run's.
        """
        if not fields:
            return self
        check(
            "full" not in fields,
            "full: all roles train adapters or all of them whole weights; set train.full.",
        )
        own = [name for name in field_types(TrainConfig) if name != "full"]
        for name in fields:
            if name not in own:
                raise reading.unknown_field("", name, own)
        return reading.build(TrainConfig, reading.over(reading.to_dict(self), dict(fields)))

    def phase(self, name: str) -> PhaseConfig:
        """The fields of one of the phases that `RoleConfig.train` joins."""
        phase: PhaseConfig = getattr(self, name)
        return phase
