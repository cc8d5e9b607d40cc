"""``score_matrix``: the scores of all pairs of a set."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gpm_core.ops import _checks
from gpm_core.ops._library import define, define_out, differentiable, pull


def square_shape(v: Tensor) -> tuple[int, ...]:
    """(..., K, d) -> (..., K, K)."""
    return (*v.shape[:-1], v.shape[-2])


def fake_square_backward(
    grad: Tensor, v: Tensor, scale: Tensor | None, *others: Any
) -> tuple[Tensor, Tensor]:
    """Gradients of v and of the scale."""
    return v.new_empty(v.shape), v.new_empty(0 if scale is None else scale.shape)


_forward = define(
    "score_matrix(Tensor v, Tensor? scale) -> Tensor",
    fake=lambda v, scale: v.new_empty(square_shape(v)),
)
_backward = define(
    "score_matrix_backward(Tensor grad, Tensor v, Tensor? scale) -> (Tensor, Tensor)",
    fake=fake_square_backward,
)
_into = define_out("score_matrix_out(Tensor v, Tensor? scale, Tensor(a!) out) -> ()")


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pull(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    v, scale = ctx.saved_tensors
    grads = pull(_backward, grad, v, scale)
    return grads[0], None if scale is None else grads[1]


_call = differentiable(_forward, save=_save, backward=_pull)


def check_square(v: Any, scale: Any) -> tuple[Tensor, Tensor | None]:
    """Inputs of the square matrices, checked and expanded."""
    v, scale = _checks.float32_under_autocast(v, scale)
    _checks.check_embedding("v", v, least_dims=2, form="of shape (..., K, d)")
    return v, _checks.expand_scale(scale, "v", v, v.shape[:-2])


def score_matrix(v: Tensor, scale: Tensor | None = None, *, out: Tensor | None = None) -> Tensor:
    """Scores of all pairs, ``S[i, j] = s(v_i > v_j)``.

    ``S == -S.T`` bitwise with a zero diagonal: half the pairs are computed, both triangles written
    once. The score is that of :func:`gpm_core.ops.score` (arXiv 2410.02197, section 4).

    Args:
        v: (..., K, d) preference embeddings of K responses, even d, float64, float32, bfloat16 or
            float16; K may be 0 or 1.
        scale: (..., k) weight of each block, one per batch entry (the prompt's gate), or None;
            same dtype; broadcasts to the leading dimensions of ``v``.
        out: (..., K, K), same dtype and device, to be overwritten; only without gradients.

    Returns:
        (..., K, K) in the dtype of ``v``; ``out`` where given.

    Raises:
        TypeError: if a tensor has an unsupported or a different dtype.
        ValueError: if the width is odd, or shapes do not fit.
        RuntimeError: if devices differ, or gradients are needed with ``out``.

    Example:
        >>> score_matrix(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    v, scale = check_square(v, scale)
    if out is not None:
        _checks.check_out(out, square_shape(v), "v", v, (v, scale))
        _into(v, scale, out)
        return out
    result: Tensor = _call(v, scale)
    return result
