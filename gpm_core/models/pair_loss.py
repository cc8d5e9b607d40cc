"""The loss that a model's configuration asks for."""

from __future__ import annotations

from torch import Tensor

from gpm_core.losses import PreferenceLossOutput, general_preference_loss, regression_loss
from gpm_core.models.configuration import GeneralPreferenceConfig


def configured_loss(
    config: GeneralPreferenceConfig,
    tau: float | Tensor,
    pairs: tuple[Tensor, Tensor, Tensor | None],
    margin: Tensor | None,
    labels: Tensor | None,
) -> PreferenceLossOutput:
    """Mean loss of B pairs: embeddings (B, d) of chosen and rejected, and scale (B, k) or None.

    Args:
        config: its ``loss``, ``target_margin`` and ``label_smoothing``.
        tau: temperature, a number or a tensor () or (k,) with a gradient.
        pairs: chosen, rejected, scale.
        margin: (B,) what the score must exceed; with ``loss="regression"``, what it is to be.
        labels: (B,) probability that chosen is preferred; None for 1.
    """
    chosen, rejected, scale = pairs
    smoothing = config.label_smoothing
    if config.loss == "logistic":
        return general_preference_loss(
            chosen,
            rejected,
            scale,
            margin=margin,
            target=labels,
            label_smoothing=smoothing,
            tau=tau,
        )
    side = chosen.new_ones(len(chosen)) if labels is None else 2 * labels - 1
    inverse = tau.reciprocal().mean() if isinstance(tau, Tensor) else 1 / tau
    wanted = config.target_margin if margin is None else margin * inverse
    # What is regressed on is data: a learned temperature must not move its own target.
    goal = ((1 - smoothing) * side * wanted).detach()
    return regression_loss(chosen, rejected, scale, target_margin=goal, tau=tau)
