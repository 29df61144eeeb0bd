"""Every field of training a user can set; reading them needs no JAX."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from malt_jax.checks import check
from malt_jax.config.lora import LoraConfig


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning-rate schedule."""

    name: Literal["adamw", "adafactor", "lion"] = "adamw"
    """AdamW (arXiv 1711.05101), Adafactor without momentum (1804.04235) or Lion (2302.06675)."""
    learning_rate: float = 1e-4
    """The peak, after warm-up."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate goes from the peak at the end of warm-up to `final` at the last step."""
    warmup: float = 0.1
    """Share of all steps in which the rate rises linearly to the peak."""
    final: float = 0.0
    """The rate at the last step, as a share of the peak (not for `constant`)."""
    weight_decay: float = 0.0
    """Decoupled decay: each step shrinks the weights by learning rate x this."""
    beta1: float = 0.9
    """Decay of the average gradient (AdamW, Lion)."""
    beta2: float = 0.999
    """Decay of the average squared gradient (AdamW), or of Lion's momentum; 0.99 is usual there."""
    clip: float = 1.0
    """Largest global norm of a step's gradient; longer ones are shortened to it. 0: never."""

    def __post_init__(self):
        check(
            0 < self.learning_rate <= 1,
            f"learning_rate: found {self.learning_rate}, allowed: above 0, at most 1.",
        )
        for name in ("warmup", "final"):
            value = getattr(self, name)
            check(0 <= value <= 1, f"{name}: found {value}, allowed: 0 to 1.")
        for name in ("weight_decay", "clip"):
            value = getattr(self, name)
            check(value >= 0, f"{name}: found {value}, allowed: 0 or more.")
        for name in ("beta1", "beta2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{name}: found {value}, allowed: 0 to below 1.")


@dataclass(frozen=True)
class LoopConfig:
    """The mechanics both phases share; only `max_length` and `held_out` change what is learnt."""

    max_length: int = 2048
    """Longest sequence in tokens; a longer completion is cut at its end, and counted."""
    micro_tokens: int = 0
    """Padded tokens computed at once; a batch is summed over as many such parts as it needs, which
    changes memory and never the result. 0: 1024 on a CPU, 16384 a device elsewhere."""
    row_length: int = 0
    """Tokens a packed row, where no example is longer; 0: what computes least. Roles that share it
    share compiled programs."""
    remat: Literal["auto", "none", "dots", "full"] = "auto"
    """What the backward pass recomputes: nothing, all but matrix products, or whole layers.
    auto: `none` on a CPU, where micro-batches are small, and `dots` elsewhere."""
    logit_chunk: int = 0
    """Completion tokens whose logits exist at once; 0: as many as make about 64 MB."""
    held_out: float = 0.0
    """Share of questions kept out of training to choose the best step and to stop early by."""
    eval_every: int = 0
    """Steps between measurements on the held-out share; 0: eight times a training."""
    patience: int = 0
    """Stop after this many measurements in a row without a better one; 0: never."""
    save_every: int = 0
    """Steps between checkpoints; 0: at the end and when told to stop."""
    explode: float = 1e4
    """A gradient's global norm above this, or one that is not a number, stops the training."""

    def __post_init__(self):
        check(self.max_length >= 8, f"max_length: found {self.max_length}, allowed: 8 or more.")
        for name in (
            "micro_tokens",
            "row_length",
            "logit_chunk",
            "eval_every",
            "patience",
            "save_every",
        ):
            value = getattr(self, name)
            check(value >= 0, f"{name}: found {value}, allowed: 0 or more.")
        check(0 <= self.held_out <= 0.5, f"held_out: found {self.held_out}, allowed: 0 to 0.5.")
        check(self.explode > 0, f"explode: found {self.explode}, allowed: above 0.")


def _check_sizes(config: SftConfig | DpoConfig) -> None:
    check(1 <= config.epochs <= 1000, f"epochs: found {config.epochs}, allowed: 1 to 1000.")
    check(config.batch_size >= 1, f"batch_size: found {config.batch_size}, allowed: 1 or more.")


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on a role's positive completions (method, section 1)."""

    epochs: int = 2
    """Passes over the role's examples."""
    batch_size: int = 8
    """Examples a step; 8 is the published one."""
    siblings_together: bool = False
    """Keep completions of the same prompt in one batch, where the prompt is computed once."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=2e-4))
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        _check_sizes(self)


@dataclass(frozen=True)
class DpoConfig:
    """Direct preference optimisation against the frozen SFT policy (method, section 1)."""

    epochs: int = 1
    """Passes over the role's pairs."""
    batch_size: int = 8
    """Pairs a step."""
    beta: float = 0.2
    """Strength of the pull to the reference; 0.2 is the published one. For `ipo` it is tau."""
    loss: Literal["sigmoid", "ipo", "nll"] = "sigmoid"
    """DPO (arXiv 2305.18290, equation 7), IPO (2310.12036, equation 17), or `nll`: the likelihood
    of the chosen completions alone, SFT for as many steps, to tell what the preferences add."""
    label_smoothing: float = 0.0
    """Assumed share of swapped preferences, conservative DPO (only with `sigmoid`)."""
    length_normalised: bool = False
    """Log-ratios per token (2411.15124, equation 6); `ipo` always does (only with `sigmoid`)."""
    nll_weight: float = 0.0
    """Weight of an added negative log-likelihood of the chosen completion, RPO (2404.19733)."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=5e-5))
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self):
        _check_sizes(self)
        check(0 < self.beta <= 100, f"beta: found {self.beta}, allowed: above 0, at most 100.")
        check(
            0 <= self.label_smoothing < 0.5,
            f"label_smoothing: found {self.label_smoothing}, allowed: 0 to below 0.5.",
        )
        check(
            0 <= self.nll_weight <= 100,
            f"nll_weight: found {self.nll_weight}, allowed: 0 to 100.",
        )
        plain = self.label_smoothing == 0 and not self.length_normalised
        check(
            self.loss == "sigmoid" or plain,
            f"loss: {self.loss} takes neither label_smoothing nor length_normalised; remove them.",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Training of every role."""

    full: bool = False
    """Train all weights instead of a LoRA adapter."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
