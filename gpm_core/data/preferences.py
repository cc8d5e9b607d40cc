"""From ratings to pairs: on one criterion, on their mean, and on each criterion apart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gpm_core.data.pairs import PreferencePair
from gpm_core.data.rated import RatedGroup

PAIRINGS = ("all", "best_worst", "adjacent")
TIES = ("drop", "half")


def pairs_from_ratings(
    groups: Sequence[RatedGroup],
    *,
    criterion: str | None = None,
    pairs: str = "all",
    ties: str = "drop",
    minimum_gap: float = 0.0,
    margin: bool = False,
) -> list[PreferencePair]:
    """Pairs of responses to one prompt, of which the one with the higher rating is chosen.

    Responses without a rating take no part, nor does, of two with the same text, the pair.

    Args:
        groups: rated responses.
        criterion: which ratings to go by; None for their mean, see :meth:`RatedGroup.scores`.
        pairs: of a group's responses, "all" pairs, the "best_worst" pair, or the "adjacent" ones in
            the order of their ratings. Among equal ratings the first response comes first.
        ties: equal ratings make no pair ("drop"), or one with target 1/2 ("half").
        minimum_gap: pairs whose ratings differ, but by less, are left out.
        margin: give each pair its difference of ratings as margin, in the ratings' units.

    Returns:
        The pairs, in the order of the groups and within one of the responses (of their ratings, for
        "adjacent"), each with its group's line.

    Raises:
        ValueError: for an unknown choice, a gap that is negative or not finite, or a criterion that
            no group has.

    Example:
        >>> group = RatedGroup((), ("a", "b", "c"), {"honesty": (2.0, 5.0, 3.0)})
        >>> [(pair.chosen, pair.rejected) for pair in pairs_from_ratings([group])]
        [('b', 'a'), ('c', 'a'), ('b', 'c')]
    """
    _check_choice("pairs", pairs, PAIRINGS)
    _check_choice("ties", ties, TIES)
    if not 0 <= minimum_gap < math.inf:
        raise ValueError(f"minimum_gap must be finite and not negative; got {minimum_gap}")
    if criterion is not None:
        _check_criteria(groups, (criterion,))
    result = []
    for group in groups:
        scores = group.scores(criterion)
        for i, j in _pairings(scores, pairs):
            gap = abs(scores[i] - scores[j])
            if group.responses[i] == group.responses[j] or 0 < gap < minimum_gap:
                continue
            if gap == 0 and ties == "drop":
                continue
            better, worse = (i, j) if scores[i] >= scores[j] else (j, i)
            result.append(
                PreferencePair(
                    group.prompt,
                    group.responses[better],
                    group.responses[worse],
                    margin=gap if margin else None,
                    target=None if gap else 0.5,
                    line=group.line,
                )
            )
    return result


class CriteriaPairs(NamedTuple):
    """Pairs with a label for each criterion.

    ``targets`` (P, C) float32: the probability that pair p's chosen response is preferred on
    criterion c; 1, 0, 1/2 for equal ratings, and nan where a rating is missing.
    """

    pairs: list[PreferencePair]
    targets: Tensor
    criteria: tuple[str, ...]


def criteria_pairs(
    groups: Sequence[RatedGroup], criteria: Sequence[str] | None = None
) -> CriteriaPairs:
    """All pairs of responses to one prompt, with a label for each criterion.

    Chosen is the response that more criteria prefer, the first where they are even; a pair's
    ``target`` is the mean of its labels. Pairs of the same text, and those that no criterion rates
    both of, are left out.

    Args:
        groups: rated responses.
        criteria: which to use, in this order; None for all, in the order of their appearance.

    Returns:
        (pairs, targets, criteria): P pairs in the order of the groups and responses, targets (P, C)
        float32.

    Raises:
        ValueError: for a criterion that no group has or that is given twice.

    Example:
        >>> ratings = {"honesty": (5.0, 2.0), "brevity": (1.0, 2.0), "humour": (3.0, math.nan)}
        >>> criteria_pairs([RatedGroup((), ("a", "b"), ratings)]).targets
        tensor([[1., 0., nan]])
    """
    if criteria is None:
        criteria = tuple(dict.fromkeys(name for group in groups for name in group.criteria))
    else:
        _check_criteria(groups, criteria)
    pairs, rows = [], []
    for group in groups:
        columns = [group.scores(name) for name in criteria]
        for i, j in combinations(range(len(group.responses)), 2):
            labels = [_label(column[i], column[j]) for column in columns]
            known = [label for label in labels if not math.isnan(label)]
            if not known or group.responses[i] == group.responses[j]:
                continue
            first, second, target = i, j, math.fsum(known) / len(known)
            if target < 0.5:
                first, second, target = j, i, 1.0 - target
                labels = [1.0 - label for label in labels]
            chosen, rejected = group.responses[first], group.responses[second]
            pairs.append(
                PreferencePair(group.prompt, chosen, rejected, target=target, line=group.line)
            )
            rows.append(labels)
    targets = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), len(criteria))
    return CriteriaPairs(pairs, targets, tuple(criteria))


def _label(a: float, b: float) -> float:
    if math.isnan(a) or math.isnan(b):
        return math.nan
    return 0.5 if a == b else float(a > b)


def _pairings(scores: Sequence[float], pairs: str) -> Iterator[tuple[int, int]]:
    rated = [i for i, score in enumerate(scores) if not math.isnan(score)]
    if pairs == "all":
        yield from combinations(rated, 2)
        return
    order = sorted(rated, key=lambda i: -scores[i])
    if pairs == "adjacent":
        yield from pairwise(order)
    elif len(order) > 1:
        yield order[0], order[-1]


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}; got {value!r}")


def _check_criteria(groups: Sequence[RatedGroup], criteria: Sequence[str]) -> None:
    if len(set(criteria)) != len(criteria):
        raise ValueError(f"a criterion is given twice: {tuple(criteria)}")
    known = dict.fromkeys(name for group in groups for name in group.ratings)
    for criterion in criteria:
        if groups and criterion not in known:
            raise ValueError(
                f"no group is rated on {criterion!r}; there are {', '.join(map(repr, known))}"
            )
