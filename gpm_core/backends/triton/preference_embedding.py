"""``preference_embedding``: token, projection, bias and norm in one pass, one row a program.

Sums run over lanes of a tile of outputs x inputs and are taken together once at the end, in an
order that depends on the shape of the weight alone: an embedding does not depend on its batch. The
weight is read once a row, from the caches.

A norm needs all outputs of a row in one program. Embeddings wider than :data:`_OUTPUTS` numbers are
normalized in a second launch (and pulled back through it in a first one). PyTorch's own launches
come on top with positions: on a GPU it asserts that they are in range, and it zeroes the gradient
of ``hidden``, most of which they leave unread.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gpm_core.backends import reference
from gpm_core.backends.triton import _layout
from gpm_core.backends.triton._launch import launch
from gpm_core.backends.triton._math import binary_unit, divide, narrow, real, square_root, widen
from gpm_core.backends.triton.normalize import (
    divisors,
    normalize_backward_into,
    normalize_into,
)

# The widest embedding that one program normalizes: its tile still fits the registers.
_OUTPUTS = 128


@triton.jit
def _row_divisors(u, eps):
    """As for ``normalize``, of rows that are at hand."""
    unit, inverse = binary_unit(tl.max(tl.abs(u), axis=1, keep_dims=True))
    scaled = u * inverse
    norm = square_root(tl.sum(scaled * scaled, axis=1, keep_dims=True))
    return divisors(unit, inverse, norm, eps)


@triton.jit
def _token(positions, row, mask):
    """Index of the token that is read, zero where there is only one."""
    if positions is None:
        return 0
    else:
        return tl.load(positions + row, mask=mask)


@triton.jit(do_not_specialize=["eps"])
def _embed_kernel(
    hidden, hidden_row, hidden_token, positions, weight, weight_row, bias, out, projection,
    size, width, eps, WIDE: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    chunks = tl.cdiv(width, OUTPUTS)
    row = (tl.program_id(0) // chunks).to(tl.int64)
    output = tl.program_id(0) % chunks * OUTPUTS + tl.arange(0, OUTPUTS)
    source = hidden + row * hidden_row + _token(positions, row, None) * hidden_token
    lanes = tl.zeros([OUTPUTS, INPUTS], WIDE)
    for first in range(0, size, INPUTS):
        column = first + tl.arange(0, INPUTS)[None, :]
        inside = column < size
        h = widen(tl.load(source + column, mask=inside, other=0.0))
        at = weight + output[:, None].to(tl.int64) * weight_row + column
        w = widen(tl.load(at, mask=inside & (output[:, None] < width), other=0.0))
        lanes = tl.fma(tl.broadcast_to(h, lanes.shape), w, lanes)
    u = tl.sum(lanes, axis=1)
    mask = output < width
    if bias is not None:
        u += widen(tl.load(bias + output, mask=mask, other=0.0))
    DTYPE: tl.constexpr = out.dtype.element_ty
    if projection is None:
        tl.store(out + row * width + output, narrow(u, DTYPE), mask=mask)
    else:
        tl.store(projection + row * width + output, u, mask=mask)
        rows = u[None, :]
        inverse, divisor, _ = _row_divisors(rows, real(eps, WIDE))
        unit = divide(rows * inverse, tl.broadcast_to(divisor, rows.shape))
        at = out + row * width + output[None, :]
        tl.store(at, narrow(unit, DTYPE), mask=mask[None, :])


@triton.jit
def _grad_projection(grad, grad_row, projection, row, output, mask, width, eps):
    """Gradient of rows (n, 1) of the projection, for outputs (1, m)."""
    g = widen(tl.load(grad + row * grad_row + output, mask=mask, other=0.0))
    if projection is not None:
        u = tl.load(projection + row * width + output, mask=mask, other=0.0)
        inverse, divisor, clamped = _row_divisors(u, eps)
        divisor = tl.broadcast_to(divisor, u.shape)
        unit = divide(u * tl.where(clamped, 0.0, inverse), divisor)
        radial = tl.sum(unit * g, axis=1, keep_dims=True)
        g = divide(g - unit * radial, divisor) * inverse
    return g


@triton.jit
def _pull_hidden(
    grad, grad_row, projection, positions, weight, weight_row, grad_hidden, program,
    tokens, size, width, eps, WIDE: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
):  # fmt: skip
    """Gradient of a chunk of the hidden state that one row reads."""
    chunks = tl.cdiv(size, INPUTS)
    row = (program // chunks).to(tl.int64)
    column = program % chunks * INPUTS + tl.arange(0, INPUTS)[None, :]
    inside = column < size
    lanes = tl.zeros([OUTPUTS, INPUTS], WIDE)
    for first in range(0, width, OUTPUTS):
        output = first + tl.arange(0, OUTPUTS)
        at = row + tl.zeros([1, 1], tl.int64)
        g = _grad_projection(
            grad, grad_row, projection, at, output[None, :], output[None, :] < width, width, eps
        )
        at = weight + output[:, None].to(tl.int64) * weight_row + column
        w = widen(tl.load(at, mask=inside & (output[:, None] < width), other=0.0))
        lanes = tl.fma(tl.broadcast_to(tl.trans(g), lanes.shape), w, lanes)
    total = tl.sum(lanes, axis=0, keep_dims=True)
    at = grad_hidden + (row * tokens + _token(positions, row, None)) * size + column
    tl.store(at, narrow(total, grad_hidden.dtype.element_ty), mask=inside)


@triton.jit
def _pull_weight(
    grad, grad_row, hidden, hidden_row, hidden_token, positions, projection,
    grad_weight, grad_bias, program, rows, size, width, eps,
    WIDE: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of the weight, and with the first columns that of the bias."""
    outputs = tl.cdiv(width, OUTPUTS)
    output = program % outputs * OUTPUTS + tl.arange(0, OUTPUTS)
    column = program // outputs * COLUMNS + tl.arange(0, COLUMNS)
    lanes = tl.zeros([ROWS, OUTPUTS, COLUMNS], WIDE)
    bias_lanes = tl.zeros([ROWS, OUTPUTS], WIDE)
    for first in range(0, rows, ROWS):
        row = tl.full([ROWS], first, tl.int64) + tl.arange(0, ROWS)
        here = row < rows
        mask = here[:, None] & (output[None, :] < width)
        g = _grad_projection(
            grad, grad_row, projection, row[:, None], output[None, :], mask, width, eps
        )
        bias_lanes += g
        if grad_weight is not None:
            source = hidden + row * hidden_row + _token(positions, row, here) * hidden_token
            at = source[:, None, None] + column[None, None, :]
            mask = here[:, None, None] & (column[None, None, :] < size)
            h = widen(tl.load(at, mask=mask, other=0.0))
            g = tl.broadcast_to(g[:, :, None], lanes.shape)
            lanes = tl.fma(g, tl.broadcast_to(h, lanes.shape), lanes)
    if grad_weight is not None:
        at = grad_weight + output[:, None].to(tl.int64) * size + column[None, :]
        total = narrow(tl.sum(lanes, axis=0), grad_weight.dtype.element_ty)
        tl.store(at, total, mask=(output[:, None] < width) & (column[None, :] < size))
    if grad_bias is not None:  # noqa: SIM102  # one is known when compiled, the other is not
        if program < outputs:
            of_bias = narrow(tl.sum(bias_lanes, axis=0), grad_bias.dtype.element_ty)
            tl.store(grad_bias + output, of_bias, mask=output < width)


@triton.jit(do_not_specialize=["hidden_programs", "tokens", "rows", "eps"])
def _embed_backward_kernel(
    grad, grad_row, hidden, hidden_row, hidden_token, positions, weight, weight_row, projection,
    grad_hidden, grad_weight, grad_bias, hidden_programs, tokens, rows, size, width, eps,
    WIDE: tl.constexpr, OUTPUTS: tl.constexpr, INPUTS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    wide_eps = real(eps, WIDE)
    if program < hidden_programs:
        if grad_hidden is not None:
            _pull_hidden(
                grad, grad_row, projection, positions, weight, weight_row, grad_hidden, program,
                tokens, size, width, wide_eps, WIDE, OUTPUTS, INPUTS,
            )  # fmt: skip
    else:
        _pull_weight(
            grad, grad_row, hidden, hidden_row, hidden_token, positions, projection,
            grad_weight, grad_bias, program - hidden_programs, rows, size, width, wide_eps,
            WIDE, OUTPUTS, ROWS, COLUMNS,
        )  # fmt: skip


def _tile(size: int, width: int) -> dict[str, int]:
    """Outputs x inputs: 2,048 lanes, or 4,096 where the embedding is wide."""
    outputs = min(_layout.power_of_two(width), _OUTPUTS)
    inputs = min(max(2048 // outputs, 32), 512, _layout.power_of_two(size))
    return {"OUTPUTS": outputs, "INPUTS": inputs}


def _hidden_rows(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """(..., T, H) or, without positions, (..., H) as (rows, T or 1, H)."""
    if positions is None:
        return _layout.as_rows(hidden, hidden.shape[-1]).unsqueeze(1)
    return _layout.as_batch(hidden)


def preference_embedding(
    hidden: Tensor,
    weight: Tensor,
    positions: Tensor | None,
    bias: Tensor | None,
    normalized: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    width, size = weight.shape
    wide = reference.accumulation_dtype(hidden.dtype)
    shape = (*(hidden.shape[:-1] if positions is None else positions.shape), width)
    out = hidden.new_empty(shape)
    projection = hidden.new_empty(shape if normalized else 0, dtype=wide)
    if not out.numel():
        return out, projection
    if positions is not None:
        reference.check_positions(positions, hidden.shape[-2])
    rows, weights = _hidden_rows(hidden, positions), _layout.as_rows(weight, size)
    index = None if positions is None else positions.reshape(-1).contiguous()
    biases = None if bias is None else bias.contiguous()
    tile = _tile(size, width)
    together = normalized and width <= _OUTPUTS
    launch(
        _embed_kernel, rows.shape[0] * _layout.ceil_div(width, tile["OUTPUTS"]), hidden,
        rows, *_layout.batch_strides(rows), index, weights, weights.stride(0), biases,
        projection if normalized and not together else out, projection if together else None,
        size, width, _layout.number(eps, hidden.dtype),
        WIDE=_layout.wide_type(hidden.dtype), **tile,
    )  # fmt: skip
    if normalized and not together:
        normalize_into(out, projection, eps)
    return out, projection


def preference_embedding_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    positions: Tensor | None,
    bias: Tensor | None,
    projection: Tensor,
    normalized: bool,
    eps: float,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    width, size = weight.shape
    # Only the rows that were read get a gradient, so all others must be zero already.
    make_hidden = hidden.new_empty if positions is None else hidden.new_zeros
    grad_hidden = make_hidden(hidden.shape) if output_mask[0] else None
    # An empty batch leaves them as they are.
    make = hidden.new_empty if grad.numel() else hidden.new_zeros
    grad_weight = make(weight.shape) if output_mask[1] else None
    grad_bias = make(width) if output_mask[2] else None
    if not grad.numel() or not any(output_mask):
        return grad_hidden, grad_weight, grad_bias
    together = normalized and width <= _OUTPUTS
    if normalized and not together:
        unnormalized = projection.new_empty(projection.shape)
        normalize_backward_into(unnormalized, grad, projection, eps)
        grad = unnormalized
    rows, weights = _hidden_rows(hidden, positions), _layout.as_rows(weight, size)
    index = None if positions is None else positions.reshape(-1).contiguous()
    grads, tile = _layout.as_rows(grad, width), _tile(size, width)
    # As many lanes as above, of several rows side by side.
    columns = 32
    weight_rows = max(2048 // (tile["OUTPUTS"] * columns), 1)
    hidden_programs = rows.shape[0] * _layout.ceil_div(size, tile["INPUTS"])
    weight_programs = _layout.ceil_div(width, tile["OUTPUTS"]) * (
        _layout.ceil_div(size, columns) if output_mask[1] else 1
    )
    hidden_programs = hidden_programs if output_mask[0] else 0
    weight_programs = weight_programs if output_mask[1] or output_mask[2] else 0
    launch(
        _embed_backward_kernel, hidden_programs + weight_programs, hidden,
        grads, grads.stride(0), rows, *_layout.batch_strides(rows), index,
        weights, weights.stride(0), projection if together else None,
        grad_hidden, grad_weight, grad_bias, hidden_programs, rows.shape[1], rows.shape[0],
        size, width, _layout.number(eps, hidden.dtype),
        WIDE=_layout.wide_type(hidden.dtype), **tile, ROWS=weight_rows, COLUMNS=columns,
    )  # fmt: skip
    return grad_hidden, grad_weight, grad_bias
