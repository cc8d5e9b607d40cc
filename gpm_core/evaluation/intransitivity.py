"""Cycles: in what a model prefers, and in what people said."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpm_core.evaluation.estimates import Array, Bootstrap, Estimate, ratio
from gpm_core.evaluation.reading import LabelledPair
from gpm_core.evaluation.scoring import ScoredGroup

#: Share of cyclic triples if each pair is decided by a coin: two of eight outcomes.
COIN_CYCLES = 0.25

#: The most that a scalar reward gets of the three pairs of a cyclic triple.
SCALAR_BOUND = 2 / 3


def count_cycles(score: Tensor) -> tuple[int, int]:
    """Strictly cyclic triples of K items, i > j > k > i, and all triples.

    Args:
        score: (K, K) skew-symmetric; i is preferred to j where ``score[i, j] > 0``. A triple with a
            tie is not cyclic.

    Raises:
        ValueError: if ``score`` is not square.

    Example:
        >>> count_cycles(torch.tensor([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]]))
        (1, 1)
    """
    count = _check_square(score)
    wins = (score > 0).double()
    # Each cycle is three closed walks of length three; float64 counts them exactly.
    cycles = int(((wins @ wins) * wins.T).sum().round()) // 3
    return cycles, count * (count - 1) * (count - 2) // 6


def transitive_part(score: Tensor) -> Tensor:
    """The transitive part T (K, K) float64 of a skew-symmetric score matrix S (K, K).

    ``T_ij = f_i - f_j`` with f_i the mean of S_ij over all j, i included: the Hodge decomposition
    on the complete graph. The rest ``C = S - T``, the cyclic part, has row sums 0 and is orthogonal
    to every such T, so that ``|S|^2 = |T|^2 + |C|^2``.

    Raises:
        ValueError: if ``score`` is not square.

    Example:
        >>> transitive_part(torch.tensor([[0.0, 1, 3], [-1, 0, 2], [-3, -2, 0]])).tolist()[0]
        [0.0, 1.0, 3.0]
    """
    _check_square(score)
    mean = score.double().mean(dim=1)
    return mean[:, None] - mean[None, :]


def _check_square(score: Tensor) -> int:
    if score.dim() != 2 or score.shape[0] != score.shape[1]:
        raise ValueError(f"score must be (K, K); got {tuple(score.shape)}")
    return score.shape[0]


@dataclass(frozen=True)
class ObservedTriples:
    """Three responses to one prompt of which people compared all pairs.

    The direction of a pair is that of its labels together; pairs on which they cancel make no
    triple. Of a cyclic triple any scalar reward gets at most two of three pairs right.

    Attributes:
        triples: how many.
        cyclic: share of them in which the labels make a cycle; by a coin it is 1/4.
        accuracy_cyclic: of the model on the three pairs of cyclic triples; None without any.
        accuracy_acyclic: the same, of acyclic ones.
        whole_cyclic, whole_acyclic: share of triples of which the model has all three pairs right.
        transitive_accuracy_cyclic, transitive_accuracy_acyclic: of the transitive part of the
            model's scores (:func:`transitive_part`), its best scalar approximation.
        scalar_bound: 2/3, a scalar's most of ``accuracy_cyclic``; of ``whole_cyclic`` it is 0.
    """

    triples: int
    cyclic: Estimate
    accuracy_cyclic: Estimate | None
    accuracy_acyclic: Estimate | None
    whole_cyclic: Estimate | None
    whole_acyclic: Estimate | None
    transitive_accuracy_cyclic: Estimate | None
    transitive_accuracy_acyclic: Estimate | None
    scalar_bound: float = SCALAR_BOUND


@dataclass(frozen=True)
class Intransitivity:
    """Cycles in a model's scores, over the prompts with three responses or more.

    Attributes:
        groups: such prompts.
        triples: of responses to one prompt.
        cyclic: share of triples in which the model's preferences make a strict cycle.
        coin_cyclic: 1/4, that share if every pair were decided by a coin.
        cyclic_groups: share of prompts with such a triple.
        cyclic_energy: the cyclic part's share of the sum of squared scores
            (:func:`transitive_part`); None if all scores are 0.
        coin_energy: that share for independent scores of one variance: 1 - 2/K for K responses.
        observed: what people said of triples; None where they compared no triple's three pairs.
    """

    groups: int
    triples: int
    cyclic: Estimate
    coin_cyclic: float
    cyclic_groups: Estimate
    cyclic_energy: Estimate | None
    coin_energy: float
    observed: ObservedTriples | None


@dataclass
class TripleTable:
    """Collects what :class:`Intransitivity` is made of."""

    #: Per group: cyclic triples, triples, has a cycle, 1, cyclic energy, energy, and the numbers
    #: (K-1)(K-2) and K(K-1) whose ratio of sums is the coin's energy.
    groups: list[tuple[float, ...]] = field(default_factory=list)
    #: Per observed triple: is cyclic, share of pairs right, all right, transitive part's share.
    observed: list[tuple[float, ...]] = field(default_factory=list)
    clusters: list[int] = field(default_factory=list)

    def add(self, scored: ScoredGroup) -> None:
        """Add a group; one of fewer than three responses has no triples."""
        count = len(scored.score)
        if count < 3:
            return
        transitive = transitive_part(scored.score)
        cycles, triples = count_cycles(scored.score)
        cyclic_energy = float((scored.score - transitive).square().sum())
        energy = float(scored.score.square().sum())
        sizes = ((count - 1) * (count - 2), count * (count - 1))
        self.groups.append((cycles, triples, cycles > 0, 1, cyclic_energy, energy, *sizes))
        opinions = [(torch.sign(s) + 1).div(2).tolist() for s in (scored.score, transitive)]
        for edges, is_cyclic in _observed(scored.labels.pairs):
            right, by_transitive = ([o[i][j] for i, j in edges] for o in opinions)
            whole = float(min(right) == 1)
            shares = (sum(right) / 3, whole, sum(by_transitive) / 3)
            self.observed.append((float(is_cyclic), *shares))
            self.clusters.append(len(self.groups))

    def measure(self, bootstrap: Bootstrap) -> Intransitivity | None:
        """The figures, or None if no prompt has three responses."""
        if not self.groups:
            return None
        rows = torch.tensor(self.groups, dtype=torch.float64)
        each = torch.arange(len(rows))
        energy = None
        if float(rows[:, 5].sum()) > 0:
            energy = bootstrap.estimate(rows[:, 4:6], each, _energy, is_share=True)
        sizes = rows[:, 6:].sum(dim=0)
        return Intransitivity(
            len(rows),
            int(rows[:, 1].sum()),
            bootstrap.estimate(rows[:, :2], each, ratio, is_share=True),
            COIN_CYCLES,
            bootstrap.estimate(rows[:, 2:4], each, ratio, is_share=True),
            energy,
            float(sizes[0] / sizes[1]),
            self._measure_observed(bootstrap),
        )

    def _measure_observed(self, bootstrap: Bootstrap) -> ObservedTriples | None:
        if not self.observed:
            return None
        rows = torch.tensor(self.observed, dtype=torch.float64)
        clusters = torch.tensor(self.clusters)
        cyclic = rows[:, 0] == 1

        def share(column: int, members: Tensor) -> Estimate | None:
            if not members.any():
                return None
            return bootstrap.share(rows[members, column], clusters[members])

        return ObservedTriples(
            triples=len(rows),
            cyclic=bootstrap.share(rows[:, 0], clusters),
            accuracy_cyclic=share(1, cyclic),
            accuracy_acyclic=share(1, ~cyclic),
            whole_cyclic=share(2, cyclic),
            whole_acyclic=share(2, ~cyclic),
            transitive_accuracy_cyclic=share(3, cyclic),
            transitive_accuracy_acyclic=share(3, ~cyclic),
        )


def _energy(totals: Array) -> Array:
    # What rounding leaves of a transitive matrix may exceed nothing, but never all.
    return ratio(totals).clip(max=1.0)


def _observed(
    pairs: tuple[LabelledPair, ...],
) -> Iterator[tuple[tuple[tuple[int, int], tuple[int, int], tuple[int, int]], bool]]:
    """Triples whose pairs were all compared: the pairs as (preferred, other); whether a cycle."""
    votes: dict[tuple[int, int], float] = {}
    for pair in pairs:
        side = 1 if pair.chosen < pair.rejected else -1
        key = (min(pair.chosen, pair.rejected), max(pair.chosen, pair.rejected))
        votes[key] = votes.get(key, 0.0) + side * (2 * pair.target - 1)
    neighbours: dict[int, set[int]] = {}
    for (i, j), vote in votes.items():
        if vote and i != j:
            neighbours.setdefault(i, set()).add(j)
    for i, later in sorted(neighbours.items()):
        for j in sorted(later):
            for k in sorted(later & neighbours.get(j, set())):
                edges = tuple(
                    (a, b) if votes[a, b] > 0 else (b, a) for a, b in ((i, j), (j, k), (i, k))
                )
                # A cycle of three is where every one of them is preferred once.
                yield edges, len({edge[0] for edge in edges}) == 3  # type: ignore[misc]
