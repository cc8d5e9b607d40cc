"""All pairs of a set with itself: what ``score_matrix`` and ``probability_matrix`` share.

A program computes the scores of one tile of pairs and writes what becomes of them twice, as they
are and mirrored, so that half of the pairs are computed. Matrices smaller than a tile share a
program, several side by side.
"""

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
def _square_kernel(
    v, v_batch, v_row, scale, scale_batch, out, out_batch, out_row,
    batch, rows, blocks, inverse_tau,
    WIDE: tl.constexpr, ENTRIES: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(rows, SIDE)
    pairs = tiles * (tiles + 1) // 2
    program = tl.program_id(0)
    # Tile (i, i + turn), around the corner: every pair of tiles once, without a square root.
    pair = program % pairs
    turn = pair // tiles
    i = pair % tiles
    j = (i + turn) % tiles
    entry = (program // pairs).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)[:, None, None]
    first = i.to(tl.int64) * SIDE + tl.arange(0, SIDE)
    second = j.to(tl.int64) * SIDE + tl.arange(0, SIDE)
    here = entry < batch
    own, other = first[None, :, None], second[None, None, :]
    scales = None if scale is None else scale + entry * scale_batch
    s = pair_scores(
        v + entry * v_batch + own * v_row, v + entry * v_batch + other * v_row, scales, blocks,
        here & (own < rows), here & (other < rows), here, tl.zeros([ENTRIES, SIDE, SIDE], WIDE),
    )  # fmt: skip
    inverse = None if inverse_tau is None else real(inverse_tau, WIDE)
    forward, reverse = outcomes(s, inverse, out.dtype.element_ty)
    matrix = out + entry * out_batch
    inside = here & (own < rows) & (other < rows)
    tl.store(matrix + own * out_row + other, forward, mask=inside)
    if turn > 0:
        # Rows of the mirrored tile are the second set of rows, columns the first.
        row, column = second[None, :, None], first[None, None, :]
        inside = here & (row < rows) & (column < rows)
        mirrored = tl.permute(reverse, (0, 2, 1))
        tl.store(matrix + row * out_row + column, mirrored, mask=inside)


@triton.jit(do_not_specialize=["batch", "blocks", "inverse_tau"])
def _square_backward_kernel(
    grad, grad_batch, grad_row, grad_column, v, v_batch, v_row, scale, scale_batch,
    grad_v, grad_scale, batch, rows, blocks, inverse_tau,
    WIDE: tl.constexpr, ENTRIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    tiles = tl.cdiv(rows, ROWS)
    chunks = tl.cdiv(blocks, BLOCKS)
    program = tl.program_id(0)
    pull(
        v, v_batch, v_row, rows, v, v_batch, v_row, rows,
        grad, grad_batch, grad_row, grad_column, scale, scale_batch, grad_v, grad_scale,
        program // (tiles * chunks), program // chunks % tiles, program % chunks,
        batch, blocks, inverse_tau,
        DIRECT=True, MIRRORED=True,
        WIDE=WIDE, ENTRIES=ENTRIES, ROWS=ROWS, COLUMNS=COLUMNS, BLOCKS=BLOCKS,
    )  # fmt: skip


def _tile(rows: int, wide: bool) -> dict[str, int]:
    """The side of a tile, and how many matrices share a program.

    A tile of 64 x 64 is 32 numbers a thread, and half of that a side for float64 what registers
    hold without spilling. Smaller matrices are gathered to 1,024 pairs, 8 a thread: more would
    leave multiprocessors of a large GPU idle at a thousand prompts.
    """
    side = min(max(_layout.power_of_two(rows), 4), 32 if wide else 64)
    return {"SIDE": side, "ENTRIES": max(1024 // side**2, 1)}


def square(v: Tensor, scale: Tensor | None, tau: float | None, out: Tensor) -> None:
    """Scores, or with ``tau`` probabilities, of all pairs of v (..., K, d) into ``out``."""
    if out.numel() == 0:
        return
    matrices, scales, result = _layout.as_batch(v), _layout.scale_rows(scale), _layout.writable(out)
    batch, rows, width = matrices.shape
    tile = _tile(rows, _layout.is_double(v))
    tiles = _layout.ceil_div(rows, tile["SIDE"])
    launch(
        _square_kernel, _layout.ceil_div(batch, tile["ENTRIES"]) * (tiles * (tiles + 1) // 2), v,
        matrices, *_layout.batch_strides(matrices), scales, _layout.row_stride(scales),
        result, *_layout.batch_strides(result), batch, rows, width // 2,
        None if tau is None else _layout.finite_inverse(tau, v.dtype),
        WIDE=_layout.wide_type(v.dtype), **tile, warps=8 if tile["SIDE"] == 64 else 4,
    )  # fmt: skip
    _layout.deliver(result, out)


def square_backward(
    grad: Tensor, v: Tensor, scale: Tensor | None, tau: float | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of v and of the scale."""
    grad_v = _layout.empty_like(v)
    if grad.numel() == 0:
        return grad_v, None if scale is None else scale.new_zeros(scale.shape)
    matrices, scales, grads = _layout.as_batch(v), _layout.scale_rows(scale), _layout.matrices(grad)
    batch, rows, width = matrices.shape
    tile = pull_tile(rows, rows, width // 2, _layout.is_double(v))
    tiles = _layout.ceil_div(rows, tile["ROWS"])
    grad_scale = None if scale is None else _layout.empty_like(scale)
    partial = scale_target(grad_scale, batch, tiles)
    chunks = _layout.ceil_div(width // 2, tile["BLOCKS"])
    launch(
        _square_backward_kernel, _layout.ceil_div(batch, tile["ENTRIES"]) * tiles * chunks, v,
        grads, *grads.stride(), matrices, *_layout.batch_strides(matrices),
        scales, _layout.row_stride(scales), grad_v, partial, batch, rows, width // 2,
        None if tau is None else _layout.finite_inverse(tau, v.dtype),
        WIDE=_layout.wide_type(v.dtype), **tile,
    )  # fmt: skip
    finish_scale(partial, grad_scale)
    return grad_v, grad_scale
