"""Heads: modules that turn a backbone's hidden states into preferences.

All three speak one language. ``embed`` gives a preference embedding (..., d) for any operation of
:mod:`gpm_core.ops`, ``scale`` the weight of its blocks, and ``score``, ``score_matrix`` and
``probability_matrix`` put both together. A scalar reward r is the embedding (1, -r), whose score
s(a > b) = 1 * (-r_b) - (-r_a) * 1 = r_a - r_b, so Bradley-Terry and hybrid models use the same
operations as the general one.
"""

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


def _small_normal_(weight: Tensor) -> None:
    """The reference code's initialisation of value heads: std 1 / (H + 1)."""
    nn.init.normal_(weight, std=1.0 / (weight.shape[-1] + 1))


def _apply_gate(kind: str, prompt_head: nn.Linear, prompt_hidden: Tensor | None) -> Tensor:
    if prompt_hidden is None:
        raise ValueError(
            f"this head has a {kind} gate: pass prompt_hidden, the hidden state (..., H) at the "
            "prompt's last token"
        )
    logits = prompt_head(prompt_hidden)
    if kind == "softmax":
        return torch.softmax(logits, dim=-1)
    return nn.functional.softplus(logits)


def _check_gate(gate: str | None) -> None:
    if gate not in (None, "softmax", "softplus"):
        raise ValueError(f"gate must be None, 'softmax' or 'softplus'; got {gate!r}")


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
        _check_gate(gate)
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
        _small_normal_(self.value_head.weight)
        if self.value_head.bias is not None:
            nn.init.zeros_(self.value_head.bias)
            if self.init == "anchored":
                with torch.no_grad():
                    self.value_head.bias[0] = 1.0
        if self.prompt_head is not None:
            _small_normal_(self.prompt_head.weight)

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
        return _apply_gate(self.gate, self.prompt_head, prompt_hidden)

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """As :meth:`embed`."""
        return self.embed(hidden, positions)

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return (
            f"hidden_size={self.hidden_size}, dim={self.dim}, gate={self.gate!r}, "
            f"normalize={self.normalize}, init={self.init!r}, tau={self.tau}"
        )


class BradleyTerryHead(_Head):
    """Scalar reward head: s(a > b) = r_a - r_b, r = w h + bias.

    Args:
        hidden_size: H, width of the hidden states.
        bias: whether ``value_head`` has one (it cancels in every score).
        tau: default temperature of ``probability_matrix``; 1 is Bradley and Terry's model.
        device, dtype: of the parameters, as in ``nn.Linear``.

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
        _small_normal_(self.value_head.weight)
        if self.value_head.bias is not None:
            nn.init.zeros_(self.value_head.bias)

    def reward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Rewards (...) of hidden states (..., H), or at ``positions`` of (..., T, H)."""
        return ops.preference_embedding(
            hidden,
            self.value_head.weight,
            positions,
            bias=self.value_head.bias,
            normalize=False,
        ).squeeze(-1)

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
        device, dtype: of the parameters, as in ``nn.Linear``.

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
        _check_gate(gate)
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
        _small_normal_(self.value_head.weight)
        if self.value_head.bias is not None:
            nn.init.zeros_(self.value_head.bias)
            with torch.no_grad():
                self.value_head.bias[1] = 1.0
        if self.prompt_head is not None:
            _small_normal_(self.prompt_head.weight)

    def embed(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embeddings (..., 2 + dim): (1, -reward), then the cyclic part."""
        projected = ops.preference_embedding(
            hidden,
            self.value_head.weight,
            positions,
            bias=self.value_head.bias,
            normalize=False,
        )
        reward, cyclic = projected[..., :1], projected[..., 1:]
        if self.clip is not None:
            reward = reward.clamp(-self.clip, self.clip)
        if self.normalize:
            cyclic = ops.normalize(cyclic)
        return torch.cat((torch.ones_like(reward), -reward, cyclic.to(reward.dtype)), dim=-1)

    def scale(self, prompt_hidden: Tensor | None = None) -> Tensor:
        """Weights (..., 1 + k): scalar_weight, then cyclic_weight lambda^2."""
        weight = self.value_head.weight
        if self.gate is None or self.prompt_head is None:
            gate = weight.new_ones(self.dim // 2)
        else:
            gate = _apply_gate(self.gate, self.prompt_head, prompt_hidden)
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
