"""Centring and scaling of hidden states, by statistics that are measured once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Deviations below this share of the largest are left alone: a constant feature carries nothing.
_LEAST = 1e-6


class Standardization(nn.Module):
    """(h - mean) / std of hidden states h (..., H); the identity until :meth:`fit`.

    Buffers: ``mean`` and ``std`` (H,).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(hidden_size))
        self.register_buffer("std", torch.ones(hidden_size))

    def reset_parameters(self) -> None:
        """Be the identity again."""
        self.mean.zero_()
        self.std.fill_(1.0)

    @torch.no_grad()
    def fit(self, hidden: Tensor) -> None:
        """Take mean and deviation of N >= 2 hidden states (N, H)."""
        std, mean = torch.std_mean(hidden.double(), dim=0)
        std = torch.where(std > _LEAST * std.max(), std, torch.ones_like(std))
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, hidden: Tensor) -> Tensor:
        """Standardized hidden states, of the same shape and dtype."""
        mean, std = self.mean.to(hidden.dtype), self.std.to(hidden.dtype)
        return (hidden - mean) / std
