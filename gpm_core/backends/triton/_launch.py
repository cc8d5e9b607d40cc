"""The one place where kernels are launched."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: Threads of a program, in warps. Tiles are sized for it.
WARPS = 4

# On NVIDIA's GPUs, three programs of four warps a multiprocessor. No kernel needs more, and where
# no bound is named the assembler spills a few bytes to get to the next step of occupancy.
_REGISTERS = 168


@dataclass(frozen=True)
class Launch:
    """A kernel and what it was to be called with."""

    kernel: Any
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    warps: int


_recorded: ContextVar[list[Launch] | None] = ContextVar("gpm_core_launches", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches instead of making them, so that they can be compiled ahead of time."""
    launches: list[Launch] = []
    token = _recorded.set(launches)
    try:
        yield launches
    finally:
        _recorded.reset(token)


def launch(
    kernel: Any, programs: int, like: Tensor, *arguments: Any, warps: int = WARPS, **constants: Any
) -> None:
    """Run so many programs of a kernel on the device of ``like``."""
    launches = _recorded.get()
    if launches is not None:
        launches.append(Launch(kernel, arguments, constants, warps))
        return
    options = compiler_options(warps, like.is_cuda and torch.version.hip is None)
    # Triton launches on the current device, wherever the tensors are.
    with _on(like.device):
        kernel[(programs,)](*arguments, **options, **constants)


def compiler_options(warps: int, nvidia: bool) -> dict[str, Any]:
    """How kernels are compiled.

    Nothing is fused but where a kernel says so: a fused product in the difference of two would be
    rounded differently from the other one, and s(a > b) = -s(b > a) would not be exact.
    """
    options: dict[str, Any] = {"num_warps": warps, "enable_fp_fusion": False}
    return {**options, "maxnreg": _REGISTERS} if nvidia else options


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if device.type == "cpu":
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = torch.get_device_module(device).device(device)
    return context
