"""From tensors to what kernels take: results to write into, numbers, sizes of tiles."""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from gpm_core.backends.native.layout import (
    as_batch,
    as_numbers,
    as_rows,
    deliver,
    empty_like,
    scale_rows,
    writable,
)

__all__ = [
    "as_batch",
    "as_numbers",
    "as_rows",
    "batch_strides",
    "ceil_div",
    "deliver",
    "empty_like",
    "finite_inverse",
    "is_double",
    "matrices",
    "number",
    "power_of_two",
    "row_stride",
    "scale_rows",
    "wide_type",
    "writable",
]

_LARGEST = {torch.float64: 1.7976931348623157e308}
_LARGEST_FLOAT32 = 3.4028234663852886e38


def ceil_div(count: int, size: int) -> int:
    """How many tiles of this size hold so many."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least ``count``: tiles have such sizes."""
    return 1 << max(count - 1, 0).bit_length()


def wide_type(dtype: torch.dtype) -> Any:
    """Triton's name of the dtype that sums are taken in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def number(value: float, dtype: torch.dtype) -> float | int:
    """A positive number for a kernel on tensors of ``dtype``.

    Triton makes a float32 of every float, so a float64 travels as its bits. An int would arrive as
    one.
    """
    if dtype == torch.float64:
        bits: int = struct.unpack("<q", struct.pack("<d", value))[0]
        return bits
    return float(value) if value <= _LARGEST_FLOAT32 else math.inf


def finite_inverse(tau: float, dtype: torch.dtype) -> float | int:
    """1 / tau, or the largest number where that is out of range: a score of 0 times it is 0."""
    return number(min(1.0 / tau, _LARGEST.get(dtype, _LARGEST_FLOAT32)), dtype)


def is_double(x: Tensor) -> bool:
    """Whether numbers take two registers."""
    return x.dtype == torch.float64


def matrices(grad: Tensor) -> Tensor:
    """(..., rows, columns) as (batch, rows, columns), expanded or transposed as it is."""
    return grad.reshape(grad.shape[:-2].numel(), *grad.shape[-2:])


def row_stride(x: Tensor | None) -> int:
    """Stride from row to row, zero where there are none."""
    return 0 if x is None else x.stride(0)


def batch_strides(x: Tensor) -> tuple[int, int]:
    """Strides from matrix to matrix and from row to row."""
    return x.stride(0), x.stride(1)
