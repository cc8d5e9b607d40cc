"""What all heads share."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gpm_core import ops

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
