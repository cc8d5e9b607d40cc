"""``cross_probability_matrix``: the preference probabilities of all pairs between two sets."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gpm_core.ops import _checks
from gpm_core.ops._library import define, define_out, differentiable, pull
from gpm_core.ops.cross_score_matrix import check_cross, cross_shape, fake_cross_backward

_forward = define(
    "cross_probability_matrix(Tensor a, Tensor b, Tensor? scale, float tau) -> Tensor",
    fake=lambda a, b, scale, tau: a.new_empty(cross_shape(a, b)),
)
_backward = define(
    "cross_probability_matrix_backward(Tensor grad, Tensor a, Tensor b, Tensor? scale, float tau) "
    "-> (Tensor, Tensor, Tensor)",
    fake=fake_cross_backward,
)
_into = define_out(
    "cross_probability_matrix_out(Tensor a, Tensor b, Tensor? scale, float tau, Tensor(a!) out) "
    "-> ()"
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, scale, ctx.tau = inputs
    ctx.save_for_backward(a, b, scale)


def _pull(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, scale = ctx.saved_tensors
    grads = pull(_backward, grad, a, b, scale, ctx.tau)
    return grads[0], grads[1], None if scale is None else grads[2], None


_call = differentiable(_forward, save=_save, backward=_pull)


def cross_probability_matrix(
    a: Tensor,
    b: Tensor,
    scale: Tensor | None = None,
    *,
    tau: float = 0.1,
    out: Tensor | None = None,
) -> Tensor:
    """Probabilities of all pairs between two sets, ``P[m, n] = sigmoid(s(a_m > b_n) / tau)``.

    ``cross_probability_matrix(a, b) + cross_probability_matrix(b, a).T == 1``, exactly where
    compiled kernels compute it, and small probabilities keep their relative accuracy. Scores are
    as in :func:`gpm_core.ops.cross_score_matrix`; the sigmoid is part of the same pass.

    Args:
        a: (..., M, d) preference embeddings, even d, float64, float32, bfloat16 or float16.
        b: (..., N, d), same dtype and device; leading dimensions broadcast against those of ``a``.
        scale: (..., k) weight of each block, one per batch entry, or None; same dtype.
        tau: temperature, finite and above zero; 0.1 is the default of arXiv 2410.02197 for
            embeddings of unit length.
        out: (..., M, N), same dtype and device, to be overwritten; only without gradients.

    Returns:
        (..., M, N) in [0, 1], in the inputs' dtype; ``out`` where given.

    Raises:
        TypeError: if a tensor has an unsupported or a different dtype.
        ValueError: if the width is odd, shapes do not fit, or tau <= 0.
        RuntimeError: if devices differ, or gradients are needed with ``out``.

    Example:
        >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> cross_probability_matrix(a, b, tau=1.0)
        tensor([[0.7311, 0.5000]])
    """
    a, b, scale = check_cross(a, b, scale)
    tau = _checks.check_tau(tau, a)
    if out is not None:
        _checks.check_out(out, cross_shape(a, b), "a", a, (a, b, scale))
        _into(a, b, scale, tau, out)
        return out
    result: Tensor = _call(a, b, scale, tau)
    return result
