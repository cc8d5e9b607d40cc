"""Several preferences at once: a head with one score for each criterion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gpm_core import ops
from gpm_core.heads._common import Gate, Init, _Head, check_gate, small_normal_

#: softplus of it is 1.
_RAW_ONE = math.log(math.expm1(1.0))


class MultiCriteriaHead(_Head):
    """General preference head with a score for each criterion, trained from labels of each.

    s_c(a > b) = sum_l lambda_cl (a_c[2l] b_c[2l+1] - a_c[2l+1] b_c[2l]) for each criterion c, the
    score of arXiv 2410.02197, section 4. What the criteria share is the ``mode``:

    - "gates": one embedding v (..., d) of a response for all, a_c = v, and weights lambda_c > 0 of
      its blocks for each. As small as a head of one criterion, and what one criterion teaches about
      responses serves the others. Criteria may be opposed only where they can weigh different
      blocks: give ``dim`` two coordinates or more for each criterion.
    - "heads": an embedding (..., C, d) of a response, one for each criterion; independent of each
      other but for the backbone.

    :func:`gpm_core.losses.multi_criteria_loss` trains it; :meth:`combine` makes one preference of
    the criteria.

    Args:
        hidden_size: H, width of the hidden states.
        dim: d = 2k, even, width of an embedding.
        criteria: names of the C criteria, in the order of their scores.
        mode: "gates" or "heads".
        gate: "softmax" or "softplus" of ``prompt_head``, which reads the prompt's hidden state, for
            each criterion by itself; None: with "gates" learned weights that are the same for all
            prompts, softplus of a parameter and 1 at the start; with "heads" no weights.
        normalize: scale embeddings to unit length.
        init: as :class:`gpm_core.heads.PreferenceHead`. "anchored" (default): a learnable bias
            starts at (1, 0) in the first block of each embedding, so that every criterion starts as
            a Bradley-Terry model; a gate has a bias too, without which criteria could differ only
            by what prompts differ in. "paper": no bias, small random weights.
        tau: default temperature of ``probability_matrix``.
        device, dtype: of the parameters, as in ``nn.Linear``.

    Parameters: ``value_head.weight`` (d, H) with "gates", (C d, H) with "heads";
    ``prompt_head.weight`` (C k, H) with a gate, (C k, 1) for weights that do not depend on the
    prompt; with "anchored" ``value_head.bias`` (d,) or (C d,), and with a gate
    ``prompt_head.bias`` (C k,).

    Raises:
        TypeError: if ``criteria`` is no sequence of strings (a set has no order).
        ValueError: for an odd ``dim``, no criteria or a name given twice, an unknown mode, gate or
            initialisation, or a ``tau`` that is not finite and above zero.

    Example:
        >>> head = MultiCriteriaHead(16, 4, ["helpful", "honest"])
        >>> chosen, rejected = torch.randn(8, 16), torch.randn(8, 16)
        >>> head.score(chosen, rejected).shape
        torch.Size([8, 2])
        >>> head.combine({"helpful": 1.0, "honest": 0.5}).score_matrix(chosen).shape
        torch.Size([8, 8])
    """

    def __init__(
        self,
        hidden_size: int,
        dim: int,
        criteria: Sequence[str],
        mode: Literal["gates", "heads"] = "gates",
        gate: Gate | None = None,
        normalize: bool = True,
        *,
        init: Init = "anchored",
        tau: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(hidden_size, tau)
        if dim < 2 or dim % 2:
            raise ValueError(f"dim must be even and at least 2 (blocks of two); got {dim}")
        if mode not in ("gates", "heads"):
            raise ValueError(f"mode must be 'gates' or 'heads'; got {mode!r}")
        check_gate(gate)
        if init not in ("anchored", "paper"):
            raise ValueError(f"init must be 'anchored' or 'paper'; got {init!r}")
        #: Names of the criteria, in the order of their scores.
        self.criteria = _checked_names(criteria)
        self.dim, self.mode, self.gate, self.normalize, self.init = dim, mode, gate, normalize, init
        weights, embeddings = len(self.criteria) * dim // 2, 1 if mode == "gates" else len(criteria)
        self.value_head = nn.Linear(
            hidden_size, embeddings * dim, bias=init == "anchored", device=device, dtype=dtype
        )
        self.prompt_head: nn.Linear | None = None
        if gate is not None:
            self.prompt_head = nn.Linear(
                hidden_size, weights, bias=init == "anchored", device=device, dtype=dtype
            )
        elif mode == "gates":
            # A linear map as well, of the constant 1: whatever finds, wraps or saves prompt heads
            # as linear layers does so here.
            self.prompt_head = nn.Linear(1, weights, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all parameters as ``init`` says; weights that need no prompt start at 1."""
        small_normal_(self.value_head.weight)
        if self.value_head.bias is not None:
            nn.init.zeros_(self.value_head.bias)
            with torch.no_grad():
                self.value_head.bias[:: self.dim] = 1.0
        if self.prompt_head is not None:
            if self.gate is None:
                nn.init.constant_(self.prompt_head.weight, _RAW_ONE)
            else:
                small_normal_(self.prompt_head.weight)
            if self.prompt_head.bias is not None:
                nn.init.zeros_(self.prompt_head.bias)

    def embed(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embeddings (..., d) with "gates", (..., C, d) with "heads", of hidden states (..., H), or
        of the tokens at ``positions`` (...) of (..., T, H).
        """
        shared = self.mode == "gates"
        v = ops.preference_embedding(
            hidden,
            self.value_head.weight,
            positions,
            bias=self.value_head.bias,
            normalize=self.normalize and shared,
        )
        if shared:
            return v
        v = v.unflatten(-1, (len(self.criteria), self.dim))
        return ops.normalize(v) if self.normalize else v

    def scale(self, prompt_hidden: Tensor | None = None) -> Tensor | None:
        """Weights > 0 of the blocks for each criterion: (..., C, k) of prompts (..., H) with a
        gate; without one (C, k) with "gates", None with "heads".
        """
        if self.prompt_head is None:
            return None
        blocks = (len(self.criteria), self.dim // 2)
        if self.gate is None:
            return nn.functional.softplus(self.prompt_head.weight).view(blocks)
        if prompt_hidden is None:
            raise ValueError(
                f"this head has a {self.gate} gate: pass prompt_hidden, the hidden state (..., H) "
                "at the prompt's last token"
            )
        logits = self.prompt_head(prompt_hidden).unflatten(-1, blocks)
        if self.gate == "softmax":
            return torch.softmax(logits, dim=-1)
        return nn.functional.softplus(logits)

    def _embed_group(self, hidden: Tensor) -> Tensor:
        """Embeddings (..., C, K, d) of hidden states (..., K, H)."""
        v = self.embed(hidden)
        if self.mode == "heads":
            return v.transpose(-2, -3)
        v = v.unsqueeze(-3)
        return v.expand(*v.shape[:-3], len(self.criteria), *v.shape[-2:])

    def score(
        self, chosen: Tensor, rejected: Tensor, prompt_hidden: Tensor | None = None
    ) -> Tensor:
        """Scores s_c(chosen > rejected) (..., C) by each criterion, of hidden states (..., H).

        Args:
            chosen: (..., H) hidden states of the responses that are scored.
            rejected: (..., H) hidden states of those that they are scored against.
            prompt_hidden: (..., H) hidden state at the prompt's last token; needed by a gate.
        """
        a, b = self.embed(chosen), self.embed(rejected)
        if self.mode == "gates":
            a, b = a.unsqueeze(-2), b.unsqueeze(-2)
        return ops.score(a, b, self.scale(prompt_hidden))

    def score_matrix(self, hidden: Tensor, prompt_hidden: Tensor | None = None) -> Tensor:
        """Scores of all pairs for each criterion (..., C, K, K) of hidden states (..., K, H), gate
        (..., H).
        """
        return ops.score_matrix(self._embed_group(hidden), self.scale(prompt_hidden))

    def probability_matrix(
        self, hidden: Tensor, prompt_hidden: Tensor | None = None, *, tau: float | None = None
    ) -> Tensor:
        """Probabilities of all pairs for each criterion (..., C, K, K); ``tau`` defaults to the
        head's.
        """
        tau = self.tau if tau is None else tau
        return ops.probability_matrix(self._embed_group(hidden), self.scale(prompt_hidden), tau=tau)

    def combine(self, weights: Mapping[str, float] | Sequence[float] | Tensor) -> CombinedHead:
        """One preference of all criteria, s = sum_c weight_c s_c; see :class:`CombinedHead`.

        Args:
            weights: by name, where criteria that are not named weigh 0; one number for each
                criterion; or a floating-point tensor (C,) or (..., C), one row for each prompt, to
                which gradients flow. Any sign; they are not normalized.

        Raises:
            TypeError: if a weight is no number, or a tensor not floating-point.
            ValueError: for an unknown name, another number of weights than criteria, or a number
                that is not finite. The values of a tensor are not looked at.

        Example:
            >>> head = MultiCriteriaHead(16, 4, ["helpful", "honest", "short"])
            >>> head.combine({"helpful": 1.0, "short": -0.1})(torch.zeros(5, 16)).shape
            torch.Size([5, 4])
        """
        return CombinedHead(self, weights)

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """As :meth:`embed`."""
        return self.embed(hidden, positions)

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return (
            f"hidden_size={self.hidden_size}, dim={self.dim}, criteria={self.criteria}, "
            f"mode={self.mode!r}, gate={self.gate!r}, normalize={self.normalize}, "
            f"init={self.init!r}, tau={self.tau}"
        )


class CombinedHead(_Head):
    """One preference of the criteria of a :class:`MultiCriteriaHead`: s = sum_c weight_c s_c.

    A weighted sum of skew-symmetric scores is one, of the embeddings that the head has already:
    with "gates" v (..., d) and the scale sum_c weight_c lambda_c, with "heads" the C embeddings in
    a row, (..., C d), and the scale of all weight_c lambda_c. So it speaks the language of all
    heads, at the cost of one, and its embeddings serve every operation and ranking. Weights may be
    learned: ``head.combine(nn.Parameter(torch.ones(C)))``.

    Args:
        head: the head of several criteria, shared, not copied.
        weights: as :meth:`MultiCriteriaHead.combine`.

    Parameters: those of ``head``, ``value_head.weight`` and where present ``value_head.bias`` and
    its prompt head's, and ``weights`` where that is one.

    Raises:
        TypeError: if a weight is no number, or a tensor not floating-point.
        ValueError: for an unknown name, another number of weights than criteria, or a number that
            is not finite.

    Example:
        >>> head = MultiCriteriaHead(16, 4, ["helpful", "honest"], mode="heads")
        >>> overall = CombinedHead(head, [1.0, 0.5])
        >>> overall.embed(torch.zeros(3, 16)).shape, overall.scale()
        (torch.Size([3, 8]), tensor([1.0000, 1.0000, 0.5000, 0.5000]))
    """

    weights: Tensor

    def __init__(
        self,
        head: MultiCriteriaHead,
        weights: Mapping[str, float] | Sequence[float] | Tensor,
    ) -> None:
        super().__init__(head.hidden_size, head.tau)
        self.head = head
        checked = checked_weights(weights, head.criteria, head.value_head.weight)
        if isinstance(checked, nn.Parameter):
            self.weights = checked
        else:
            self.register_buffer("weights", checked, persistent=False)

    def embed(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embeddings (..., d) with "gates", (..., C d) with "heads"."""
        v = self.head.embed(hidden, positions)
        return v if self.head.mode == "gates" else v.flatten(-2)

    def scale(self, prompt_hidden: Tensor | None = None) -> Tensor:
        """Weights of all blocks, (..., k) with "gates", (..., C k) with "heads", of prompts
        (..., H) where the head has a gate.
        """
        head, parameter = self.head, self.head.value_head.weight
        scale = head.scale(prompt_hidden)
        if scale is None:
            scale = parameter.new_ones(len(head.criteria), head.dim // 2)
        return combined_scale(scale, self.weights, head.mode)

    def forward(self, hidden: Tensor, positions: Tensor | None = None) -> Tensor:
        """As :meth:`embed`."""
        return self.embed(hidden, positions)

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        shape = tuple(self.weights.shape)
        return f"weights={self.weights.tolist() if len(shape) == 1 else shape}, tau={self.tau}"


def combined_scale(scale: Tensor, weights: Sequence[float] | Tensor, mode: str) -> Tensor:
    """Weights of the blocks of the one preference s = sum_c weight_c s_c.

    Args:
        scale: (..., C, k), those of each criterion.
        weights: what each criterion weighs: C numbers, or a tensor (C,) or (..., C).
        mode: of the head; with "gates" the criteria share an embedding, and the result is (..., k),
            with "heads" their embeddings stand in a row, and it is (..., C k).
    """
    wide = torch.promote_types(scale.dtype, torch.float32)
    each = scale.to(wide)
    if isinstance(weights, Tensor):
        # The head, which is shared, may have been moved since.
        each = weights.to(device=scale.device, dtype=wide).unsqueeze(-1) * each
    else:
        # By numbers, not by a tensor of them, which would have to be copied to the device.
        parts = zip(weights, each.unbind(dim=-2), strict=True)
        each = torch.stack([weight * part for weight, part in parts], dim=-2)
    return (each.sum(dim=-2) if mode == "gates" else each.flatten(-2)).to(scale.dtype)


def _checked_names(criteria: Sequence[str]) -> tuple[str, ...]:
    named = isinstance(criteria, Sequence) and all(isinstance(name, str) for name in criteria)
    if isinstance(criteria, str) or not named:
        raise TypeError(f"criteria must be a sequence of names, e.g. ['helpful']; got {criteria!r}")
    if not criteria:
        raise ValueError("criteria must name at least one criterion; got none")
    if len(set(criteria)) < len(criteria):
        raise ValueError(f"criteria must have different names; got {list(criteria)}")
    return tuple(criteria)


def checked_weights(
    weights: Mapping[str, float] | Sequence[float] | Tensor,
    criteria: tuple[str, ...],
    parameter: Tensor,
) -> Tensor:
    """Weights (C,) of criteria as :meth:`MultiCriteriaHead.combine` takes them, in float32 at least
    and beside ``parameter``; a tensor as it is.
    """
    if isinstance(weights, Tensor):
        if not weights.is_floating_point():
            raise TypeError(f"weights must be numbers or floating-point; got {weights.dtype}")
        if weights.dim() < 1 or weights.shape[-1] != len(criteria):
            raise ValueError(
                f"weights must be (..., C) with C = {len(criteria)}, one for each of "
                f"{', '.join(criteria)}; got shape {tuple(weights.shape)}"
            )
        return weights
    if isinstance(weights, Mapping):
        unknown = [name for name in weights if name not in criteria]
        if unknown:
            raise ValueError(
                f"weights name unknown criteria {unknown}; the head has {', '.join(criteria)}"
            )
        weights = [weights.get(name, 0.0) for name in criteria]
    if isinstance(weights, str) or not isinstance(weights, Sequence):
        raise TypeError(
            "weights must be a mapping by name, a sequence of numbers or a tensor; got "
            f"{type(weights).__name__}"
        )
    if len(weights) != len(criteria):
        raise ValueError(
            f"weights must have one number for each of {', '.join(criteria)}; got {len(weights)}"
        )
    for name, weight in zip(criteria, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, (int, float)):
            raise TypeError(f"the weight of {name} must be a number; got {type(weight).__name__}")
        if not math.isfinite(weight):
            raise ValueError(f"the weight of {name} must be finite; got {weight}")
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return torch.tensor(weights, dtype=wide, device=parameter.device)
