"""The head of the General Preference Model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gpm_core import ops
from gpm_core.heads._common import Gate, Init, _Head, apply_gate, check_gate, small_normal_


class PreferenceHead(_Head):
    """Head of the General Preference Model (arXiv 2410.02197, section 4).

    v = normalize(W h + bias); s(a > b) = sum_l lambda_l (a[2l] b[2l+1] - a[2l+1] b[2l]) with
    lambda = gate(prompt) or 1.

    Args:
        hidden_size: H, width of the hidden states.
        dim: d = 2k, even, width of the embedding. 2 can express one cycle or one ranking; more
            blocks, more of both.
        gate: "softmax" as the published checkpoints, "softplus", or None. Read from the prompt's
            hidden state by ``prompt_head``.
        normalize: scale embeddings to unit length.
        init: "anchored" (default): a learnable bias starts at (1, 0) in the first block, so that
            the head starts as a Bradley-Terry model, s = b's second coordinate - a's to first
            order, and learns cycles from there. "paper": no bias, small random weights, for parity
            with the reference code and its checkpoints.
        bias: whether ``value_head`` has a bias; None: with "anchored" only.
        tau: default temperature of ``probability_matrix``.
        device, dtype: of the parameters, as in ``nn.Linear``.

    Parameters: ``value_head.weight`` (d, H), ``value_head.bias`` (d,), ``prompt_head.weight``
    (k, H), the last two where present; the gate is linear without bias as in published checkpoints.

    Raises:
        ValueError: for an odd ``dim``, an unknown gate or initialisation, "anchored" without
            bias, or a ``tau`` that is not finite and above zero.

    Example:
        >>> head = PreferenceHead(hidden_size=16, dim=4)
        >>> head.probability_matrix(torch.zeros(3, 16)).detach()
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
    """

    def __init__(
        self,
        hidden_size: int,
        dim: int,
        gate: Gate | None = None,
        normalize: bool = True,
        *,
        init: Init = "anchored",
        bias: bool | None = None,
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
        bias = init == "anchored" if bias is None else bias
        if init == "anchored" and not bias:
            raise ValueError("init='anchored' needs the bias; use init='paper' or bias=True")
        self.dim, self.gate, self.normalize, self.init = dim, gate, normalize, init
        self.value_head = nn.Linear(hidden_size, dim, bias=bias, device=device, dtype=dtype)
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
            if self.init == "anchored":
                with torch.no_grad():
                    self.value_head.bias[0] = 1.0
        if self.prompt_head is not None:
            small_normal_(self.prompt_head.weight)

    def embed(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embeddings (..., d); see :func:`gpm_core.ops.preference_embedding`."""
        return ops.preference_embedding(
            hidden,
            self.value_head.weight,
            positions,
            bias=self.value_head.bias,
            normalize=self.normalize,
        )

    def scale(self, prompt_hidden: Tensor | None = None) -> Tensor | None:
        """Gate values (..., k) > 0 of prompts (..., H), or None without a gate."""
        if self.prompt_head is None or self.gate is None:
            return None
        return apply_gate(self.gate, self.prompt_head, prompt_hidden)

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """As :meth:`embed`."""
        return self.embed(hidden, positions)

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return (
            f"hidden_size={self.hidden_size}, dim={self.dim}, gate={self.gate!r}, "
            f"normalize={self.normalize}, init={self.init!r}, tau={self.tau}"
        )
