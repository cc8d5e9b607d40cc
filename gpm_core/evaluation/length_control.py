"""The win rates of policies over each other if their responses were equally long.

After AlpacaEval's length-controlled win rate (arXiv 2404.04475).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Penalties of the squared intercept and slope, beside a loss that is a sum over prompts: normal
#: priors with standard deviations 1000 and 10, which keep the intercept finite where one side wins
#: everything, and the slope where length alone tells who wins.
_RIDGE = (1e-6, 0.01)

#: Rows of the regression are (1, x) with abs(x) <= 1.
_ROW_NORM = 2**0.5

#: The last step is shorter than this; what is left is about its square.
_STEPS, _PRECISION = 500, 1e-5


def length_covariate(difference: Tensor, negligible: float) -> Tensor | None:
    """Differences of lengths d as the covariate ``x = tanh(d / s)``, s^2 the mean of d^2.

    AlpacaEval divides by the standard deviation; the root mean square, around the difference 0 at
    which the regression is read, is the same where neither side is longer on average, and does not
    drive all x to 1 where one is.

    Args:
        difference: (P,) float64, length of the one response less that of the other.
        negligible: differences that are no larger are rounding.

    Returns:
        (P,) in (-1, 1), odd in ``difference``: 0 where no prompt has a difference, so that there is
        nothing to control. None if all prompts have the same one: its effect cannot be told from
        that of everything else.
    """
    if float(difference.abs().max()) <= negligible:
        return torch.zeros_like(difference)
    if float(difference.max() - difference.min()) <= negligible:
        return None
    return torch.tanh(difference / difference.square().mean().sqrt())


def fit_length_control(
    win_rates: Tensor, covariate: Tensor, counts: Tensor, start: Tensor | None = None
) -> Tensor:
    """Logistic regressions of a win rate on an intercept and a covariate of lengths.

    For the counts n of each resampling, the (a, b) that maximize the quasi-likelihood of a
    fractional response (Papke & Wooldridge 1996)

        sum over p of n_p (y_p log P_p + (1 - y_p) log(1 - P_p)) - (1e-6 a^2 + 0.01 b^2) / 2,
        P_p = sigmoid(a + b x_p).

    The length-controlled win rate is sigmoid(a). With 1 - y for y and -x for x, (a, b) becomes
    (-a, b). Without an effect of x, sigmoid(a) is the mean of y, to 1e-6 / P or so.

    There is one maximum, at finite a and b, also where y is 0 or 1 everywhere, or x alone tells
    which. Newton's method finds it with steps ``log(1 + r) / r`` of the full one, r = sqrt(2) times
    its length, which converge from any start (Sun & Tran-Dinh, arXiv 1703.04599).

    Args:
        win_rates: (P,) float64 y in [0, 1].
        covariate: (P,) float64 x in [-1, 1].
        counts: (R, P) float64, how often each resampling has each prompt.
        start: (2,) where to start, the solution for equal counts; None for no effect of length.

    Returns:
        (R, 2) float64: a and b.

    Raises:
        RuntimeError: if it does not converge.

    Example:
        >>> y, x = torch.tensor([0.6, 0.8]).double(), torch.tensor([-0.5, 0.5]).double()
        >>> intercept, slope = fit_length_control(y, x, torch.ones(1, 2).double())[0]
        >>> round(float(intercept.sigmoid()), 2)  # the mean of the log-odds
        0.71
    """
    if start is None:
        intercept = torch.logit(counts @ win_rates / counts.sum(dim=1), eps=1e-6)
        slope = torch.zeros_like(intercept)
    else:
        intercept, slope = (value.expand(len(counts)) for value in start)
    powers = torch.stack((torch.ones_like(covariate), covariate, covariate.square()), dim=1)
    observed = counts @ (win_rates[:, None] * powers[:, :2])
    for _ in range(_STEPS):
        logit = torch.addcmul(intercept[:, None], slope[:, None], covariate[None, :])
        probability = logit.sigmoid_()
        expected = counts * probability
        curvature = torch.addcmul(expected, expected, probability, value=-1) @ powers
        gradient = observed - expected @ powers[:, :2]
        g0, g1 = gradient[:, 0] - _RIDGE[0] * intercept, gradient[:, 1] - _RIDGE[1] * slope
        c00, c01, c11 = curvature[:, 0] + _RIDGE[0], curvature[:, 1], curvature[:, 2] + _RIDGE[1]
        determinant = c00 * c11 - c01 * c01
        step = torch.stack((c11 * g0 - c01 * g1, c00 * g1 - c01 * g0)) / determinant
        length = _ROW_NORM * step.norm(dim=0)
        step = step * torch.where(length > 0, torch.log1p(length) / length, 1.0)
        intercept, slope = intercept + step[0], slope + step[1]
        if float(step.abs().max()) < _PRECISION:
            return torch.stack((intercept, slope), dim=1)
    raise RuntimeError(
        f"the regression on lengths did not converge in {_STEPS} steps; look for lengths of very "
        "different magnitudes"
    )


class LengthControl:
    """The regressions of M pairs of policies on P prompts.

    Args:
        win_rates: (P, M) float64 in [0, 1], of the first of each pair.
        differences: (P, M) float64, its lengths less those of the second.
        negligible: differences that are no larger are rounding.

    Attributes:
        unknown: pairs whose win rate at equal length cannot be told.
        solutions: intercept and slope (2,) of each pair that has a regression. Of the others the
            lengths are equal, or the win rate does not vary: control changes nothing.
        one_sided: (M,), one of the two is longer on all prompts.
    """

    def __init__(self, win_rates: Tensor, differences: Tensor, negligible: float) -> None:
        self._win_rates, self._covariates = win_rates, dict[int, Tensor]()
        self.unknown, self.solutions = set[int](), dict[int, Tensor]()
        shorter = (differences < -negligible).all(dim=0)
        self.one_sided = shorter | (differences > negligible).all(dim=0)
        once = win_rates.new_ones(1, len(win_rates))
        for pair in range(win_rates.shape[1]):
            covariate, wins = length_covariate(differences[:, pair], negligible), win_rates[:, pair]
            if covariate is None:
                self.unknown.add(pair)
            elif covariate.any() and (wins != wins[0]).any():
                self._covariates[pair] = covariate
                self.solutions[pair] = fit_length_control(wins, covariate, once)[0]

    def resample(self, counts: Tensor) -> Tensor:
        """Win rates (R, F) at equal length of the F pairs with a solution, in its order.

        Args:
            counts: (R, P) float64, how often each resampling has each prompt.
        """
        rates = [
            fit_length_control(self._win_rates[:, pair], self._covariates[pair], counts, start)[
                :, 0
            ]
            for pair, start in self.solutions.items()
        ]
        return torch.stack(rates, dim=1).sigmoid() if rates else counts.new_empty(len(counts), 0)
