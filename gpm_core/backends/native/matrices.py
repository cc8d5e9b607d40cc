"""Square and rectangular matrices of all pairs."""

from __future__ import annotations

import torch
from torch import Tensor

import gpm_core._C as _C
from gpm_core.backends.native.layout import (
    CODES,
    address,
    as_batch,
    batch_address,
    empty_like,
    pointer,
    scale_rows,
)

__all__ = [
    "cross_probability_matrix",
    "cross_probability_matrix_backward",
    "cross_probability_matrix_out",
    "cross_score_matrix",
    "cross_score_matrix_backward",
    "cross_score_matrix_out",
    "probability_matrix",
    "probability_matrix_backward",
    "probability_matrix_out",
    "score_matrix",
    "score_matrix_backward",
    "score_matrix_out",
]


def _writable(out: Tensor) -> Tensor:
    """A result (..., rows, columns) as (batch, rows, columns) with contiguous rows.

    Where ``out`` has no such view it is a new tensor, and :func:`_deliver` copies it.
    """
    shape = (out.shape[:-2].numel(), *out.shape[-2:])
    try:
        view = out.view(shape)
    except RuntimeError:
        return out.new_empty(shape)
    return view if shape[-1] == 1 or view.stride(2) == 1 else out.new_empty(shape)


# A fresh result of this size is asked for in huge pages: it is written in tiles, and a page of
# 4 KiB, which the system clears at the first tile, would be out of the caches by the next.
_HUGE = 16 * 2**20


def _new_matrix(like: Tensor, rows: int, columns: int) -> Tensor:
    """An empty result (..., rows, columns)."""
    out = like.new_empty(*like.shape[:-2], rows, columns)
    if out.nbytes >= _HUGE:
        _C.advise_huge_pages(out.data_ptr(), out.nbytes)
    return out


def _deliver(result: Tensor, out: Tensor) -> None:
    if result.data_ptr() != out.data_ptr():
        out.copy_(result.view(out.shape))


def _square(name: str, v: Tensor, scale: Tensor | None, out: Tensor, *tau: float) -> None:
    if out.numel() == 0:
        return
    batch, scales, result = as_batch(v), scale_rows(scale), _writable(out)
    getattr(_C, name)(
        CODES[v.dtype],
        *batch.shape,
        *batch_address(batch),
        *address(scales),
        *batch_address(result),
        *tau,
        torch.get_num_threads(),
    )
    _deliver(result, out)


def _square_backward(
    name: str, grad: Tensor, v: Tensor, scale: Tensor | None, *tau: float
) -> tuple[Tensor, Tensor | None]:
    grad_v = empty_like(v)
    if grad.numel() == 0:
        return grad_v, None if scale is None else scale.new_zeros(scale.shape)
    grad_scale = None if scale is None else empty_like(scale)
    batch, scales, grads = as_batch(v), scale_rows(scale), as_batch(grad)
    getattr(_C, name)(
        CODES[v.dtype],
        *batch.shape,
        *batch_address(grads),
        *batch_address(batch),
        *address(scales),
        grad_v.data_ptr(),
        pointer(grad_scale),
        *tau,
        torch.get_num_threads(),
    )
    return grad_v, grad_scale


def score_matrix(v: Tensor, scale: Tensor | None) -> Tensor:
    out = _new_matrix(v, v.shape[-2], v.shape[-2])
    _square("score_matrix", v, scale, out)
    return out


def score_matrix_out(v: Tensor, scale: Tensor | None, out: Tensor) -> None:
    _square("score_matrix", v, scale, out)


def score_matrix_backward(
    grad: Tensor, v: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    return _square_backward("score_matrix_backward", grad, v, scale)


def probability_matrix(v: Tensor, scale: Tensor | None, tau: float) -> Tensor:
    out = _new_matrix(v, v.shape[-2], v.shape[-2])
    _square("probability_matrix", v, scale, out, tau)
    return out


def probability_matrix_out(v: Tensor, scale: Tensor | None, tau: float, out: Tensor) -> None:
    _square("probability_matrix", v, scale, out, tau)


def probability_matrix_backward(
    grad: Tensor, v: Tensor, scale: Tensor | None, tau: float
) -> tuple[Tensor, Tensor | None]:
    return _square_backward("probability_matrix_backward", grad, v, scale, tau)


def _cross(name: str, a: Tensor, b: Tensor, scale: Tensor | None, out: Tensor, *tau: float) -> None:
    if out.numel() == 0:
        return
    first, second, scales, result = as_batch(a), as_batch(b), scale_rows(scale), _writable(out)
    getattr(_C, name)(
        CODES[a.dtype],
        *result.shape,
        a.shape[-1],
        *batch_address(first),
        *batch_address(second),
        *address(scales),
        *batch_address(result),
        *tau,
        torch.get_num_threads(),
    )
    _deliver(result, out)


def _cross_backward(
    name: str, grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, *tau: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    if grad.numel() == 0:
        # One of the sets is empty; what the other one's gradient sums over is too.
        no_scale = None if scale is None else scale.new_zeros(scale.shape)
        return a.new_zeros(a.shape), b.new_zeros(b.shape), no_scale
    grad_a, grad_b = empty_like(a), empty_like(b)
    grad_scale = None if scale is None else empty_like(scale)
    first, second, scales, grads = as_batch(a), as_batch(b), scale_rows(scale), as_batch(grad)
    getattr(_C, name)(
        CODES[a.dtype],
        *grads.shape,
        a.shape[-1],
        *batch_address(grads),
        *batch_address(first),
        *batch_address(second),
        *address(scales),
        grad_a.data_ptr(),
        grad_b.data_ptr(),
        pointer(grad_scale),
        *tau,
        torch.get_num_threads(),
    )
    return grad_a, grad_b, grad_scale


def cross_score_matrix(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    out = _new_matrix(a, a.shape[-2], b.shape[-2])
    _cross("cross_score_matrix", a, b, scale, out)
    return out


def cross_score_matrix_out(a: Tensor, b: Tensor, scale: Tensor | None, out: Tensor) -> None:
    _cross("cross_score_matrix", a, b, scale, out)


def cross_score_matrix_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return _cross_backward("cross_score_matrix_backward", grad, a, b, scale)


def cross_probability_matrix(a: Tensor, b: Tensor, scale: Tensor | None, tau: float) -> Tensor:
    out = _new_matrix(a, a.shape[-2], b.shape[-2])
    _cross("cross_probability_matrix", a, b, scale, out, tau)
    return out


def cross_probability_matrix_out(
    a: Tensor, b: Tensor, scale: Tensor | None, tau: float, out: Tensor
) -> None:
    _cross("cross_probability_matrix", a, b, scale, out, tau)


def cross_probability_matrix_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, tau: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    return _cross_backward("cross_probability_matrix_backward", grad, a, b, scale, tau)
