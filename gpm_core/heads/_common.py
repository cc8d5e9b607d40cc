"""What all heads share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gpm_core import ops
from gpm_core.backends.reference import select

Gate = Literal["softmax", "softplus"]
Init = Literal["anchored", "paper"]


class _Head(nn.Module):
    """What all heads share: scores and matrices from ``embed`` and ``scale``."""

    def __init__(self, hidden_size: int, tau: float) -> None:
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"hidden_size must be at least 1; got {hidden_size}")
        if not 0 < tau < math.inf:
            raise ValueError(f"tau must be finite and above zero; got {tau}")
        self.hidden_size = hidden_size
        #: Default temperature of probabilities, P = sigmoid(s / tau).
        self.tau = tau

    def embed(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Preference embeddings (..., d) of hidden states (..., H), or of the tokens at
        ``positions`` (...) of hidden states (..., T, H).
        """
        raise NotImplementedError(f"{type(self).__name__} does not define embed")

    def scale(self, prompt_hidden: Tensor | None = None) -> Tensor | None:
        """Weight of each block of the embedding (..., k), or None for one."""
        return None

    def score(
        self, chosen: Tensor, rejected: Tensor, prompt_hidden: Tensor | None = None
    ) -> Tensor:
        """Scores s(chosen > rejected) (...) of hidden states (..., H).

        Args:
            chosen: (..., H) hidden states of the responses that are scored.
            rejected: (..., H) hidden states of those that they are scored against.
            prompt_hidden: (..., H) hidden state at the prompt's last token; needed by a gate.
        """
        return ops.score(self.embed(chosen), self.embed(rejected), self.scale(prompt_hidden))

    def score_matrix(self, hidden: Tensor, prompt_hidden: Tensor | None = None) -> Tensor:
        """Scores of all pairs (..., K, K) of hidden states (..., K, H), gate (..., H)."""
        return ops.score_matrix(self.embed(hidden), self.scale(prompt_hidden))

    def probability_matrix(
        self, hidden: Tensor, prompt_hidden: Tensor | None = None, *, tau: float | None = None
    ) -> Tensor:
        """Probabilities of all pairs (..., K, K); ``tau`` defaults to the head's."""
        tau = self.tau if tau is None else tau
        return ops.probability_matrix(self.embed(hidden), self.scale(prompt_hidden), tau=tau)


def small_normal_(weight: Tensor) -> None:
    """The reference code's initialisation of value heads: std 1 / (H + 1)."""
    nn.init.normal_(weight, std=1.0 / (weight.shape[-1] + 1))


def project_widely(linear: nn.Linear, hidden: Tensor, positions: Tensor | None) -> Tensor:
    """W h + bias (..., rows of W) in float32 at least, also of 16-bit weights and under autocast.

    Rewards are only looked at in differences, which would be lost where each is rounded to the 8
    digits of bfloat16.

    Args:
        linear: the projection.
        hidden: (..., H), or (..., T, H) with positions.
        positions: (...) tokens that are read, or None.
    """
    weight, bias = linear.weight, linear.bias
    autocast = torch.is_autocast_enabled(hidden.device.type)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    # Of two dtypes the operation says what is wrong.
    if not autocast and (hidden.dtype == wide or hidden.dtype != weight.dtype):
        return ops.preference_embedding(hidden, weight, positions, bias=bias, normalize=False)
    if positions is not None:
        hidden = select(hidden, positions.long())
    wide_bias = None if bias is None else bias.to(wide)
    with torch.autocast(hidden.device.type, enabled=False):
        return ops.preference_embedding(
            hidden.to(wide), weight.to(wide), bias=wide_bias, normalize=False
        )


def apply_gate(kind: str, prompt_head: nn.Linear, prompt_hidden: Tensor | None) -> Tensor:
    if prompt_hidden is None:
        raise ValueError(
            f"this head has a {kind} gate: pass prompt_hidden, the hidden state (..., H) at the "
            "prompt's last token"
        )
    logits = prompt_head(prompt_hidden)
    if kind == "softmax":
        return torch.softmax(logits, dim=-1)
    return nn.functional.softplus(logits)


def check_gate(gate: str | None) -> None:
    if gate not in (None, "softmax", "softplus"):
        raise ValueError(f"gate must be None, 'softmax' or 'softplus'; got {gate!r}")
