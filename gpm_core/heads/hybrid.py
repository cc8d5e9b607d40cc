"""The hybrid reward-cyclic head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpm_core import ops
from gpm_core.heads._common import (
    Gate,
    Init,
    _Head,
    apply_gate,
    check_gate,
    project_widely,
    small_normal_,
)


class HybridHead(_Head):
    """Hybrid reward-cyclic head (arXiv 2605.17342): a scalar reward and a cyclic vector part.

    s = scalar_weight (r_a - r_b) + cyclic_weight sum_l lambda_l^2 (block l of <R v_a, v_b>), with
    r clipped to +-clip. The gate enters as D R D, so squared.

    Its embedding is (1, -r) followed by v, its scale (scalar_weight, cyclic_weight lambda^2).

    Args:
        hidden_size: H, width of the hidden states.
        dim: even width of the cyclic part; the embedding has two more.
        gate: "softmax", "softplus" or None, of the cyclic part.
        normalize: scale the cyclic part to unit length.
        scalar_weight: C1 of the paper, above zero.
        cyclic_weight: C2 of the paper, above zero. (The paper's values are not public; 1 and 1
            here.)
        clip: delta of the paper: rewards are clipped to +-clip; None for no limit.
        init: "anchored": the cyclic part has a learnable bias (1, 0) in its first block;
            "paper": small random weights without bias.
        tau: default temperature of ``probability_matrix``.
        device, dtype: of the parameters, as in ``nn.Linear``. Rewards, and with them embeddings and
            scores, are in float32 at least.

    Parameters: ``value_head.weight`` (1 + dim, H): the reward, then the cyclic part;
    ``value_head.bias`` and ``prompt_head.weight`` where present.

    Raises:
        ValueError: for an odd ``dim``, an unknown gate or initialisation, or a weight, clip or
            ``tau`` that is not finite and above zero.

    Example:
        >>> HybridHead(16, dim=4).score_matrix(torch.zeros(2, 3, 16)).shape
        torch.Size([2, 3, 3])
    """

    def __init__(
        self,
        hidden_size: int,
        dim: int,
        gate: Gate | None = None,
        normalize: bool = True,
        *,
        scalar_weight: float = 1.0,
        cyclic_weight: float = 1.0,
        clip: float | None = None,
        init: Init = "anchored",
        tau: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, tau)
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even and at least 2 (blocks of two); got {dim}")
        check_gate(gate)
        if init not in ("anchored", "paper"):
            raise ValueError(f"init must be 'anchored' or 'paper'; got {init!r}")
        for name, value in (
            ("scalar_weight", scalar_weight),
            ("cyclic_weight", cyclic_weight),
            ("clip", clip),
        ):
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be finite and above zero; got {value}")
        self.dim, self.gate, self.normalize, self.init = dim, gate, normalize, init
        self.scalar_weight, self.cyclic_weight, self.clip = scalar_weight, cyclic_weight, clip
        self.value_head = nn.Linear(
            hidden_size, 1 + dim, bias=init == "anchored", device=device, dtype=dtype
        )
        self.prompt_head = (
            nn.Linear(hidden_size, dim // 2, bias=False, device=device, dtype=dtype)
            if gate is not None
            else None
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all parameters as ``init`` says."""
        small_normal_(self.value_head.weight)
        if self.value_head.bias is not None:
            nn.init.zeros_(self.value_head.bias)
            with torch.no_grad():
                self.value_head.bias[1] = 1.0
        if self.prompt_head is not None:
            small_normal_(self.prompt_head.weight)

    def embed(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embeddings (..., 2 + dim): (1, -reward), then the cyclic part.

        In float32 at least, also with 16-bit weights and under autocast.
        """
        projected = project_widely(self.value_head, hidden, positions)
        reward, cyclic = projected[..., :1], projected[..., 1:]
        if self.clip is not None:
            reward = reward.clamp(-self.clip, self.clip)
        if self.normalize:
            cyclic = ops.normalize(cyclic)
        return torch.cat((torch.ones_like(reward), -reward, cyclic.to(reward.dtype)), dim=-1)

    def scale(self, prompt_hidden: Tensor | None = None) -> Tensor:
        """Weights (..., 1 + k), float32 at least: scalar_weight, then cyclic_weight lambda^2."""
        weight = self.value_head.weight
        if self.gate is None or self.prompt_head is None:
            gate = weight.new_ones(self.dim // 2)
        else:
            gate = apply_gate(self.gate, self.prompt_head, prompt_hidden)
        gate = gate.to(torch.promote_types(gate.dtype, torch.float32))
        scalar = gate.new_full((*gate.shape[:-1], 1), self.scalar_weight)
        return torch.cat((scalar, self.cyclic_weight * gate.square()), dim=-1)

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """As :meth:`embed`."""
        return self.embed(hidden, positions)

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return (
            f"hidden_size={self.hidden_size}, dim={self.dim}, gate={self.gate!r}, "
            f"normalize={self.normalize}, scalar_weight={self.scalar_weight}, "
            f"cyclic_weight={self.cyclic_weight}, clip={self.clip}, init={self.init!r}, "
            f"tau={self.tau}"
        )
