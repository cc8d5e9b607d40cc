"""Numbers of a record: margins, soft labels, ratings."""

from __future__ import annotations

import math
from typing import Any

from gpm_core.data.errors import RecordError

#: Fields that data sets rate the two replies of a pair in, the chosen one's first.
SCORE_FIELDS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)

#: Texts that stand for a rating that was not given.
MISSING = frozenset({"", "n/a", "na", "nan", "none", "null"})


def parse_number(
    record: dict[str, Any], field: str, low: float = -math.inf, high: float = math.inf
) -> float | None:
    """The finite number of a field, or None where the record has none.

    Raises:
        ValueError: if it is no number, not finite, or not in [low, high].
    """
    value = record.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RecordError("wrong-type", f"field {field!r} must be a number; got {value!r:.60}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecordError("out-of-range", f"field {field!r} must be finite; got {number}")
    if not low <= number <= high:
        raise RecordError(
            "out-of-range", f"field {field!r} must be in [{low:g}, {high:g}]; got {value}"
        )
    return number


def parse_margin(record: dict[str, Any], *, score_margin: bool) -> float | None:
    """The field ``margin``, or with ``score_margin`` the chosen reply's score minus the other's.

    Raises:
        ValueError: if a number is wrong, a score's counterpart is missing, or the record has both a
            margin and scores to take it from.
    """
    margin = parse_number(record, "margin")
    if not score_margin:
        return margin
    for fields in SCORE_FIELDS:
        scores = [parse_number(record, field) for field in fields]
        if scores == [None, None]:
            continue
        chosen, rejected = scores
        if chosen is None or rejected is None:
            missing = fields[0] if chosen is None else fields[1]
            raise RecordError("missing-field", f"field {missing!r} is missing beside its other")
        if margin is not None:
            raise RecordError(
                "wrong-type",
                f"the record has 'margin' and also {fields[0]!r} to take a margin from; leave one "
                "out, or read without score_margin",
            )
        return chosen - rejected
    return margin


def parse_rating(value: Any, field: str) -> float:
    """A rating as a finite number, or nan where it was not given (None, nan, "N/A" and the like).

    Numbers may be written as text, as in UltraFeedback.

    Raises:
        ValueError: if it is neither; says where.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in MISSING):
        return math.nan
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise RecordError(
            "wrong-type", f'{field} must be a number, or null or "N/A"; got {value!r:.60}'
        ) from None
    if math.isinf(number):
        raise RecordError("out-of-range", f"{field} must be finite; got {value!r}")
    return number
