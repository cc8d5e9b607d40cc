"""Hodge decomposition: what of a payoff is a ranking, and what is cycles."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from gpm_core.ranking._payoff import check_payoff


class HodgeDecomposition(NamedTuple):
    """What :func:`hodge` returns."""

    #: (..., K) mean payoff f of each player against all; sums to zero.
    ratings: Tensor
    #: (..., K, K) T_ij = f_i - f_j.
    transitive: Tensor
    #: (..., K, K) C = payoff - T, whose rows sum to zero.
    cyclic: Tensor
    #: (...) sum of the squares of T.
    transitive_energy: Tensor
    #: (...) sum of the squares of C; both add up to that of the payoff.
    cyclic_energy: Tensor


def hodge(payoff: Tensor) -> HodgeDecomposition:
    """The transitive and the cyclic part of a payoff matrix: orthogonal, and unique.

    T_ij = f_i - f_j with f_i the mean of row i is the skew-symmetric matrix of that form nearest
    to the payoff (Jiang, Lim, Yao & Ye, Mathematical Programming 2011; Balduzzi et al.,
    arXiv 1901.08106). Row means see T alone, and every ranking by mean score is f.

    Args:
        payoff: (..., K, K) skew-symmetric: scores, or probabilities minus 1/2.

    Returns:
        Ratings, both parts and their energies, float32 at least, with gradients.

    Raises:
        TypeError: if ``payoff`` is not floating-point.
        ValueError: if it is not square, finite and skew-symmetric.

    Example:
        >>> rock_paper_scissors = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
        >>> hodge(rock_paper_scissors).transitive_energy
        tensor(0.)
    """
    payoff = check_payoff(payoff)
    ratings = payoff.mean(dim=-1)
    transitive = ratings.unsqueeze(-1) - ratings.unsqueeze(-2)
    cyclic = payoff - transitive
    return HodgeDecomposition(
        ratings,
        transitive,
        cyclic,
        transitive.square().sum(dim=(-2, -1)),
        cyclic.square().sum(dim=(-2, -1)),
    )
