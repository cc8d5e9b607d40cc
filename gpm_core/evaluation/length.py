"""Does a model prefer long responses, and how good is it where length says nothing?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from gpm_core.evaluation.estimates import Array, Bootstrap, Estimate, ratio
from gpm_core.evaluation.pairwise import PairTable

#: Lengths differ by less than this share of the longer one: "similar".
SIMILAR = 0.1

Unit = Literal["words", "characters"]


@dataclass(frozen=True)
class LengthBias:
    """How scores depend on the difference of lengths.

    Which of two responses is called chosen says nothing, so correlations are over every pair in
    both directions: Pearson's is sum(s d) / sqrt(sum(s^2) sum(d^2)), without means. People may like
    long responses too: compare ``prefers_longer`` with ``labels_prefer_longer``.

    Attributes:
        unit: of the lengths, "words" or "characters".
        pearson: of score and difference of lengths; None if either is always 0.
        spearman: of their ranks; None likewise.
        prefers_longer: share of pairs of different lengths where the longer one has the higher
            score (ties half); None if there are none.
        labels_prefer_longer: share of them where people preferred the longer one.
        accuracy_longer, accuracy_similar, accuracy_shorter: where the preferred response is longer
            by more than a tenth of the longer one's length, within it, and shorter by more.
        length_controlled: accuracy if the preferred response were the longer one in half of the
            pairs of different lengths: "the longer one" then has 1/2. None where the preferred
            response is never longer, or never shorter.
    """

    unit: Unit
    pearson: Estimate | None
    spearman: float | None
    prefers_longer: Estimate | None
    labels_prefer_longer: Estimate | None
    accuracy_longer: Estimate | None
    accuracy_similar: Estimate | None
    accuracy_shorter: Estimate | None
    length_controlled: Estimate | None


def measure_length_bias(table: PairTable, bootstrap: Bootstrap, unit: Unit = "words") -> LengthBias:
    """How the scores of a table depend on lengths in words (split at white space) or characters.

    Args:
        table: at least one pair.
        bootstrap: for the intervals.
        unit: "words" or "characters".

    Raises:
        ValueError: for another unit.
    """
    if unit not in ("words", "characters"):
        raise ValueError(f"unit must be 'words' or 'characters'; got {unit!r}")
    lengths = table.words if unit == "words" else table.characters
    difference = lengths[:, 0] - lengths[:, 1]
    # From here on the first response of a pair is the one that people preferred.
    side = torch.sign(table.target - 0.5)
    preferred = difference * side
    near = difference.abs() <= SIMILAR * lengths.max(dim=1).values
    decided = side != 0

    def share(values: Tensor, members: Tensor) -> Estimate | None:
        return bootstrap.share(values[members], table.cluster[members]) if members.any() else None

    different = difference != 0
    longer_wins = (torch.sign(table.score) * torch.sign(difference) + 1) / 2
    return LengthBias(
        unit,
        _pearson(table, difference, bootstrap),
        _spearman(table.score, difference),
        share(longer_wins, different),
        share((torch.sign(preferred) + 1) / 2, different & decided),
        share(table.correct, (preferred > 0) & ~near & decided),
        share(table.correct, near & decided),
        share(table.correct, (preferred < 0) & ~near & decided),
        _controlled(table, preferred, decided, bootstrap),
    )


def _pearson(table: PairTable, difference: Tensor, bootstrap: Bootstrap) -> Estimate | None:
    # In units of their largest values the squares can neither overflow nor vanish.
    scale = table.score.abs().max()
    if not scale or not difference.any():
        return None
    score, length = table.score / scale, difference / difference.abs().max()
    columns = torch.stack([score * length, score.square(), length.square()], dim=1)

    def correlation(totals: Array) -> Array:
        result: Array = totals[..., 0] / np.sqrt(totals[..., 1] * totals[..., 2])
        return result

    return bootstrap.estimate(columns, table.cluster, correlation, is_share=False)


def _spearman(score: Tensor, difference: Tensor) -> float | None:
    if not score.any() or not difference.any():
        return None
    from scipy.stats import spearmanr

    both = [torch.cat([values, -values]).numpy() for values in (score, difference)]
    return float(spearmanr(*both).statistic)


def _controlled(
    table: PairTable, preferred: Tensor, decided: Tensor, bootstrap: Bootstrap
) -> Estimate | None:
    kinds = [decided & (torch.sign(preferred) == sign) for sign in (1, -1, 0)]
    if not kinds[0].any() or not kinds[1].any():
        return None
    columns = torch.stack(
        [column for kind in kinds for column in (table.correct * kind, kind.double())], dim=1
    )

    def accuracy(totals: Array) -> Array:
        longer, shorter = ratio(totals[..., 0:2]), ratio(totals[..., 2:4])
        different = totals[..., 1] + totals[..., 3]
        right = different * (longer + shorter) / 2 + totals[..., 4]
        result: Array = right / (different + totals[..., 5])
        return result

    return bootstrap.estimate(columns[decided], table.cluster[decided], accuracy, is_share=True)
