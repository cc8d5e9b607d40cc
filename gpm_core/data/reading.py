"""Reading data files: JSON lines, plain or gzipped, lists in JSON, and parquet."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from gpm_core.data.errors import DataError
from gpm_core.data.pairs import PreferencePair, ResponseGroup, parse_group, parse_pair
from gpm_core.data.rated import RatedGroup, parse_rated
from gpm_core.data.records import EXTENSIONS, place, records

__all__ = ["EXTENSIONS", "DataError", "read_groups", "read_pairs", "read_rated"]

Record = TypeVar("Record")

#: Any one of these sets of columns makes a parquet file one of pairs.
_PAIR_COLUMNS = (("chosen", "rejected"), ("response_0", "response_1", "better_response_id"))


def read_pairs(path: str | os.PathLike[str], *, score_margin: bool = False) -> list[PreferencePair]:
    r"""Read preference pairs from a .jsonl, .json (also .gz of both) or .parquet file.

    Each record has ``chosen`` and ``rejected``, in one of three forms:

    - text, perhaps with ``prompt`` (text or a list of messages);
    - whole dialogues "\n\nHuman: ...\n\nAssistant: ...", as in HH-RLHF. The prompt is all but
      the last turn; where two dialogues part earlier, it is the turns they share, and all that
      follows is the reply. An empty reply is data: HH-RLHF has some;
    - lists of {"role", "content"} messages that end with the assistant's and share all before it:
      the prompt is all but the last. A ``prompt`` beside them repeats what comes first (in text, a
      user's turn), or holds it alone where they start with the assistant. Roles are system, user,
      assistant and tool; a tool's calls are read as text, in JSON.

    Or it has PKU-SafeRLHF's ``response_0``, ``response_1`` and ``better_response_id``. Optional are
    ``margin`` (a finite number) and ``target`` (in [0, 1]). Other fields are ignored, and so are
    blank lines. A .json file is a list of records, or JSON lines.

    Args:
        path: the file.
        score_margin: where a record has no ``margin`` but rates both replies, as ``score_chosen``
            and ``score_rejected`` of the binarized UltraFeedback, take the difference as margin.

    Returns:
        At least one pair, in the file's order.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it cannot be read as described; names the file and the line or row.
        ModuleNotFoundError: for parquet without pyarrow.

    Example:
        >>> read_pairs("pairs.jsonl")[0].chosen  # doctest: +SKIP
        'the better reply'
    """
    parse = functools.partial(parse_pair, score_margin=score_margin)
    return read_records(path, parse, columns=_PAIR_COLUMNS)


def read_groups(path: str | os.PathLike[str]) -> list[ResponseGroup]:
    """Read responses to score: {"prompt": ..., "responses": [text, ...]} or pairs, a line each.

    Returns and raises as :func:`read_pairs`.
    """
    return read_records(path, parse_group)


def read_rated(path: str | os.PathLike[str]) -> list[RatedGroup]:
    """Read responses with ratings from a file as :func:`read_pairs` does.

    Each record has ``prompt`` or ``instruction`` (text or a list of messages; or neither), and

    - ``responses``, K texts, with ``ratings``: K numbers, or such a list for each criterion;
    - or ``completions`` as in UltraFeedback: objects with ``response`` and ``annotations``, for
      each criterion {"Rating": "4"}. Its ``overall_score`` and ``fine-grained_score`` are kept
      under these names;
    - or ``responses`` that are objects with ``text`` and ``ratings``, a number for each criterion.

    Numbers may be written as text. null, "N/A" and a criterion that a response lacks are missing
    ratings: nan.

    Returns and raises as :func:`read_pairs`.

    Example:
        >>> read_rated("ultrafeedback.jsonl")[0].ratings["honesty"]  # doctest: +SKIP
        (4.0, 3.0, nan, 5.0)
    """
    return read_records(path, parse_rated)


def read_records(
    path: str | os.PathLike[str],
    parse: Callable[[Any, int], Record],
    columns: tuple[tuple[str, ...], ...] = (),
) -> list[Record]:
    """What ``parse(record, number from 1)`` makes of each record of a file, at least one.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it cannot be read, is empty, or a record is refused; names its line or row.
    """
    path = Path(path)
    result = []
    for number, record in records(path, columns):
        if isinstance(record, DataError):
            raise record
        try:
            result.append(parse(record, number))
        except ValueError as error:
            raise DataError(f"{path}, {place(path)} {number}: {error}") from error
    if not result:
        raise DataError(f"{path}: the file is empty; expected at least one record")
    return result
