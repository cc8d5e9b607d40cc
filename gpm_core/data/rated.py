"""Responses with ratings on several criteria, and the records that hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpm_core.data.errors import RecordError
from gpm_core.data.labels import parse_rating
from gpm_core.data.messages import Message
from gpm_core.data.pairs import check_encodable, check_record, parse_prompt, parse_texts

#: Ratings of UltraFeedback that sum up the others, on scales of their own.
SUMMARIES = ("overall_score", "fine-grained_score")
#: The name of the only criterion, where a record has a plain list of ratings.
ONLY_CRITERION = "rating"


@dataclass(frozen=True)
class RatedGroup:
    """Responses to one prompt, each rated on the same criteria; higher is better.

    Attributes:
        prompt: the messages before the reply; () where there is none.
        responses: K texts; there may be none, as in some records of UltraFeedback.
        ratings: for each criterion K finite numbers, nan where a rating is missing.
        line: where it stood in its file, from 1; 0 for no file.
    """

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    ratings: Mapping[str, tuple[float, ...]]
    line: int = 0

    def __post_init__(self) -> None:
        for criterion, ratings in self.ratings.items():
            if len(ratings) != len(self.responses):
                raise RecordError(
                    "wrong-type",
                    f"there are {len(self.responses)} responses but {len(ratings)} ratings of "
                    f"{criterion!r}",
                )

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criteria that are not sums of others: without UltraFeedback's "overall_score" and
        "fine-grained_score", unless there is nothing else.
        """
        return tuple(name for name in self.ratings if name not in SUMMARIES) or tuple(self.ratings)

    def scores(self, criterion: str | None = None) -> tuple[float, ...]:
        """K ratings on a criterion, or with None their mean over :attr:`criteria`.

        nan where the rating, or one of those to take the mean of, is missing.

        Example:
            >>> group = RatedGroup((), ("a", "b"), {"honesty": (5.0, 2.0), "brevity": (1.0, 2.0)})
            >>> group.scores(), group.scores("brevity")
            ((3.0, 2.0), (1.0, 2.0))
        """
        missing = (math.nan,) * len(self.responses)
        if criterion is not None:
            return self.ratings.get(criterion, missing)
        columns = [self.ratings[name] for name in self.criteria]
        return tuple(math.fsum(row) / len(row) for row in zip(*columns, strict=True)) or missing


def parse_rated(record: Any, line: int = 0) -> RatedGroup:
    """A rated group from a record; see :func:`gpm_core.data.read_rated` for its forms.

    Raises:
        ValueError: if it is none of the forms; says which field is wrong and how.
    """
    check_record(record)
    prompt = _rated_prompt(record)
    if record.get("completions") is not None:
        texts, ratings = _from_objects(record["completions"], "completions", "response")
    else:
        texts, ratings = _from_responses(record)
    check_encodable(*(message.content for message in prompt))
    return RatedGroup(prompt, texts, ratings, line)


def _rated_prompt(record: dict[str, Any]) -> tuple[Message, ...]:
    given = [field for field in ("prompt", "instruction") if record.get(field) is not None]
    if len(given) == 2 and record["prompt"] != record["instruction"]:
        raise RecordError("prompts-differ", "fields 'prompt' and 'instruction' differ")
    return parse_prompt(record[given[0]], given[0]) if given else ()


def _from_responses(
    record: dict[str, Any],
) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    field = "responses" if record.get("responses") is not None else "generations"
    values = record.get(field)
    if values is None:
        found = ", ".join(map(repr, record)) or "nothing"
        raise RecordError(
            "missing-field",
            "a rated record needs 'responses' and 'ratings', or UltraFeedback's 'completions'; "
            f"it has {found}",
        )
    if not isinstance(values, (list, tuple)):
        raise RecordError(
            "wrong-type", f"field {field!r} must be a list; got {type(values).__name__}"
        )
    if values and isinstance(values[0], dict):
        return _from_objects(values, field, "text")
    texts = parse_texts(values, field)
    ratings = record.get("ratings")
    if ratings is None and not texts:
        return (), {}
    if ratings is None:
        raise RecordError("missing-field", f"field 'ratings' is missing beside {field!r}")
    by_criterion = ratings if isinstance(ratings, dict) else {ONLY_CRITERION: ratings}
    return texts, {
        # A parquet file has every criterion in every row, those without ratings as null.
        name: _column(column, len(texts), name)
        for name, column in by_criterion.items()
        if column is not None
    }


def _column(values: Any, count: int, criterion: str) -> tuple[float, ...]:
    where = "ratings" if criterion == ONLY_CRITERION else f"ratings[{criterion!r}]"
    if not isinstance(values, (list, tuple)):
        raise RecordError(
            "wrong-type", f"{where} must be a list of numbers; got {type(values).__name__}"
        )
    if len(values) != count:
        raise RecordError(
            "wrong-type", f"there are {count} responses, and {where} has {len(values)} numbers"
        )
    return tuple(parse_rating(value, f"{where}[{i}]") for i, value in enumerate(values))


def _from_objects(
    values: Any, field: str, text: str
) -> tuple[tuple[str, ...], dict[str, tuple[float, ...]]]:
    """Responses that are objects with their ratings, as UltraFeedback's completions are."""
    if not isinstance(values, (list, tuple)):
        raise RecordError(
            "wrong-type", f"field {field!r} must be a list; got {type(values).__name__}"
        )
    texts, rows = [], []
    for i, value in enumerate(values):
        where = f"{field}[{i}]"
        if not isinstance(value, dict) or not isinstance(value.get(text), str):
            raise RecordError("wrong-type", f"{where} must be an object with {text!r}, a text")
        texts.append(value[text])
        rows.append(_row(value, where))
    check_encodable(*texts)
    names = dict.fromkeys(name for row in rows for name in row)
    return tuple(texts), {name: _values(rows, name) for name in names}


def _row(value: dict[str, Any], where: str) -> dict[str, float]:
    row = {}
    for name in ("ratings", "annotations"):
        given = value.get(name)
        if given is None:
            continue
        if not isinstance(given, dict):
            raise RecordError(
                "wrong-type", f"{where}.{name} must be an object; got {type(given).__name__}"
            )
        for criterion, rating in given.items():
            # UltraFeedback: {"honesty": {"Rating": "4", "Rationale": ...}}, sometimes "N/A".
            number = rating.get("Rating") if isinstance(rating, dict) else rating
            row[str(criterion)] = parse_rating(number, f"{where}.{name}[{criterion!r}]")
    for name in SUMMARIES:
        if name in value:
            row[name] = parse_rating(value[name], f"{where}[{name!r}]")
    return row


def _values(rows: Sequence[dict[str, float]], name: str) -> tuple[float, ...]:
    return tuple(row.get(name, math.nan) for row in rows)
