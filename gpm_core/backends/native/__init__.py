"""The compiled kernels: C++ on CPU tensors.

The modules of this package allocate results and hand pointers, sizes and strides to
:mod:`gpm_core._C`.
"""

from __future__ import annotations

import torch

from gpm_core.backends.native.layout import CODES

_missing: str | None = None
try:
    import gpm_core._C as _C
except ModuleNotFoundError:
    _missing = "gpm_core._C was not built (GPM_CORE_BUILD=none, or no compiler at install time)"
except ImportError as error:
    _missing = f"gpm_core._C cannot be loaded: {error}"
else:
    from gpm_core.backends.native.embedding import *  # noqa: F403
    from gpm_core.backends.native.matrices import *  # noqa: F403
    from gpm_core.backends.native.rows import *  # noqa: F403


def why_not(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Needs the compiled module, CPU tensors and a floating-point dtype."""
    if _missing is not None:
        return _missing
    if device_type != "cpu":
        return f"has no kernels for {device_type} tensors"
    if dtype not in CODES:
        return f"has no kernels for {dtype}"
    return None


def build_info() -> dict[str, object] | None:
    """What the compiled module says of itself, or None where there is none."""
    return None if _missing is not None else _C.build_info()
