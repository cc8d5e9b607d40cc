"""Losses of preference models: functions, and modules that hold their options.

All return a :class:`PreferenceLossOutput`: the loss to differentiate, and the probability and
accuracy to log.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from gpm_core import ops

Reduction = Literal["mean", "sum", "none"]


class PreferenceLossOutput(NamedTuple):
    """What a loss returns."""

    #: Reduced loss, or (...) per pair with ``reduction="none"``.
    loss: Tensor
    #: P(chosen > rejected) (...) per pair, after margin and temperature, detached.
    probability: Tensor
    #: Share of pairs whose score, whatever the margin, has the side that the target has; a tie of
    #: either (without a margin: a probability that rounds to 1/2) counts half. Detached, 0-d.
    accuracy: Tensor


def _reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}")


def _smooth(target: Tensor | float | None, label_smoothing: float) -> Tensor | float | None:
    """Pull targets toward 1/2: p -> (1 - smoothing) p + smoothing / 2 ... as class smoothing does.

    With the hard target 1 this is 1 - smoothing / 2.
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1); got {label_smoothing}")
    if label_smoothing == 0:
        return target
    if target is None:
        target = 1.0
    elif isinstance(target, Tensor):
        if not target.is_floating_point():
            return target  # the operation says what is wrong with it
        target = target.to(torch.promote_types(target.dtype, torch.float32))
    return target * (1 - label_smoothing) + label_smoothing / 2


def _accuracy(score: Tensor, target: Tensor | float | None) -> Tensor:
    """Agreement of the score's side with the target's, ties on either side counted half."""
    with torch.no_grad():
        side = torch.sign(score.detach())
        side = side.to(torch.promote_types(side.dtype, torch.float32))
        if isinstance(target, Tensor):
            side = side * torch.sign(target.to(side) - 0.5)
        elif target is not None:
            side = side * float((target > 0.5) - (target < 0.5))
        return ((side + 1) / 2).mean()


def general_preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None = None,
    *,
    margin: Tensor | float | None = None,
    target: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    tau: float = 0.1,
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
        tau: temperature, finite and above zero.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`gpm_core.ops.preference_loss`.

    Example:
        >>> chosen, rejected = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> output = general_preference_loss(chosen, rejected, tau=1.0)
        >>> output.loss, output.accuracy
        (tensor(0.3133), tensor(1.))
    """
    smoothed = _smooth(target, label_smoothing)
    loss, probability = ops.preference_loss(
        chosen, rejected, scale=scale, margin=margin, target=smoothed, tau=tau
    )
    probability = probability.detach()
    if margin is None:
        accuracy = _accuracy(probability - 0.5, target)
    else:
        with torch.no_grad():
            accuracy = _accuracy(ops.score(chosen, rejected, scale), target)
    return PreferenceLossOutput(_reduce(loss, reduction), probability, accuracy)


def bradley_terry_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    margin: Tensor | float | None = None,
    target: Tensor | float | None = None,
    label_smoothing: float = 0.0,
    tau: float = 1.0,
    reduction: Reduction = "mean",
) -> PreferenceLossOutput:
    """Cross-entropy of sigmoid((r_chosen - r_rejected - margin) / tau) (Bradley and Terry, 1952).

    Args:
        chosen: (...) rewards.
        rejected: (...) rewards, same shape and dtype.
        margin: what the difference must exceed; (...) or a number.
        target: probability in [0, 1] that ``chosen`` is preferred; (...) or a number; None for 1.
        label_smoothing: e in [0, 1): targets become (1 - e) p + e / 2.
        tau: temperature; 1 is Bradley and Terry's, the GPM paper's code uses 0.1.
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


class GeneralPreferenceLoss(nn.Module):
    """:func:`general_preference_loss` with its options held: ``loss(chosen, rejected, scale)``.

    Example:
        >>> loss = GeneralPreferenceLoss(tau=1.0)
        >>> loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).loss
        tensor(0.3133)
    """

    def __init__(
        self, *, tau: float = 0.1, label_smoothing: float = 0.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.tau, self.label_smoothing, self.reduction = tau, label_smoothing, reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        scale: Tensor | None = None,
        *,
        margin: Tensor | float | None = None,
        target: Tensor | float | None = None,
    ) -> PreferenceLossOutput:
        """Embeddings (..., d) in, see :func:`general_preference_loss`."""
        return general_preference_loss(
            chosen,
            rejected,
            scale,
            margin=margin,
            target=target,
            label_smoothing=self.label_smoothing,
            tau=self.tau,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return (
            f"tau={self.tau}, label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
        )


class BradleyTerryLoss(nn.Module):
    """:func:`bradley_terry_loss` with its options held: ``loss(chosen, rejected)``.

    Example:
        >>> BradleyTerryLoss()(torch.tensor([1.0]), torch.tensor([0.0])).loss
        tensor(0.3133)
    """

    def __init__(
        self, *, tau: float = 1.0, label_smoothing: float = 0.0, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.tau, self.label_smoothing, self.reduction = tau, label_smoothing, reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        *,
        margin: Tensor | float | None = None,
        target: Tensor | float | None = None,
    ) -> PreferenceLossOutput:
        """Rewards (...) in, see :func:`bradley_terry_loss`."""
        return bradley_terry_loss(
            chosen,
            rejected,
            margin=margin,
            target=target,
            label_smoothing=self.label_smoothing,
            tau=self.tau,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return (
            f"tau={self.tau}, label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
        )
