"""All pairs between two sets: what ``cross_score_matrix`` and its probabilities share."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gpm_core.backends.triton import _layout
from gpm_core.backends.triton._launch import launch
from gpm_core.backends.triton._math import real
from gpm_core.backends.triton._pull import finish_scale, pull, pull_tile, scale_target
from gpm_core.backends.triton._scores import outcomes, pair_scores


@triton.jit(do_not_specialize=["batch", "blocks", "inverse_tau"])
def _cross_kernel(
    a, a_batch, a_row, b, b_batch, b_row, scale, scale_batch, out, out_batch, out_row,
    batch, rows, columns, blocks, inverse_tau,
    WIDE: tl.constexpr, ENTRIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(columns, COLUMNS)
    tiles = tl.cdiv(rows, ROWS) * across
    program = tl.program_id(0)
    group = (program // tiles).to(tl.int64)
    tile = program % tiles
    entry = group * ENTRIES + tl.arange(0, ENTRIES)[:, None, None]
    row = ((tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS))[None, :, None]
    column = ((tile % across).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS))[None, None, :]
    here = entry < batch
    a_mask, b_mask = here & (row < rows), here & (column < columns)
    scales = None if scale is None else scale + entry * scale_batch
    s = pair_scores(
        a + entry * a_batch + row * a_row, b + entry * b_batch + column * b_row, scales, blocks,
        a_mask, b_mask, here, tl.zeros([ENTRIES, ROWS, COLUMNS], WIDE),
    )  # fmt: skip
    inverse = None if inverse_tau is None else real(inverse_tau, WIDE)
    forward, _ = outcomes(s, inverse, out.dtype.element_ty)
    at = out + entry * out_batch + row * out_row + column
    tl.store(at, forward, mask=a_mask & b_mask)


@triton.jit(do_not_specialize=["batch", "blocks", "inverse_tau"])
def _cross_backward_kernel(
    grad, grad_batch, grad_row, grad_column, a, a_batch, a_row, b, b_batch, b_row,
    scale, scale_batch, grad_a, grad_b, grad_scale, batch, rows, columns, blocks, inverse_tau,
    WIDE: tl.constexpr, ENTRIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    a_tiles, b_tiles = tl.cdiv(rows, ROWS), tl.cdiv(columns, ROWS)
    chunks = tl.cdiv(blocks, BLOCKS)
    program = tl.program_id(0)
    group = program // ((a_tiles + b_tiles) * chunks)
    tile = program // chunks % (a_tiles + b_tiles)
    if tile < a_tiles:
        pull(
            a, a_batch, a_row, rows, b, b_batch, b_row, columns,
            grad, grad_batch, grad_row, grad_column, scale, scale_batch, grad_a, grad_scale,
            group, tile, program % chunks, batch, blocks, inverse_tau,
            DIRECT=True, MIRRORED=False,
            WIDE=WIDE, ENTRIES=ENTRIES, ROWS=ROWS, COLUMNS=COLUMNS, BLOCKS=BLOCKS,
        )  # fmt: skip
    else:
        pull(
            b, b_batch, b_row, columns, a, a_batch, a_row, rows,
            grad, grad_batch, grad_row, grad_column, scale, scale_batch, grad_b, None,
            group, tile - a_tiles, program % chunks, batch, blocks, inverse_tau,
            DIRECT=False, MIRRORED=True,
            WIDE=WIDE, ENTRIES=ENTRIES, ROWS=ROWS, COLUMNS=COLUMNS, BLOCKS=BLOCKS,
        )  # fmt: skip


def _tile(rows: int, columns: int, wide: bool) -> dict[str, int]:
    """As for square matrices: 4,096 pairs (float64: 1,024), or small matrices gathered to 1,024.

    A few rows against many columns are a wide tile.
    """
    most = 1024 if wide else 4096
    down = min(max(_layout.power_of_two(rows), 4), 32 if wide else 64)
    across = min(max(_layout.power_of_two(columns), 4), max(most // down, 1), 256)
    return {"ROWS": down, "COLUMNS": across, "ENTRIES": max(1024 // (down * across), 1)}


def cross(a: Tensor, b: Tensor, scale: Tensor | None, tau: float | None, out: Tensor) -> None:
    """Scores, or with ``tau`` probabilities, of a (..., M, d) over b (..., N, d) into ``out``."""
    if out.numel() == 0:
        return
    first, second = _layout.as_batch(a), _layout.as_batch(b)
    scales, result = _layout.scale_rows(scale), _layout.writable(out)
    batch, rows, columns = result.shape
    tile = _tile(rows, columns, _layout.is_double(a))
    tiles = _layout.ceil_div(rows, tile["ROWS"]) * _layout.ceil_div(columns, tile["COLUMNS"])
    launch(
        _cross_kernel, _layout.ceil_div(batch, tile["ENTRIES"]) * tiles, a,
        first, *_layout.batch_strides(first), second, *_layout.batch_strides(second),
        scales, _layout.row_stride(scales), result, *_layout.batch_strides(result),
        batch, rows, columns, a.shape[-1] // 2,
        None if tau is None else _layout.finite_inverse(tau, a.dtype),
        WIDE=_layout.wide_type(a.dtype), **tile,
        warps=8 if tile["ROWS"] * tile["COLUMNS"] == 4096 else 4,
    )  # fmt: skip
    _layout.deliver(result, out)


def cross_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, tau: float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a, b and the scale."""
    if grad.numel() == 0:
        # One of the sets is empty; what the other one's gradient sums over is too.
        no_scale = None if scale is None else scale.new_zeros(scale.shape)
        return a.new_zeros(a.shape), b.new_zeros(b.shape), no_scale
    grad_a, grad_b = _layout.empty_like(a), _layout.empty_like(b)
    grad_scale = None if scale is None else _layout.empty_like(scale)
    first, second, grads = _layout.as_batch(a), _layout.as_batch(b), _layout.matrices(grad)
    scales = _layout.scale_rows(scale)
    batch, rows, columns = grads.shape
    blocks = a.shape[-1] // 2
    most = max(rows, columns)
    tile = pull_tile(most, most, blocks, _layout.is_double(a))
    tiles = _layout.ceil_div(rows, tile["ROWS"])
    partial = scale_target(grad_scale, batch, tiles)
    programs = (tiles + _layout.ceil_div(columns, tile["ROWS"])) * _layout.ceil_div(
        blocks, tile["BLOCKS"]
    )
    launch(
        _cross_backward_kernel, _layout.ceil_div(batch, tile["ENTRIES"]) * programs, a,
        grads, *grads.stride(), first, *_layout.batch_strides(first),
        second, *_layout.batch_strides(second), scales, _layout.row_stride(scales),
        grad_a, grad_b, partial, batch, rows, columns, blocks,
        None if tau is None else _layout.finite_inverse(tau, a.dtype),
        WIDE=_layout.wide_type(a.dtype), **tile,
    )  # fmt: skip
    finish_scale(partial, grad_scale)
    return grad_a, grad_b, grad_scale
