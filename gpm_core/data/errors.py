"""What can be wrong with preference data, as exceptions."""

from __future__ import annotations


class DataError(ValueError):
    """Something is wrong in a data file; the message names the file and the line."""


class RecordError(ValueError):
    """Something is wrong with one record; ``kind`` sorts it for a report.

    Args:
        kind: one or two words, such as "missing-field"; see :data:`gpm_core.data.checking.KINDS`.
        message: what was given and what is expected.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
