"""``normalize``: a tile of rows a program, each row read in chunks of columns."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gpm_core.backends.triton import _layout
from gpm_core.backends.triton._launch import launch
from gpm_core.backends.triton._math import (
    binary_unit,
    divide,
    narrow,
    real,
    square_root,
    widen,
)

# Numbers of a tile, eight a thread, and the most of one row: longer rows are read in chunks.
_TILE = 1024


@triton.jit
def _tile(x, row_stride, rows, width, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Columns from ``first`` of this program's rows, zero outside."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = first + tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows) & (column < width)
    return widen(tl.load(x + row * row_stride + column, mask=mask, other=0.0))


@triton.jit
def _store(out, value, rows, width, first, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = first + tl.arange(0, COLUMNS)[None, :]
    mask = (row < rows) & (column < width)
    tl.store(out + row * width + column, narrow(value, out.dtype.element_ty), mask=mask)


@triton.jit
def divisors(unit, inverse, norm, eps):
    """From the norm of rows times ``inverse``: what to multiply and divide by, and if eps holds.

    Two factors, since their product may leave the range where the result does not.
    """
    clamped = unit * norm <= eps
    return tl.where(clamped, 1.0, inverse), tl.where(clamped, eps, norm), clamped


@triton.jit
def _divisors(
    x, x_row, rows, width, eps, WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """The same for this program's rows: two passes over them, of which one is from the caches."""
    largest = tl.zeros([ROWS, COLUMNS], WIDE)
    for first in range(0, width, COLUMNS):
        largest = tl.maximum(largest, tl.abs(_tile(x, x_row, rows, width, first, ROWS, COLUMNS)))
    unit, inverse = binary_unit(tl.max(largest, axis=1, keep_dims=True))
    squares = tl.zeros([ROWS, COLUMNS], WIDE)
    for first in range(0, width, COLUMNS):
        scaled = _tile(x, x_row, rows, width, first, ROWS, COLUMNS) * inverse
        squares = tl.fma(scaled, scaled, squares)
    norm = square_root(tl.sum(squares, axis=1, keep_dims=True))
    return divisors(unit, inverse, norm, eps)


@triton.jit(do_not_specialize=["rows", "eps"])
def _normalize_kernel(
    x, x_row, out, rows, width, eps,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    inverse, divisor, _ = _divisors(x, x_row, rows, width, real(eps, WIDE), WIDE, ROWS, COLUMNS)
    for first in range(0, width, COLUMNS):
        tile = _tile(x, x_row, rows, width, first, ROWS, COLUMNS)
        result = divide(tile * inverse, tl.broadcast_to(divisor, tile.shape))
        _store(out, result, rows, width, first, ROWS, COLUMNS)


@triton.jit(do_not_specialize=["rows", "eps"])
def _normalize_backward_kernel(
    grad, grad_row, x, x_row, out, rows, width, eps,
    WIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    inverse, divisor, clamped = _divisors(
        x, x_row, rows, width, real(eps, WIDE), WIDE, ROWS, COLUMNS
    )
    to_unit = tl.where(clamped, 0.0, inverse)
    products = tl.zeros([ROWS, COLUMNS], WIDE)
    for first in range(0, width, COLUMNS):
        tile = _tile(x, x_row, rows, width, first, ROWS, COLUMNS)
        unit = divide(tile * to_unit, tl.broadcast_to(divisor, tile.shape))
        g = _tile(grad, grad_row, rows, width, first, ROWS, COLUMNS)
        products = tl.fma(unit, g, products)
    radial = tl.sum(products, axis=1, keep_dims=True)
    for first in range(0, width, COLUMNS):
        tile = _tile(x, x_row, rows, width, first, ROWS, COLUMNS)
        unit = divide(tile * to_unit, tl.broadcast_to(divisor, tile.shape))
        g = _tile(grad, grad_row, rows, width, first, ROWS, COLUMNS)
        result = divide(g - unit * radial, tl.broadcast_to(divisor, tile.shape)) * inverse
        _store(out, result, rows, width, first, ROWS, COLUMNS)


def _tiles(rows: int, width: int) -> tuple[int, dict[str, int]]:
    """Programs, and the tile of each. It depends on the width alone, and so do the sums."""
    columns = min(_layout.power_of_two(width), _TILE)
    tile = {"ROWS": _TILE // columns, "COLUMNS": columns}
    return _layout.ceil_div(rows, tile["ROWS"]), tile


def normalize_into(out: Tensor, x: Tensor, eps: float) -> None:
    """Normalized rows of (..., width) into a contiguous ``out``, of any dtype."""
    width = x.shape[-1]
    rows = _layout.as_rows(x, width)
    programs, tile = _tiles(rows.shape[0], width)
    launch(
        _normalize_kernel, programs, x,
        rows, rows.stride(0), out, rows.shape[0], width, _layout.number(eps, x.dtype),
        WIDE=_layout.wide_type(x.dtype), **tile,
    )  # fmt: skip


def normalize_backward_into(out: Tensor, grad: Tensor, x: Tensor, eps: float) -> None:
    """Gradient of the rows of ``x`` (..., width) into a contiguous ``out``, of any dtype."""
    width = x.shape[-1]
    rows, grads = _layout.as_rows(x, width), _layout.as_rows(grad, width)
    programs, tile = _tiles(rows.shape[0], width)
    launch(
        _normalize_backward_kernel, programs, x,
        grads, grads.stride(0), rows, rows.stride(0), out,
        rows.shape[0], width, _layout.number(eps, x.dtype),
        WIDE=_layout.wide_type(x.dtype), **tile,
    )  # fmt: skip


def normalize(x: Tensor, eps: float) -> Tensor:
    out = _layout.empty_like(x)
    if out.numel():
        normalize_into(out, x, eps)
    return out


def normalize_backward(grad: Tensor, x: Tensor, eps: float) -> Tensor:
    out = _layout.empty_like(x)
    if out.numel():
        normalize_backward_into(out, grad, x, eps)
    return out
