"""``preference_embedding``: from hidden states to the embedding that scores are made of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpm_core.backends.reference import accumulation_dtype
from gpm_core.ops import _checks
from gpm_core.ops._library import define, differentiable, pull


def _fake(
    hidden: Tensor,
    weight: Tensor,
    positions: Tensor | None,
    bias: Tensor | None,
    normalized: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    batch = hidden.shape[:-1] if positions is None else positions.shape
    shape = (*batch, weight.shape[0])
    if not normalized:
        return hidden.new_empty(shape), hidden.new_empty(0)
    return hidden.new_empty(shape), hidden.new_empty(shape, dtype=accumulation_dtype(hidden.dtype))


_forward = define(
    "preference_embedding(Tensor hidden, Tensor weight, Tensor? positions, Tensor? bias, "
    "bool normalized, float eps) -> (Tensor, Tensor)",
    fake=_fake,
    batched=(0, 2),
)


def _fake_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    positions: Tensor | None,
    bias: Tensor | None,
    projection: Tensor,
    normalized: bool,
    eps: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if output_mask[0] else 0),
        hidden.new_empty(weight.shape if output_mask[1] else 0),
        hidden.new_empty(weight.shape[0] if output_mask[2] else 0),
    )


_backward = define(
    "preference_embedding_backward(Tensor grad, Tensor hidden, Tensor weight, Tensor? positions, "
    "Tensor? bias, Tensor projection, bool normalized, float eps, bool[] output_mask) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    batched=(),
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.normalized, ctx.eps = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _pull(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 6
    mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3]]
    grads = pull(_backward, grad, *ctx.saved_tensors, ctx.normalized, ctx.eps, mask)
    hidden, weight, bias = (g if kept else None for g, kept in zip(grads, mask, strict=True))
    return hidden, weight, None, bias, None, None


_call = differentiable(_forward, save=_save, backward=_pull)


def _check_positions(positions: Any, hidden: Tensor) -> None:
    if not isinstance(positions, Tensor):
        raise TypeError(
            f"positions must be an integer torch.Tensor; got {type(positions).__name__}"
        )
    if positions.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"positions must be int64 or int32; got {positions.dtype}")
    if positions.device != hidden.device:
        raise RuntimeError(
            f"positions and hidden must be on the same device; got {positions.device} and "
            f"{hidden.device}"
        )
    if hidden.dim() < 2 or positions.shape != hidden.shape[:-2]:
        raise ValueError(
            "positions must have the batch shape of hidden (..., T, H), one token per sequence; "
            f"got positions {_checks.shape_of(positions)} and hidden {_checks.shape_of(hidden)}"
        )


def preference_embedding(
    hidden: Tensor,
    weight: Tensor,
    positions: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    normalize: bool = True,
    eps: float = 1e-12,
) -> Tensor:
    """Pick a token, project it and normalize: ``v = u / max(||u||, eps)``, ``u = W h + bias``.

    The preference embedding of arXiv 2410.02197, section 4. Reads B * H numbers of hidden states,
    never B * T * H: the tokens that are not picked are not projected.

    Args:
        hidden: (..., T, H) hidden states of all tokens with ``positions``, or (..., H) without;
            float64, float32, bfloat16 or float16.
        weight: (d, H), same dtype and device; ``value_head.weight``.
        positions: (...) index of the token that is read, in [0, T), int64 or int32; None to
            embed every row of ``hidden``.
        bias: (d,) or None, same dtype.
        normalize: whether to scale the embedding to unit length.
        eps: lower bound of the norm, finite and above zero.

    Returns:
        (..., d) in the dtype of ``hidden``; sums are taken in float32 at least and rounded once.
        Under autocast all inputs are cast as those of a linear layer.

    Raises:
        TypeError: if a tensor has an unsupported or a different dtype.
        ValueError: if shapes do not fit, or ``eps`` is out of range.
        IndexError: if a position is negative or not below T (on the CPU; a device assertion
            elsewhere).
        RuntimeError: if devices differ.

    Example:
        >>> hidden = torch.ones(2, 5, 3)
        >>> weight = torch.tensor([[1.0, 1.0, 1.0], [4.0, 0.0, 0.0]])
        >>> preference_embedding(hidden, weight, torch.tensor([4, 2]))
        tensor([[0.6000, 0.8000],
                [0.6000, 0.8000]])
    """
    hidden, weight, bias = _checks.lower_precision_under_autocast(hidden, weight, bias)
    _checks.check_tensor("hidden", hidden, least_dims=1, form="of shape (..., T, H) or (..., H)")
    _checks.check_tensor("weight", weight, least_dims=2, form="of shape (d, H)")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or 0 in weight.shape:
        raise ValueError(
            f"weight must be of shape (d, H) with H = {hidden.shape[-1]}, the last dimension of "
            f"hidden {_checks.shape_of(hidden)}; got shape {_checks.shape_of(weight)}"
        )
    _checks.check_same("weight", weight, "hidden", hidden)
    if bias is not None:
        _checks.check_tensor("bias", bias, least_dims=1, form="of shape (d,)")
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias must be of shape ({weight.shape[0]},); got {_checks.shape_of(bias)}"
            )
        _checks.check_same("bias", bias, "hidden", hidden)
    eps = _checks.check_positive("eps", eps, hidden, "It bounds the norm from below")
    if positions is not None:
        _check_positions(positions, hidden)
        positions = positions.long()
    result: Tensor = _call(hidden, weight, positions, bias, bool(normalize), eps)[0]
    return result
