"""The pair-preference baseline: a head that reads both responses of a pair at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gpm_core.heads._common import _Head, small_normal_


def skew_probabilities(logits: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Probabilities of skew-symmetric logits (..., K, K): P + P.T = 1 exactly in ``dtype``.

    ``dtype`` None is that of the logits.
    """
    # The upper triangle decides both sides of a pair, and the large one is the complement of the
    # small one: exact, and small probabilities keep their relative accuracy.
    upper = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu()
    wins = torch.where(upper, logits > 0, ~(logits > 0).mT)
    small = torch.sigmoid(torch.where(wins, -logits, logits)).to(dtype or logits.dtype)
    small = torch.where(upper, small, small.mT)
    return torch.where(wins, 1 - small, small)


class PairPreferenceHead(_Head):
    """Baseline that scores the concatenated pair (PairRM, arXiv 2306.02561; PairPM).

    f(a, b) = w . gelu(W [h_a; h_b] + c) and s(a > b) = (f(a, b) - f(b, a)) / 2, skew-symmetric
    whatever f is. No embedding of one response exists, so K responses cost K^2 evaluations of f
    where the other heads project K times: it is here to be compared with. The layer between is
    not optional: of a linear f only a difference of rewards would remain, Bradley-Terry.

    A backbone that reads both responses in one text, K^2 passes of it, needs no head of its own:
    ``BradleyTerryHead(H).score(hidden of (a, b), hidden of (b, a))`` is f(a, b) - f(b, a). That
    is ``GeneralPreferenceModel`` with ``head="pair"``.

    Args:
        hidden_size: H, width of the hidden states of one response.
        width: of the layer between; None for H.
        tau: default temperature of ``probability_matrix``; 1, as scores are not bounded.
        device, dtype: of the parameters, as in ``nn.Linear``.

    Parameters: ``pair_head.weight`` (width, 2H) = W, ``pair_head.bias`` (width,) = c,
    ``value_head.weight`` (1, width) = w. A ``value_head.bias`` would cancel, so there is none.

    Raises:
        ValueError: for a ``hidden_size`` or ``width`` below 1, or a ``tau`` that is not finite and
            above zero; from the methods, for hidden states that are not (..., H) or not as many.
        TypeError: from the methods, for hidden states that are no floating-point tensors, or,
            without autocast, of another dtype than the parameters.
        RuntimeError: from the methods, for hidden states on another device than the parameters.

    Example:
        >>> head = PairPreferenceHead(16, width=8)
        >>> head.score(torch.zeros(4, 16), torch.zeros(4, 16)).shape
        torch.Size([4])
        >>> head.probability_matrix(torch.zeros(2, 16)).detach()
        tensor([[0.5000, 0.5000],
                [0.5000, 0.5000]])
    """

    def __init__(
        self,
        hidden_size: int,
        width: int | None = None,
        *,
        tau: float = 1.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, tau)
        width = hidden_size if width is None else width
        if width < 1:
            raise ValueError(f"width must be at least 1; got {width}")
        self.width = width
        self.pair_head = nn.Linear(2 * hidden_size, width, device=device, dtype=dtype)
        self.value_head = nn.Linear(width, 1, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The layer between as ``nn.Linear``, small random weights after it."""
        self.pair_head.reset_parameters()
        small_normal_(self.value_head.weight)

    def embed(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Raises: one response (..., H) has no embedding here, only pairs have scores."""
        raise NotImplementedError(
            f"{type(self).__name__} reads both responses of a pair, so one response has no "
            "embedding; use score, score_matrix or probability_matrix"
        )

    def _check(self, name: str, hidden: Tensor, least_dims: int = 1) -> None:
        form = "(..., H)" if least_dims == 1 else "(..., K, H)"
        weight = self.pair_head.weight
        if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
            given = hidden.dtype if isinstance(hidden, Tensor) else type(hidden).__name__
            raise TypeError(f"{name} must be floating-point hidden states {form}; got {given}")
        if hidden.dim() < least_dims or hidden.shape[-1] != self.hidden_size:
            raise ValueError(
                f"{name} must be {form} with H = {self.hidden_size}; got {tuple(hidden.shape)}"
            )
        if hidden.device != weight.device:
            raise RuntimeError(
                f"{name} and the head must be on the same device; got {hidden.device} and "
                f"{weight.device}"
            )
        if hidden.dtype != weight.dtype and not torch.is_autocast_enabled(hidden.device.type):
            raise TypeError(
                f"{name} and the head must have the same dtype; got {hidden.dtype} and "
                f"{weight.dtype}. Convert one of them"
            )

    def _halves(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """W [h_a; h_b] is a sum: what h (..., H) adds as a, with the bias, and what as b."""
        first, second = self.pair_head.weight.chunk(2, dim=1)
        as_a = nn.functional.linear(hidden, first, self.pair_head.bias)
        as_b = nn.functional.linear(hidden, second)
        # Scores are small differences of what follows: in float32 at least.
        wide = torch.promote_types(hidden.dtype, torch.float32)
        return as_a.to(wide), as_b.to(wide)

    def _evaluate(self, as_a: Tensor, as_b: Tensor) -> Tensor:
        """The raw f(a, b) (...) of both halves (..., width)."""
        activation = nn.functional.gelu(as_a + as_b)
        return (activation * self.value_head.weight[0].to(activation.dtype)).sum(dim=-1)

    def _wide_score_matrix(self, hidden: Tensor) -> Tensor:
        self._check("hidden", hidden, least_dims=2)
        as_a, as_b = self._halves(hidden)
        raw = self._evaluate(as_a.unsqueeze(-2), as_b.unsqueeze(-3))
        return (raw - raw.mT) / 2

    def score(
        self, chosen: Tensor, rejected: Tensor, prompt_hidden: Tensor | None = None
    ) -> Tensor:
        """Scores s(chosen > rejected) (...) of hidden states (..., H), in their dtype.

        Args:
            chosen: (..., H) hidden states of the responses that are scored.
            rejected: (..., H), same shape and dtype, of those that they are scored against.
            prompt_hidden: not read; heads with a gate need it.
        """
        self._check("chosen", chosen)
        self._check("rejected", rejected)
        if chosen.shape != rejected.shape:
            raise ValueError(
                "chosen and rejected must have the same shape (..., H); got "
                f"{tuple(chosen.shape)} and {tuple(rejected.shape)}"
            )
        chosen_as_a, chosen_as_b = self._halves(chosen)
        rejected_as_a, rejected_as_b = self._halves(rejected)
        forth = self._evaluate(chosen_as_a, rejected_as_b)
        back = self._evaluate(rejected_as_a, chosen_as_b)
        return ((forth - back) / 2).to(chosen.dtype)

    def score_matrix(self, hidden: Tensor, prompt_hidden: Tensor | None = None) -> Tensor:
        """Scores of all pairs (..., K, K) of hidden states (..., K, H): K^2 evaluations of f, with
        K^2 * width numbers in memory. ``prompt_hidden`` is not read.
        """
        return self._wide_score_matrix(hidden).to(hidden.dtype)

    def probability_matrix(
        self, hidden: Tensor, prompt_hidden: Tensor | None = None, *, tau: float | None = None
    ) -> Tensor:
        """Probabilities of all pairs (..., K, K), P + P.T = 1 exactly, by K^2 evaluations;
        ``tau`` defaults to the head's. ``prompt_hidden`` is not read.
        """
        tau = self.tau if tau is None else tau
        if not 0 < tau < math.inf:
            raise ValueError(f"tau must be finite and above zero; got {tau}")
        return skew_probabilities(self._wide_score_matrix(hidden) / tau, hidden.dtype)

    def forward(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """As :meth:`score`."""
        return self.score(chosen, rejected)

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return f"hidden_size={self.hidden_size}, width={self.width}, tau={self.tau}"
