"""Bytes that Triton kernels move, counted in its interpreter.

``TRITON_INTERPRET=1 python -m benchmarks.kernels.interpreted float32`` prints JSON, a line for each
case: a process of its own, since kernels are interpreted from the import on or not at all.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from benchmarks.kernels.cases import cases, name_of
from benchmarks.kernels.traffic import ROOT, SECTOR, Traffic

DTYPES = (torch.float32, torch.bfloat16)
# The interpreter takes its time for each program.
FEWER = 8


class Counter:
    """Counts the sectors that each program loads and stores, as long as it is entered.

    Attributes:
        moved: Sectors, each counted once in a program.
    """

    def __init__(self) -> None:
        from triton.runtime.interpreter import interpreter_builder

        self._builder = interpreter_builder
        self._names = ("create_masked_load", "create_masked_store", "set_grid_idx")
        self._load, self._store, self._next = (
            getattr(interpreter_builder, name) for name in self._names
        )

    def __enter__(self) -> Counter:
        self.moved = 0
        self._all: list[set[int]] = [set(), set()]
        self._program: list[list[np.ndarray]] = [[], []]
        for name, wrapper in zip(
            self._names, (self._counted_load, self._counted_store, self._enter), strict=True
        ):
            setattr(self._builder, name, wrapper)
        return self

    def __exit__(self, *error: object) -> None:
        for name in self._names:
            delattr(self._builder, name)
        self._end()

    @property
    def distinct(self) -> int:
        """Sectors, each counted once in all programs."""
        return sum(len(sectors) for sectors in self._all)

    def _counted_load(self, at: Any, mask: Any, *rest: Any) -> Any:
        self._note(0, at, mask)
        return self._load(at, mask, *rest)

    def _counted_store(self, at: Any, value: Any, mask: Any, *rest: Any) -> Any:
        self._note(1, at, mask)
        return self._store(at, value, mask, *rest)

    def _enter(self, *index: int) -> Any:
        self._end()
        return self._next(*index)

    def _note(self, direction: int, at: Any, mask: Any) -> None:
        # Numbers are aligned, so that none lies in two sectors.
        self._program[direction].append(np.unique(at.data[mask.data] // SECTOR))

    def _end(self) -> None:
        for every, noted in zip(self._all, self._program, strict=True):
            if noted:
                sectors = np.unique(np.concatenate(noted))
                self.moved += len(sectors)
                every.update(sectors.tolist())
                noted.clear()


def _count(dtype: torch.dtype, operations: list[str]) -> Iterator[Traffic]:
    from gpm_core.backends import triton

    for case in cases(dtype, FEWER):
        if operations and case.operation not in operations:
            continue
        with Counter() as counter:
            result = case.run(triton)
        yield Traffic(
            case.operation,
            case.size,
            name_of(dtype),
            case.least(result),
            counter.distinct * SECTOR,
            counter.moved * SECTOR,
        )


def measure(dtype: torch.dtype, *operations: str) -> list[Traffic]:
    """Traffic of the Triton kernels, or those of some operations, counted in another process."""
    command = [sys.executable, "-m", "benchmarks.kernels.interpreted", name_of(dtype), *operations]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    output = subprocess.run(
        command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return [Traffic(**json.loads(line)) for line in output.stdout.splitlines()]


def measure_all(processes: int | None = None) -> list[Traffic]:
    """Traffic of all Triton kernels."""
    with ThreadPoolExecutor(processes or os.cpu_count()) as pool:
        return [one for found in pool.map(measure, DTYPES) for one in found]


if __name__ == "__main__":
    for traffic in _count(getattr(torch, sys.argv[1]), sys.argv[2:]):
        print(json.dumps(dataclasses.asdict(traffic)), flush=True)
