"""``preference_loss``: score, margin, temperature, log-sigmoid and their gradients in one pass."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from gpm_core.backends.reference import accumulation_dtype
from gpm_core.backends.triton import _layout
from gpm_core.backends.triton._launch import launch
from gpm_core.backends.triton._math import (
    divide,
    exp_nonpositive,
    log1p_unit,
    real,
    smaller_probability,
)
from gpm_core.backends.triton._scores import pair_scores
from gpm_core.backends.triton.score import PAIRS, pull_pairs


@triton.jit
def _logits(a, b, scale, margin, margin_row, row, mask, blocks, tau, total):
    """(score - margin) / tau of pairs of rows whose addresses are given."""
    s = pair_scores(a, b, scale, blocks, mask, mask, mask, total)
    if margin is not None:
        s -= tl.load(margin + row * margin_row, mask=mask, other=0.0)
    return divide(s, tau)


@triton.jit(do_not_specialize=["rows", "blocks", "tau"])
def _preference_loss_kernel(
    chosen, chosen_row, rejected, rejected_row, scale, scale_row, margin, margin_row,
    target, target_row, loss, probability, rows, blocks, tau,
    WIDE: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    mask = row < rows
    scales = None if scale is None else scale + row * scale_row
    z = _logits(
        chosen + row * chosen_row, rejected + row * rejected_row, scales, margin, margin_row,
        row, mask, blocks, real(tau, WIDE), tl.zeros([PAIRS], WIDE),
    )  # fmt: skip
    magnitude = tl.abs(z)
    e = exp_nonpositive(-magnitude)
    tail = log1p_unit(e)  # softplus(-|z|)
    right = tl.where(z < 0, magnitude + tail, tail)
    if target is not None:
        wrong = tl.where(z < 0, tail, magnitude + tail)
        p = tl.load(target + row * target_row, mask=mask, other=0.0)
        # Zero times an infinite loss would be NaN for a hard target.
        right = tl.where(p == 0, 0.0, p * right) + tl.where(p == 1, 0.0, (1.0 - p) * wrong)
    small = divide(e, e + 1.0)
    tl.store(loss + row, right, mask=mask)
    tl.store(probability + row, tl.where(z < 0, small, 1.0 - small), mask=mask)


@triton.jit
def _slopes(z, target, target_row, row, mask):
    """D loss / d logit, and the derivative of the probability."""
    small = smaller_probability(z)
    large = 1.0 - small
    probability = tl.where(z < 0, small, large)
    complement = tl.where(z < 0, large, small)
    if target is None:
        return -complement, small * large
    else:
        p = tl.load(target + row * target_row, mask=mask, other=0.0)
        return (1.0 - p) * probability - p * complement, small * large


@triton.jit(do_not_specialize=["rows", "blocks", "tau"])
def _preference_loss_backward_kernel(
    grad_loss, grad_loss_row, grad_probability, grad_probability_row,
    chosen, chosen_row, rejected, rejected_row, scale, scale_row, margin, margin_row,
    target, target_row, grad_chosen, grad_rejected, grad_scale, grad_margin, grad_target,
    rows, blocks, tau, WIDE: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    mask = row < rows
    a, b = chosen + row * chosen_row, rejected + row * rejected_row
    scales = None if scale is None else scale + row * scale_row
    wide_tau = real(tau, WIDE)
    zero = tl.zeros([PAIRS], WIDE)
    z = _logits(a, b, scales, margin, margin_row, row, mask, blocks, wide_tau, zero)
    loss_slope, probability_slope = _slopes(z, target, target_row, row, mask)
    grad = zero
    of_target = zero
    if grad_loss is not None:
        outer = tl.load(grad_loss + row * grad_loss_row, mask=mask, other=0.0)
        grad = outer * loss_slope
        of_target = -outer * z
    if grad_probability is not None:
        outer = tl.load(grad_probability + row * grad_probability_row, mask=mask, other=0.0)
        grad += outer * probability_slope
    grad = divide(grad, wide_tau)
    if grad_margin is not None:
        tl.store(grad_margin + row, -grad, mask=mask)
    if grad_target is not None:
        tl.store(grad_target + row, of_target, mask=mask)
    pull_pairs(grad, a, b, scales, grad_chosen, grad_rejected, grad_scale, row, mask, blocks)


def _numbers(x: Tensor | None) -> tuple[Tensor | None, int]:
    """One number a pair, and the stride of them."""
    numbers = None if x is None else _layout.as_numbers(x)
    return numbers, _layout.row_stride(numbers)


def _pairs(
    chosen: Tensor, rejected: Tensor, scale: Tensor | None
) -> tuple[Tensor, int, Tensor, int, Tensor | None, int]:
    width = chosen.shape[-1]
    first, second = _layout.as_rows(chosen, width), _layout.as_rows(rejected, width)
    scales = _layout.scale_rows(scale)
    return first, first.stride(0), second, second.stride(0), scales, _layout.row_stride(scales)


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None,
    margin: Tensor | None,
    target: Tensor | None,
    tau: float,
) -> tuple[Tensor, Tensor]:
    wide = accumulation_dtype(chosen.dtype)
    batch = chosen.shape[:-1]
    loss, probability = chosen.new_empty(batch, dtype=wide), chosen.new_empty(batch, dtype=wide)
    if loss.numel():
        launch(
            _preference_loss_kernel, _layout.ceil_div(loss.numel(), PAIRS), chosen,
            *_pairs(chosen, rejected, scale), *_numbers(margin), *_numbers(target),
            loss, probability, loss.numel(), chosen.shape[-1] // 2,
            _layout.number(tau, chosen.dtype),
            WIDE=_layout.wide_type(chosen.dtype), PAIRS=PAIRS,
        )  # fmt: skip
    return loss, probability


def preference_loss_backward(
    grad_loss: Tensor | None,
    grad_probability: Tensor | None,
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None,
    margin: Tensor | None,
    target: Tensor | None,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    wide = accumulation_dtype(chosen.dtype)
    batch = chosen.shape[:-1]
    grad_chosen, grad_rejected = _layout.empty_like(chosen), _layout.empty_like(rejected)
    grad_scale = None if scale is None else _layout.empty_like(scale)
    grad_margin = None if margin is None else chosen.new_empty(batch, dtype=wide)
    grad_target = None if target is None else chosen.new_empty(batch, dtype=wide)
    if grad_chosen.numel():
        launch(
            _preference_loss_backward_kernel, _layout.ceil_div(batch.numel(), PAIRS), chosen,
            *_numbers(grad_loss), *_numbers(grad_probability),
            *_pairs(chosen, rejected, scale), *_numbers(margin), *_numbers(target),
            grad_chosen, grad_rejected, grad_scale, grad_margin, grad_target,
            batch.numel(), chosen.shape[-1] // 2, _layout.number(tau, chosen.dtype),
            WIDE=_layout.wide_type(chosen.dtype), PAIRS=PAIRS,
        )  # fmt: skip
    return grad_chosen, grad_rejected, grad_scale, grad_margin, grad_target
