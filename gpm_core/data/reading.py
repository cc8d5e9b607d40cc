"""Reading data files: JSON lines, plain or gzipped, and parquet."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from gpm_core.data.pairs import PreferencePair, ResponseGroup, parse_group, parse_pair

EXTENSIONS = (".jsonl", ".jsonl.gz", ".parquet")

Record = TypeVar("Record")


class DataError(ValueError):
    """Something is wrong in a data file; the message names the file and the line."""


def read_pairs(path: str | os.PathLike[str]) -> list[PreferencePair]:
    r"""Read preference pairs from a .jsonl, .jsonl.gz or .parquet file.

    Each record has ``chosen`` and ``rejected``, in one of three forms:

    - text, perhaps with ``prompt`` (text or a list of messages);
    - whole dialogues "\n\nHuman: ...\n\nAssistant: ...", as in HH-RLHF. The prompt is all but
      the last turn; where two dialogues part earlier, it is the turns they share, and all that
      follows is the reply. An empty reply is data: HH-RLHF has some;
    - lists of {"role", "content"} messages that end with the assistant's and share all before it,
      or, beside a ``prompt``, the last message alone.

    Optional are ``margin`` (a finite number) and ``target`` (in [0, 1]). Other fields are ignored,
    and so are blank lines.

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
    return _read(path, parse_pair, columns=("chosen", "rejected"))


def read_groups(path: str | os.PathLike[str]) -> list[ResponseGroup]:
    """Read responses to score: {"prompt": ..., "responses": [text, ...]} or pairs, a line each.

    Returns and raises as :func:`read_pairs`.
    """
    return _read(path, parse_group, columns=None)


def _read(
    path: str | os.PathLike[str],
    parse: Callable[[Any, int], Record],
    columns: tuple[str, ...] | None,
) -> list[Record]:
    path = Path(path)
    name = path.name.lower()
    if not name.endswith(EXTENSIONS):
        raise DataError(
            f"{path}: unknown kind of file; expected a name that ends with {', '.join(EXTENSIONS)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    parquet = name.endswith(".parquet")
    records = _parquet_records(path, columns) if parquet else _json_records(path)
    result = []
    for number, record in records:
        try:
            result.append(parse(record, number))
        except ValueError as error:
            place = "row" if parquet else "line"
            raise DataError(f"{path}, {place} {number}: {error}") from error
    if not result:
        raise DataError(f"{path}: the file is empty; expected at least one record")
    return result


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")


def _json_records(path: Path) -> Iterator[tuple[int, Any]]:
    number = 0
    with _open(path) as file:
        try:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                yield number, _parse_json(raw)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{path}, after line {number}: not a whole gzip file: {error}"
            ) from error


def _parse_json(raw: bytes) -> Any:
    try:
        # Some editors write a byte order mark at the start of a file.
        return json.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}; "
            "convert the file to UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise DataError("not a record: the JSON is nested too deeply") from error


def _parquet_records(
    path: Path, columns: tuple[str, ...] | None
) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'reading parquet needs the package pyarrow: pip install "gpm_core[train]"',
            name=error.name,
        ) from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file: {str(error).splitlines()[0]}") from error
    with file:
        names = file.schema_arrow.names
        missing = [column for column in columns or () if column not in names]
        if missing:
            raise DataError(
                f"{path}: column {', '.join(map(repr, missing))} is missing; the file has "
                f"{', '.join(map(repr, names))}"
            )
        number = 0
        try:
            for batch in file.iter_batches():
                for record in batch.to_pylist():
                    number += 1
                    yield number, record
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}, after row {number}: damaged parquet file: {error}") from error
