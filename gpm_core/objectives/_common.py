"""What all objectives share: what they return, checks of their inputs, reductions and metrics."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from gpm_core.objectives.groups import GroupSizes, best_and_worst_of

Reduction = Literal["mean", "sum", "none"]


class ObjectiveOutput(NamedTuple):
    """What an objective returns. All but ``loss`` is detached."""

    #: Reduced loss, or what ``losses`` holds, with gradients, for ``reduction="none"``.
    loss: Tensor
    #: Loss of each response (..., K), or of each pair (...).
    losses: Tensor
    #: log pi - log pi_reference (..., K); of pairs (..., 2), chosen first. Where an objective
    #: divides by lengths, divided; where it has no reference, log pi.
    log_ratios: Tensor
    #: What the log-ratios (of pairs: their difference) are regressed on; the advantage where the
    #: loss is a policy gradient's; None where there is no such number (DPO, SimPO).
    targets: Tensor | None
    #: Means to log, 0-d, with TRL's names: ``rewards/chosen``, ``rewards/rejected``,
    #: ``rewards/accuracies``, ``rewards/margins``, ``logps/chosen``, ``logps/rejected``. In groups
    #: the chosen is the response with the highest target, the rejected that with the lowest.
    metrics: dict[str, Tensor]


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least: dividing by a small beta in half precision would round or overflow."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def reduce(losses: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ValueError(f"reduction must be 'mean', 'sum' or 'none'; got {reduction!r}")


def check_float(name: str, tensor: Any, form: str) -> None:
    """A floating-point tensor; ``form`` says of which shape in the message."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        given = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor {form}; got {given}")


def _check_alike(name: str, tensor: Tensor, first_name: str, first: Tensor, form: str) -> None:
    if tensor.shape != first.shape:
        raise ValueError(
            f"{name} must have the shape {form} of {first_name}; got {tuple(tensor.shape)} and "
            f"{tuple(first.shape)}. Nothing is broadcast"
        )
    if tensor.device != first.device:
        raise RuntimeError(
            f"{name} and {first_name} must be on the same device; got {tensor.device} and "
            f"{first.device}"
        )


def check_group(**tensors: Any) -> None:
    """Tensors with one number for each response, of one shape and device; the first decides."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        check_float(name, tensor, "of shape (..., K)")
        if tensor.dim() == 0:
            raise ValueError(
                f"{name} must have the shape (..., K), one number per response; got a tensor of "
                "shape ()"
            )
        _check_alike(name, tensor, first_name, first, "(..., K), one number per response,")
    if first.numel() == 0:
        raise ValueError(
            f"{first_name} must hold at least one response; got shape {tuple(first.shape)}"
        )


def check_pairs(**tensors: Any) -> None:
    """Tensors with one number for each pair, of one shape and device; the first decides."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        check_float(name, tensor, "of shape (...), one number per pair")
        _check_alike(name, tensor, first_name, first, "(...), one number per pair,")
    if first.numel() == 0:
        raise ValueError(
            f"{first_name} must hold at least one pair; got shape {tuple(first.shape)}"
        )


def check_number(name: str, value: Any) -> None:
    # Under torch.compile with dynamic shapes a float option arrives as a SymFloat.
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        raise TypeError(f"{name} must be a number; got {type(value).__name__}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite; got {value}")


def check_positive(name: str, value: Any) -> None:
    """A strength, temperature or limit: finite and above zero."""
    if not isinstance(value, bool) and isinstance(value, (int, float, torch.SymFloat)):
        if 0 < value < math.inf:
            return
        raise ValueError(f"{name} must be finite and above zero; got {value}")
    raise TypeError(f"{name} must be a number; got {type(value).__name__}")


def check_limits(**limits: float | None) -> None:
    """Optional bounds of magnitude."""
    for name, value in limits.items():
        if value is not None:
            check_positive(name, value)


def clamp_magnitude(tensor: Tensor, limit: float | None) -> Tensor:
    return tensor if limit is None else tensor.clamp(-limit, limit)


def per_token(name: str, logps: Tensor, lengths_name: str, lengths: Any) -> Tensor:
    """Sums over tokens as means over tokens; an empty response counts as one token."""
    if not isinstance(lengths, Tensor) or lengths.dtype == torch.bool or lengths.is_complex():
        given = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(f"{lengths_name} must be a tensor of numbers of tokens; got {given}")
    _check_alike(lengths_name, lengths, name, logps, "(...), one number per pair,")
    return logps / lengths.to(logps.dtype).clamp(min=1)


def pair_metrics(rewards: Tensor, logps: Tensor) -> dict[str, Tensor]:
    """TRL's names and definitions, of pairs (..., 2), the chosen first, without gradients.

    Rewards are the implicit ones, beta times the log-ratio. As there, equal rewards are not
    counted as accurate, so that a policy that is still its reference has accuracy 0.
    """
    chosen, rejected = rewards.unbind(-1)
    mean_rewards, mean_logps = (
        pairs.reshape(-1, 2).mean(dim=0).unbind() for pairs in (rewards, logps)
    )
    return {
        "rewards/chosen": mean_rewards[0],
        "rewards/rejected": mean_rewards[1],
        "rewards/accuracies": (chosen > rejected).to(rewards.dtype).mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "logps/chosen": mean_logps[0],
        "logps/rejected": mean_logps[1],
    }


def group_metrics(
    targets: Tensor,
    log_ratios: Tensor,
    logps: Tensor,
    *,
    beta: float,
    group_sizes: GroupSizes | None,
) -> dict[str, Tensor]:
    """Those of pairs for the highest and lowest target of each group, and the KL divergence.

    ``objective/kl`` is the mean log-ratio: of samples of the policy an unbiased estimate of
    KL(pi || pi_reference).
    """
    log_ratios = log_ratios.detach()
    ratios, logps = best_and_worst_of(targets, log_ratios, logps.detach(), group_sizes=group_sizes)
    metrics = pair_metrics(beta * ratios, logps)
    metrics["objective/kl"] = log_ratios.mean()
    return metrics
