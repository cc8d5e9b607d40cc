"""Checks of payoff matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def check_payoff(payoff: Any) -> Tensor:
    """A finite skew-symmetric matrix (..., K, K), made exactly so, in float32 at least."""
    if not isinstance(payoff, Tensor) or not payoff.is_floating_point():
        given = payoff.dtype if isinstance(payoff, Tensor) else type(payoff).__name__
        raise TypeError(f"payoff must be a floating-point tensor of shape (..., K, K); got {given}")
    if payoff.dim() < 2 or payoff.shape[-1] != payoff.shape[-2] or payoff.numel() == 0:
        raise ValueError(f"payoff must be (..., K, K) with K >= 1; got shape {tuple(payoff.shape)}")
    rounding = torch.finfo(payoff.dtype).eps
    payoff = payoff.to(torch.promote_types(payoff.dtype, torch.float32))
    largest = payoff.detach().abs().max().item()
    if not largest < float("inf"):
        raise ValueError("payoff must be finite; it holds an infinity or NaN")
    asymmetry = (payoff + payoff.mT).detach().abs().max().item()
    if asymmetry > 16 * rounding * largest:
        raise ValueError(
            f"payoff must be skew-symmetric, payoff + payoff.T = 0; it is off by {asymmetry:.3g}. "
            "Of probabilities P pass P - 0.5"
        )
    return (payoff - payoff.mT) / 2
