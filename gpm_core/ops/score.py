"""``score``: the skew-symmetric score of pairs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gpm_core.ops import _checks
from gpm_core.ops._library import define, differentiable, pull

_forward = define(
    "score(Tensor a, Tensor b, Tensor? scale) -> Tensor",
    fake=lambda a, b, scale: a.new_empty(a.shape[:-1]),
)


def _fake_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        a.new_empty(a.shape),
        b.new_empty(b.shape),
        a.new_empty(0 if scale is None else scale.shape),
    )


_backward = define(
    "score_backward(Tensor grad, Tensor a, Tensor b, Tensor? scale) -> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _pull(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    a, b, scale = ctx.saved_tensors
    grads = pull(_backward, grad, a, b, scale)
    return grads[0], grads[1], None if scale is None else grads[2]


_call = differentiable(_forward, save=_save, backward=_pull)


def score(a: Tensor, b: Tensor, scale: Tensor | None = None) -> Tensor:
    """Preference score of ``a`` over ``b``, ``s(a > b) = <R a, b>``.

    ``s(a > b) = sum_l scale_l * (a[2l] * b[2l+1] - a[2l+1] * b[2l])`` (arXiv 2410.02197, section 4;
    the sign is that of the published checkpoints). ``score(a, b) == -score(b, a)`` bitwise and
    ``score(a, a) == 0`` exactly, in every dtype.

    Args:
        a: (..., d) preference embeddings, even d, float64, float32, bfloat16 or float16.
        b: (..., d), same dtype and device; leading dimensions broadcast against those of ``a``.
        scale: (..., k) weight of each of the k = d / 2 blocks, or None for 1; same dtype;
            broadcasts to the batch (one gate per prompt).

    Returns:
        (...) scores in the inputs' dtype, accumulated in float32 at least.

    Raises:
        TypeError: if a tensor has an unsupported or a different dtype.
        ValueError: if the width is odd, or shapes do not fit.
        RuntimeError: if devices differ.

    Example:
        >>> rock, paper = torch.tensor([1.0, 0.0]), torch.tensor([-0.5, -0.75**0.5])
        >>> score(paper, rock)
        tensor(0.8660)
    """
    a, b, scale = _checks.float32_under_autocast(a, b, scale)
    _checks.check_embedding("a", a, least_dims=1, form="of shape (..., d)")
    _checks.check_embedding("b", b, least_dims=1, form="of shape (..., d)")
    _checks.check_same("b", b, "a", a)
    _checks.check_width("a", a, "b", b)
    batches = {"a": a.shape[:-1], "b": b.shape[:-1]}
    if isinstance(scale, Tensor) and scale.dim() > 0:
        batches["scale"] = scale.shape[:-1]
    batch = _checks.broadcast_batch(**batches)
    scale = _checks.expand_scale(scale, "a", a, batch)
    if a.shape[:-1] != batch:
        a = a.expand(*batch, a.shape[-1])
    if b.shape[:-1] != batch:
        b = b.expand(*batch, b.shape[-1])
    result: Tensor = _call(a, b, scale)
    return result
