"""Each contender of each row under pytest-benchmark: ``make bench``.

Rows are groups, so a group's table compares contenders. For ratios from interleaved runs, which
load on the machine disturbs less, use ``python -m benchmarks.ratios``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from benchmarks.rows import Row, check
from benchmarks.shapes import ROWS

NAMES = {row.name: sorted([*row.checked, "gpm_core", *row.targets]) for row in ROWS}


@cache
def contenders_of(name: str) -> dict[str, Callable[[], Any]]:
    row = next(row for row in ROWS if row.name == name)
    contenders = row.make()
    check(row, contenders)
    return contenders


@pytest.mark.parametrize(
    ("row", "contender"),
    [(row, contender) for row in ROWS for contender in dict.fromkeys(NAMES[row.name])],
    ids=lambda x: x.name if isinstance(x, Row) else x,
)
def test_speed(row: Row, contender: str, benchmark: Any) -> None:
    if contender in row.missing():
        pytest.skip(f"{row.missing()[contender]} is not installed")
    torch.set_num_threads(2)
    benchmark.group = row.name
    call = contenders_of(row.name)[contender]
    with torch.set_grad_enabled(row.differentiates):
        benchmark.pedantic(call, rounds=row.rounds, iterations=row.repeats, warmup_rounds=3)
