"""From tensors to addresses and strides: what the kernels' layouts are and how tensors get there.

Leading dimensions become one; only a layout that cannot be described by one stride a dimension, or
a last dimension that is not contiguous, is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor


def as_rows(x: Tensor, width: int) -> Tensor:
    """(..., width) as (rows, width) with contiguous rows."""
    if x.dim() != 2:
        x = x.reshape(-1, width)
    return x if x.stride(1) == 1 or width == 1 else x.contiguous()


def as_numbers(x: Tensor) -> Tensor:
    """(...) as (rows,) with any stride."""
    return x if x.dim() == 1 else x.reshape(-1)


def as_batch(x: Tensor) -> Tensor:
    """(..., rows, width) as (batch, rows, width) with contiguous rows."""
    if x.dim() != 3:
        x = x.reshape(x.shape[:-2].numel(), *x.shape[-2:])
    return x if x.stride(2) == 1 or x.shape[-1] == 1 else x.contiguous()


def address(x: Tensor | None) -> tuple[int, int]:
    """Address and row stride; zeros where absent."""
    return (0, 0) if x is None else (x.data_ptr(), x.stride(0))


def batch_address(x: Tensor) -> tuple[int, int, int]:
    """Address, stride from matrix to matrix, stride from row to row."""
    return x.data_ptr(), x.stride(0), x.stride(1)


def empty_like(x: Tensor) -> Tensor:
    """A contiguous result of the same shape."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def scale_rows(scale: Tensor | None) -> Tensor | None:
    """A scale (..., k) as (rows, k), or None."""
    return None if scale is None else as_rows(scale, scale.shape[-1])


def pointer(x: Tensor | None) -> int:
    """Address of a result, 0 where there is none."""
    return 0 if x is None or not x.numel() else x.data_ptr()


def writable(out: Tensor) -> Tensor:
    """A result (..., rows, columns) as (batch, rows, columns) with contiguous rows.

    Where ``out`` has no such view it is a new tensor, and :func:`deliver` copies it.
    """
    shape = (out.shape[:-2].numel(), *out.shape[-2:])
    try:
        view = out.view(shape)
    except RuntimeError:
        return out.new_empty(shape)
    return view if shape[-1] == 1 or view.stride(2) == 1 else out.new_empty(shape)


def deliver(result: Tensor, out: Tensor) -> None:
    """Copy a result that :func:`writable` could not place in ``out``."""
    if result.data_ptr() != out.data_ptr():
        out.copy_(result.view(out.shape))
