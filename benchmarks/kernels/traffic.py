"""Bytes that kernels move, counted where they run on the processor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.kernels.cases import cases, name_of
from benchmarks.kernels.cubin import Missing
from benchmarks.kernels.cuda import SHARED_BY_ALL, Kernel

ROOT = Path(__file__).resolve().parent.parent.parent
#: Bytes that the memory of a GPU moves at once.
SECTOR = 32


@dataclass(frozen=True)
class Traffic:
    """Of one call.

    Attributes:
        least: Bytes that have to be moved.
        distinct: Bytes of all sectors touched, each counted once: what memory has to deliver and to
            take if the L2 cache holds the operands.
        moved: Bytes of the sectors touched by each block (program), added up: what passes between
            L2 and the multiprocessors if L1 holds what a block uses.
        requests, request_sectors: Of warps, and the sectors that they need; 0 where unknown.
        request_bytes: What threads asked for.
    """

    operation: str
    size: str
    dtype: str
    least: int
    distinct: int
    moved: int
    requests: int = 0
    request_sectors: int = 0
    request_bytes: int = 0

    @property
    def sectors_per_request(self) -> float:
        """Sectors that a warp needs at a time."""
        return self.request_sectors / self.requests

    @property
    def spread(self) -> float:
        """Bytes of the sectors that requests need over the bytes that they ask for."""
        return self.request_sectors * SECTOR / self.request_bytes


@dataclass(frozen=True, order=True)
class Launch:
    """How a kernel is launched."""

    threads: int
    shared: int  # bytes


def host_backend() -> Any:
    """The tests' way to run them."""
    tests = str(ROOT / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    return import_module("cuda_host.backend")


def host_module() -> Any:
    """The CUDA kernels compiled for the processor."""
    backend = host_backend()
    module = backend.module()
    if isinstance(module, str):
        raise Missing(f"the CUDA kernels cannot be compiled for the processor: {module}")
    return module


def measure(dtype: torch.dtype) -> Iterator[tuple[Traffic, dict[Kernel, Launch]]]:
    """Traffic and launches of the CUDA kernels, case by case."""
    module, backend = host_module(), host_backend()
    kernels = backend.HostKernels(backend.HostLibrary(module))
    for case in cases(dtype):
        module.host.start_traffic()
        try:
            result = case.run(kernels)
        finally:
            found = module.host.stop_traffic()
        both = (found["read"], found["written"])
        total = {key: sum(count[key] for count in both) for key in both[0]}
        traffic = Traffic(
            case.operation,
            case.size,
            name_of(dtype),
            case.least(result),
            total["distinct_sectors"] * SECTOR,
            total["sectors"] * SECTOR,
            total["requests"],
            total["request_sectors"],
            total["bytes"],
        )
        launches = {}
        for name, (_, threads, shared) in zip(case.kernels, found["launches"], strict=True):
            launches[_kernel(case.operation, name, name_of(dtype))] = Launch(threads, shared)
        yield traffic, launches


def _kernel(operation: str, name: str, dtype: str) -> Kernel:
    if name == "sum_partial":
        return Kernel(SHARED_BY_ALL, name, dtype)
    if name == "small_matrices":
        base = operation.removeprefix("cross_")
        return Kernel(f"{base}, cross_{base}", name, dtype)
    return Kernel(operation, name, dtype)
