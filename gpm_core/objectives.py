"""Objectives of policy optimization on preference scores, for any trainer.

They take sequence log-probabilities, sums over the response's tokens, so they know nothing of
models. A group is the K responses sampled for one prompt, the last dimension.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Reduction = Literal["mean", "sum", "none"]


class ObjectiveOutput(NamedTuple):
    """What an objective returns."""

    #: Reduced loss, or (..., K) per response with ``reduction="none"``.
    loss: Tensor
    #: (..., K) log pi - log pi_reference, detached.
    log_ratios: Tensor
    #: (..., K) what the log-ratios are regressed on, detached.
    targets: Tensor


def _check_group(**tensors: Tensor) -> None:
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            raise TypeError(f"{name} must be a floating-point tensor of shape (..., K); got {kind}")
        if tensor.shape != first.shape or tensor.dim() == 0:
            raise ValueError(
                f"{name} must have the shape (..., K) of {first_name}, one number per response; "
                f"got {tuple(tensor.shape)} and {tuple(first.shape)}"
            )


def _wide(tensor: Tensor) -> Tensor:
    """In float32 at least: dividing by a small beta in half precision would round or overflow."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _regress(
    logps: Tensor, reference_logps: Tensor, targets: Tensor, centered: bool, reduction: str
) -> ObjectiveOutput:
    """Mean of (log-ratio - target)^2; centred: both sides minus their group mean."""
    logps = _wide(logps)
    log_ratios = logps - reference_logps.detach().to(logps.dtype)
    targets = targets.detach().to(logps.dtype)
    residuals = log_ratios - targets
    if centered:
        residuals = residuals - residuals.mean(dim=-1, keepdim=True)
    losses = residuals.square()
    if reduction == "mean":
        loss = losses.mean()
    elif reduction == "sum":
        loss = losses.sum()
    elif reduction == "none":
        loss = losses
    else:
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}")
    return ObjectiveOutput(loss, log_ratios.detach(), targets)


def gpo_loss(
    logps: Tensor,
    reference_logps: Tensor,
    scores: Tensor,
    *,
    beta: float = 1e-3,
    centered: bool = False,
    reduction: Reduction = "mean",
) -> ObjectiveOutput:
    """General Preference Optimization (arXiv 2410.02197, section 5).

    ``loss = mean_i (log pi(y_i|x) - log pi_t(y_i|x) - s_hat_i / beta)^2``. Its optimum over all
    policies is pi proportional to pi_t exp(s(y > pi_t | x) / beta), the maximizer of
    E[s(y > pi_t | x)] - beta KL(pi || pi_t). The log-normalizer is dropped, as in the paper: the
    s_hat of a group scored against itself sum to zero.

    Args:
        logps: (..., K) log-probabilities of the responses under the policy, summed over tokens.
        reference_logps: (..., K) the same under pi_t, the policy that sampled them. No gradient.
        scores: (..., K) mean scores s_hat_i = mean over j of s(y_i > y_j), for instance
            ``ops.score_matrix(v).mean(-1)``. No gradient.
        beta: weight of the KL term, above zero; 1e-3 in the paper's runs.
        centered: subtract the group's mean from both sides. Then a constant added to all
            log-probabilities of a group does not matter, and nothing is asked of responses that
            were not sampled.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError: if a tensor is not floating-point.
        ValueError: if shapes differ, or ``beta`` is not finite and above zero, or for an
            unknown ``reduction``.

    Example:
        >>> logps = torch.tensor([[-1.0, -2.0]])
        >>> gpo_loss(logps, logps, torch.tensor([[0.1, -0.1]]), beta=0.1).loss
        tensor(1.)
    """
    _check_group(logps=logps, reference_logps=reference_logps, scores=scores)
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be finite and above zero; got {beta}")
    return _regress(logps, reference_logps, _wide(scores) / beta, centered, reduction)


def sppo_loss(
    logps: Tensor,
    reference_logps: Tensor,
    probabilities: Tensor,
    *,
    eta: float = 1e3,
    centered: bool = False,
    reduction: Reduction = "mean",
) -> ObjectiveOutput:
    """Self-Play Preference Optimization (arXiv 2405.00675, section 4).

    ``loss = mean_i (log pi(y_i|x) - log pi_t(y_i|x) - eta (P_hat_i - 1/2))^2``.

    Args:
        logps: (..., K) log-probabilities of the responses under the policy, summed over tokens.
        reference_logps: (..., K) the same under pi_t, the policy that sampled them. No gradient.
        probabilities: (..., K) mean probability P_hat_i in [0, 1] that y_i is preferred to a
            response of the group, for instance ``ops.probability_matrix(v).mean(-1)``.
        eta: step size of the multiplicative-weights update, above zero; 1e3 in the paper's runs.
        centered: subtract the group's mean from both sides.
        reduction: "mean", "sum" or "none".

    Raises:
        TypeError: if a tensor is not floating-point.
        ValueError: if shapes differ, or ``eta`` is not finite and above zero, or for an
            unknown ``reduction``.

    Example:
        >>> logps = torch.tensor([[-1.0, -2.0]])
        >>> sppo_loss(logps, logps, torch.tensor([[0.6, 0.4]]), eta=10.0).loss
        tensor(1.0000)
    """
    _check_group(logps=logps, reference_logps=reference_logps, probabilities=probabilities)
    if not 0 < eta < math.inf:
        raise ValueError(f"eta must be finite and above zero; got {eta}")
    return _regress(logps, reference_logps, eta * (_wide(probabilities) - 0.5), centered, reduction)
