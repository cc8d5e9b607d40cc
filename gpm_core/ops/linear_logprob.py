"""``linear_logprob``: log-probabilities of target tokens without the logits of the vocabulary."""

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
    target: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    entropy: bool,
    frozen: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = accumulation_dtype(hidden.dtype)
    return (
        hidden.new_empty(target.shape, dtype=wide),
        hidden.new_empty(target.shape if entropy else 0, dtype=wide),
        hidden.new_empty(target.shape, dtype=wide),
        hidden.new_empty(hidden.shape if frozen else 0),
    )


_forward = define(
    "linear_logprob(Tensor hidden, Tensor weight, Tensor target, Tensor? bias, float temperature, "
    "float? softcap, int ignore_index, bool entropy, bool frozen) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    fake=_fake,
    batched=(0, 2),
)


def _fake_backward(
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    logp: Tensor,
    entropy: Tensor | None,
    logsumexp: Tensor,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty(hidden.shape if output_mask[0] else 0),
        hidden.new_empty(weight.shape if output_mask[1] else 0),
        hidden.new_empty(weight.shape[0] if output_mask[2] else 0),
    )


_backward = define(
    "linear_logprob_backward(Tensor? grad_logp, Tensor? grad_entropy, Tensor hidden, "
    "Tensor weight, Tensor target, Tensor? bias, Tensor logp, Tensor? entropy, Tensor logsumexp, "
    "float temperature, float? softcap, int ignore_index, bool[] output_mask) "
    "-> (Tensor, Tensor, Tensor)",
    fake=_fake_backward,
    batched=(),
    decided_by=2,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
    hidden, weight, target, bias, *ctx.options, entropy, ctx.frozen = inputs
    constants = output[2:] if entropy else output[1:]
    ctx.mark_non_differentiable(*(part for part in constants if part is not None))
    ctx.save_for_backward(hidden, weight, target, bias, *output)


def _pull(ctx: Any, grad_logp: Tensor | None, grad_entropy: Tensor | None, *_: Any) -> Any:
    *saved, pulled = ctx.saved_tensors
    mask = [ctx.needs_input_grad[i] for i in (0, 1, 3)]
    if grad_entropy is not None and not grad_entropy.numel():
        grad_entropy = None
    if grad_logp is None and grad_entropy is None:
        return (None,) * 9
    # A gradient that will be differentiated again must show how it depends on hidden.
    formed = ctx.frozen and mask == [True, False, False] and not torch.is_grad_enabled()
    if formed and grad_logp is not None and grad_entropy is None:
        return ((grad_logp.unsqueeze(-1) * pulled).to(pulled.dtype), *(None,) * 8)
    grads = pull(_backward, grad_logp, grad_entropy, *saved, *ctx.options, mask)
    hidden, weight, bias = (g if kept else None for g, kept in zip(grads, mask, strict=True))
    return hidden, weight, None, bias, None, None, None, None, None


_call = differentiable(_forward, save=_save, backward=_pull)


def _check_target(target: Any, hidden: Tensor) -> None:
    if not isinstance(target, Tensor):
        raise TypeError(f"target must be an integer torch.Tensor; got {type(target).__name__}")
    if target.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"target must be int64 or int32; got {target.dtype}")
    if target.device != hidden.device:
        raise RuntimeError(
            f"target and hidden must be on the same device; got {target.device} and {hidden.device}"
        )
    if target.shape != hidden.shape[:-1]:
        raise ValueError(
            "target must have the leading dimensions of hidden (..., H), one token each; got "
            f"target {_checks.shape_of(target)} and hidden {_checks.shape_of(hidden)}"
        )


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probabilities of target tokens, from hidden states and the output projection.

    ``log softmax(z)[target]`` with ``z = c tanh((W h + bias) / c) / temperature`` (without softcap
    c: ``z = (W h + bias) / temperature``). The logits (..., V), the largest tensor of training a
    language model, are never there as a whole: chunks of them are computed, reduced and forgotten,
    in the backward pass once more. Where only ``hidden`` needs a gradient (a frozen projection, as
    under LoRA) its gradient ``g (W[target] - sum_i p_i W_i)`` is formed on the way, up to the
    factor g, and nothing is computed twice.

    Args:
        hidden: (..., H) hidden states after the last normalization, one per token that is
            predicted; float64, float32, bfloat16 or float16.
        weight: (V, H) of the output projection (``lm_head.weight``), same dtype and device.
        target: (...) int64 or int32, the token that follows, in [0, V), or ``ignore_index``.
        bias: (V,) or None, same dtype. An entry of -inf excludes that token (without softcap).
        temperature: logits are divided by it last; finite and above zero.
        softcap: c above, the bound of the logits' magnitude (Gemma 2: 30), or None.
        ignore_index: a target that counts as no token: its log-probability and entropy are 0 and
            nothing flows back from it. On the CPU such rows are not computed at all.
        entropy: whether to return the entropy of the distribution over the vocabulary, too.

    Returns:
        (...) log-probabilities <= 0; with ``entropy`` a tuple of them and entropies (...) in nats;
        float64 for float64 inputs, float32 for all others. Both are differentiable with respect
        to hidden, weight and bias. Logits are formed and summed in float32 at least, whatever the
        inputs. Under autocast inputs are cast as those of a linear layer.

    Raises:
        TypeError: if a tensor has an unsupported or a different dtype.
        ValueError: if shapes do not fit, or temperature or softcap is out of range.
        IndexError: if a target is neither in [0, V) nor ``ignore_index`` (on the CPU; a device
            assertion elsewhere).
        RuntimeError: if devices differ.

    Example:
        >>> hidden, weight = torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> linear_logprob(hidden, weight, torch.tensor([0]))
        tensor([-0.1269])
    """
    hidden, weight, bias = _checks.lower_precision_under_autocast(hidden, weight, bias)
    _checks.check_tensor("hidden", hidden, least_dims=1, form="of shape (..., H)")
    _checks.check_tensor("weight", weight, least_dims=2, form="of shape (V, H)")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1] or 0 in weight.shape:
        raise ValueError(
            f"weight must be of shape (V, H) with H = {hidden.shape[-1]}, the last dimension of "
            f"hidden {_checks.shape_of(hidden)}; got shape {_checks.shape_of(weight)}"
        )
    _checks.check_same("weight", weight, "hidden", hidden)
    if bias is not None:
        _checks.check_tensor("bias", bias, least_dims=1, form="of shape (V,)")
        if bias.shape != weight.shape[:1]:
            raise ValueError(
                f"bias must be of shape ({weight.shape[0]},); got {_checks.shape_of(bias)}"
            )
        _checks.check_same("bias", bias, "hidden", hidden)
    _check_target(target, hidden)
    temperature = _checks.check_positive(
        "temperature", temperature, hidden, "Logits are divided by it; 1 leaves them as they are"
    )
    if softcap is not None:
        softcap = _checks.check_positive(
            "softcap", softcap, hidden, "It bounds the logits; None leaves them unbounded"
        )
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index must be an int; got {type(ignore_index).__name__}")
    frozen = (
        torch.is_grad_enabled()
        and hidden.requires_grad
        and not weight.requires_grad
        and not (bias is not None and bias.requires_grad)
    )
    options = (temperature, softcap, ignore_index, bool(entropy), frozen)
    logp, entropies, _, _ = _call(hidden, weight, target.long(), bias, *options)
    return (logp, entropies) if entropy else logp
