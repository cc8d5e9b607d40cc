"""The compiled kernels: C++ on CPU tensors, CUDA C++ on CUDA tensors.

The modules of this package allocate results and hand pointers, sizes and strides to
:mod:`gpm_core._C`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from gpm_core.backends.native.embedding import Embedding
from gpm_core.backends.native.library import CODES, Library
from gpm_core.backends.native.logprob import LinearLogprob
from gpm_core.backends.native.matrices import Matrices
from gpm_core.backends.native.rows import Rows


class Kernels(Rows, Matrices, Embedding, LinearLogprob):
    """All operations, computed by the kernels of a library."""


_missing: str | None = None
_module: ModuleType | None = None
try:
    import gpm_core._C as _module
except ModuleNotFoundError:
    _missing = "gpm_core._C was not built (GPM_CORE_BUILD=none, or no compiler at install time)"
except ImportError as error:
    _missing = f"gpm_core._C cannot be loaded: {error}"
_kernels = None if _module is None else Kernels(Library(_module))


def __getattr__(name: str) -> Any:
    if _kernels is None or name.startswith("_"):
        raise AttributeError(name)
    return getattr(_kernels, name)


def why_not(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Needs the compiled module, a device that it has kernels for, and a floating-point dtype."""
    if _missing is not None:
        return _missing
    if device_type not in ("cpu", "cuda"):
        return f"has no kernels for {device_type} tensors"
    if dtype not in CODES:
        return f"has no kernels for {dtype}"
    return None if device_type == "cpu" else _why_not_cuda()


def _why_not_cuda() -> str | None:
    if not hasattr(_module, "cuda"):
        return "gpm_core._C was built without CUDA (no nvcc at install time, or GPM_CORE_BUILD=cpu)"
    if torch.version.hip is not None:
        return "its GPU kernels are for NVIDIA's CUDA, and this PyTorch is built for ROCm"
    reason = str(_module.cuda.why_not()) if _module is not None else ""
    return f"its CUDA kernels cannot run here: {reason}" if reason else None


def build_info() -> dict[str, object] | None:
    """What the compiled module says of itself, or None where there is none."""
    return None if _module is None else _module.build_info()
