"""Objectives on pairs: DPO and its noise-aware forms, IPO offline and online, and SimPO."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gpm_core.objectives._common import (
    ObjectiveOutput,
    Reduction,
    check_float,
    check_group,
    check_number,
    check_pairs,
    check_positive,
    group_metrics,
    pair_metrics,
    per_token,
    reduce,
    wide,
)
from gpm_core.objectives.groups import GroupSizes, lay_out, pad, unpad


def _log_ratios(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
) -> tuple[Tensor, Tensor]:
    """Log-ratios, with the policy's gradient, and its log-probabilities: (..., 2), chosen first."""
    check_pairs(
        chosen_logps=chosen_logps,
        rejected_logps=rejected_logps,
        reference_chosen_logps=reference_chosen_logps,
        reference_rejected_logps=reference_rejected_logps,
    )
    logps = torch.stack((wide(chosen_logps), wide(rejected_logps)), dim=-1)
    reference = torch.stack((reference_chosen_logps, reference_rejected_logps), dim=-1)
    return logps - reference.detach().to(logps.dtype), logps.detach()


def _check_smoothing(name: str, value: Any, like: Tensor) -> Any:
    """A probability that labels are wrong: a number, or one for each pair."""
    if isinstance(value, Tensor):
        check_float(name, value, "of shape (...), one number per pair, or a number")
        if value.shape != like.shape:
            raise ValueError(
                f"{name} must be (...) as the pairs, {tuple(like.shape)}; got {tuple(value.shape)}"
            )
        return value.detach().to(like.dtype)
    check_number(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1); got {value}")
    return value


def _cross_entropy(logits: Tensor, label_smoothing: Any) -> Tensor:
    smoothing = _check_smoothing("label_smoothing", label_smoothing, logits)
    if not isinstance(smoothing, Tensor) and smoothing == 0:
        return -logsigmoid(logits)
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def _output(
    losses: Tensor,
    log_ratios: Tensor,
    logps: Tensor,
    *,
    beta: float,
    targets: Tensor | None,
    reduction: str,
) -> ObjectiveOutput:
    ratios = log_ratios.detach()
    metrics = pair_metrics(beta * ratios, logps)
    return ObjectiveOutput(reduce(losses, reduction), losses.detach(), ratios, targets, metrics)


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    *,
    beta: float = 0.1,
    label_smoothing: float | Tensor = 0.0,
    robust: bool = False,
    reduction: Reduction = "mean",
) -> ObjectiveOutput:
    """Direct Preference Optimization (arXiv 2305.18290, equation 7), with cDPO and rDPO.

    With d = beta times the chosen log-ratio minus the rejected one, and l(d) = -log sigmoid(d):

    - DPO: ``l(d)``.
    - cDPO (conservative; the note of Mitchell, 2023), ``label_smoothing=e``:
      ``(1 - e) l(d) + e l(-d)``, for labels of which a share e is flipped. Its optimum has
      sigmoid(d) = 1 - e. With one e per pair, e = 1 - P(chosen > rejected) of a preference model,
      it is DPO on soft labels.
    - rDPO (robust; arXiv 2403.00409), ``robust=True``:
      ``((1 - e) l(d) - e l(-d)) / (1 - 2 e)``, an unbiased estimate of DPO's loss on clean labels.

    Args:
        chosen_logps: (...) log-probabilities of the chosen responses under the policy, summed over
            tokens.
        rejected_logps: (...) of the rejected ones.
        reference_chosen_logps: (...) of the chosen ones under the reference policy. No gradient.
        reference_rejected_logps: (...) of the rejected ones under it. No gradient.
        beta: weight of the KL term, above zero.
        label_smoothing: e in [0, 1), below 1/2 for ``robust``, or (...) of them, whose values are
            not checked.
        robust: rDPO in place of cDPO.
        reduction: "mean", "sum" or "none", over pairs.

    Raises:
        TypeError: if a tensor is not floating-point, or a number none.
        ValueError: if shapes differ, there is no pair, a number is out of its range, or for an
            unknown ``reduction``.
        RuntimeError: if devices differ.

    Example:
        >>> chosen, rejected = torch.tensor([-10.0]), torch.tensor([-20.0])
        >>> dpo_loss(chosen, rejected, rejected, rejected).loss
        tensor(0.3133)
    """
    log_ratios, logps = _log_ratios(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    check_positive("beta", beta)
    chosen, rejected = log_ratios.unbind(-1)
    logits = beta * (chosen - rejected)
    if robust:
        flipped = _check_smoothing("label_smoothing", label_smoothing, logits)
        if not isinstance(flipped, Tensor) and not flipped < 0.5:
            raise ValueError(
                f"label_smoothing must be in [0, 0.5) for robust=True; got {label_smoothing}"
            )
        kept = -(1 - flipped) * logsigmoid(logits) + flipped * logsigmoid(-logits)
        losses = kept / (1 - 2 * flipped)
    else:
        losses = _cross_entropy(logits, label_smoothing)
    return _output(
        losses,
        log_ratios,
        logps,
        beta=beta,
        targets=None,
        reduction=reduction,
    )


def ipo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    *,
    beta: float = 0.1,
    reduction: Reduction = "mean",
) -> ObjectiveOutput:
    """Identity Preference Optimization (arXiv 2310.12036, equation 17).

    ``loss = (h - 1 / (2 beta))^2``, h the chosen log-ratio minus the rejected one. Without lengths,
    log-ratios are sums over tokens, the paper's formula (and TRL's ``OnlineDPOTrainer``). With
    lengths they are means over tokens, each by its own length: TRL's ``DPOTrainer``, whose comments
    say that the paper's results were obtained so.

    Args:
        chosen_logps: (...) log-probabilities of the chosen responses under the policy, summed over
            tokens.
        rejected_logps: (...) of the rejected ones.
        reference_chosen_logps: (...) of the chosen ones under the reference policy. No gradient.
        reference_rejected_logps: (...) of the rejected ones under it. No gradient.
        chosen_lengths: (...) numbers of tokens of the chosen responses, or None for sums.
        rejected_lengths: (...) of the rejected ones; both or neither.
        beta: weight of the KL term, tau in the paper, above zero.
        reduction: "mean", "sum" or "none", over pairs.

    Raises:
        TypeError: if a tensor is not floating-point, lengths are no numbers, or beta none.
        ValueError: if shapes differ, there is no pair, only one of the lengths is given, ``beta``
            is not finite and above zero, or for an unknown ``reduction``.
        RuntimeError: if devices differ.

    Example:
        >>> chosen, rejected = torch.tensor([-10.0]), torch.tensor([-20.0])
        >>> ipo_loss(chosen, rejected, rejected, rejected, beta=0.1).loss
        tensor(25.)
    """
    log_ratios, logps = _log_ratios(
        chosen_logps, rejected_logps, reference_chosen_logps, reference_rejected_logps
    )
    check_positive("beta", beta)
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError(
            "chosen_lengths and rejected_lengths must both be given (means over tokens) or neither "
            "(sums); got only one of them"
        )
    if chosen_lengths is not None:
        chosen = per_token("chosen_logps", log_ratios[..., 0], "chosen_lengths", chosen_lengths)
        rejected = per_token(
            "rejected_logps", log_ratios[..., 1], "rejected_lengths", rejected_lengths
        )
        log_ratios = torch.stack((chosen, rejected), dim=-1)
    differences = log_ratios[..., 0] - log_ratios[..., 1]
    targets = torch.full_like(differences, 0.5 / beta, requires_grad=False)
    return _output(
        (differences - targets).square(),
        log_ratios,
        logps,
        beta=beta,
        targets=targets,
        reduction=reduction,
    )


def simpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
    label_smoothing: float | Tensor = 0.0,
    reduction: Reduction = "mean",
) -> ObjectiveOutput:
    """Simple Preference Optimization (arXiv 2405.14734), without a reference policy.

    ``loss = -log sigmoid(beta (logp_chosen / length - logp_rejected / length) - gamma)``.

    Args:
        chosen_logps: (...) log-probabilities of the chosen responses under the policy, summed over
            tokens.
        rejected_logps: (...) of the rejected ones.
        chosen_lengths: (...) numbers of tokens of the chosen responses, int or float.
        rejected_lengths: (...) of the rejected ones.
        beta: scale of the reward, above zero.
        gamma: margin that the rewards are to differ by, in units of the reward, so that
            gamma / beta is one of log-probabilities per token; TRL's ``simpo_gamma``.
        label_smoothing: e in [0, 1), or (...) of them, as in :func:`dpo_loss`.
        reduction: "mean", "sum" or "none", over pairs.

    Raises:
        TypeError: if a tensor is not floating-point, lengths are no numbers, or a number none.
        ValueError: if shapes differ, there is no pair, a number is out of its range, or for an
            unknown ``reduction``.
        RuntimeError: if devices differ.

    Example:
        >>> chosen, rejected = torch.tensor([-10.0]), torch.tensor([-20.0])
        >>> simpo_loss(chosen, rejected, torch.tensor([10]), torch.tensor([10])).loss
        tensor(0.3133)
    """
    check_pairs(chosen_logps=chosen_logps, rejected_logps=rejected_logps)
    check_positive("beta", beta)
    check_number("gamma", gamma)
    chosen = per_token("chosen_logps", wide(chosen_logps), "chosen_lengths", chosen_lengths)
    rejected = per_token(
        "rejected_logps", wide(rejected_logps), "rejected_lengths", rejected_lengths
    )
    rewards = torch.stack((chosen, rejected), dim=-1)
    logps = torch.stack((wide(chosen_logps), wide(rejected_logps)), dim=-1).detach()
    return _output(
        _cross_entropy(beta * (chosen - rejected) - gamma, label_smoothing),
        rewards,
        logps,
        beta=beta,
        targets=None,
        reduction=reduction,
    )


def online_ipo_loss(
    logps: Tensor,
    reference_logps: Tensor,
    probabilities: Tensor,
    *,
    beta: float = 0.1,
    group_sizes: GroupSizes | None = None,
    reduction: Reduction = "mean",
) -> ObjectiveOutput:
    """Online IPO (arXiv 2403.08635): IPO on all pairs of a group that the policy sampled.

    ``loss_i = mean over j != i of (h_i - h_j - (P_ij - 1/2) / beta)^2``, h the log-ratios. Its
    gradient is that of IPO's loss averaged over labels drawn with the probabilities P. For K = 2
    and P = 1 it is :func:`ipo_loss`. Sample from the mixture of policy and reference
    (:func:`gpm_core.objectives.nash_md.mixture_logps`), and it is IPO-MD.

    All pairs of a group see no more than its row means: the loss is 2 K / (K - 1) times centred
    SPPO's with eta = 1 / beta and P_hat the row means of P, plus a constant, the cyclic part.

    Args:
        logps: (..., K) log-probabilities of the responses under the policy, summed over tokens;
            (N,) with ``group_sizes``.
        reference_logps: (..., K) the same under the reference policy. No gradient.
        probabilities: (..., K, K) probability P_ij that i is preferred to j, P + P.T = 1. Ragged
            groups: (G, K_max, K_max), padded with anything.
        beta: weight of the KL term, tau in the paper, above zero.
        group_sizes: sizes of ragged groups, each at least 2, or None for even ones.
        reduction: "mean", "sum" or "none", over responses.

    Raises:
        TypeError: if a tensor is not floating-point, a number none, or sizes are no integers.
        ValueError: if shapes do not fit, a group has fewer than two responses, ``beta`` is not
            finite and above zero, or for an unknown ``reduction``.
        RuntimeError: if devices differ.

    Example:
        >>> logps, certain = torch.zeros(2), torch.tensor([[0.5, 1.0], [0.0, 0.5]])
        >>> online_ipo_loss(logps, logps, certain, beta=0.1).loss
        tensor(25.)
    """
    check_group(logps=logps, reference_logps=reference_logps)
    check_float("probabilities", probabilities, "of shape (..., K, K)")
    check_positive("beta", beta)
    logps = wide(logps)
    flat = logps - reference_logps.detach().to(logps.dtype)
    if group_sizes is None:
        log_ratios = flat
        others = torch.ones(flat.shape[-1:], dtype=torch.bool, device=flat.device)
        fewest = flat.shape[-1]
    else:
        group_sizes = lay_out(group_sizes, flat.device, flat.shape[0])
        log_ratios, others = pad(flat, group_sizes), group_sizes.mask
        fewest = min(group_sizes.sizes)
    if fewest < 2:
        raise ValueError(f"a group must have at least two responses; got one of {fewest}")
    if probabilities.shape != (*log_ratios.shape, log_ratios.shape[-1]):
        raise ValueError(
            f"probabilities must be (..., K, K) for log-probabilities (..., K), here "
            f"{(*log_ratios.shape, log_ratios.shape[-1])}; got {tuple(probabilities.shape)}"
        )
    wanted = (probabilities.detach().to(flat.dtype) - 0.5) / beta
    residuals = log_ratios.unsqueeze(-1) - log_ratios.unsqueeze(-2) - wanted
    itself = torch.eye(residuals.shape[-1], dtype=torch.bool, device=flat.device)
    counted = others.unsqueeze(-1) & others.unsqueeze(-2) & ~itself
    numbers = counted.sum(dim=-1).clamp(min=1)
    losses = torch.where(counted, residuals, 0.0).square().sum(dim=-1) / numbers
    targets = torch.where(counted, wanted, 0.0).sum(dim=-1) / (numbers + 1)
    if group_sizes is not None:
        losses, targets = unpad(losses, group_sizes), unpad(targets, group_sizes)
    metrics = group_metrics(targets, flat, logps, beta=beta, group_sizes=group_sizes)
    return ObjectiveOutput(
        reduce(losses, reduction), losses.detach(), flat.detach(), targets, metrics
    )
