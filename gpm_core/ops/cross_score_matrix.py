"""``cross_score_matrix``: the scores of all pairs between two sets."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gpm_core.ops import _checks
from gpm_core.ops._library import define, define_out, differentiable, pull


def cross_shape(a: Tensor, b: Tensor) -> tuple[int, ...]:
    """(..., M, d), (..., N, d) -> (..., M, N)."""
    return (*a.shape[:-1], b.shape[-2])


def fake_cross_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and of the scale."""
    grad_scale = a.new_empty(0 if scale is None else scale.shape)
    return a.new_empty(a.shape), b.new_empty(b.shape), grad_scale


_forward = define(
    "cross_score_matrix(Tensor a, Tensor b, Tensor? scale) -> Tensor",
    fake=lambda a, b, scale: a.new_empty(cross_shape(a, b)),
)
_backward = define(
    "cross_score_matrix_backward(Tensor grad, Tensor a, Tensor b, Tensor? scale) "
    "-> (Tensor, Tensor, Tensor)",
    fake=fake_cross_backward,
)
_into = define_out(
    "cross_score_matrix_out(Tensor a, Tensor b, Tensor? scale, Tensor(a!) out) -> ()"
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pull(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, scale = ctx.saved_tensors
    grads = pull(_backward, grad, a, b, scale)
    return grads[0], grads[1], None if scale is None else grads[2]


_call = differentiable(_forward, save=_save, backward=_pull)


def check_cross(a: Any, b: Any, scale: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Inputs of the rectangular matrices, checked and expanded to one batch."""
    a, b, scale = _checks.float32_under_autocast(a, b, scale)
    _checks.check_embedding("a", a, least_dims=2, form="of shape (..., M, d)")
    _checks.check_embedding("b", b, least_dims=2, form="of shape (..., N, d)")
    _checks.check_same("b", b, "a", a)
    _checks.check_width("a", a, "b", b)
    batch = _checks.broadcast_batch(a=a.shape[:-2], b=b.shape[:-2])
    if a.shape[:-2] != batch:
        a = a.expand(*batch, *a.shape[-2:])
    if b.shape[:-2] != batch:
        b = b.expand(*batch, *b.shape[-2:])
    return a, b, _checks.expand_scale(scale, "a", a, batch)


def cross_score_matrix(
    a: Tensor, b: Tensor, scale: Tensor | None = None, *, out: Tensor | None = None
) -> Tensor:
    """Scores of all pairs between two sets, ``S[m, n] = s(a_m > b_n)``.

    ``cross_score_matrix(a, b) == -cross_score_matrix(b, a).T`` bitwise. The score is that of
    :func:`gpm_core.ops.score` (arXiv 2410.02197, section 4).

    Args:
        a: (..., M, d) preference embeddings, even d, float64, float32, bfloat16 or float16.
        b: (..., N, d), same dtype and device; leading dimensions broadcast against those of ``a``.
        scale: (..., k) weight of each block, one per batch entry, or None; same dtype.
        out: (..., M, N), same dtype and device, to be overwritten; only without gradients.

    Returns:
        (..., M, N) in the inputs' dtype; ``out`` where given.

    Raises:
        TypeError: if a tensor has an unsupported or a different dtype.
        ValueError: if the width is odd, or shapes do not fit.
        RuntimeError: if devices differ, or gradients are needed with ``out``.

    Example:
        >>> cross_score_matrix(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        tensor([[1., 0.]])
    """
    a, b, scale = check_cross(a, b, scale)
    if out is not None:
        _checks.check_out(out, cross_shape(a, b), "a", a, (a, b, scale))
        _into(a, b, scale, out)
        return out
    result: Tensor = _call(a, b, scale)
    return result
