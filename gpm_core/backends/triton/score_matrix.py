"""``score_matrix``: see :mod:`gpm_core.backends.triton._square`."""

from __future__ import annotations

from torch import Tensor

from gpm_core.backends.triton._square import square, square_backward


def score_matrix(v: Tensor, scale: Tensor | None) -> Tensor:
    out = v.new_empty(*v.shape[:-1], v.shape[-2])
    square(v, scale, None, out)
    return out


def score_matrix_out(v: Tensor, scale: Tensor | None, out: Tensor) -> None:
    square(v, scale, None, out)


def score_matrix_backward(
    grad: Tensor, v: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    return square_backward(grad, v, scale, None)
