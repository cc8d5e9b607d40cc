"""``normalize``: rows scaled to unit length."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gpm_core.ops import _checks
from gpm_core.ops._library import define, differentiable, pull

_forward = define(
    "normalize(Tensor x, float eps) -> Tensor",
    fake=lambda x, eps: x.new_empty(x.shape),
)
_backward = define(
    "normalize_backward(Tensor grad, Tensor x, float eps) -> Tensor",
    fake=lambda grad, x, eps: x.new_empty(x.shape),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.eps = inputs
    ctx.save_for_backward(x)


def _pull(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return pull(_backward, grad, x, ctx.eps), None


_call = differentiable(_forward, save=_save, backward=_pull)


def normalize(x: Tensor, *, eps: float = 1e-12) -> Tensor:
    """Scale every row to unit L2 length: ``x / max(||x||_2, eps)``.

    As :func:`torch.nn.functional.normalize`, in one pass forward and one backward. The norm is
    taken so that huge and tiny rows neither overflow nor vanish. A zero row stays zero and has a
    finite gradient.

    Args:
        x: (..., d), float64, float32, bfloat16 or float16, d >= 1.
        eps: lower bound of the norm, finite and above zero.

    Returns:
        (..., d), same dtype, rows of length 1 (or shorter where the norm is below ``eps``).

    Raises:
        TypeError: if ``x`` is not a floating-point tensor.
        ValueError: if ``x`` has no dimension or an empty last one, or ``eps`` is out of range.

    Example:
        >>> normalize(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    (x,) = _checks.float32_under_autocast(x)
    _checks.check_tensor("x", x, least_dims=1, form="of shape (..., d)")
    if x.shape[-1] == 0:
        raise ValueError(f"x must have a last dimension d >= 1; got shape {_checks.shape_of(x)}")
    eps = _checks.check_positive("eps", eps, x, "It bounds the norm from below")
    result: Tensor = _call(x, eps)
    return result
