"""Group-relative advantages of a general preference model, block by block (arXiv 2605.18721).

General Preference Reinforcement Learning (GPRL) puts the k blocks of a preference embedding in the
place of GRPO's one reward: each block's mean scores are normalized by their own spread, so that no
block can dominate by its size, and combined with the prompt's gate values. A drift monitor watches
where the advantage's variance goes, and corrects. The advantages go into any GRPO trainer.

The paper's text is not public here. Known from public notes on it: the advantages, the share of
variance per block, its KL divergence to the initial share, a threshold, and that past it blocks
are reweighted and the KL coefficient is raised. Chosen here, and said where it is used: which
variance, how the initial share is taken, and the two correction rules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gpm_core import ops
from gpm_core.objectives._common import check_float, check_number, check_positive, wide
from gpm_core.objectives.groups import (
    GroupSizes,
    center,
    group_mean,
    group_std,
    lay_out,
)

__all__ = [
    "DriftMonitor",
    "DriftReport",
    "GroupAdvantages",
    "block_mean_scores",
    "group_relative_advantages",
]


class GroupAdvantages(NamedTuple):
    """What :func:`group_relative_advantages` returns, without gradients."""

    #: (..., K) advantage of each response; (N,) of ragged groups.
    advantages: Tensor
    #: (..., K, k) its parts, which sum to it over the blocks.
    block_advantages: Tensor


class DriftReport(NamedTuple):
    """What :meth:`DriftMonitor.update` returns, on the monitor's device, float32."""

    #: (k,) share of each block in the variance, smoothed over updates; sums to one.
    share: Tensor
    #: () KL(share || initial share) in nats.
    divergence: Tensor
    #: () bool: the divergence is above the threshold.
    drifted: Tensor
    #: (k,) factors of the blocks, with mean one; all one where nothing drifted.
    block_weights: Tensor
    #: () factor of the KL coefficient, 1 where nothing drifted.
    kl_factor: Tensor


def _check_block_scores(block_scores: Any, group_sizes: GroupSizes | None) -> Tensor:
    form = "(..., K, k)" if group_sizes is None else "(N, k)"
    check_float("block_scores", block_scores, f"of shape {form}")
    if block_scores.dim() < 2 or block_scores.numel() == 0:
        raise ValueError(
            f"block_scores must be {form}, with at least one response and block; got "
            f"{tuple(block_scores.shape)}"
        )
    if group_sizes is not None and block_scores.dim() != 2:
        raise ValueError(f"block_scores must be {form}; got {tuple(block_scores.shape)}")
    return wide(block_scores.detach())


def _per_response(gate: Any, scores: Tensor, group_sizes: GroupSizes | None) -> Tensor:
    """The gate (..., k) of each group, for each of its responses: as the block scores."""
    if gate is None:
        return torch.ones_like(scores)
    check_float("gate", gate, "of shape (..., k)")
    layout = None
    if group_sizes is not None:
        layout = lay_out(group_sizes, scores.device, scores.shape[0])
    groups = scores.shape[:-2] if layout is None else layout.counts.shape
    if gate.shape != (*groups, scores.shape[-1]):
        raise ValueError(
            f"gate must be one number per group and block, {(*groups, scores.shape[-1])}; got "
            f"{tuple(gate.shape)}"
        )
    gate = gate.detach().to(scores.dtype)
    if layout is None:
        return gate.unsqueeze(-2).expand_as(scores)
    return gate[layout.own]


def block_mean_scores(
    v: Tensor, population: Tensor | None = None, *, group_sizes: GroupSizes | None = None
) -> Tensor:
    """Mean score of each response in each block, without the gate.

    ``mu_il = mean_j (v_i[2l] u_j[2l+1] - v_i[2l+1] u_j[2l])``; its sum over blocks, weighted with
    the gate, is :func:`gpm_core.objectives.targets.mean_scores`. In O(K d).

    Args:
        v: (..., K, d) preference embeddings, even d; (N, d) with ``group_sizes``.
        population: (..., M, d) embeddings of other opponents, of ragged groups (G, M, d); None
            for the group itself.
        group_sizes: sizes of ragged groups, or None for even ones.

    Returns:
        (..., K, k), or (N, k), k = d / 2, float32 at least.

    Raises:
        TypeError: if a tensor is not floating-point.
        ValueError: if the width is odd, or shapes do not fit.

    Example:
        >>> block_mean_scores(torch.tensor([[1.0, 0.0, 1.0, 2.0], [0.0, 1.0, 1.0, 0.0]]))
        tensor([[ 0.5000, -1.0000],
                [-0.5000,  1.0000]])
    """
    check_float("v", v, "of shape (..., K, d)")
    if v.dim() < 2 or v.shape[-1] % 2 or v.numel() == 0:
        raise ValueError(f"v must be (..., K, d) with K >= 1 and even d; got {tuple(v.shape)}")
    v = wide(v)
    if population is not None:
        check_float("population", population, "of shape (..., M, d)")
        if population.dim() < 2 or population.shape[-1] != v.shape[-1] or not population.numel():
            raise ValueError(
                f"population must be (..., M, {v.shape[-1]}) with M >= 1; got "
                f"{tuple(population.shape)}"
            )
        mean = population.to(v.dtype).mean(dim=-2, keepdim=True)
        if group_sizes is not None:
            layout = lay_out(group_sizes, v.device, v.shape[0])
            count = len(layout.sizes)
            if population.dim() != 3 or population.shape[0] != count:
                raise ValueError(
                    f"population of {count} ragged groups must be ({count}, M, d); got "
                    f"{tuple(population.shape)}"
                )
            mean = mean.squeeze(-2)[layout.own]
    else:
        mean = group_mean(v, group_sizes, dim=-2)
    blocks = v.unflatten(-1, (-1, 2))
    return ops.score(blocks, mean.unflatten(-1, (-1, 2)))


def group_relative_advantages(
    block_scores: Tensor,
    gate: Tensor | None = None,
    *,
    block_weights: Tensor | None = None,
    eps: float = 1e-4,
    group_sizes: GroupSizes | None = None,
) -> GroupAdvantages:
    """GPRL's advantages (arXiv 2605.18721): each block normalized in its group, then the gate.

    ``A_i = sum_l m_l lambda_l (mu_il - mean_l) / (std_l + eps)``, mean and standard deviation over
    the group. A block in which all responses are equal, and a group of one, give 0. With k = 1 and
    no gate this is GRPO's advantage, and so is its eps.

    Args:
        block_scores: (..., K, k) mean scores per block, see :func:`block_mean_scores` (or any k
            rewards); (N, k) with ``group_sizes``.
        gate: (..., k) the prompt's gate values lambda, of ragged groups (G, k), or None for 1.
        block_weights: (k,) factors m of the drift monitor, or None for 1.
        eps: added to the standard deviation; 1e-4 as TRL's GRPO.
        group_sizes: sizes of ragged groups, or None for even ones.

    Returns:
        Advantages (..., K), and their parts (..., K, k), float32 at least.

    Raises:
        TypeError: if a tensor is not floating-point.
        ValueError: if shapes do not fit, or ``eps`` is not finite and above zero.

    Example:
        >>> scores = torch.tensor([[0.1, -8.0], [-0.1, 8.0]])
        >>> group_relative_advantages(scores, torch.tensor([0.75, 0.25])).advantages
        tensor([ 0.3532, -0.3532])
    """
    scores = _check_block_scores(block_scores, group_sizes)
    check_positive("eps", eps)
    factors = _per_response(gate, scores, group_sizes)
    if block_weights is not None:
        check_float("block_weights", block_weights, "of shape (k,)")
        if block_weights.shape != scores.shape[-1:]:
            raise ValueError(
                f"block_weights must be ({scores.shape[-1]},); got {tuple(block_weights.shape)}"
            )
        factors = factors * block_weights.detach().to(scores)
    spread = group_std(scores, group_sizes, dim=-2)
    parts = factors * center(scores, group_sizes, dim=-2) / (spread + eps)
    return GroupAdvantages(parts.sum(dim=-1), parts)


class DriftMonitor(nn.Module):
    """GPRL's drift monitor (arXiv 2605.18721): sees a policy exploit one block, and corrects.

    The share of block l is its part in the variance of the gated block scores lambda_l mu_il
    within groups, summed over the batch, *before* each block is normalized (afterwards every
    variance is one, whatever the policy does). The mean of the first ``warmup`` shares is the
    initial share; later ones are smoothed exponentially. Where KL(share || initial) passes the
    threshold:

    - ``block_weights`` are proportional to (initial / share)^strength, limited to
      ``max_block_weight`` and its inverse, then scaled to mean one: a block that took over counts
      less;
    - ``kl_factor`` is divergence / threshold, at most ``max_kl_factor``: a tighter trust region.

    The state is in buffers: it is saved with ``state_dict`` and moves with ``to``. Nothing waits
    for a GPU. Over several processes, gather the block scores first, or each process corrects on
    its own.

    Args:
        blocks: k.
        threshold: of the divergence in nats, above zero.
        warmup: updates that the initial share is the mean of, at least 1.
        smoothing: weight in [0, 1) of the past in the share.
        strength: how far to push back, above zero: 1 would undo the change of the share.
        max_block_weight: limit of a block's correction, at least 1.
        max_kl_factor: limit of ``kl_factor``, at least 1.

    Raises:
        TypeError: if ``blocks`` or ``warmup`` is not an int.
        ValueError: for numbers out of their ranges.

    Example:
        >>> monitor = DriftMonitor(2, threshold=0.1, smoothing=0.0)
        >>> balanced = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
        >>> bool(monitor.update(balanced).drifted)
        False
        >>> report = monitor.update(balanced * torch.tensor([3.0, 1.0]))
        >>> report.share, report.block_weights
        (tensor([0.9000, 0.1000]), tensor([0.5000, 1.5000]))
    """

    initial_share: Tensor
    share: Tensor
    updates: Tensor

    def __init__(
        self,
        blocks: int,
        *,
        threshold: float = 0.1,
        warmup: int = 1,
        smoothing: float = 0.9,
        strength: float = 0.5,
        max_block_weight: float = 10.0,
        max_kl_factor: float = 10.0,
    ) -> None:
        super().__init__()
        for name, count in (("blocks", blocks), ("warmup", warmup)):
            if isinstance(count, bool) or not isinstance(count, int):
                raise TypeError(f"{name} must be an int; got {type(count).__name__}")
            if count < 1:
                raise ValueError(f"{name} must be at least 1; got {count}")
        check_positive("threshold", threshold)
        check_positive("strength", strength)
        check_number("smoothing", smoothing)
        if not 0 <= smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1); got {smoothing}")
        for name, limit in (
            ("max_block_weight", max_block_weight),
            ("max_kl_factor", max_kl_factor),
        ):
            check_number(name, limit)
            if limit < 1:
                raise ValueError(f"{name} must be at least 1; got {limit}")
        self.threshold, self.warmup, self.smoothing = threshold, warmup, smoothing
        self.strength = strength
        self.max_block_weight, self.max_kl_factor = max_block_weight, max_kl_factor
        self.register_buffer("initial_share", torch.full((blocks,), 1 / blocks))
        self.register_buffer("share", torch.full((blocks,), 1 / blocks))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def update(
        self,
        block_scores: Tensor,
        gate: Tensor | None = None,
        *,
        group_sizes: GroupSizes | None = None,
    ) -> DriftReport:
        """One batch, arguments as :func:`group_relative_advantages`: (..., K, k) block scores.

        A batch in which nothing varies leaves the shares as they are, and does not count.
        """
        scores = _check_block_scores(block_scores, group_sizes)
        if scores.shape[-1] != self.share.shape[0]:
            raise ValueError(
                f"block_scores must have k = {self.share.shape[0]} blocks; got "
                f"{tuple(scores.shape)}"
            )
        gated = _per_response(gate, scores, group_sizes) * scores
        squares = center(gated, group_sizes, dim=-2).square().flatten(0, -2).sum(dim=0)
        total = squares.sum()
        varied = total > 0
        current = (squares / torch.where(varied, total, 1.0)).to(self.share)

        count = self.updates + varied
        early = count <= self.warmup
        mean = self.initial_share + (current - self.initial_share) / count.clamp(min=1)
        smoothed = self.smoothing * self.share + (1 - self.smoothing) * current
        self.share.copy_(torch.where(varied, torch.where(early, mean, smoothed), self.share))
        self.initial_share.copy_(torch.where(varied & early, mean, self.initial_share))
        self.updates.copy_(count)
        return self.report()

    @torch.no_grad()
    def report(self) -> DriftReport:
        """Where things stand, and the corrections, without an update."""
        # A block that has no share at all would make ratios and the divergence infinite.
        least = torch.finfo(self.share.dtype).eps
        share = self.share.clamp(min=least)
        initial = self.initial_share.clamp(min=least)
        ratio = initial / share
        divergence = -(share * ratio.log()).sum()
        drifted = divergence > self.threshold
        limit = self.max_block_weight
        weights = ratio.pow(self.strength).clamp(1 / limit, limit)
        return DriftReport(
            share=self.share.clone(),
            divergence=divergence,
            drifted=drifted,
            block_weights=torch.where(drifted, weights / weights.mean(), 1.0),
            kl_factor=(divergence / self.threshold).clamp(1.0, self.max_kl_factor),
        )

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return (
            f"blocks={self.share.shape[0]}, threshold={self.threshold}, warmup={self.warmup}, "
            f"smoothing={self.smoothing}, strength={self.strength}, "
            f"max_block_weight={self.max_block_weight}, max_kl_factor={self.max_kl_factor}"
        )
