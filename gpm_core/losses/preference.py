"""Losses of preference embeddings, rewards and scores."""

from __future__ import annotations

import torch
from torch import Tensor

from gpm_core import ops
from gpm_core.losses._common import PreferenceLossOutput, Reduction, accuracy_of, reduce, smooth
from gpm_core.losses.temperature import Temperature, divide_by_temperature
from gpm_core.ops import _checks
from gpm_core.ops.preference_loss import per_pair


def general_preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None = None,
    *,
    margin: Tensor | float | None = None,
    target: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    tau: float | Tensor | Temperature = 0.1,
    reduction: Reduction = "mean",
) -> PreferenceLossOutput:
    """Cross-entropy of sigmoid((s(chosen > rejected) - margin) / tau) (arXiv 2410.02197, sec. 4).

    Args:
        chosen: (..., d) preference embeddings, even d.
        rejected: (..., d), same shape and dtype.
        scale: (..., k) weight of each block (the prompt's gate), or None.
        margin: what the score must exceed; (...) or a number.
        target: probability in [0, 1] that ``chosen`` is preferred; (...) or a number; None for 1.
            0.5 says tie.
        label_smoothing: e in [0, 1): targets become (1 - e) p + e / 2.
        tau: temperature, finite and above zero: a number, a :class:`Temperature` to learn one or
            one per block, or a tensor () or (k,) of them.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`gpm_core.ops.preference_loss`; also for a
            tau of another shape or device. The values of a tensor tau are not looked at.

    Example:
        >>> chosen, rejected = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> output = general_preference_loss(chosen, rejected, tau=1.0)
        >>> output.loss, output.accuracy
        (tensor(0.3133), tensor(1.))
    """
    smoothed = smooth(target, label_smoothing)
    chosen, rejected, scale, margin, tau = divide_by_temperature(
        chosen, rejected, scale, margin, tau
    )
    loss, probability = ops.preference_loss(
        chosen, rejected, scale=scale, margin=margin, target=smoothed, tau=tau
    )
    probability = probability.detach()
    if margin is None:
        accuracy = accuracy_of(probability - 0.5, target)
    else:
        with torch.no_grad():
            accuracy = accuracy_of(ops.score(chosen, rejected, scale), target)
    return PreferenceLossOutput(reduce(loss, reduction), probability, accuracy)


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | float | None = None,
    target: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    tau: float | Tensor | Temperature = 1.0,
    reduction: Reduction = "mean",
) -> PreferenceLossOutput:
    """Cross-entropy of sigmoid((r_chosen - r_rejected - margin) / tau) (Bradley and Terry, 1952).

    Args:
        chosen: (...) rewards.
        rejected: (...) rewards, same shape and dtype.
        margin: what the difference must exceed; (...) or a number.
        target: probability in [0, 1] that ``chosen`` is preferred; (...) or a number; None for 1.
        label_smoothing: e in [0, 1): targets become (1 - e) p + e / 2.
        tau: temperature; 1 is Bradley and Terry's, the GPM paper's code uses 0.1. A number, or a
            :class:`Temperature` (or a tensor ()) to learn it.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`general_preference_loss`; also for rewards
            (B, 1) against (B,).

    Example:
        >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([0.0])).loss
        tensor(0.3133)
    """
    for name, rewards in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(rewards, Tensor):
            raise TypeError(f"{name} must be a tensor of rewards; got {type(rewards).__name__}")
    if chosen.shape != rejected.shape:
        raise ValueError(
            "chosen and rejected must be rewards of the same shape; got "
            f"{tuple(chosen.shape)} and {tuple(rejected.shape)}"
        )
    return general_preference_loss(
        torch.stack((torch.ones_like(chosen), -chosen), dim=-1),
        torch.stack((torch.ones_like(rejected), -rejected), dim=-1),
        margin=margin,
        target=target,
        label_smoothing=label_smoothing,
        tau=tau,
        reduction=reduction,
    )


def score_loss(
    scores: Tensor,
    *,
    margin: Tensor | float | None = None,
    target: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    tau: float | Tensor | Temperature = 1.0,
    reduction: Reduction = "mean",
) -> PreferenceLossOutput:
    """Cross-entropy of sigmoid((s - margin) / tau) of scores that a model gives for pairs.

    For models that score pairs without embeddings, as :class:`gpm_core.heads.PairPreferenceHead`.

    Args:
        scores: (...) s(chosen > rejected), float64, float32, bfloat16 or float16.
        margin: what the score must exceed; (...) or a number. Never broadcast: (B,) against
            scores (B, 1) is an error.
        target: probability in [0, 1] that ``chosen`` is preferred; (...) or a number; None for 1.
        label_smoothing: e in [0, 1): targets become (1 - e) p + e / 2.
        tau: temperature: a number, or a :class:`Temperature` (or a tensor ()) to learn it.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`bradley_terry_loss`.

    Example:
        >>> score_loss(torch.tensor([1.0, 2.0]), margin=1.0).probability
        tensor([0.5000, 0.7311])
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"scores must be a tensor of scores; got {type(scores).__name__}")
    return bradley_terry_loss(
        scores,
        torch.zeros_like(scores),
        margin=margin,
        target=target,
        label_smoothing=label_smoothing,
        tau=tau,
        reduction=reduction,
    )


def regression_loss(
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None = None,
    *,
    target_margin: Tensor | float = 10.0,
    tau: float | Tensor | Temperature = 0.1,
    reduction: Reduction = "mean",
) -> PreferenceLossOutput:
    """Regression of the logit on a target: (s(chosen > rejected) / tau - target_margin)^2 / 2.

    From the reference code of arXiv 2410.02197, which has it for a common target, and for margins
    of pairs in two ways: ``target_margin=margin / tau`` and ``5 * torch.sigmoid(margin)``.
    Rewards r regress as the embeddings (1, -r), which ``BradleyTerryHead.embed`` gives.

    Args:
        chosen: (..., d) preference embeddings, even d, float64, float32, bfloat16 or float16.
        rejected: (..., d), same shape, dtype and device.
        scale: (..., k) weight of each block (the prompt's gate), or None.
        target_margin: what s / tau is to be, in units of the logit; (...) or a number. Negative
            says that ``rejected`` is preferred, 0 tie. Never broadcast.
        tau: temperature, finite and above zero: a number, a :class:`Temperature` to learn one or
            one per block, or a tensor () or (k,) of them.
        reduction: "mean", "sum" or "none".

    Returns:
        Loss; probability sigmoid(s / tau); accuracy, where the target's side is the sign of
        ``target_margin``. float64 for float64 embeddings, float32 for all others.

    Raises:
        TypeError: if a tensor has an unsupported or a different dtype, or an argument is no number.
        ValueError: if shapes do not fit, a number is not finite, or tau not above zero.
        RuntimeError: if devices differ.

    Example:
        >>> chosen, rejected = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> regression_loss(chosen, rejected, target_margin=4.0, tau=0.5).loss
        tensor(2.)
    """
    chosen, rejected, scale, _, divisor = divide_by_temperature(chosen, rejected, scale, None, tau)
    chosen, rejected, scale = _checks.float32_under_autocast(chosen, rejected, scale)
    _checks.check_embedding("chosen", chosen, least_dims=1, form="of shape (..., d)")
    _checks.check_embedding("rejected", rejected, least_dims=1, form="of shape (..., d)")
    _checks.check_same("rejected", rejected, "chosen", chosen)
    if chosen.shape != rejected.shape:
        raise ValueError(
            "chosen and rejected must have the same shape (..., d); got "
            f"{tuple(chosen.shape)} and {tuple(rejected.shape)}"
        )
    scale = _checks.expand_scale(scale, "chosen", chosen, chosen.shape[:-1])
    divisor = _checks.check_tau(divisor, chosen)
    wanted = per_pair("target_margin", target_margin, chosen)
    if wanted is None:
        raise TypeError("target_margin must be a number or a tensor of one per pair; got None")
    # Scores come in the dtype of the embeddings: rounded to half precision they would be lost.
    wide = torch.promote_types(chosen.dtype, torch.float32)
    score = ops.score(chosen.to(wide), rejected.to(wide), None if scale is None else scale.to(wide))
    logit = score / divisor
    losses = (logit - wanted).square() / 2
    side = (torch.sign(wanted.detach()) + 1) / 2
    return PreferenceLossOutput(
        reduce(losses, reduction), torch.sigmoid(logit.detach()), accuracy_of(score, side)
    )
