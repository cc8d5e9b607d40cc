"""Iterates of a policy to compare, and parts of what was found."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpm_core.evaluation import Estimate, IterateComparison, compare_iterates


def both_ways(rates: Tensor) -> Tensor:
    """(P, 2, 2) from the win rates (P,) of the second iterate over the first."""
    half = torch.full_like(rates, 0.5)
    return torch.stack((half, 1 - rates, rates, half), dim=1).reshape(-1, 2, 2)


def against_start(rates: Tensor, difference: Tensor, **options: Any) -> IterateComparison:
    """Of two iterates, the second longer by ``difference`` (P,)."""
    lengths = torch.stack((torch.full_like(difference, 200.0), 200.0 + difference), dim=1)
    return compare_iterates(both_ways(rates), lengths, ["start", "gpo-1"], **options)


def simulated(prompts: int, iterates: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Win rates, lengths and KL where quality, length and chance decide."""
    torch.manual_seed(seed)
    quality = 0.3 * torch.randn(iterates, dtype=torch.float64)
    lengths = 150 + 40 * torch.randn(prompts, iterates, dtype=torch.float64)
    lengths = (lengths + 15 * torch.arange(iterates)).clamp(min=1)
    noise = torch.randn(prompts, iterates, iterates, dtype=torch.float64)
    logit = quality[:, None] - quality + 0.01 * (lengths[:, :, None] - lengths[:, None])
    win_rates = torch.sigmoid(logit + noise - noise.mT)
    return win_rates, lengths, torch.rand(prompts, iterates, dtype=torch.float64)


def labels(count: int) -> list[str]:
    return ["start", *(f"gpo-{i}" for i in range(1, count))]


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high
