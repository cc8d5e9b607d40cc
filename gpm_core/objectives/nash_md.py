"""Nash-MD (arXiv 2312.00886): the mixture policy, and the loss against its samples."""

from __future__ import annotations

import torch
from torch import Tensor

from gpm_core.objectives._common import (
    ObjectiveOutput,
    Reduction,
    check_float,
    check_group,
    check_number,
    check_positive,
    group_metrics,
    reduce,
    wide,
)
from gpm_core.objectives.groups import GroupSizes, center, lay_out

__all__ = ["mixture_logps", "nash_md_loss"]


def mixture_logps(logps: Tensor, reference_logps: Tensor, *, mixture_coef: float) -> Tensor:
    """Geometric mixture of two policies, pi^(1 - c) pi_reference^c, normalized.

    Of tabular policies this is the paper's pi_t^mu, with c = eta tau. Of next-token logits it is
    what one samples from, token by token, as the paper and TRL do; a product of such mixtures is
    not the mixture of the products, so that responses sampled from it follow the paper's policy
    only approximately.

    Args:
        logps: (..., V) log-probabilities or logits of the policy.
        reference_logps: (..., V) the same of the reference policy.
        mixture_coef: c in [0, 1], the weight of the reference; TRL's name and meaning.

    Returns:
        (..., V) log-probabilities, float32 at least. What either policy excludes (-inf) the
        mixture excludes for 0 < c < 1.

    Raises:
        TypeError: if a tensor is not floating-point, or ``mixture_coef`` no number.
        ValueError: if shapes differ, or ``mixture_coef`` is not in [0, 1].
        RuntimeError: if devices differ.

    Example:
        >>> logps, reference_logps = torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0])
        >>> mixture_logps(logps, reference_logps, mixture_coef=0.5).exp()
        tensor([0.7311, 0.2689])
    """
    check_float("logps", logps, "of shape (..., V)")
    check_float("reference_logps", reference_logps, "of shape (..., V)")
    if logps.shape != reference_logps.shape or logps.dim() == 0:
        raise ValueError(
            "logps and reference_logps must have the same shape (..., V); got "
            f"{tuple(logps.shape)} and {tuple(reference_logps.shape)}"
        )
    if logps.device != reference_logps.device:
        raise RuntimeError(
            f"logps and reference_logps must be on the same device; got {logps.device} and "
            f"{reference_logps.device}"
        )
    check_number("mixture_coef", mixture_coef)
    if not 0 <= mixture_coef <= 1:
        raise ValueError(f"mixture_coef must be in [0, 1]; got {mixture_coef}")
    logps, reference = wide(logps), wide(reference_logps)
    # Zero times minus infinity is NaN: at either end the other policy has no say.
    if mixture_coef == 0:
        return logps.log_softmax(dim=-1)
    if mixture_coef == 1:
        return reference.log_softmax(dim=-1).to(torch.promote_types(logps.dtype, reference.dtype))
    return torch.log_softmax((1 - mixture_coef) * logps + mixture_coef * reference, dim=-1)


def nash_md_loss(
    logps: Tensor,
    reference_logps: Tensor,
    probabilities: Tensor,
    *,
    beta: float = 0.1,
    centered: bool = False,
    group_sizes: GroupSizes | None = None,
    reduction: Reduction = "mean",
) -> ObjectiveOutput:
    """Nash-MD's policy gradient (arXiv 2312.00886) against the mixture policy.

    ``loss_i = -A_i log pi(y_i|x)`` with the advantage
    ``A_i = P(y_i > mixture) - 1/2 - beta log(pi(y_i|x) / pi_reference(y_i|x))``, which is not
    differentiated. For responses sampled from pi the gradient is an unbiased estimate of that of
    ``beta KL(pi || pi_reference) - P(pi > mixture)``, with the mixture held fixed. The value of
    the loss says nothing; look at the metrics.

    TRL's removed trainer multiplies the log-ratio of each token with the log-probability of that
    token alone; here the log-ratio of the whole response counts for all of it, as in the formula.

    Args:
        logps: (..., K) log-probabilities of the responses, samples of the policy, summed over
            tokens; (N,) with ``group_sizes``. One sample for each of B prompts is (B, 1).
        reference_logps: (..., K) the same under the reference policy. No gradient.
        probabilities: (..., K) probability that the response is preferred to one of the mixture
            policy (:func:`mixture_logps`): of one sample of it, or the mean over several. No
            gradient.
        beta: weight of the KL term, tau in the paper, above zero; 0.1 is TRL's.
        centered: subtract the group's mean from the advantages, a baseline that lowers variance
            (and scales the expected gradient by (K - 1) / K).
        group_sizes: sizes of ragged groups, or None for even ones.
        reduction: "mean", "sum" or "none", over responses.

    Returns:
        ``targets`` are the advantages; in ``metrics`` chosen and rejected are the responses with
        the highest and lowest probability of their group, and ``rewards/probabilities`` the mean.

    Raises:
        TypeError: if a tensor is not floating-point, a number none, or sizes are no integers.
        ValueError: if shapes differ, there is no response, ``beta`` is not finite and above zero,
            sizes do not add up, or for an unknown ``reduction``.
        RuntimeError: if devices differ.

    Example:
        >>> logps = torch.tensor([-2.0])
        >>> nash_md_loss(logps, logps, torch.tensor([0.75])).loss
        tensor(0.5000)
    """
    check_group(logps=logps, reference_logps=reference_logps, probabilities=probabilities)
    check_positive("beta", beta)
    logps = wide(logps)
    if group_sizes is not None:
        group_sizes = lay_out(group_sizes, logps.device, logps.shape[0])
    observed = logps.detach()
    log_ratios = observed - reference_logps.detach().to(logps.dtype)
    wins = probabilities.detach().to(logps.dtype)
    advantages = wins - 0.5 - beta * log_ratios
    if centered:
        advantages = center(advantages, group_sizes)
    losses = -advantages * logps
    metrics = group_metrics(wins, log_ratios, observed, beta=beta, group_sizes=group_sizes)
    metrics["rewards/probabilities"] = wins.mean()
    return ObjectiveOutput(
        reduce(losses, reduction), losses.detach(), log_ratios, advantages, metrics
    )
