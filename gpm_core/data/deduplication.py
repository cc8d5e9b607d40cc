"""Pairs that say the same twice, contradict each other, or say nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gpm_core.data.keys import comparison_keys
from gpm_core.data.pairs import PreferencePair

CONTRADICTIONS = ("soft", "drop", "keep")


@dataclass(frozen=True)
class DeduplicationReport:
    """What :func:`deduplicate` found.

    Attributes:
        pairs: how many there were.
        kept: how many are left.
        identical: pairs left out because both replies are the same.
        duplicates: pairs that repeat an earlier one.
        contradictions: comparisons of two replies that were decided both ways.
        contradicting_lines: for each contradiction, the lines of all its pairs.
    """

    pairs: int
    kept: int
    identical: int
    duplicates: int
    contradictions: int
    contradicting_lines: tuple[tuple[int, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """All of it for JSON."""
        return asdict(self)


def deduplicate(
    pairs: Sequence[PreferencePair], *, contradictions: str = "soft"
) -> tuple[list[PreferencePair], DeduplicationReport]:
    """Leave one pair of those that compare the same two replies to the same prompt.

    Texts are the same if they differ only in white space and Unicode form (NFC). Texts that are
    merely alike are not looked for. Pairs whose two replies are the same are left out.

    Args:
        pairs: what to clean.
        contradictions: what becomes of a comparison that was decided both ways.

            - "soft": one pair, whose target is the mean of all its pairs' (1 where they have none,
              and one minus it for the other direction): the target for which cross-entropy has the
              same optimum as on all of them. So also where the targets or margins of repetitions
              differ; margins are averaged, negated for the other direction.
            - "drop": no pair is left of it.
            - "keep": the first pair of each direction is left, one after the other.

    Returns:
        (pairs, report): those left in the order of the first of their kind. A pair whose target is
        below 1/2 comes back with replies exchanged, target and margin too, which is the same loss.

    Raises:
        ValueError: for an unknown choice.

    Example:
        >>> pair = PreferencePair((Message("user", "Hi"),), "hello", "no")
        >>> swapped = PreferencePair(pair.prompt, "no", "hello")
        >>> left, report = deduplicate([pair, pair, pair, swapped])
        >>> left[0].target, report.contradictions
        (0.75, 1)
    """
    if contradictions not in CONTRADICTIONS:
        raise ValueError(f"contradictions must be one of {CONTRADICTIONS}; got {contradictions!r}")
    comparisons: dict[bytes, _Comparison] = {}
    identical = 0
    for pair in map(oriented, pairs):
        key, reverse = comparison_keys(pair)
        if key == reverse:
            identical += 1
        elif key in comparisons:
            comparisons[key].same.append(pair)
        elif reverse in comparisons:
            comparisons[reverse].swapped.append(pair)
        else:
            comparisons[key] = _Comparison([pair], [])
    contradicted = [one for one in comparisons.values() if one.contradicted]
    kept = [pair for one in comparisons.values() for pair in one.resolve(contradictions)]
    report = DeduplicationReport(
        pairs=len(pairs),
        kept=len(kept),
        identical=identical,
        duplicates=sum(one.duplicates for one in comparisons.values()),
        contradictions=len(contradicted),
        contradicting_lines=tuple(one.lines for one in contradicted),
    )
    return kept, report


def _exchanged(pair: PreferencePair) -> PreferencePair:
    """The same preference with its replies in the other order: the loss of it is the same."""
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        target=1.0 - _target(pair),
        margin=None if pair.margin is None else -pair.margin,
    )


def oriented(pair: PreferencePair) -> PreferencePair:
    """The pair, or where its target is below 1/2, the same with its replies exchanged."""
    return _exchanged(pair) if _target(pair) < 0.5 else pair


def _target(pair: PreferencePair) -> float:
    return 1.0 if pair.target is None else pair.target


@dataclass(frozen=True)
class _Comparison:
    """All pairs that compare two replies: in the order of the first of them, and in the other."""

    same: list[PreferencePair]
    swapped: list[PreferencePair]

    @property
    def contradicted(self) -> bool:
        # A tie contradicts nothing, in whatever order its replies are.
        return self._decided(self.same) is not None and self._decided(self.swapped) is not None

    @property
    def duplicates(self) -> int:
        return len(self.same) + len(self.swapped) - 1 - self.contradicted

    @property
    def lines(self) -> tuple[int, ...]:
        return tuple(sorted(pair.line for pair in (*self.same, *self.swapped)))

    def resolve(self, contradictions: str) -> list[PreferencePair]:
        if contradictions == "soft":
            labels = {(pair.margin, pair.target) for pair in self.same}
            return [self.same[0] if len(labels) == 1 and not self.swapped else self._merged()]
        if not self.contradicted:
            return [self.same[0]]
        if contradictions == "drop":
            return []
        return [pair for side in (self.same, self.swapped) if (pair := self._decided(side))]

    @staticmethod
    def _decided(side: list[PreferencePair]) -> PreferencePair | None:
        return next((pair for pair in side if _target(pair) != 0.5), None)

    def _merged(self) -> PreferencePair:
        votes = [*self.same, *map(_exchanged, self.swapped)]
        margins = [pair.margin for pair in votes if pair.margin is not None]
        merged = replace(
            self.same[0],
            target=math.fsum(map(_target, votes)) / len(votes),
            margin=math.fsum(margins) / len(margins) if margins else None,
        )
        return oriented(merged)
