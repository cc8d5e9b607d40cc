"""``linear_logprob``: a program a row of a chunk of logits, around PyTorch's matrix products.

A chunk is one launch, whatever is asked for; how many there are depends on the memory that logits
may take.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from gpm_core.backends import _chunked_linear_logprob as chunked
from gpm_core.backends.triton import _layout
from gpm_core.backends.triton._launch import launch
from gpm_core.backends.triton._math import (
    divide,
    exp_nonpositive,
    hyperbolic_tangent,
    narrow,
    real,
)

# Columns at a time, eight a thread.
_TILE = 1024

_STATES = tl.constexpr(chunked.STATES)
_GRADIENTS = tl.constexpr(chunked.GRADIENTS)


@triton.jit
def _logits(products, bias, column, columns, temperature, softcap):
    """From products to logits z, -inf past the last column."""
    mask = column < columns
    z = tl.load(products + column, mask=mask, other=0.0)
    if bias is not None:
        z += tl.load(bias + column, mask=mask, other=0.0)
    if softcap is not None:
        z = softcap * hyperbolic_tangent(divide(z, tl.broadcast_to(softcap, z.shape)))
    z = divide(z, tl.broadcast_to(temperature, z.shape))
    return tl.where(mask, z, float("-inf"))


@triton.jit
def _slope(z, temperature, softcap):
    """Derivative of softcap."""
    if softcap is None:
        return tl.full(z.shape, 1.0, z.dtype)
    else:
        t = z * divide(temperature, softcap)
        return 1.0 - t * t


@triton.jit
def _settings(temperature, softcap, WIDE: tl.constexpr):
    """Numbers of the host as vectors of one."""
    one = tl.full([1], 1.0, WIDE)
    return one * real(temperature, WIDE), None if softcap is None else one * real(softcap, WIDE)


@triton.jit(do_not_specialize=["first", "temperature", "softcap"])
def _linear_logprob_kernel(
    logits, target, bias, state, coefficients, pulled, columns, first, size, temperature, softcap,
    ENTROPY: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    temperature, softcap = _settings(temperature, softcap, WIDE)
    own = state + row * _STATES + tl.arange(0, 1)
    before = tl.load(own)
    largest = tl.full([TILE], float("-inf"), WIDE)
    for begin in range(0, columns, TILE):
        column = begin + tl.arange(0, TILE)
        z = _logits(logits + row * columns, bias, column, columns, temperature, softcap)
        largest = tl.maximum(largest, z)
    now = tl.maximum(before, tl.max(largest, axis=0, keep_dims=True))
    # All excluded so far: any finite shift leaves their exponentials zero.
    shift = tl.where(now == float("-inf"), 0.0, now)
    factor = exp_nonpositive(before - shift)
    position = tl.load(target + row) - first
    sums = tl.zeros([TILE], WIDE)
    moments = tl.zeros([TILE], WIDE)
    for begin in range(0, columns, TILE):
        column = begin + tl.arange(0, TILE)
        z = _logits(logits + row * columns, bias, column, columns, temperature, softcap)
        slope = _slope(z, temperature, softcap)
        here = column == position
        tl.store(state + row * _STATES + 3 + 0 * column, z, mask=here)
        tl.store(state + row * _STATES + 4 + 0 * column, slope, mask=here)
        e = tl.where(here, 0.0, exp_nonpositive(z - shift))
        sums += e
        if ENTROPY:
            moments += tl.where(e == 0, 0.0, e * (z - shift))
        if coefficients is not None:
            value = tl.where(e == 0, 0.0, e * slope)  # the slope of -inf is no number
            out = narrow(value, coefficients.dtype.element_ty)
            tl.store(coefficients + row * columns + column, out, mask=column < columns)
    rest = tl.load(own + 1)
    past = tl.load(own + 2)
    moved = tl.where(before == float("-inf"), 0.0, factor * (past + rest * (before - shift)))
    tl.store(own, now)
    tl.store(own + 1, factor * rest + tl.sum(sums, axis=0, keep_dims=True))
    tl.store(own + 2, moved + tl.sum(moments, axis=0, keep_dims=True))
    if pulled is not None:
        for begin in range(0, size, TILE):
            column = begin + tl.arange(0, TILE)
            numbers = pulled + row * size + column
            value = tl.load(numbers, mask=column < size, other=0.0)
            tl.store(numbers, value * factor, mask=column < size)


@triton.jit(do_not_specialize=["first", "temperature", "softcap"])
def _linear_logprob_backward_kernel(
    logits, target, bias, gradients, coefficients, columns, first, temperature, softcap,
    ENTROPY: tl.constexpr, WIDE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    temperature, softcap = _settings(temperature, softcap, WIDE)
    given = gradients + row * _GRADIENTS + tl.arange(0, 1)
    grad_logp = tl.load(given)
    grad_entropy = tl.load(given + 1)
    logsumexp = tl.load(given + 2)
    entropy = tl.load(given + 3)
    at_target = grad_logp * tl.load(given + 4)
    nothing = (grad_logp == 0) & (grad_entropy == 0)
    position = tl.load(target + row) - first
    for begin in range(0, columns, TILE):
        column = begin + tl.arange(0, TILE)
        z = _logits(logits + row * columns, bias, column, columns, temperature, softcap)
        log_p = z - logsumexp
        p = exp_nonpositive(log_p)
        grad = tl.where(column == position, at_target, -grad_logp * p)
        if ENTROPY:
            # Zero times the logarithm of zero.
            grad -= tl.where(p == 0, 0.0, p * grad_entropy * (log_p + entropy))
        value = divide(
            grad * _slope(z, temperature, softcap), tl.broadcast_to(temperature, grad.shape)
        )
        value = tl.where(nothing | (grad == 0), 0.0, value)  # the slope of -inf is no number
        out = narrow(value, coefficients.dtype.element_ty)
        tl.store(coefficients + row * columns + column, out, mask=column < columns)


def _number(value: float | None, like: Tensor) -> float | int | None:
    return None if value is None else _layout.number(value, like.dtype)


def linear_logprob_chunk(
    logits: Tensor,
    first: int,
    target: Tensor,
    bias: Tensor | None,
    options: chunked.Options,
    state: Tensor,
    coefficients: Tensor | None,
    pulled: Tensor | None,
) -> None:
    rows, columns = logits.shape
    launch(
        _linear_logprob_kernel, rows, logits,
        logits, target, bias, state, coefficients, pulled,
        columns, first, 0 if pulled is None else pulled.shape[1],
        _number(options.temperature, logits), _number(options.softcap, logits),
        ENTROPY=options.entropy, WIDE=_layout.wide_type(logits.dtype),
        TILE=min(_layout.power_of_two(columns), _TILE),
    )  # fmt: skip


def linear_logprob_chunk_backward(
    logits: Tensor,
    first: int,
    target: Tensor,
    bias: Tensor | None,
    options: chunked.Options,
    gradients: Tensor,
    coefficients: Tensor,
) -> None:
    rows, columns = logits.shape
    launch(
        _linear_logprob_backward_kernel, rows, logits,
        logits, target, bias, gradients, coefficients, columns, first,
        _number(options.temperature, logits), _number(options.softcap, logits),
        ENTROPY=options.entropy, WIDE=_layout.wide_type(logits.dtype),
        TILE=min(_layout.power_of_two(columns), _TILE),
    )  # fmt: skip


def linear_logprob(*arguments: Any) -> tuple[Tensor | None, ...]:
    return chunked.forward(linear_logprob_chunk, *arguments)


def linear_logprob_backward(*arguments: Any) -> tuple[Tensor | None, ...]:
    return chunked.backward(linear_logprob_chunk_backward, *arguments)
