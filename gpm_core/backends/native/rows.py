"""Operations on rows and on pairs of rows."""

from __future__ import annotations

import torch
from torch import Tensor

import gpm_core._C as _C
from gpm_core.backends.native.layout import (
    CODES,
    address,
    as_numbers,
    as_rows,
    empty_like,
    pointer,
    scale_rows,
)
from gpm_core.backends.reference import accumulation_dtype

__all__ = [
    "normalize",
    "normalize_backward",
    "preference_loss",
    "preference_loss_backward",
    "score",
    "score_backward",
]


def normalize(x: Tensor, eps: float) -> Tensor:
    out = empty_like(x)
    if out.numel():
        width = x.shape[-1]
        rows = as_rows(x, width)
        _C.normalize(
            CODES[x.dtype],
            rows.shape[0],
            width,
            eps,
            *address(rows),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out


def normalize_backward(grad: Tensor, x: Tensor, eps: float) -> Tensor:
    out = empty_like(x)
    if out.numel():
        width = x.shape[-1]
        rows, grads = as_rows(x, width), as_rows(grad, width)
        _C.normalize_backward(
            CODES[x.dtype],
            rows.shape[0],
            width,
            eps,
            *address(grads),
            *address(rows),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out


def score(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    out = a.new_empty(a.shape[:-1])
    if out.numel():
        width = a.shape[-1]
        first, second, scales = as_rows(a, width), as_rows(b, width), scale_rows(scale)
        _C.score(
            CODES[a.dtype],
            first.shape[0],
            width,
            *address(first),
            *address(second),
            *address(scales),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out


def score_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    grad_a, grad_b = empty_like(a), empty_like(b)
    grad_scale = None if scale is None else empty_like(scale)
    if grad.numel():
        width = a.shape[-1]
        first, second, scales = as_rows(a, width), as_rows(b, width), scale_rows(scale)
        grads = as_numbers(grad).contiguous()
        _C.score_backward(
            CODES[a.dtype],
            first.shape[0],
            width,
            grads.data_ptr(),
            *address(first),
            *address(second),
            *address(scales),
            grad_a.data_ptr(),
            grad_b.data_ptr(),
            pointer(grad_scale),
            torch.get_num_threads(),
        )
    return grad_a, grad_b, grad_scale


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
        width = chosen.shape[-1]
        first, second, scales = as_rows(chosen, width), as_rows(rejected, width), scale_rows(scale)
        margins = None if margin is None else as_numbers(margin)
        targets = None if target is None else as_numbers(target)
        _C.preference_loss(
            CODES[chosen.dtype],
            first.shape[0],
            width,
            tau,
            *address(first),
            *address(second),
            *address(scales),
            *address(margins),
            *address(targets),
            loss.data_ptr(),
            probability.data_ptr(),
            torch.get_num_threads(),
        )
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
    grad_chosen, grad_rejected = empty_like(chosen), empty_like(rejected)
    grad_scale = None if scale is None else empty_like(scale)
    grad_margin = None if margin is None else chosen.new_empty(batch, dtype=wide)
    grad_target = None if target is None else chosen.new_empty(batch, dtype=wide)
    if grad_chosen.numel():
        width = chosen.shape[-1]
        first, second, scales = as_rows(chosen, width), as_rows(rejected, width), scale_rows(scale)
        margins = None if margin is None else as_numbers(margin)
        targets = None if target is None else as_numbers(target)
        losses = None if grad_loss is None else as_numbers(grad_loss).contiguous()
        probabilities = (
            None if grad_probability is None else as_numbers(grad_probability).contiguous()
        )
        _C.preference_loss_backward(
            CODES[chosen.dtype],
            first.shape[0],
            width,
            tau,
            address(losses)[0],
            address(probabilities)[0],
            *address(first),
            *address(second),
            *address(scales),
            *address(margins),
            *address(targets),
            grad_chosen.data_ptr(),
            grad_rejected.data_ptr(),
            pointer(grad_scale),
            pointer(grad_margin),
            pointer(grad_target),
            torch.get_num_threads(),
        )
    return grad_chosen, grad_rejected, grad_scale, grad_margin, grad_target
