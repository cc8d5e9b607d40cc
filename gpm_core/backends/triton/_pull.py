"""Gradients of all-pairs scores: what square and rectangular matrices share.

A program owns a tile of rows of one set and goes over all rows of the other, so every gradient is
written once and summed in one order, without atomic additions. Scores are computed again: that is
cheaper than keeping the results, and saves their memory.

The gradient of a scale sums over all rows. Where they are one tile, that is a sum in the program.
Where there are several, each leaves a partial sum, and PyTorch's ``sum`` adds them in a second
launch: within the first one, only atomic additions of unknown order could.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gpm_core.backends.reference import accumulation_dtype
from gpm_core.backends.triton import _layout
from gpm_core.backends.triton._math import narrow, real, widen
from gpm_core.backends.triton._scores import pair_scores, slope


@triton.jit
def _incoming(
    grad, grad_row, grad_column, own, other, own_rows, other_rows, here,
    DIRECT: tl.constexpr, MIRRORED: tl.constexpr,
):  # fmt: skip
    """Gradient of the scores of ``own`` rows over ``other`` rows, of the matrices at ``grad``.

    DIRECT: own rows are rows of the matrix. MIRRORED: they are its columns, whose scores are the
    negative ones. Both: they are the same set, s(i > j) and s(j > i) one number with two signs.
    """
    if DIRECT:
        rows, columns = own[None, :, None], other[None, None, :]
        mask = here & (rows < own_rows) & (columns < other_rows)
        g = widen(tl.load(grad + rows * grad_row + columns * grad_column, mask=mask, other=0.0))
    if MIRRORED:
        rows, columns = other[None, :, None], own[None, None, :]
        mask = here & (rows < other_rows) & (columns < own_rows)
        tile = tl.load(grad + rows * grad_row + columns * grad_column, mask=mask, other=0.0)
        mirrored = tl.permute(widen(tile), (0, 2, 1))
        if DIRECT:
            g -= mirrored
        else:
            g = -mirrored
    return g


@triton.jit
def pull(
    own_set, own_batch, own_row, own_rows, other_set, other_batch, other_row, other_rows,
    grad, grad_batch, grad_row, grad_column, scale, scale_batch, grad_own, grad_scale,
    group, tile, chunk, batch, blocks, inverse_tau,
    DIRECT: tl.constexpr, MIRRORED: tl.constexpr, WIDE: tl.constexpr,
    ENTRIES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr,
):  # fmt: skip
    """Gradient of tile number ``tile`` of the rows of a set, BLOCKS blocks of them."""
    entry = group.to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)[:, None, None]
    here = entry < batch
    own = tile.to(tl.int64) * ROWS + tl.arange(0, ROWS)
    own_address = own_set + entry * own_batch + own[None, :, None] * own_row
    own_mask = here & (own[None, :, None] < own_rows)
    scales = None if scale is None else scale + entry * scale_batch
    inverse = None if inverse_tau is None else real(inverse_tau, WIDE)
    first_block = chunk * BLOCKS
    lane = tl.arange(0, BLOCKS)[None, None, :]
    # Sums over the other set of gradient times its y and its x, one lane a block.
    with_y = tl.zeros([ENTRIES, ROWS, BLOCKS], WIDE)
    with_x = tl.zeros([ENTRIES, ROWS, BLOCKS], WIDE)
    for first in range(0, other_rows, COLUMNS):
        other = tl.full([COLUMNS], first, tl.int64) + tl.arange(0, COLUMNS)
        other_address = other_set + entry * other_batch + other[None, None, :] * other_row
        other_mask = here & (other[None, None, :] < other_rows)
        g = _incoming(
            grad + entry * grad_batch, grad_row, grad_column, own, other, own_rows, other_rows,
            here, DIRECT, MIRRORED,
        )  # fmt: skip
        if inverse is not None:
            s = pair_scores(
                own_address, other_address, scales, blocks, own_mask, other_mask, here,
                tl.zeros([ENTRIES, ROWS, COLUMNS], WIDE),
            )  # fmt: skip
            g *= slope(s, inverse)
        for block in range(0, tl.minimum(BLOCKS, blocks - first_block)):
            at = other_address + 2 * (first_block + block)
            x = widen(tl.load(at, mask=other_mask, other=0.0))
            y = widen(tl.load(at + 1, mask=other_mask, other=0.0))
            mine = lane == block
            with_y = tl.where(mine, with_y + tl.sum(g * y, axis=2, keep_dims=True), with_y)
            with_x = tl.where(mine, with_x + tl.sum(g * x, axis=2, keep_dims=True), with_x)

    block = first_block + lane
    mask = own_mask & (block < blocks)
    if scale is None:
        grad_x, grad_y = with_y, -with_x
    else:
        factor = widen(tl.load(scales + block, mask=here & (block < blocks), other=0.0))
        grad_x, grad_y = with_y * factor, -with_x * factor
    DTYPE: tl.constexpr = grad_own.dtype.element_ty
    at = grad_own + (entry * own_rows + own[None, :, None]) * (2 * blocks) + 2 * block
    tl.store(at, narrow(grad_x, DTYPE), mask=mask)
    tl.store(at + 1, narrow(grad_y, DTYPE), mask=mask)
    if grad_scale is not None:
        x = widen(tl.load(own_address + 2 * block, mask=mask, other=0.0))
        products = x * with_y
        if not MIRRORED:
            products -= widen(tl.load(own_address + 2 * block + 1, mask=mask, other=0.0)) * with_x
        sums = tl.sum(products, axis=1, keep_dims=True)
        at = grad_scale + (entry * tl.cdiv(own_rows, ROWS) + tile) * blocks + block
        value = narrow(sums, grad_scale.dtype.element_ty)
        tl.store(at, value, mask=here & (block < blocks))


def pull_tile(rows: int, columns: int, blocks: int, wide: bool) -> dict[str, int]:
    """Rows that a program owns, rows of the other set and blocks at a time, matrices a program.

    1,024 pairs, 8 a thread, and half of that where addresses of several matrices or numbers of two
    registers take more room: what registers hold without spilling. Few rows a program, so that a
    single matrix of a thousand rows keeps a GPU busy; many columns, to read the incoming gradient
    in whole cache lines. More than 16 blocks are left to other programs, which compute the scores
    again, since sums stay in registers.
    """
    tile = {
        "ROWS": min(max(_layout.power_of_two(rows), 4), 16),
        "COLUMNS": min(max(_layout.power_of_two(columns), 4), 32 if wide else 64),
        "BLOCKS": min(_layout.power_of_two(blocks), 16),
    }
    return {**tile, "ENTRIES": max(512 // (tile["ROWS"] * tile["COLUMNS"]), 1)}


def scale_target(grad_scale: Tensor | None, batch: int, tiles: int) -> Tensor | None:
    """Where programs write their sums for the gradient of a scale: (batch, tiles, k)."""
    if grad_scale is None:
        return None
    if tiles == 1:
        return grad_scale
    wide = accumulation_dtype(grad_scale.dtype)
    return grad_scale.new_empty(batch, tiles, grad_scale.shape[-1], dtype=wide)


def finish_scale(partial: Tensor | None, grad_scale: Tensor | None) -> None:
    """Add the sums of the tiles, if there are several."""
    if partial is None or grad_scale is None or partial is grad_scale:
        return
    grad_scale.copy_(torch.sum(partial, dim=1).view(grad_scale.shape))
