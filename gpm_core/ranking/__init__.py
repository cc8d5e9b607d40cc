"""Game-theoretic ranking, and exact games to test objectives on.

A payoff matrix is skew-symmetric, (K, K): scores S, or P - 1/2 of preference probabilities P.

- :func:`nash_mixture`: the equilibrium (of P - 1/2: the maximal lottery).
- :func:`hodge`: a payoff as its transitive and its cyclic part.
- :mod:`~gpm_core.ranking.tabular`: softmax policies on random games, self-play and Nash-MD in
  closed form, exploitability.
"""

from gpm_core.ranking import tabular
from gpm_core.ranking.hodge import HodgeDecomposition, hodge
from gpm_core.ranking.nash import nash_mixture

__all__ = ["HodgeDecomposition", "hodge", "nash_mixture", "tabular"]
