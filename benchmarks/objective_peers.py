"""What the objectives and their targets are compared with: their formulas in plain PyTorch.

``*_formula`` is the loss and nothing else; ``*_with_metrics`` also the numbers that TRL's trainers
log and our objectives return, written so that pairs are looked up once. ``padded_*`` is what one
writes for groups of unequal sizes by hand. TRL has no losses that could be called: they are lines
of its trainers, whose formulas and metrics these are.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.peers import eager_probability_matrix, rotate

Metrics = tuple[Tensor, ...]


def gpo_formula(logps: Tensor, reference: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Mean of (log-ratio - score / beta)^2."""
    return (logps - reference - scores / beta).square().mean()


def sppo_formula(logps: Tensor, reference: Tensor, probabilities: Tensor, eta: float) -> Tensor:
    """Mean of (log-ratio - eta (P - 1/2))^2."""
    return (logps - reference - eta * (probabilities - 0.5)).square().mean()


def dpo_formula(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> Tensor:
    """-log sigmoid of beta times the difference of log-ratios."""
    return -F.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected))).mean()


def gpo_best_and_worst(logps: Tensor, reference: Tensor, scores: Tensor, beta: float) -> Tensor:
    """The reference code's loss: of each group the best and the worst response alone."""
    places = torch.stack((scores.argmax(dim=-1), scores.argmin(dim=-1)), dim=-1)
    parts = (tensor.gather(-1, places) for tensor in (logps, reference, scores))
    return gpo_formula(*parts, beta)


def _pair_metrics(rewards: Tensor, logps: Tensor) -> Metrics:
    """Mean rewards, accuracy, margin and log-probabilities of (..., 2), the chosen first."""
    chosen, rejected = rewards.unbind(-1)
    return (
        chosen.mean(),
        rejected.mean(),
        (chosen > rejected).float().mean(),
        (chosen - rejected).mean(),
        logps[..., 0].mean(),
        logps[..., 1].mean(),
    )


def _group_metrics(logps: Tensor, reference: Tensor, targets: Tensor, beta: float) -> Metrics:
    with torch.no_grad():
        places = torch.stack((targets.argmax(dim=-1), targets.argmin(dim=-1)), dim=-1)
        ratios = logps - reference
        pairs = _pair_metrics(beta * ratios.gather(-1, places), logps.gather(-1, places))
        return (*pairs, ratios.mean())


def gpo_with_metrics(
    logps: Tensor, reference: Tensor, scores: Tensor, beta: float
) -> tuple[Tensor, Metrics]:
    loss = gpo_formula(logps, reference, scores, beta)
    return loss, _group_metrics(logps, reference, scores, beta)


def sppo_with_metrics(
    logps: Tensor, reference: Tensor, probabilities: Tensor, eta: float
) -> tuple[Tensor, Metrics]:
    loss = sppo_formula(logps, reference, probabilities, eta)
    return loss, _group_metrics(logps, reference, probabilities, 1 / eta)


def dpo_with_metrics(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float
) -> tuple[Tensor, Metrics]:
    loss = dpo_formula(chosen, rejected, ref_chosen, ref_rejected, beta)
    with torch.no_grad():
        logps = torch.stack((chosen, rejected), dim=-1)
        ratios = logps - torch.stack((ref_chosen, ref_rejected), dim=-1)
        return loss, _pair_metrics(beta * ratios, logps)


def padded_gpo(
    logps: Tensor, reference: Tensor, scores: Tensor, mask: Tensor, beta: float
) -> Tensor:
    """Centred GPO of ragged groups (N,): put into places of (G, K), masked means and squares."""
    residuals = logps.new_zeros(mask.shape).masked_scatter(mask, logps - reference - scores / beta)
    means = residuals.sum(dim=-1, keepdim=True) / mask.sum(dim=-1, keepdim=True)
    return torch.where(mask, residuals - means, 0.0).square().sum() / mask.sum()


def split_gpo(
    logps: Tensor, reference: Tensor, scores: Tensor, sizes: list[int], beta: float
) -> Tensor:
    """The same, group after group."""
    residuals = (logps - reference - scores / beta).split(sizes)
    return torch.stack([(r - r.mean()).square().sum() for r in residuals]).sum() / len(logps)


def matrix_mean_scores(v: Tensor) -> Tensor:
    """All scores, then means of rows: S = (R v) v^T."""
    return torch.einsum("...id,...jd->...ij", rotate(v), v).mean(dim=-1)


def linear_mean_scores(v: Tensor) -> Tensor:
    """The score against the mean, without a matrix."""
    return (rotate(v) * v.mean(dim=-2, keepdim=True)).sum(dim=-1)


def matrix_mean_win_rates(v: Tensor, tau: float = 0.1) -> Tensor:
    return eager_probability_matrix(v, tau).mean(dim=-1)


def padded_mean_scores(v: Tensor, mask: Tensor) -> Tensor:
    """Ragged groups (N, d), put into places of (G, K, d)."""
    padded = v.new_zeros(*mask.shape, v.shape[-1]).masked_scatter(mask.unsqueeze(-1), v)
    means = padded.sum(dim=1, keepdim=True) / mask.sum(dim=1)[:, None, None]
    return (rotate(padded) * means).sum(dim=-1)[mask]


def padded_mean_win_rates(v: Tensor, mask: Tensor, tau: float = 0.1) -> Tensor:
    padded = v.new_zeros(*mask.shape, v.shape[-1]).masked_scatter(mask.unsqueeze(-1), v)
    matrix = torch.where(mask[:, None, :], eager_probability_matrix(padded, tau), 0.0)
    return (matrix.sum(dim=-1) / mask.sum(dim=1)[:, None])[mask]
