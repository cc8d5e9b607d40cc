"""The Triton kernels, compiled ahead of time for GPUs that need not be there."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.kernels.cases import name_of
from benchmarks.kernels.cubin import Usage, functions
from benchmarks.kernels.occupancy import MULTIPROCESSORS, WARP

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, order=True)
class Specialization:
    """A kernel as a call launches it."""

    call: str
    kernel: str
    dtype: str
    threads: int


def _compile(capability: int, dtype: torch.dtype) -> list[tuple[Specialization, int, Usage]]:
    """All kernels of a dtype for one architecture."""
    from gpm_core.backends.triton.compile import specializations

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        for one in specializations((dtype,)):
            compiled = one.compile(capability)
            file.write_bytes(compiled.asm["cubin"])
            (function,) = functions(file, capability)
            found = function.usage
            # What a launch asks for; none of it is static.
            usage = dataclasses.replace(found, shared=found.shared + compiled.metadata.shared)
            threads = compiled.metadata.num_warps * WARP
            name = one.kernel.__name__.strip("_")
            rows.append(
                (Specialization(one.name, name, name_of(dtype), threads), capability, usage)
            )
    return rows


def usages(
    capabilities: tuple[int, ...] = tuple(MULTIPROCESSORS),
    dtypes: tuple[torch.dtype, ...] = DTYPES,
    processes: int | None = None,
) -> dict[Specialization, dict[int, Usage]]:
    """What each kernel uses on each architecture; shared memory is that of a launch."""
    tasks = [(capability, dtype) for dtype in dtypes for capability in capabilities]
    found: dict[Specialization, dict[int, Usage]] = {}
    # Not forked: the compiler has threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=context) as pool:
        for rows in pool.map(_compile, *zip(*tasks, strict=True)):
            for specialization, capability, usage in rows:
                found.setdefault(specialization, {})[capability] = usage
    return found
