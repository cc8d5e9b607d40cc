"""``linear_logprob`` in plain PyTorch, a part of :mod:`gpm_core.backends.reference`."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor
from torch.nn import functional as F


def check_targets(target: Tensor, size: int, ignore_index: int) -> None:
    """Out-of-range targets raise on the CPU and fail a device assertion elsewhere."""
    valid = ((target >= 0) & (target < size)) | (target == ignore_index)
    if target.device.type != "cpu":
        torch._assert_async(valid.all())
    elif not valid.all():
        bad = target[~valid][0].item()
        raise IndexError(
            f"targets must lie in [0, {size}), the rows of weight, or be ignore_index = "
            f"{ignore_index}; got {bad}"
        )


def _without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """It would round the products to 16 bits."""
    device = x.device.type
    if torch.amp.is_autocast_available(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, softcap: float | None
) -> Tensor:
    """The capped and tempered logits, (..., V)."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    biases = None if bias is None else bias.to(wide)
    with _without_autocast(hidden):
        logits = F.linear(hidden.to(wide), weight.to(wide), biases)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits / temperature


def _entropy(log_probabilities: Tensor) -> Tensor:
    """-sum p log p (..., 1), to which an entry of probability zero adds nothing."""
    logs = torch.where(log_probabilities > -torch.inf, log_probabilities, 0)
    return -(log_probabilities.exp() * logs).sum(dim=-1, keepdim=True)


def linear_logprob(
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
    """``log_softmax`` and ``gather``; entropy where asked for; and what the backward pass is given.

    That is log sum exp of the logits (...) and, with ``frozen``, the gradient of each
    log-probability with respect to its row of hidden (..., H): only the incoming gradient of that
    number is missing, so nothing has to be computed again.
    """
    if not torch._C._are_functorch_transforms_active():
        check_targets(target, weight.shape[0], ignore_index)
    ignored = target == ignore_index
    hidden = hidden.masked_fill(ignored.unsqueeze(-1), 0)  # padding may be anything
    logits = _logits(hidden, weight, bias, temperature, softcap)
    log_probabilities = logits.log_softmax(dim=-1)
    index = torch.where(ignored, 0, target).unsqueeze(-1)
    logp = torch.where(ignored, 0, log_probabilities.gather(-1, index).squeeze(-1))
    absent, pulled = logp.new_empty(0), hidden.new_empty(0)
    if frozen:
        with torch.no_grad():
            one = torch.ones_like(logp)
            inputs = (hidden, weight, target, bias, temperature, softcap, ignore_index)
            gradient = _gradient_of_logits(one, None, *inputs)
            with _without_autocast(hidden):
                pulled = (gradient @ weight.to(gradient.dtype)).to(hidden.dtype)
    entropies = absent
    if entropy:
        entropies = torch.where(ignored, 0, _entropy(log_probabilities).squeeze(-1))
    return logp, entropies, logits.detach().logsumexp(dim=-1), pulled


def _gradient_of_logits(
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
) -> Tensor:
    """Gradient of hidden @ weight.T + bias (..., V).

    With p = softmax(logits): g (1[i = target] - p_i) of a log-probability and
    -g p_i (log p_i + entropy) of an entropy, times the slope of softcap and temperature.
    """
    logits = _logits(hidden, weight, bias, temperature, softcap)
    log_probabilities = logits.log_softmax(dim=-1)
    p = log_probabilities.exp()
    ignored = target == ignore_index
    grad = torch.zeros_like(p)
    if grad_logp is not None:
        grad_logp = torch.where(ignored, 0, grad_logp).unsqueeze(-1)
        index = torch.where(ignored, 0, target).unsqueeze(-1)
        grad = -grad_logp * p
        grad = grad.scatter_add(-1, index, grad_logp)
    if grad_entropy is not None:
        grad_entropy = torch.where(ignored, 0, grad_entropy).unsqueeze(-1)
        logs = torch.where(log_probabilities > -torch.inf, log_probabilities, 0)
        grad = grad - grad_entropy * p * (logs + _entropy(log_probabilities))
    if softcap is not None:
        grad = grad * (1 - (logits * temperature / softcap).square())
    return grad / temperature


def linear_logprob_backward(
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
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden (..., H), weight (V, H) and bias (V,).

    The forward pass's results save a kernel work; here they are computed again, since the saved
    ones would hide from PyTorch that they depend on hidden, weight and bias.
    """
    hidden = hidden.masked_fill((target == ignore_index).unsqueeze(-1), 0)
    inputs = (hidden, weight, target, bias, temperature, softcap, ignore_index)
    grad = _gradient_of_logits(grad_logp, grad_entropy, *inputs)
    rows = grad.reshape(-1, weight.shape[0])
    grad_hidden, grad_weight, grad_bias = None, None, None
    with _without_autocast(hidden):
        if output_mask[0]:
            grad_hidden = (grad @ weight.to(grad.dtype)).to(hidden.dtype)
        if output_mask[1]:
            hidden_rows = hidden.reshape(-1, hidden.shape[-1]).to(grad.dtype)
            grad_weight = (rows.transpose(0, 1) @ hidden_rows).to(weight.dtype)
    if output_mask[2]:
        grad_bias = rows.sum(dim=0).to(weight.dtype)
    return grad_hidden, grad_weight, grad_bias
