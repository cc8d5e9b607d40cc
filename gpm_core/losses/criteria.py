"""The loss of several criteria at once, from labels of each."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from gpm_core import ops
from gpm_core.losses._common import Reduction
from gpm_core.losses.preference import general_preference_loss
from gpm_core.losses.temperature import Temperature, divide_by_temperature
from gpm_core.ops import _checks


class MultiCriteriaLossOutput(NamedTuple):
    """What a loss of several criteria returns."""

    #: Reduced loss, or (..., C) with ``reduction="none"``, where entries without a label are 0.
    loss: Tensor
    #: P(chosen > rejected) (..., C) for each criterion, labelled or not, after margin and
    #: temperature, detached.
    probability: Tensor
    #: Share of labelled entries, unweighted, whose score has the side that the label has; a tie of
    #: either counts half. 0 where nothing is labelled. Detached, 0-d.
    accuracy: Tensor
    #: (C,) mean loss of each criterion's labelled entries, unweighted, detached; 0 without any.
    criterion_loss: Tensor
    #: (C,) accuracy of each criterion, as above; 0 without any label.
    criterion_accuracy: Tensor
    #: (C,) int64, number of labelled entries of each criterion: weights to average the two with.
    labels: Tensor


def multi_criteria_loss(
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    margin: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    tau: float | Tensor | Temperature = 0.1,
    reduction: Reduction = "mean",
) -> MultiCriteriaLossOutput:
    """:func:`general_preference_loss` of C criteria, each with its own labels, where it has any.

    ``loss = sum_c weight_c l_c / sum_c weight_c`` over the labelled entries of the batch, with the
    cross-entropy l_c of sigmoid((s_c(chosen > rejected) - margin) / tau) against ``target`` (arXiv
    2410.02197, section 4, a score for each criterion). :class:`gpm_core.heads.MultiCriteriaHead`
    gives such embeddings and scales; rewards r (..., C) are the embeddings (1, -r) without a scale.

    Entries without a label have no part in the loss, and their gradients are exactly 0. A batch
    without any label has loss 0, with zero gradients to everything, so that a rare empty batch
    stops neither a training nor the other processes of a distributed one. Where batches or
    processes hold very different numbers of labels, ``reduction="sum"`` divided by one number for
    all weighs every label alike.

    Args:
        chosen: (..., d) preference embeddings shared by all criteria, or (..., C, d), one for each;
            even d.
        rejected: the same shape and dtype.
        scale: (..., C, k) or (C, k), weight of each block for each criterion. None only for
            embeddings of each criterion, or C = 1; these also take (..., 1, k), one for all.
        target: (..., C) probability in [0, 1] that ``chosen`` is preferred by each criterion,
            floating-point; 0.5 says tie, nan that there is no label.
        weight: (C,) or (..., C), how much an entry counts, at least 0, floating-point; None for 1.
        margin: what a score must exceed; (..., C) or a number.
        label_smoothing: e in [0, 1): targets become (1 - e) p + e / 2.
        tau: temperature, finite and above zero: a number, a :class:`Temperature` to learn one or
            one per block, or a tensor () or (k,) of them.
        reduction: "mean", "sum" (of weighted losses) or "none" (weighted losses (..., C)).

    Raises:
        TypeError: if target or weight is no floating-point tensor; as
            :func:`general_preference_loss`.
        ValueError: if shapes do not fit, or shared embeddings come without a scale for C > 1; as
            :func:`general_preference_loss`. The values of tensors are not looked at.
        RuntimeError: if devices differ.

    Example:
        >>> chosen, rejected = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> scale = torch.tensor([[1.0], [2.0], [3.0]])
        >>> target = torch.tensor([[1.0, 0.0, float("nan")]])
        >>> output = multi_criteria_loss(chosen, rejected, scale, target, tau=1.0)
        >>> output.criterion_loss, output.labels
        (tensor([0.3133, 2.1269, 0.0000]), tensor([1, 1, 0]))
        >>> output.loss, output.accuracy
        (tensor(1.2201), tensor(0.5000))
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}")
    _check_target(target, chosen)
    chosen, rejected = _for_each_criterion(chosen, rejected, scale, target)
    labelled = ~torch.isnan(target)
    known = torch.where(labelled, target, 0.5)
    chosen, rejected, scale, margin, tau = divide_by_temperature(
        chosen, rejected, scale, margin, tau
    )
    losses, probability, _ = general_preference_loss(
        chosen,
        rejected,
        scale,
        margin=margin,
        target=known,
        label_smoothing=label_smoothing,
        tau=tau,
        reduction="none",
    )
    weights = _weights(weight, labelled, losses)
    with torch.no_grad():
        # As in the loss of one criterion: without a margin the probability has the score's side.
        score = probability - 0.5 if margin is None else ops.score(chosen, rejected, scale)
        right = (torch.sign(score).to(losses) * torch.sign(known.to(losses) - 0.5) + 1) / 2
        labels = _sum_each(labelled)
        count = labels.clamp(min=1)
        each_loss = _sum_each(torch.where(labelled, losses, 0.0)) / count
        each_right = _sum_each(torch.where(labelled, right, 0.0))
        accuracy = each_right.sum() / labels.sum().clamp(min=1)
    losses = losses * weights
    if reduction == "mean":
        total = weights.sum()
        loss = losses.sum() / torch.where(total > 0, total, 1.0)
    else:
        loss = losses.sum() if reduction == "sum" else losses
    return MultiCriteriaLossOutput(
        loss, probability, accuracy, each_loss, each_right / count, labels
    )


def _sum_each(entries: Tensor) -> Tensor:
    """The sums (C,) of (..., C)."""
    return entries.reshape(-1, entries.shape[-1]).sum(dim=0)


def _check_target(target: Tensor, chosen: Tensor) -> None:
    form = "(..., C), a probability for each criterion and nan where there is no label"
    _checks.check_tensor("target", target, least_dims=1, form=form)
    if target.shape[-1] < 1:
        raise ValueError(f"target must be {form}; got shape {tuple(target.shape)}")
    _checks.check_embedding("chosen", chosen, least_dims=1, form="of shape (..., d)")
    shared = chosen.dim() == target.dim() and chosen.shape[:-1] == target.shape[:-1]
    if not shared and chosen.shape[:-1] != target.shape:
        raise ValueError(
            f"target must be {form}, with chosen (..., d) or (..., C, d); got target "
            f"{tuple(target.shape)} and chosen {tuple(chosen.shape)}"
        )
    if target.device != chosen.device:
        raise RuntimeError(
            f"target and chosen must be on the same device; got {target.device} and {chosen.device}"
        )


def _for_each_criterion(
    chosen: Tensor, rejected: Tensor, scale: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Embeddings (..., C, d), after a look at what would broadcast to something else."""
    criteria = target.shape[-1]
    shared = chosen.dim() == target.dim()
    if isinstance(scale, Tensor):
        most = (criteria,) if shared else (criteria, 1)
        if scale.dim() < 2 or scale.shape[-2] not in most:
            raise ValueError(
                f"scale must be (..., C, k) with C = {criteria}, the weights of each criterion; "
                f"got shape {tuple(scale.shape)}"
            )
    elif scale is None and shared and criteria > 1:
        raise ValueError(
            f"embeddings {tuple(chosen.shape)} without a scale have one score, and target "
            f"{tuple(target.shape)} has {criteria} criteria: pass scale (..., C, k), or embeddings "
            "(..., C, d)"
        )
    if not shared or not isinstance(rejected, Tensor) or rejected.shape != chosen.shape:
        return chosen, rejected  # what does not fit, the loss of one criterion says
    shape = (*chosen.shape[:-1], criteria, chosen.shape[-1])
    return chosen.unsqueeze(-2).expand(shape), rejected.unsqueeze(-2).expand(shape)


def _weights(weight: Tensor | None, labelled: Tensor, losses: Tensor) -> Tensor:
    """What each entry counts (..., C), 0 without a label."""
    if weight is None:
        return labelled.to(losses)
    form = "(C,) or (..., C), how much a criterion or an entry counts"
    _checks.check_tensor("weight", weight, least_dims=1, form=form)
    if weight.shape not in (labelled.shape, labelled.shape[-1:]):
        raise ValueError(
            f"weight must be {form}, for target {tuple(labelled.shape)}; got shape "
            f"{tuple(weight.shape)}"
        )
    if weight.device != losses.device:
        raise RuntimeError(
            f"weight and chosen must be on the same device; got {weight.device} and {losses.device}"
        )
    return torch.where(labelled, weight.to(losses), 0.0)
