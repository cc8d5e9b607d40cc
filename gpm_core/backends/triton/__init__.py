"""Kernels in Triton, compiled at the first call: for GPUs.

For NVIDIA's, and for those of AMD (which PyTorch calls "cuda" too) and Intel ("xpu"): no kernel is
particular to one of them. With ``TRITON_INTERPRET=1`` set before the import, Triton's interpreter
runs kernels on CPU tensors, to test and to debug.

One module an operation, with the names and arguments of :mod:`gpm_core.backends.reference`. An
operation is one launch forward and one backward; exceptions are documented where they are made.
"""

from __future__ import annotations

import os
import shutil

import torch

_missing: str | None = None
try:
    import triton
except ModuleNotFoundError:
    _missing = "triton is not installed"
except Exception as error:  # a driver or a compiler that it looks for may raise anything
    _missing = f"triton cannot be imported: {error}"
else:
    from gpm_core.backends.triton.cross_probability_matrix import (
        cross_probability_matrix,
        cross_probability_matrix_backward,
        cross_probability_matrix_out,
    )
    from gpm_core.backends.triton.cross_score_matrix import (
        cross_score_matrix,
        cross_score_matrix_backward,
        cross_score_matrix_out,
    )
    from gpm_core.backends.triton.linear_logprob import (
        linear_logprob,
        linear_logprob_backward,
        linear_logprob_chunk,
        linear_logprob_chunk_backward,
    )
    from gpm_core.backends.triton.normalize import normalize, normalize_backward
    from gpm_core.backends.triton.preference_embedding import (
        preference_embedding,
        preference_embedding_backward,
    )
    from gpm_core.backends.triton.preference_loss import preference_loss, preference_loss_backward
    from gpm_core.backends.triton.probability_matrix import (
        probability_matrix,
        probability_matrix_backward,
        probability_matrix_out,
    )
    from gpm_core.backends.triton.score import score, score_backward
    from gpm_core.backends.triton.score_matrix import (
        score_matrix,
        score_matrix_backward,
        score_matrix_out,
    )

__all__ = [
    "cross_probability_matrix",
    "cross_probability_matrix_backward",
    "cross_probability_matrix_out",
    "cross_score_matrix",
    "cross_score_matrix_backward",
    "cross_score_matrix_out",
    "linear_logprob",
    "linear_logprob_backward",
    "linear_logprob_chunk",
    "linear_logprob_chunk_backward",
    "normalize",
    "normalize_backward",
    "preference_embedding",
    "preference_embedding_backward",
    "preference_loss",
    "preference_loss_backward",
    "probability_matrix",
    "probability_matrix_backward",
    "probability_matrix_out",
    "score",
    "score_backward",
    "score_matrix",
    "score_matrix_backward",
    "score_matrix_out",
    "why_not",
]

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def _interpreted() -> bool:
    """Whether kernels were defined for Triton's interpreter."""
    from gpm_core.backends.triton._math import widen

    return not isinstance(widen, triton.JITFunction)


def why_not(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Needs triton, a GPU with a C compiler (or its interpreter) and a floating-point dtype."""
    if _missing is not None:
        return _missing
    if dtype not in _DTYPES:
        return f"has no kernels for {dtype}"
    if device_type == "cpu":
        if _interpreted():
            return None
        return "runs on CPU tensors only in Triton's interpreter (TRITON_INTERPRET=1 at import)"
    if device_type == "cuda":
        return _why_not_cuda() or _why_not_compiled()
    if device_type == "xpu":
        return _why_not_compiled() if torch.xpu.is_available() else "PyTorch finds no Intel GPU"
    return f"has no kernels for {device_type} tensors"


def _why_not_cuda() -> str | None:
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    if torch.version.hip is not None:
        return None
    capability = torch.cuda.get_device_capability()
    if capability < (8, 0):
        major, minor = capability
        return f"needs compute capability 8.0 or higher; this GPU has {major}.{minor}"
    return None


def _why_not_compiled() -> str | None:
    """Triton compiles what launches its kernels with a C compiler, at the first launch."""
    if os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"):
        return None
    return "triton needs a C compiler (gcc or clang on PATH, or CC)"
