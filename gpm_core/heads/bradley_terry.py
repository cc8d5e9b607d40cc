"""The scalar reward head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpm_core.heads._common import _Head, project_widely, small_normal_


class BradleyTerryHead(_Head):
    """Scalar reward head: s(a > b) = r_a - r_b, r = w h + bias.

    Args:
        hidden_size: H, width of the hidden states.
        bias: whether ``value_head`` has one (it cancels in every score).
        tau: default temperature of ``probability_matrix``; 1 is Bradley and Terry's model.
        device, dtype: of the parameters, as in ``nn.Linear``. Rewards, which only their
            differences say something of, are in float32 at least.

    Parameters: ``value_head.weight`` (1, H), ``value_head.bias`` (1,) where present.

    Example:
        >>> BradleyTerryHead(16)(torch.zeros(3, 16)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        bias: bool = False,
        tau: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, tau)
        self.value_head = nn.Linear(hidden_size, 1, bias=bias, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small random weights, zero bias."""
        small_normal_(self.value_head.weight)
        if self.value_head.bias is not None:
            nn.init.zeros_(self.value_head.bias)

    def reward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Rewards (...) of hidden states (..., H), or at ``positions`` of (..., T, H).

        In float32 at least, also with 16-bit weights and under autocast.
        """
        return project_widely(self.value_head, hidden, positions).squeeze(-1)

    def embed(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """The rewards as preference embeddings (1, -r), (..., 2)."""
        reward = self.reward(hidden, positions)
        return torch.stack((torch.ones_like(reward), -reward), dim=-1)

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """As :meth:`reward`."""
        return self.reward(hidden, positions)

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return f"hidden_size={self.hidden_size}, tau={self.tau}"
