"""``cross_probability_matrix``: see :mod:`gpm_core.backends.triton._cross`."""

from __future__ import annotations

from torch import Tensor

from gpm_core.backends.triton._cross import cross, cross_backward


def cross_probability_matrix(a: Tensor, b: Tensor, scale: Tensor | None, tau: float) -> Tensor:
    out = a.new_empty(*a.shape[:-1], b.shape[-2])
    cross(a, b, scale, tau, out)
    return out


def cross_probability_matrix_out(
    a: Tensor, b: Tensor, scale: Tensor | None, tau: float, out: Tensor
) -> None:
    cross(a, b, scale, tau, out)


def cross_probability_matrix_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, tau: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    return cross_backward(grad, a, b, scale, tau)
