"""Square and rectangular matrices of all pairs."""

from __future__ import annotations

from torch import Tensor

from gpm_core.backends.native.layout import (
    address,
    as_batch,
    batch_address,
    deliver,
    empty_like,
    pointer,
    scale_rows,
    writable,
)
from gpm_core.backends.native.library import Library


class Matrices:
    """Square and rectangular matrices of all pairs."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def _square(self, name: str, v: Tensor, scale: Tensor | None, out: Tensor, *tau: float) -> None:
        if out.numel() == 0:
            return
        batch, scales, result = as_batch(v), scale_rows(scale), writable(out)
        self._library.run(
            name,
            v,
            *batch.shape,
            *batch_address(batch),
            *address(scales),
            *batch_address(result),
            *tau,
        )
        deliver(result, out)

    def _square_backward(
        self, name: str, grad: Tensor, v: Tensor, scale: Tensor | None, *tau: float
    ) -> tuple[Tensor, Tensor | None]:
        grad_v = empty_like(v)
        if grad.numel() == 0:
            return grad_v, None if scale is None else scale.new_zeros(scale.shape)
        grad_scale = None if scale is None else empty_like(scale)
        partial = self._library.partial_sums(scale, v.shape[-2])
        batch, scales, grads = as_batch(v), scale_rows(scale), as_batch(grad)
        self._library.run(
            name,
            v,
            *batch.shape,
            *batch_address(grads),
            *batch_address(batch),
            *address(scales),
            grad_v.data_ptr(),
            pointer(grad_scale),
            pointer(partial),
            *tau,
        )
        return grad_v, grad_scale

    def score_matrix(self, v: Tensor, scale: Tensor | None) -> Tensor:
        out = self._library.new_matrix(v, v.shape[-2], v.shape[-2])
        self._square("score_matrix", v, scale, out)
        return out

    def score_matrix_out(self, v: Tensor, scale: Tensor | None, out: Tensor) -> None:
        self._square("score_matrix", v, scale, out)

    def score_matrix_backward(
        self, grad: Tensor, v: Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self._square_backward("score_matrix_backward", grad, v, scale)

    def probability_matrix(self, v: Tensor, scale: Tensor | None, tau: float) -> Tensor:
        out = self._library.new_matrix(v, v.shape[-2], v.shape[-2])
        self._square("probability_matrix", v, scale, out, tau)
        return out

    def probability_matrix_out(
        self, v: Tensor, scale: Tensor | None, tau: float, out: Tensor
    ) -> None:
        self._square("probability_matrix", v, scale, out, tau)

    def probability_matrix_backward(
        self, grad: Tensor, v: Tensor, scale: Tensor | None, tau: float
    ) -> tuple[Tensor, Tensor | None]:
        return self._square_backward("probability_matrix_backward", grad, v, scale, tau)

    def _cross(
        self, name: str, a: Tensor, b: Tensor, scale: Tensor | None, out: Tensor, *tau: float
    ) -> None:
        if out.numel() == 0:
            return
        first, second, scales, result = as_batch(a), as_batch(b), scale_rows(scale), writable(out)
        self._library.run(
            name,
            a,
            *result.shape,
            a.shape[-1],
            *batch_address(first),
            *batch_address(second),
            *address(scales),
            *batch_address(result),
            *tau,
        )
        deliver(result, out)

    def _cross_backward(
        self, name: str, grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, *tau: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if grad.numel() == 0:
            # One of the sets is empty; what the other one's gradient sums over is too.
            no_scale = None if scale is None else scale.new_zeros(scale.shape)
            return a.new_zeros(a.shape), b.new_zeros(b.shape), no_scale
        grad_a, grad_b = empty_like(a), empty_like(b)
        grad_scale = None if scale is None else empty_like(scale)
        partial = self._library.partial_sums(scale, a.shape[-2])
        first, second, scales, grads = as_batch(a), as_batch(b), scale_rows(scale), as_batch(grad)
        self._library.run(
            name,
            a,
            *grads.shape,
            a.shape[-1],
            *batch_address(grads),
            *batch_address(first),
            *batch_address(second),
            *address(scales),
            grad_a.data_ptr(),
            grad_b.data_ptr(),
            pointer(grad_scale),
            pointer(partial),
            *tau,
        )
        return grad_a, grad_b, grad_scale

    def cross_score_matrix(self, a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
        out = self._library.new_matrix(a, a.shape[-2], b.shape[-2])
        self._cross("cross_score_matrix", a, b, scale, out)
        return out

    def cross_score_matrix_out(
        self, a: Tensor, b: Tensor, scale: Tensor | None, out: Tensor
    ) -> None:
        self._cross("cross_score_matrix", a, b, scale, out)

    def cross_score_matrix_backward(
        self, grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return self._cross_backward("cross_score_matrix_backward", grad, a, b, scale)

    def cross_probability_matrix(
        self, a: Tensor, b: Tensor, scale: Tensor | None, tau: float
    ) -> Tensor:
        out = self._library.new_matrix(a, a.shape[-2], b.shape[-2])
        self._cross("cross_probability_matrix", a, b, scale, out, tau)
        return out

    def cross_probability_matrix_out(
        self, a: Tensor, b: Tensor, scale: Tensor | None, tau: float, out: Tensor
    ) -> None:
        self._cross("cross_probability_matrix", a, b, scale, out, tau)

    def cross_probability_matrix_backward(
        self, grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, tau: float
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return self._cross_backward("cross_probability_matrix_backward", grad, a, b, scale, tau)
