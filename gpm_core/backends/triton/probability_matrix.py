"""``probability_matrix``: see :mod:`gpm_core.backends.triton._square`."""

from __future__ import annotations

from torch import Tensor

from gpm_core.backends.triton._square import square, square_backward


def probability_matrix(v: Tensor, scale: Tensor | None, tau: float) -> Tensor:
    out = v.new_empty(*v.shape[:-1], v.shape[-2])
    square(v, scale, tau, out)
    return out


def probability_matrix_out(v: Tensor, scale: Tensor | None, tau: float, out: Tensor) -> None:
    square(v, scale, tau, out)


def probability_matrix_backward(
    grad: Tensor, v: Tensor, scale: Tensor | None, tau: float
) -> tuple[Tensor, Tensor | None]:
    return square_backward(grad, v, scale, tau)
