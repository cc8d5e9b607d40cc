"""What a model says of pairs, and the loss that its configuration asks for."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from gpm_core import ops
from gpm_core.losses import (
    PreferenceLossOutput,
    Reduction,
    general_preference_loss,
    multi_criteria_loss,
    one_temperature,
    regression_loss,
)
from gpm_core.models.configuration import GeneralPreferenceConfig
from gpm_core.models.criteria import combined_scale, each_embedding, weights_in_order
from gpm_core.models.outputs import GeneralPreferenceOutput


class LossSettings(Protocol):
    """What a loss depends on beside the pairs."""

    @property
    def loss(self) -> str:
        """Which one: "logistic" or "regression"."""

    @property
    def target_margin(self) -> float:
        """What the logit of a pair is to be under "regression"."""

    @property
    def label_smoothing(self) -> float:
        """In [0, 1)."""


def model_output(
    model: Any,
    embeddings: Tensor,
    scale: Tensor | None,
    margin: Tensor | None,
    labels: Tensor | None,
) -> GeneralPreferenceOutput:
    """What a model says of embeddings (N, d) or (B, K, d) and their scale; for K = 2, of pairs.

    Args:
        model: a ``GeneralPreferenceModel``.
        embeddings: of pairs the chosen one first; where each of C criteria has its own, (..., C d).
        scale: (N, k), (B, k) or (k,), or None; of C criteria (..., C, k).
        margin: (B,), nan for pairs without, or None.
        labels: (B,), of C criteria (B, C), nan where there is none; None for 1.

    Raises:
        ValueError: for a margin or labels that do not fit several criteria.
    """
    pairs = embeddings.dim() == 3 and embeddings.shape[1] == 2
    tau = model.config.tau if model.temperature is None else model.temperature()
    if not model.criteria:
        if pairs:
            return _pair_output(model.config, tau, embeddings, scale, margin, labels)
        return GeneralPreferenceOutput(embeddings=embeddings, scale=scale)
    if margin is not None:
        raise ValueError("a margin is of one preference: this model has several criteria")
    assert scale is not None
    weights = weights_in_order(model.criteria, model.config.criteria_weights)
    scales = combined_scale(scale, weights, model.head.mode), scale
    if pairs:
        return _criteria_output(model, tau, embeddings, scales, labels)
    return GeneralPreferenceOutput(embeddings=embeddings, scale=scales[0], criteria_scale=scale)


def _pair_output(
    config: GeneralPreferenceConfig,
    tau: float | Tensor,
    embeddings: Tensor,
    scale: Tensor | None,
    margin: Tensor | None,
    labels: Tensor | None,
) -> GeneralPreferenceOutput:
    # Scores, margins and labels are not to be rounded to the half precision of the weights.
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    chosen, rejected = embeddings.to(wide).unbind(1)
    weights = None if scale is None else scale.to(wide)
    loss, probability, _ = configured_loss(
        config,
        tau,
        (chosen, rejected, weights),
        None if margin is None else margin.to(wide),
        None if labels is None else labels.to(wide),
    )
    with torch.no_grad():
        score = ops.score(chosen, rejected, scale_of_scores(weights, tau))
    # A copy, not a view: FSDP2 hooks the backward pass onto outputs, and warns of views.
    return GeneralPreferenceOutput(loss, score, probability, embeddings.clone(), scale)


def _criteria_output(
    model: Any,
    tau: float | Tensor,
    embeddings: Tensor,
    scales: tuple[Tensor, Tensor],
    labels: Tensor | None,
) -> GeneralPreferenceOutput:
    """Of pairs; ``scales`` are those of the one preference, and of each criterion."""
    head = model.head
    wide = torch.promote_types(embeddings.dtype, torch.float32)
    both = embeddings.to(wide)
    combined, scale = (weights.to(wide) for weights in scales)
    target = both.new_ones(len(both), len(head.criteria)) if labels is None else labels.to(wide)
    if target.shape != (len(both), len(head.criteria)):
        raise ValueError(
            f"labels must be {(len(both), len(head.criteria))}, one for each pair and each of "
            f"{', '.join(head.criteria)}, nan where there is none; got {tuple(target.shape)}"
        )
    each = each_embedding(head, both)
    chosen, rejected = both.unbind(1)
    own_chosen, own_rejected = each.unbind(1)
    shared = head.mode == "gates"
    losses, probability, *_ = multi_criteria_loss(
        chosen if shared else own_chosen,
        rejected if shared else own_rejected,
        scale,
        target,
        label_smoothing=model.config.label_smoothing,
        tau=tau,
        reduction="none",
    )
    # Entries without a label are 0; with none at all so is the loss, and its gradients.
    loss = losses.sum() / (~target.isnan()).sum().clamp(min=1)
    with torch.no_grad():
        every_tau = tau
        if isinstance(tau, Tensor) and tau.dim():
            every_tau = tau.repeat(combined.shape[-1] // len(tau))
        one = general_preference_loss(chosen, rejected, combined, tau=every_tau).probability
        score = ops.score(chosen, rejected, scale_of_scores(combined, every_tau))
        criteria_score = ops.score(own_chosen, own_rejected, scale_of_scores(scale, tau))
    return GeneralPreferenceOutput(
        loss,
        score,
        one,
        embeddings.clone(),
        scales[0],
        criteria_score,
        probability,
        losses.detach(),
        scales[1],
    )


def scale_of_scores(scale: Tensor | None, tau: float | Tensor) -> Tensor | None:
    """The scale (..., k) whose scores have the sign of the probability: weighed by the temperatures
    where there is one for each block.
    """
    if isinstance(tau, Tensor) and tau.dim():
        return one_temperature(scale, tau)[0]
    return scale


def configured_loss(
    settings: LossSettings,
    tau: float | Tensor,
    pairs: tuple[Tensor, Tensor, Tensor | None],
    margin: Tensor | None,
    labels: Tensor | None,
    reduction: Reduction = "mean",
) -> PreferenceLossOutput:
    """Loss of B pairs: embeddings (B, d) of chosen and rejected, and scale (B, k) or None.

    Args:
        settings: a configuration, or settings of a fit.
        tau: temperature, a number or a tensor () or (k,) with a gradient.
        pairs: chosen, rejected, scale.
        margin: (B,) what the score must exceed, or with ``loss="regression"`` is to be; nan for
            pairs without, which must exceed 0, or have the logit ``target_margin``. None: all.
        labels: (B,) probability that chosen is preferred; None for 1.
        reduction: "mean", "sum" or "none".
    """
    chosen, rejected, scale = pairs
    smoothing = settings.label_smoothing
    if settings.loss == "logistic":
        if margin is not None:
            margin = torch.where(margin.isnan(), 0.0, margin)
        return general_preference_loss(
            chosen,
            rejected,
            scale,
            margin=margin,
            target=labels,
            label_smoothing=smoothing,
            tau=tau,
            reduction=reduction,
        )
    side = chosen.new_ones(len(chosen)) if labels is None else 2 * labels - 1
    inverse = tau.reciprocal().mean() if isinstance(tau, Tensor) else 1 / tau
    wanted: float | Tensor = settings.target_margin
    if margin is not None:
        wanted = torch.where(margin.isnan(), settings.target_margin, margin * inverse)
    # What is regressed on is data: a learned temperature must not move its own target.
    goal = ((1 - smoothing) * side * wanted).detach()
    return regression_loss(
        chosen, rejected, scale, target_margin=goal, tau=tau, reduction=reduction
    )
