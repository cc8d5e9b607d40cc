"""Settings of the optimizer, and the defaults that were measured to work."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

LOSSES = ("logistic", "regression")


@dataclass(frozen=True)
class FitSettings:
    """How a head is trained on fixed features: AdamW, linear warmup, cosine decay to zero.

    The defaults were chosen on HH-RLHF with MiniLM features, on ten random splits by prompt of
    their own, where a general head then learns as much as a Bradley-Terry head and memorizes no
    more. (Those splits share pairs with any other split of the file, so that accuracy reported on
    it is slightly optimistic, for all heads alike.) The default penalty asks for plenty of pairs:
    with a few hundred it holds back cycles too, and 0 to 0.1 fits better.

    Two things make one set of settings fit heads of any temperature, and both act on logits,
    s / tau, and not on weights: the head's rate is multiplied by its tau (with tau = 0.1 a step of
    a weight moves logits ten times as far), and the penalty is on W / tau. The penalty is part of
    the loss, and not decoupled as AdamW's decay, since AdamW rescales the gradients that decay
    would have to hold back: blocks that start near zero, and have almost no gradient, then grow as
    fast as the one that matters.

    Attributes:
        epochs: passes over the pairs.
        batch_size: pairs per step.
        learning_rate: peak rate of the head for tau = 1; multiplied by tau.
        penalty: precision of a Gaussian prior under which standardized features give logits of
            variance 1 / penalty: the mean loss is increased by
            penalty * H / (2 P) * |W / tau|^2 for H features and P pairs; biases are free, so
            it pulls an anchored head to its Bradley-Terry start. 0 for none.
        warmup: share of all steps in which the rate rises from zero.
        loss: "logistic", cross-entropy of the probability, or "regression" of the logit s / tau
            on a target, see :func:`gpm_core.losses.regression_loss`.
        target_margin: of "regression": what the logit of a pair with label p is to be, times
            2 p - 1. For pairs with a margin it is the margin / tau instead.
        label_smoothing: in [0, 1), as in :func:`gpm_core.losses.general_preference_loss`.
        gradient_clip: largest norm of the gradient; None for no limit.
        seed: of the order of pairs, of initial weights and of dropout.

    Raises:
        ValueError: for a value outside its range; names the setting.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3
    penalty: float = 0.75
    warmup: float = 0.1
    label_smoothing: float = 0.0
    loss: Literal["logistic", "regression"] = "logistic"
    target_margin: float = 10.0
    gradient_clip: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be a whole number in [0, 2^32); got {self.seed!r}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(
                f"learning_rate must be finite and above zero; got {self.learning_rate!r}"
            )
        if not (math.isfinite(self.penalty) and self.penalty >= 0):
            raise ValueError(f"penalty must be finite and at least 0; got {self.penalty!r}")
        for name in ("warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1); got {getattr(self, name)!r}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}; got {self.loss!r}")
        if not (math.isfinite(self.target_margin) and self.target_margin > 0):
            raise ValueError(
                f"target_margin must be finite and above zero; got {self.target_margin!r}"
            )
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise ValueError(f"gradient_clip must be above zero; got {self.gradient_clip!r}")

    def steps(self, count: int) -> int:
        """Number of optimizer steps for ``count`` pairs."""
        return self.epochs * self.steps_per_epoch(count)

    def steps_per_epoch(self, count: int) -> int:
        """Number of batches in one pass over ``count`` pairs; the last may be smaller."""
        return math.ceil(count / self.batch_size)

    def rate_factor(self, step: int, total: int) -> float:
        """Share of the peak rate at step 0 <= ``step`` < ``total``."""
        warmup = round(self.warmup * total)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))

    def as_dict(self) -> dict[str, Any]:
        """All settings, as JSON."""
        return asdict(self)
