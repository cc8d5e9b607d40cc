"""``cross_score_matrix``: see :mod:`gpm_core.backends.triton._cross`."""

from __future__ import annotations

from torch import Tensor

from gpm_core.backends.triton._cross import cross, cross_backward


def cross_score_matrix(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    out = a.new_empty(*a.shape[:-1], b.shape[-2])
    cross(a, b, scale, None, out)
    return out


def cross_score_matrix_out(a: Tensor, b: Tensor, scale: Tensor | None, out: Tensor) -> None:
    cross(a, b, scale, None, out)


def cross_score_matrix_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return cross_backward(grad, a, b, scale, None)
