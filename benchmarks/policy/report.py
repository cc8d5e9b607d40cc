"""The report of the recorded alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gpm_core.evaluation import IterateComparison


def write(
    output: Path,
    work: Path,
    names: Sequence[str],
    comparisons: Mapping[str, IterateComparison],
    judges: Sequence[Path],
) -> None:
    print({name: c.against_start for name, c in comparisons.items()})
