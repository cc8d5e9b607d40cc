"""Where the operations' tests compute: every backend, on the processor and on a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cuda_host import backend as cuda_host

import gpm_core
from gpm_core import backends

#: Why nothing runs on a GPU here, or None.
NO_GPU = None if torch.cuda.is_available() else "there is no GPU here (torch.cuda.is_available())"


@dataclass(frozen=True)
class Target:
    """A backend on a device, by the name that test ids carry."""

    name: str
    backend: str
    device: str = "cpu"

    def why_not(self, op: str = "score", dtype: torch.dtype = torch.float32) -> str | None:
        """The reason why it cannot compute this here, or None."""
        if self.device == "cuda" and NO_GPU is not None:
            return NO_GPU
        if self.name == "triton-interpreted" and NO_GPU is None:
            return "Triton compiles for the GPU here, and does not interpret in the same process"
        if self.backend == cuda_host.NAME:
            reason = cuda_host.register()
            if reason is not None:
                return f"the CUDA kernels cannot be built for the processor: {reason}"
        return backends.why_not(self.backend, op, self.device, dtype)

    def need(self, op: str = "score", dtype: torch.dtype = torch.float32) -> None:
        """Skip the test where it cannot."""
        reason = self.why_not(op, dtype)
        if reason is not None:
            pytest.skip(f"{self.name}: {reason}")

    @contextlib.contextmanager
    def chosen(self) -> Iterator[None]:
        """Compute here, and make new tensors here."""
        with gpm_core.backend(self.backend), torch.device(self.device):
            yield


REFERENCE = Target("reference", "reference")
NATIVE = Target("native", "native")
CUDA_HOST = Target("cuda_host", cuda_host.NAME)
TRITON_INTERPRETED = Target("triton-interpreted", "triton")
CUDA = Target("cuda", "native", "cuda")
TRITON = Target("triton", "triton", "cuda")
#: What is compared with the reference.
COMPUTING = (NATIVE, CUDA_HOST, TRITON_INTERPRETED, CUDA, TRITON)
ALL = (REFERENCE, *COMPUTING)


def params(targets: tuple[Target, ...]) -> list[Any]:
    """For ``pytest.mark.parametrize``; those on a GPU carry the mark ``gpu``."""
    return [
        pytest.param(target, id=target.name, marks=[pytest.mark.gpu] * (target.device == "cuda"))
        for target in targets
    ]


def interpret_triton_without_gpu() -> None:
    """Triton decides when it is imported whether it interprets."""
    if NO_GPU is not None:
        os.environ.setdefault("TRITON_INTERPRET", "1")
