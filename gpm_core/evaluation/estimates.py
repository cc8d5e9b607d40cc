"""Estimates with intervals that know that pairs of one prompt are not independent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpm_core.evaluation.metrics import check_confidence, wilson_interval

Array = NDArray[np.float64]

#: From totals (..., M) of M columns to a figure (...); see :meth:`Bootstrap.estimate`.
Statistic = Callable[[Array], Array]

#: With fewer prompts than this, a bootstrap interval is too narrow to be believed.
FEW_PROMPTS = 20

#: Most numbers that a step of the resampling holds at once.
_MOST_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure and its confidence interval.

    Attributes:
        value: the figure.
        low, high: its interval, None where there is none.
        count: of pairs, or whatever it is a mean over.
        prompts: independent units that were resampled.
        method: of the interval, "bootstrap", "wilson" or "none".
    """

    value: float
    low: float | None
    high: float | None
    count: int
    prompts: int
    method: str

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(totals: Array) -> Array:
    """First total by the second: with columns (correct, 1), a share."""
    return totals[..., 0] / totals[..., 1]


class Bootstrap:
    """Percentile bootstrap over prompts.

    Pairs of one prompt share its difficulty and their responses, so prompts are drawn with
    replacement, each with all of its pairs. Estimates of one instance draw from one stream of
    random numbers, so that they are independent, and equal for equal seeds and an equal order.

    Args:
        samples: resamplings, at least 100.
        confidence: in (0, 1).
        seed: of the random numbers.

    Raises:
        ValueError: if an argument is out of range.

    Example:
        >>> correct = torch.tensor([1.0, 1.0, 0.0, 1.0])
        >>> Bootstrap().share(correct, torch.tensor([0, 0, 1, 2])).value
        0.75
    """

    def __init__(self, samples: int = 1000, confidence: float = 0.95, seed: int = 0) -> None:
        if samples < 100:
            raise ValueError(f"bootstrap_samples must be at least 100; got {samples}")
        check_confidence(confidence)
        self.samples, self.confidence = samples, confidence
        self._random = np.random.default_rng(seed)

    def counts(self, prompts: int, samples: int) -> Array:
        """How often each of ``samples`` resamplings draws each prompt: (samples, prompts)."""
        drawn = self._random.multinomial(prompts, np.full(prompts, 1 / prompts), size=samples)
        return drawn.astype(np.float64)

    def share(self, correct: Tensor, clusters: Tensor) -> Estimate:
        """Mean of ``correct`` (N,) in [0, 1], resampled by ``clusters`` (N,); see :meth:`estimate`.

        Raises:
            ValueError: if there is nothing to average.
        """
        columns = torch.stack([correct, torch.ones_like(correct)], dim=1)
        return self.estimate(columns, clusters, ratio, is_share=True)

    def mean(self, values: Tensor, clusters: Tensor) -> Estimate:
        """Mean of ``values`` (N,), which are no shares; as :meth:`share`."""
        columns = torch.stack([values, torch.ones_like(values)], dim=1)
        return self.estimate(columns, clusters, ratio, is_share=False)

    def estimate(
        self, columns: Tensor, clusters: Tensor, statistic: Statistic, *, is_share: bool
    ) -> Estimate:
        """A statistic of totals and its interval.

        Args:
            columns: (N, M) numbers whose totals over N the statistic takes.
            clusters: (N,) int64, which prompt each row belongs to.
            statistic: from totals (..., M) to (...); nan where it is not defined.
            is_share: the statistic is a share: where the bootstrap has nothing to say (fewer than
                20 prompts, or all draws alike, as when all is right) the interval is Wilson's, with
                the number of prompts for the number of trials. Other statistics then have none.

        Raises:
            ValueError: if there are no rows.
        """
        draws, value = self.replicates(columns, clusters, statistic)
        prompts = len(torch.unique(clusters))
        return self.summarize(value, draws, len(columns), prompts, is_share=is_share)

    def replicates(
        self, columns: Tensor, clusters: Tensor, statistic: Statistic
    ) -> tuple[Array, float]:
        """The statistic of each resampling (B,), and of the data; arguments as :meth:`estimate`."""
        if not len(columns):
            raise ValueError("there is nothing to estimate from: no rows")
        _, cluster = torch.unique(clusters, return_inverse=True)
        units = torch.zeros(int(cluster.max()) + 1, columns.shape[1], dtype=torch.float64)
        units.index_add_(0, cluster, columns.double())
        totals: Array = units.numpy()
        # Prompts with equal totals are exchangeable: how often each kind is drawn is multinomial,
        # and there are far fewer kinds than prompts.
        kinds, sizes = np.unique(totals, axis=0, return_counts=True)
        step = max(1, _MOST_AT_ONCE // len(kinds))
        draws = []
        with np.errstate(divide="ignore", invalid="ignore"):
            for start in range(0, self.samples, step):
                some = min(step, self.samples - start)
                counts = self._random.multinomial(len(totals), sizes / len(totals), size=some)
                draws.append(statistic(counts @ kinds))
            value = float(statistic(totals.sum(axis=0)))
        return np.concatenate(draws), value

    def summarize(
        self, value: float, draws: Array, count: int, prompts: int, *, is_share: bool
    ) -> Estimate:
        """An estimate from its value and the draws (B,) of it; arguments as :meth:`estimate`."""
        if not math.isfinite(value):
            raise ValueError("the statistic is not defined for these rows")
        draws = draws[np.isfinite(draws)]
        alike = not len(draws) or draws.min() == draws.max()
        if prompts < FEW_PROMPTS or alike:
            if not is_share:
                return Estimate(value, None, None, count, prompts, "none")
            low, high = wilson_interval(value * prompts, prompts, self.confidence)
            return Estimate(value, low, high, count, prompts, "wilson")
        tail = (1 - self.confidence) / 2
        low, high = (float(edge) for edge in np.quantile(draws, [tail, 1 - tail]))
        return Estimate(value, low, high, count, prompts, "bootstrap")
