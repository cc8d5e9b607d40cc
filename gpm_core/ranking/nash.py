"""The Nash equilibrium of a symmetric zero-sum game."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gpm_core.ranking._payoff import check_payoff

if TYPE_CHECKING:
    from numpy import ndarray

#: How much payoff an equilibrium may give away, as a share of the largest payoff. The constraints
#: of a game usually leave no room at all, which floating-point numbers cannot satisfy.
_SLACK = 1e-14
#: Weights below are rounding: of players outside of the support.
_ROUNDING = 1e-9


def nash_mixture(payoff: Tensor) -> Tensor:
    """The mixture of players that no player beats: weights w with (payoff w)_i <= 0 for all i.

    Of scores it is the Nash equilibrium of the score game, of P - 1/2 the maximal lottery, or von
    Neumann winner. Random games have one equilibrium. Where there are several (ties, clones,
    payoffs of low rank) this is the one nearest to equal weights, the least sum of squares, which
    is unique: equal players get equal weights, and the order of the players does not matter.

    The least-squares problem under the equilibrium's linear constraints is solved exactly, as a
    least-distance problem by non-negative least squares (Lawson & Hanson, Solving Least Squares
    Problems, chapter 23), in float64 on the CPU, one game after the other: 200 players take
    10 ms, 1000 players 10 s.

    Args:
        payoff: (..., K, K) skew-symmetric: scores, or probabilities minus 1/2. No gradient.

    Returns:
        (..., K) weights that sum to one, float32 at least, on the payoff's device; 0 exactly
        outside of the support.

    Raises:
        ModuleNotFoundError: without SciPy, of the extra ``gpm_core[train]``.
        TypeError: if ``payoff`` is not floating-point.
        ValueError: if it is not square, finite and skew-symmetric.
        RuntimeError: if the solver does not converge.

    Example:
        >>> rock_beats_twice = torch.tensor([[0.0, -1, 2], [1, 0, -1], [-2, 1, 0]])
        >>> nash_mixture(rock_beats_twice)
        tensor([0.2500, 0.5000, 0.2500])
    """
    payoff = check_payoff(payoff.detach() if isinstance(payoff, Tensor) else payoff)
    games = payoff.to("cpu", torch.float64).reshape(-1, *payoff.shape[-2:])
    weights = torch.stack([torch.from_numpy(_least_norm(game.numpy())) for game in games])
    return weights.reshape(payoff.shape[:-1]).to(payoff)


def _least_norm(payoff: ndarray[Any, Any]) -> ndarray[Any, Any]:
    """The w of least sum of squares with w >= 0, sum w = 1 and w payoff >= -slack."""
    import numpy as np

    try:
        from scipy.optimize import nnls
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'nash_mixture needs the package {error.name}: pip install "gpm_core[train]"',
            name=error.name,
        ) from error

    players = len(payoff)
    largest = np.abs(payoff).max()
    payoff = payoff / largest if largest > 0 else payoff
    ones = np.ones((1, players))
    # constraints @ w >= bounds; the sum by two of them.
    constraints = np.concatenate((np.eye(players), payoff.T, ones, -ones))
    bounds = np.concatenate((np.zeros(players), np.full(players, -_SLACK), [1.0], [-1.0]))
    dual = np.concatenate((constraints.T, bounds[None]))
    goal = np.zeros(players + 1)
    goal[-1] = 1.0
    multipliers, _ = nnls(dual, goal, maxiter=50 * players + 500)
    residual = dual @ multipliers - goal
    weights = -residual[:-1] / residual[-1]
    weights[weights < _ROUNDING] = 0.0
    weights /= weights.sum()
    if not (payoff @ weights).max() < 100 * players * _ROUNDING:
        raise RuntimeError(
            "no equilibrium was found to a precision of 1e-7 of the largest payoff. Payoffs of "
            "very different magnitudes are the likely reason"
        )
    return weights
