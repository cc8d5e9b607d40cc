"""What all losses share: what they return, reductions, targets and accuracy."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

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


def reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    if reduction == "sum":
        return loss.sum()
    if reduction == "none":
        return loss
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}")


def smooth(target: Tensor | float | None, label_smoothing: float) -> Tensor | float | None:
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


def accuracy_of(score: Tensor, target: Tensor | float | None) -> Tensor:
    """Agreement of the score's side with the target's, ties on either side counted half."""
    with torch.no_grad():
        side = torch.sign(score.detach())
        side = side.to(torch.promote_types(side.dtype, torch.float32))
        if isinstance(target, Tensor):
            side = side * torch.sign(target.to(side) - 0.5)
        elif target is not None:
            side = side * float((target > 0.5) - (target < 0.5))
        return ((side + 1) / 2).mean()
