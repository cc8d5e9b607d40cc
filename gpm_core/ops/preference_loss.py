"""``preference_loss``: the training loss of a preference model, fused."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from gpm_core.backends.reference import accumulation_dtype
from gpm_core.ops import _checks
from gpm_core.ops._library import define, differentiable, pull


def _fake(chosen: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    wide = accumulation_dtype(chosen.dtype)
    batch = chosen.shape[:-1]
    return chosen.new_empty(batch, dtype=wide), chosen.new_empty(batch, dtype=wide)


_forward = define(
    "preference_loss(Tensor chosen, Tensor rejected, Tensor? scale, Tensor? margin, "
    "Tensor? target, float tau) -> (Tensor, Tensor)",
    fake=_fake,
)


def _fake_backward(
    grad_loss: Tensor | None,
    grad_probability: Tensor | None,
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None,
    margin: Tensor | None,
    target: Tensor | None,
    tau: float,
) -> tuple[Tensor, ...]:
    wide = accumulation_dtype(chosen.dtype)
    batch = chosen.shape[:-1]
    return (
        chosen.new_empty(chosen.shape),
        rejected.new_empty(rejected.shape),
        chosen.new_empty(0 if scale is None else scale.shape),
        chosen.new_empty(0) if margin is None else chosen.new_empty(batch, dtype=wide),
        chosen.new_empty(0) if target is None else chosen.new_empty(batch, dtype=wide),
    )


_backward = define(
    "preference_loss_backward(Tensor? grad_loss, Tensor? grad_probability, Tensor chosen, "
    "Tensor rejected, Tensor? scale, Tensor? margin, Tensor? target, float tau) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    decided_by=2,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.tau = inputs
    ctx.save_for_backward(*tensors)


def _pull(
    ctx: Any, grad_loss: Tensor | None, grad_probability: Tensor | None
) -> tuple[Tensor | None, ...]:
    chosen, rejected, scale, margin, target = ctx.saved_tensors
    grads = pull(
        _backward, grad_loss, grad_probability, chosen, rejected, scale, margin, target, ctx.tau
    )
    return (
        grads[0],
        grads[1],
        None if scale is None else grads[2],
        None if margin is None else grads[3],
        None if target is None else grads[4],
        None,
    )


_call = differentiable(_forward, save=_save, backward=_pull)


def per_pair(name: str, value: Any, chosen: Tensor) -> Tensor | None:
    """A margin or target as a tensor of one number per pair, in the accumulation dtype."""
    if value is None:
        return None
    wide = accumulation_dtype(chosen.dtype)
    batch = chosen.shape[:-1]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite; got {value}")
        if name == "target" and not 0 <= value <= 1:
            raise ValueError(f"target is a probability and must be in [0, 1]; got {value}")
        return chosen.new_full(batch, value, dtype=wide)
    _checks.check_tensor(name, value, least_dims=0, form="of one number per pair")
    if value.shape != batch and value.dim() != 0:
        raise ValueError(
            f"{name} must have one number per pair, shape {tuple(batch)}, or be a single number; "
            f"got shape {_checks.shape_of(value)}. It is not broadcast: (B, 1) against (B,) "
            "would make B x B pairs"
        )
    if value.device != chosen.device:
        raise RuntimeError(
            f"{name} and chosen must be on the same device; got {value.device} and {chosen.device}"
        )
    return value.to(wide).expand(batch)


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    scale: Tensor | None = None,
    margin: Tensor | float | None = None,
    target: Tensor | float | None = None,
    tau: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the preference probability of each pair, and that probability.

    With ``z = (s(chosen > rejected) - margin) / tau`` and target probability p:
    ``loss = -p log sigmoid(z) - (1 - p) log sigmoid(-z)``, ``probability = sigmoid(z)``
    (arXiv 2410.02197, section 4). Score, margin, temperature, log-sigmoid and, in the backward
    pass, all their gradients are one pass each over the embeddings.

    Args:
        chosen: (..., d) preference embeddings, even d, float64, float32, bfloat16 or float16.
        rejected: (..., d), same shape, dtype and device.
        scale: (..., k) weight of each block, or None; same dtype; broadcasts to the batch.
        margin: what the score must exceed, in units of the score: (...) or a single number.
        target: probability that ``chosen`` is really preferred, in [0, 1] (soft labels, label
            smoothing); (...) or a single number. None means 1.
        tau: temperature, finite and above zero.

    Returns:
        loss (...) >= 0 and probability (...) in [0, 1], per pair; float64 for float64 inputs,
        float32 for all others. Gradients flow through both, to the embeddings and to scale,
        margin and target.

    Raises:
        TypeError: if a tensor has an unsupported or a different dtype.
        ValueError: if shapes do not fit (margin and target are never broadcast), or tau <= 0.
        RuntimeError: if devices differ.

    Example:
        >>> chosen, rejected = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> preference_loss(chosen, rejected, tau=1.0)
        (tensor([0.3133]), tensor([0.7311]))
    """
    chosen, rejected, scale = _checks.float32_under_autocast(chosen, rejected, scale)
    _checks.check_embedding("chosen", chosen, least_dims=1, form="of shape (..., d)")
    _checks.check_embedding("rejected", rejected, least_dims=1, form="of shape (..., d)")
    _checks.check_same("rejected", rejected, "chosen", chosen)
    if chosen.shape != rejected.shape:
        raise ValueError(
            "chosen and rejected must have the same shape (..., d); got "
            f"{_checks.shape_of(chosen)} and {_checks.shape_of(rejected)}"
        )
    tau = _checks.check_tau(tau, chosen)
    scale = _checks.expand_scale(scale, "chosen", chosen, chosen.shape[:-1])
    margin = per_pair("margin", margin, chosen)
    target = per_pair("target", target, chosen)
    result: tuple[Tensor, Tensor] = _call(chosen, rejected, scale, margin, target, tau)
    return result
