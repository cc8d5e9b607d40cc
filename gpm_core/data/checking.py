"""Checking a data file: everything that is wrong or odd in it, by line."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpm_core.data.errors import DataError, RecordError
from gpm_core.data.inspection import Finding, Inspector
from gpm_core.data.records import UnreadableRecord, place, records

#: What is reported: errors are what readers refuse, warnings what they read and a user should know.
KINDS = {
    "not-json": "error",
    "not-utf8": "error",
    "unreadable": "error",
    "no-records": "error",
    "wrong-type": "error",
    "missing-field": "error",
    "empty-field": "error",
    "out-of-range": "error",
    "bad-unicode": "error",
    "unknown-role": "error",
    "last-turn": "error",
    "prompts-differ": "error",
    "not-a-dialogue": "error",
    "mixed-forms": "warning",
    "empty-reply": "warning",
    "empty-turn": "warning",
    "identical-replies": "warning",
    "duplicate": "warning",
    "contradiction": "warning",
    "role-order": "warning",
    "other-speaker": "warning",
    "length-ratio": "warning",
    "long-text": "warning",
    "mojibake": "warning",
    "control-character": "warning",
    "low-target": "warning",
    "negative-margin": "warning",
    "few-responses": "warning",
    "missing-rating": "warning",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong or odd.

    Attributes:
        line: where, from 1; the row of a parquet file, 0 for the file as a whole.
        severity: "error" (readers refuse it) or "warning".
        kind: one of :data:`KINDS`.
        message: what was found, and where it helps what is expected.
    """

    line: int
    severity: str
    kind: str
    message: str


@dataclass(frozen=True)
class DataReport:
    """What :func:`check_file` found.

    Attributes:
        path: the file.
        place: what a problem's line counts, "line" or "row".
        records: how many records there are, readable or not.
        forms: how many of them are in which form.
        counts: how often each kind of problem occurs.
        problems: in the order of the lines, of each kind at most as many as were asked for.
    """

    path: str
    place: str
    records: int
    forms: dict[str, int]
    counts: dict[str, int]
    problems: tuple[Problem, ...]

    @property
    def errors(self) -> int:
        """How many problems readers refuse to read."""
        return sum(count for kind, count in self.counts.items() if KINDS[kind] == "error")

    @property
    def warnings(self) -> int:
        """How many problems they read all the same."""
        return sum(self.counts.values()) - self.errors

    def as_dict(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {**asdict(self), "errors": self.errors, "warnings": self.warnings}


@dataclass
class _Collector:
    most: int
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    def add(self, line: int, kind: str, message: str) -> None:
        self.counts[kind] += 1
        if self.counts[kind] <= self.most:
            self.problems.append(Problem(line, KINDS[kind], kind, message))


def check_file(path: str | os.PathLike[str], *, most: int = 1000) -> DataReport:
    """Look at every record of a file of pairs, of rated responses or of responses to score.

    It never stops at a bad line: all problems are reported, each with its line, errors that readers
    refuse and warnings about what they read. Of a record that is refused only the first reason is
    given. Memory holds some 200 bytes of fingerprints for each record, and no texts.

    Args:
        path: a file as :func:`~gpm_core.data.read_pairs` or :func:`~gpm_core.data.read_rated` reads
            it.
        most: problems of each kind to keep; all are counted.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: for another kind of file.
        ModuleNotFoundError: for parquet without pyarrow.

    Example:
        >>> for problem in check_file("pairs.jsonl").problems:  # doctest: +SKIP
        ...     print(problem.line, problem.severity, problem.message)
        17 warning the same comparison as on line 4
    """
    path = Path(path)
    found = _Collector(most)
    inspector = Inspector(place(path))
    total = line = 0
    stream = records(path)
    try:
        for line, record in stream:
            total += 1
            if isinstance(record, UnreadableRecord):
                found.add(line, record.problem.kind, str(record.problem))
                continue
            for finding in _inspected(inspector, record, line):
                found.add(line, finding.kind, finding.message)
    except DataError as error:
        message = str(error).removeprefix(f"{path}")
        found.add(line, "unreadable", message.lstrip(":, "))
    if not total and not found.problems:
        found.add(0, "no-records", "the file is empty; expected at least one record")
    return DataReport(
        str(path),
        place(path),
        total,
        dict(inspector.forms),
        {kind: found.counts[kind] for kind in KINDS if found.counts[kind]},
        tuple(found.problems),
    )


def _inspected(inspector: Inspector, record: Any, line: int) -> list[Finding]:
    try:
        return inspector.inspect(record, line)
    except RecordError as error:
        return [Finding(error.kind, str(error))]
