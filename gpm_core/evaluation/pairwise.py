"""Labelled pairs and what the model says of them: accuracy, likelihood, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import compress

import torch
from torch import Tensor

from gpm_core.evaluation.estimates import Bootstrap, Estimate
from gpm_core.evaluation.metrics import ReliabilityBin, calibration_error, reliability
from gpm_core.evaluation.scoring import ScoredGroup

#: The smallest probability that float32 holds: what underflows to 0 loses -log of this.
_SMALLEST = 2.0**-149


@dataclass(frozen=True)
class PairTable:
    """N labelled pairs with the model's opinion, one row each.

    Attributes:
        score: (N,) float64, s(chosen > rejected).
        probability: (N,) float64, P(chosen > rejected).
        reverse: (N,) float64, P(rejected > chosen), accurate where ``probability`` rounds to 1 too.
        target: (N,) float64 in [0, 1], probability that chosen is preferred.
        cluster: (N,) int64, pairs that are resampled together.
        words, characters: (N, 2) float64, lengths of chosen and rejected.
        subsets: N names, or None.
    """

    score: Tensor
    probability: Tensor
    reverse: Tensor
    target: Tensor
    cluster: Tensor
    words: Tensor
    characters: Tensor
    subsets: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.score)

    @property
    def correct(self) -> Tensor:
        """(N,) 1 where the score has the label's side, 0 where not, 1/2 for a tie of either."""
        return (torch.sign(self.score) * torch.sign(self.target - 0.5) + 1) / 2

    @property
    def log_loss(self) -> Tensor:
        """(N,) -(t log P(chosen > rejected) + (1 - t) log P(rejected > chosen)), in nats."""
        forward = self.probability.clamp(min=_SMALLEST).log()
        backward = self.reverse.clamp(min=_SMALLEST).log()
        return -(self.target * forward + (1 - self.target) * backward)

    @property
    def brier(self) -> Tensor:
        """(N,) squared distance of probability and target."""
        return (self.probability - self.target).square()

    def select(self, members: Tensor) -> PairTable:
        """The rows where ``members`` (N,) bool is true."""
        columns = {name: getattr(self, name)[members] for name in _COLUMNS}
        return PairTable(**columns, subsets=tuple(compress(self.subsets, members.tolist())))

    @classmethod
    def joined(cls, tables: Sequence[PairTable]) -> PairTable:
        """The rows of some tables, one table after the other."""
        columns = {name: torch.cat([getattr(table, name) for table in tables]) for name in _COLUMNS}
        return cls(**columns, subsets=tuple(s for table in tables for s in table.subsets))


#: What a :class:`PairTable` has as tensors.
_COLUMNS = tuple(column.name for column in fields(PairTable) if column.name != "subsets")


@dataclass
class PairTableBuilder:
    """Collects the rows of a :class:`PairTable` from scored groups."""

    _numbers: list[tuple[float, ...]] = field(default_factory=list)
    _subsets: list[str | None] = field(default_factory=list)

    def add(self, scored: ScoredGroup) -> None:
        """Add all labelled pairs of a group."""
        texts = scored.labels.group.responses
        words = [len(text.split()) for text in texts]
        score, probability = scored.score.tolist(), scored.probability.tolist()
        for pair in scored.labels.pairs:
            i, j = pair.chosen, pair.rejected
            values = (score[i][j], probability[i][j], probability[j][i], pair.target, pair.cluster)
            lengths = (words[i], words[j], len(texts[i]), len(texts[j]))
            self._numbers.append((*values, *lengths))
            self._subsets.append(pair.subset)

    def table(self) -> PairTable:
        """All rows so far."""
        rows = torch.tensor(self._numbers, dtype=torch.float64).reshape(-1, 9)
        return PairTable(
            score=rows[:, 0],
            probability=rows[:, 1],
            reverse=rows[:, 2],
            target=rows[:, 3],
            cluster=rows[:, 4].long(),
            words=rows[:, 5:7],
            characters=rows[:, 7:9],
            subsets=tuple(self._subsets),
        )


@dataclass(frozen=True)
class PairMetrics:
    """All pairs together, each with the same weight.

    A coin has accuracy 1/2, log loss log 2 = 0.693 and Brier score 1/4.

    Attributes:
        accuracy: share of pairs whose score has the label's side, ties half.
        log_loss: mean, in nats.
        brier: mean squared distance of P(chosen > rejected) and the label.
        calibration_error: see :func:`gpm_core.evaluation.calibration_error`.
        reliability: bins of the reliability diagram.
    """

    accuracy: Estimate
    log_loss: Estimate
    brier: Estimate
    calibration_error: float
    reliability: tuple[ReliabilityBin, ...]


def measure_pairs(table: PairTable, bootstrap: Bootstrap, bins: int = 10) -> PairMetrics:
    """Accuracy, likelihood and calibration of all pairs of a table.

    Args:
        table: at least one pair.
        bootstrap: for the intervals.
        bins: of the reliability diagram.

    Raises:
        ValueError: if the table is empty.
    """
    return PairMetrics(
        bootstrap.share(table.correct, table.cluster),
        bootstrap.mean(table.log_loss, table.cluster),
        bootstrap.mean(table.brier, table.cluster),
        calibration_error(table.probability, table.target, bins),
        tuple(reliability(table.probability, table.target, bins)),
    )
