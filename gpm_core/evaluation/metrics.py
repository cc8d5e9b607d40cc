"""Figures that say how good a preference model is, and how sure one can be of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import torch
from torch import Tensor


def wilson_interval(correct: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share, for ``correct`` of ``count``.

    Args:
        correct: in [0, count]; halves, as of ties, are fine.
        count: at least 1.
        confidence: in (0, 1).

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> low, high = wilson_interval(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
    """
    if count < 1 or not 0 <= correct <= count:
        raise ValueError(f"correct must be in [0, count], count >= 1; got {correct} of {count}")
    check_confidence(confidence)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    spread = math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    half = z * spread / (1 + z * z / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of ``values`` and Student's t-interval of it: (mean, low, high).

    One value has no interval: low and high are then not a number.

    Raises:
        ValueError: if there are no values.

    Example:
        >>> mean_interval([1.0, 2.0, 3.0])[0]
        2.0
    """
    from scipy.stats import t

    if not values:
        raise ValueError("values must hold at least one number; got none")
    check_confidence(confidence)
    mean = fmean(values)
    if len(values) == 1:
        return mean, math.nan, math.nan
    quantile = float(t.ppf((1 + confidence) / 2, len(values) - 1))
    half = quantile * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


@dataclass(frozen=True)
class ReliabilityBin:
    """Pairs whose more likely side has about the same probability.

    ``confidence`` is the mean probability of that side, ``accuracy`` how often it was preferred.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(
    probability: Tensor, target: Tensor | None = None, bins: int = 10
) -> list[ReliabilityBin]:
    """Pairs by the probability of their more likely side, in equal bins over [1/2, 1].

    Which of two replies is called chosen says nothing, so each pair is looked at from the side that
    the model thinks more likely.

    Args:
        probability: (P,) P(chosen > rejected) in [0, 1].
        target: (P,) probability that chosen was really preferred; None for 1.
        bins: number of bins, at least 1; empty ones are left out.

    Raises:
        ValueError: if there are no pairs, or a probability is not in [0, 1].
    """
    probability = probability.double().cpu()
    if not len(probability) or not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probability must be (P,) numbers in [0, 1], P >= 1")
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    outcome = torch.ones_like(probability) if target is None else target.double().cpu()
    flipped = probability < 0.5
    confidence = torch.where(flipped, 1 - probability, probability)
    outcome = torch.where(flipped, 1 - outcome, outcome)
    # A tie has no likelier side: it is right half of the time by definition.
    outcome = torch.where(probability == 0.5, torch.full_like(outcome, 0.5), outcome)
    place = ((confidence - 0.5) * 2 * bins).long().clamp(max=bins - 1)
    result = []
    for i in range(bins):
        members = place == i
        if members.any():
            result.append(
                ReliabilityBin(
                    0.5 + i / (2 * bins),
                    0.5 + (i + 1) / (2 * bins),
                    int(members.sum()),
                    float(confidence[members].mean()),
                    float(outcome[members].mean()),
                )
            )
    return result


def calibration_error(probability: Tensor, target: Tensor | None = None, bins: int = 10) -> float:
    """Expected calibration error in [0, 1]: mean distance of confidence and accuracy over bins.

    Args and errors as :func:`reliability`.

    Example:
        >>> round(calibration_error(torch.tensor([0.9, 0.9])), 6)
        0.1
    """
    groups = reliability(probability, target, bins)
    total = sum(group.count for group in groups)
    return sum(group.count * abs(group.confidence - group.accuracy) for group in groups) / total


def check_confidence(confidence: float) -> None:
    """Refuse a confidence that is no number between 0 and 1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1); got {confidence}")
