"""Records of a data file one at a time, and what is wrong with those that cannot be read."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gpm_core.data.errors import DataError, RecordError

EXTENSIONS = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


class UnreadableRecord(DataError):
    """A line that holds no record; ``problem`` says why without naming the file and the line."""

    def __init__(self, message: str, problem: RecordError) -> None:
        super().__init__(message)
        self.problem = problem


def place(path: Path) -> str:
    """What a record's number counts in this file: "line" or "row"."""
    return "row" if path.name.lower().endswith(".parquet") else "line"


def records(
    path: Path, columns: tuple[tuple[str, ...], ...] = ()
) -> Iterator[tuple[int, Any | UnreadableRecord]]:
    """(number from 1, record) of each line or row; instead of a record perhaps why it has none.

    Lines and rows are read as they are asked for; a list in a .json file is held as text.

    Args:
        path: the file.
        columns: of a parquet file; it must have all of one of these sets of columns.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if the file as a whole cannot be read any further.
        ModuleNotFoundError: for parquet without pyarrow.
    """
    name = path.name.lower()
    if not name.endswith(EXTENSIONS):
        raise DataError(
            f"{path}: unknown kind of file; expected a name that ends with {', '.join(EXTENSIONS)}"
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if name.endswith(".parquet"):
        return _rows(path, columns)
    if name.removesuffix(".gz").endswith(".json") and _starts_a_list(path):
        return _listed(path)
    return _lines(path)


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")


def _unreadable(path: Path, number: int, kind: str, message: str) -> UnreadableRecord:
    return UnreadableRecord(f"{path}, line {number}: {message}", RecordError(kind, message))


def _lines(path: Path) -> Iterator[tuple[int, Any | UnreadableRecord]]:
    number = 0
    with _open(path) as file:
        try:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                try:
                    # Some editors write a byte order mark at the start of a file.
                    record = _decoded(raw.decode("utf-8-sig"))
                except UnicodeDecodeError as error:
                    yield number, _unreadable(path, number, "not-utf8", _not_utf8(raw, error))
                except RecordError as error:
                    yield number, _unreadable(path, number, error.kind, str(error))
                else:
                    yield number, record
        except _DAMAGED as error:
            raise DataError(
                f"{path}, after line {number}: not a whole gzip file: {error}"
            ) from error


def _not_utf8(raw: bytes, error: UnicodeDecodeError) -> str:
    return (
        f"not UTF-8: byte 0x{raw[error.start]:02x} at position {error.start}; "
        "convert the file to UTF-8"
    )


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RecordError(
            "not-json", f"not valid JSON: {error.msg} at column {error.colno}"
        ) from error
    except RecursionError as error:
        raise RecordError("not-json", "not a record: the JSON is nested too deeply") from error
    except ValueError as error:  # an integer of thousands of digits
        raise RecordError("not-json", f"not a record: {error}") from error


def _starts_a_list(path: Path) -> bool:
    try:
        with _open(path) as file:
            for raw in file:
                start = raw.removeprefix(b"\xef\xbb\xbf").lstrip()
                if start:
                    return start.startswith(b"[")
    except _DAMAGED:
        # Reading it as lines comes to the same place and says where that is.
        return False
    return False


def _listed(path: Path) -> Iterator[tuple[int, Any | UnreadableRecord]]:
    """The items of one JSON list; a number is the line that an item starts on."""
    try:
        with _open(path) as file:
            raw = file.read()
    except _DAMAGED as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: {_not_utf8(raw, error)}") from error
    line, counted = 1, 0
    items = _items(text)
    while True:
        try:
            start, item = next(items)
        except StopIteration:
            return
        except json.JSONDecodeError as error:
            # What follows cannot be told apart from what is wrong.
            message = f"not valid JSON: {error.msg} at column {error.colno}; nothing is read beyond"
            yield error.lineno, _unreadable(path, error.lineno, "not-json", message)
            return
        line, counted = line + text.count("\n", counted, start), start
        yield line, item


def _items(text: str) -> Iterator[tuple[int, Any]]:
    """(position, item) of each item of the JSON list that ``text`` is."""
    decoder = json.JSONDecoder()
    position = _skip(text, text.index("[") + 1)
    first = True
    while not text.startswith("]", position):
        if not first:
            if not text.startswith(",", position):
                raise json.JSONDecodeError("expecting ',' or ']'", text, position)
            position = _skip(text, position + 1)
        try:
            item, end = decoder.raw_decode(text, position)
        except RecursionError as error:
            raise json.JSONDecodeError("nested too deeply", text, position) from error
        yield position, item
        position, first = _skip(text, end), False
    if _skip(text, position + 1) != len(text):
        raise json.JSONDecodeError("the list has ended", text, position + 1)


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _rows(
    path: str | os.PathLike[str], columns: tuple[tuple[str, ...], ...]
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
        if columns and not any(set(names) >= set(needed) for needed in columns):
            missing = [column for column in columns[0] if column not in names]
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
