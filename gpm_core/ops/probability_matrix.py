"""``probability_matrix``: the preference probabilities of all pairs of a set."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gpm_core.ops import _checks
from gpm_core.ops._library import define, define_out, differentiable, pull
from gpm_core.ops.score_matrix import check_square, fake_square_backward, square_shape

_forward = define(
    "probability_matrix(Tensor v, Tensor? scale, float tau) -> Tensor",
    fake=lambda v, scale, tau: v.new_empty(square_shape(v)),
)
_backward = define(
    "probability_matrix_backward(Tensor grad, Tensor v, Tensor? scale, float tau) "
    "-> (Tensor, Tensor)",
    fake=fake_square_backward,
)
_into = define_out(
    "probability_matrix_out(Tensor v, Tensor? scale, float tau, Tensor(a!) out) -> ()"
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    v, scale, ctx.tau = inputs
    ctx.save_for_backward(v, scale)


def _pull(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    v, scale = ctx.saved_tensors
    grads = pull(_backward, grad, v, scale, ctx.tau)
    return grads[0], None if scale is None else grads[1], None


_call = differentiable(_forward, save=_save, backward=_pull)


def probability_matrix(
    v: Tensor, scale: Tensor | None = None, *, tau: float = 0.1, out: Tensor | None = None
) -> Tensor:
    """Probabilities of all pairs, ``P[i, j] = P(i > j) = sigmoid(s(v_i > v_j) / tau)``.

    ``P + P.T == 1`` exactly in floating point, the diagonal is 0.5, and small probabilities keep
    their relative accuracy: the smaller of the two is computed, the larger is its complement.
    Scores are as in :func:`gpm_core.ops.score_matrix`; the sigmoid is part of the same pass.

    Args:
        v: (..., K, d) preference embeddings of K responses, even d, float64, float32, bfloat16 or
            float16; K may be 0 or 1.
        scale: (..., k) weight of each block, one per batch entry (the prompt's gate), or None;
            same dtype; broadcasts to the leading dimensions of ``v``.
        tau: temperature, finite and above zero; 0.1 is the default of arXiv 2410.02197 for
            embeddings of unit length.
        out: (..., K, K), same dtype and device, to be overwritten; only without gradients.

    Returns:
        (..., K, K) in [0, 1], in the dtype of ``v``; ``out`` where given.

    Raises:
        TypeError: if a tensor has an unsupported or a different dtype.
        ValueError: if the width is odd, shapes do not fit, or tau <= 0.
        RuntimeError: if devices differ, or gradients are needed with ``out``.

    Example:
        >>> probability_matrix(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), tau=1.0)
        tensor([[0.5000, 0.7311],
                [0.2689, 0.5000]])
    """
    v, scale = check_square(v, scale)
    tau = _checks.check_tau(tau, v)
    if out is not None:
        _checks.check_out(out, square_shape(v), "v", v, (v, scale))
        _into(v, scale, tau, out)
        return out
    result: Tensor = _call(v, scale, tau)
    return result
