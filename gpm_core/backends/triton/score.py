"""``score``: one pair a thread; its rows pass through the caches block by block."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gpm_core.backends.triton import _layout
from gpm_core.backends.triton._launch import launch
from gpm_core.backends.triton._math import narrow, widen
from gpm_core.backends.triton._scores import pair_scores

# Pairs of a program, one a thread: batches of pairs are small, and wide rows keep a thread busy.
PAIRS = 128


@triton.jit
def pull_pairs(grad, a, b, scale, grad_a, grad_b, grad_scale, row, mask, blocks):
    """Write the gradients of pairs of rows for the gradient of each pair's score.

    ``a``, ``b`` and ``scale`` are addresses of rows, the gradients of contiguous tensors.
    """
    for block in range(blocks):
        xa = widen(tl.load(a + 2 * block, mask=mask, other=0.0))
        ya = widen(tl.load(a + 2 * block + 1, mask=mask, other=0.0))
        xb = widen(tl.load(b + 2 * block, mask=mask, other=0.0))
        yb = widen(tl.load(b + 2 * block + 1, mask=mask, other=0.0))
        weighted = grad
        if scale is not None:
            weighted = grad * widen(tl.load(scale + block, mask=mask, other=0.0))
            value = narrow(grad * (xa * yb - ya * xb), grad_scale.dtype.element_ty)
            tl.store(grad_scale + row * blocks + block, value, mask=mask)
        DTYPE: tl.constexpr = grad_a.dtype.element_ty
        at = row * (2 * blocks) + 2 * block
        tl.store(grad_a + at, narrow(weighted * yb, DTYPE), mask=mask)
        tl.store(grad_a + at + 1, narrow(-weighted * xb, DTYPE), mask=mask)
        tl.store(grad_b + at, narrow(-weighted * ya, DTYPE), mask=mask)
        tl.store(grad_b + at + 1, narrow(weighted * xa, DTYPE), mask=mask)


@triton.jit(do_not_specialize=["rows", "blocks"])
def _score_kernel(
    a, a_row, b, b_row, scale, scale_row, out, rows, blocks,
    WIDE: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    mask = row < rows
    scales = None if scale is None else scale + row * scale_row
    total = tl.zeros([PAIRS], WIDE)
    s = pair_scores(a + row * a_row, b + row * b_row, scales, blocks, mask, mask, mask, total)
    tl.store(out + row, narrow(s, out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "blocks"])
def _score_backward_kernel(
    grad, grad_row, a, a_row, b, b_row, scale, scale_row, grad_a, grad_b, grad_scale, rows, blocks,
    PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    mask = row < rows
    scales = None if scale is None else scale + row * scale_row
    g = widen(tl.load(grad + row * grad_row, mask=mask, other=0.0))
    pull_pairs(
        g, a + row * a_row, b + row * b_row, scales, grad_a, grad_b, grad_scale, row, mask, blocks
    )


def score(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    out = a.new_empty(a.shape[:-1])
    if out.numel():
        width = a.shape[-1]
        first, second = _layout.as_rows(a, width), _layout.as_rows(b, width)
        scales = _layout.scale_rows(scale)
        rows = first.shape[0]
        launch(
            _score_kernel, _layout.ceil_div(rows, PAIRS), a,
            first, first.stride(0), second, second.stride(0), scales, _layout.row_stride(scales),
            out, rows, width // 2,
            WIDE=_layout.wide_type(a.dtype), PAIRS=PAIRS,
        )  # fmt: skip
    return out


def score_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    grad_a, grad_b = _layout.empty_like(a), _layout.empty_like(b)
    grad_scale = None if scale is None else _layout.empty_like(scale)
    if grad.numel():
        width = a.shape[-1]
        first, second = _layout.as_rows(a, width), _layout.as_rows(b, width)
        scales, grads = _layout.scale_rows(scale), _layout.as_numbers(grad)
        rows = first.shape[0]
        launch(
            _score_backward_kernel, _layout.ceil_div(rows, PAIRS), a,
            grads, grads.stride(0), first, first.stride(0), second, second.stride(0),
            scales, _layout.row_stride(scales), grad_a, grad_b, grad_scale, rows, width // 2,
            PAIRS=PAIRS,
        )  # fmt: skip
    return grad_a, grad_b, grad_scale
