"""Operations on rows and on pairs of rows."""

from __future__ import annotations

from torch import Tensor

from gpm_core.backends.native.layout import (
    address,
    as_numbers,
    as_rows,
    empty_like,
    pointer,
    scale_rows,
)
from gpm_core.backends.native.library import Library
from gpm_core.backends.reference import accumulation_dtype


class Rows:
    """Operations on rows and on pairs of rows."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def normalize(self, x: Tensor, eps: float) -> Tensor:
        out = empty_like(x)
        if out.numel():
            width = x.shape[-1]
            rows = as_rows(x, width)
            self._library.run(
                "normalize",
                x,
                rows.shape[0],
                width,
                eps,
                *address(rows),
                out.data_ptr(),
            )
        return out

    def normalize_backward(self, grad: Tensor, x: Tensor, eps: float) -> Tensor:
        out = empty_like(x)
        if out.numel():
            width = x.shape[-1]
            rows, grads = as_rows(x, width), as_rows(grad, width)
            self._library.run(
                "normalize_backward",
                x,
                rows.shape[0],
                width,
                eps,
                *address(grads),
                *address(rows),
                out.data_ptr(),
            )
        return out

    def score(self, a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
        out = a.new_empty(a.shape[:-1])
        if out.numel():
            width = a.shape[-1]
            first, second, scales = as_rows(a, width), as_rows(b, width), scale_rows(scale)
            self._library.run(
                "score",
                a,
                first.shape[0],
                width,
                *address(first),
                *address(second),
                *address(scales),
                out.data_ptr(),
            )
        return out

    def score_backward(
        self, grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        grad_a, grad_b = empty_like(a), empty_like(b)
        grad_scale = None if scale is None else empty_like(scale)
        if grad.numel():
            width = a.shape[-1]
            first, second, scales = as_rows(a, width), as_rows(b, width), scale_rows(scale)
            grads = as_numbers(grad).contiguous()
            self._library.run(
                "score_backward",
                a,
                first.shape[0],
                width,
                grads.data_ptr(),
                *address(first),
                *address(second),
                *address(scales),
                grad_a.data_ptr(),
                grad_b.data_ptr(),
                pointer(grad_scale),
            )
        return grad_a, grad_b, grad_scale

    def preference_loss(
        self,
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
            first, second, scales = (
                as_rows(chosen, width),
                as_rows(rejected, width),
                scale_rows(scale),
            )
            margins = None if margin is None else as_numbers(margin)
            targets = None if target is None else as_numbers(target)
            self._library.run(
                "preference_loss",
                chosen,
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
            )
        return loss, probability

    def preference_loss_backward(
        self,
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
            first, second, scales = (
                as_rows(chosen, width),
                as_rows(rejected, width),
                scale_rows(scale),
            )
            margins = None if margin is None else as_numbers(margin)
            targets = None if target is None else as_numbers(target)
            losses = None if grad_loss is None else as_numbers(grad_loss).contiguous()
            probabilities = (
                None if grad_probability is None else as_numbers(grad_probability).contiguous()
            )
            self._library.run(
                "preference_loss_backward",
                chosen,
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
            )
        return grad_chosen, grad_rejected, grad_scale, grad_margin, grad_target
