"""Ranking accuracy of a policy, and the best that its training objective allows.

After "Preference Learning Algorithms Do Not Learn Preference Rankings" (arXiv 2405.19534).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def ranking_accuracy(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    *,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> float:
    """Share of pairs to whose preferred response a policy gives more probability.

    The mean of 1[log pi(y_w|x) > log pi(y_l|x)], ties half (arXiv 2405.19534). It says
    nothing of a reference policy, unlike the "reward accuracy" that DPO trainers log.

    Args:
        chosen_logps: (P,) float, log pi(y_w|x), summed over the response's tokens.
        rejected_logps: (P,) float, log pi(y_l|x) likewise.
        chosen_lengths: (P,) numbers of tokens, above 0, to compare the means over tokens instead of
            the sums (length-normalized ranking accuracy).
        rejected_lengths: (P,) likewise.

    Returns:
        A share in [0, 1].

    Raises:
        TypeError: if the log-probabilities are not floating-point tensors.
        ValueError: for no pairs, shapes that differ, numbers that are not finite, lengths not above
            0, or lengths of one side only.

    Example:
        >>> chosen, rejected = torch.tensor([-3.0, -9.0]), torch.tensor([-5.0, -8.0])
        >>> ranking_accuracy(chosen, rejected)
        0.5
        >>> lengths = {"chosen_lengths": [4, 9], "rejected_lengths": [6, 4]}
        >>> lengths = {name: torch.tensor(values) for name, values in lengths.items()}
        >>> ranking_accuracy(chosen, rejected, **lengths)  # -0.75 > -0.83 and -1 > -2
        1.0
    """
    difference = _difference(chosen_logps, rejected_logps, chosen_lengths, rejected_lengths)
    return float(((torch.sign(difference) + 1) / 2).mean())


def idealized_ranking_accuracy(
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    preference: Tensor,
    *,
    beta: float,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
) -> float:
    """Ranking accuracy of the policy that optimizes the DPO or RLHF objective perfectly.

    With alpha the true probability that y_w is preferred to y_l, the optimum pi* satisfies
    (arXiv 2405.19534, on perfect RLHF)

        pi*(y_w|x) / pi*(y_l|x) = pi_ref(y_w|x) / pi_ref(y_l|x) * (alpha / (1 - alpha))^(1/beta)

    since sigmoid(beta * (difference of log-ratios)) = alpha minimizes the expected DPO loss of a
    pair, and pi* ~ pi_ref exp(r/beta) with r(y_w) - r(y_l) = logit(alpha) the RLHF objective. So
    the idealized ranking accuracy is the mean of

        1[log pi_ref(y_w|x) - log pi_ref(y_l|x) + logit(alpha) / beta > 0],  ties half.

    A reference that prefers y_l strongly keeps the optimum from ranking the pair right, unless
    people agree (alpha = 1). With lengths this is the optimum of DPO on log-probabilities per
    token. Idealized minus observed ranking accuracy is the "alignment gap".

    Args:
        reference_chosen_logps: (P,) float, log pi_ref(y_w|x), summed over the response's tokens.
        reference_rejected_logps: (P,) float, log pi_ref(y_l|x) likewise.
        preference: (P,) float in [0, 1], alpha, such as the share of annotators who preferred y_w;
            where y_w is the majority's choice it is 1/2 at least.
        beta: above 0, DPO's: the weight of the KL divergence from the reference.
        chosen_lengths: (P,) numbers of tokens, above 0, or None for sums.
        rejected_lengths: (P,) likewise.

    Returns:
        A share in [0, 1].

    Raises:
        TypeError: if the tensors are not floating-point.
        ValueError: as :func:`ranking_accuracy`, for a preference outside of [0, 1], or for a beta
            that is not above 0.

    Example:
        >>> reference = torch.tensor([-8.0, -8.0]), torch.tensor([-5.0, -5.0])
        >>> idealized_ranking_accuracy(*reference, torch.tensor([0.9, 0.6]), beta=0.5)
        0.5
    """
    difference = _difference(
        reference_chosen_logps, reference_rejected_logps, chosen_lengths, rejected_lengths
    )
    _check_numbers("preference", preference, difference)
    alpha = preference.detach().double().cpu()
    if not ((alpha >= 0) & (alpha <= 1)).all():
        raise ValueError("preference must be in [0, 1]")
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be above 0 and finite; got {beta}")
    # alpha = 0 and 1 give an infinite logit, which no reference outweighs.
    optimum = difference + torch.logit(alpha) / beta
    return float(((torch.sign(optimum) + 1) / 2).mean())


def _difference(
    chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor | None, rejected_lengths: Tensor | None
) -> Tensor:
    """(P,) float64 difference of log-probabilities, per token if there are lengths."""
    if (chosen_lengths is None) != (rejected_lengths is None):
        raise ValueError("lengths must be given for both sides or for neither")
    sides = []
    for name, logps, lengths in (
        ("chosen", chosen, chosen_lengths),
        ("rejected", rejected, rejected_lengths),
    ):
        _check_numbers(f"{name}_logps", logps, chosen)
        values = logps.detach().double().cpu()
        if lengths is not None:
            if lengths.shape != logps.shape or not (lengths > 0).all():
                raise ValueError(
                    f"{name}_lengths must be {tuple(logps.shape)} numbers above 0; got "
                    f"{tuple(lengths.shape)}"
                )
            values = values / lengths.double().cpu()
        sides.append(values)
    return sides[0] - sides[1]


def _check_numbers(name: str, tensor: Tensor, like: Tensor) -> None:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor of shape (P,); got {kind}")
    if tensor.dim() != 1 or not len(tensor) or tensor.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape (P,), P >= 1, of the others; got {tuple(tensor.shape)}"
        )
    if not tensor.isfinite().all():
        raise ValueError(f"{name} holds numbers that are not finite")
