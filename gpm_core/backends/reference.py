"""The mathematics in plain PyTorch: the specification, and the oracle of every test.

Every function computes in float32 at least (float64 for float64) and can be differentiated by
PyTorch, so that higher derivatives of the fused kernels come from here. Signatures are those of the
schemas in :mod:`gpm_core.ops`; a gradient that is absent, or not asked for, is None.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gpm_core.backends._reference_linear_logprob import linear_logprob as linear_logprob
from gpm_core.backends._reference_linear_logprob import (
    linear_logprob_backward as linear_logprob_backward,
)


def why_not(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Plain PyTorch computes everything everywhere."""
    return None


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are taken in: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _blocks(v: Tensor) -> tuple[Tensor, Tensor]:
    """The two coordinates of each block, (..., k) each, in the accumulation dtype."""
    v = v.to(accumulation_dtype(v.dtype))
    return v[..., 0::2], v[..., 1::2]


def _interleave(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.stack((x, y), dim=-1).flatten(-2).to(dtype)


def _rows(scale: Tensor | None) -> Tensor | float:
    """A scale (..., k) as a factor of (..., K, k)."""
    return 1.0 if scale is None else scale.unsqueeze(-2).to(accumulation_dtype(scale.dtype))


# -- normalize ---------------------------------------------------------------------------------


def _norm(x: Tensor) -> Tensor:
    """L2 norm over the last axis, (..., 1), safe from overflow, with gradient zero at zero.

    Dividing by the largest magnitude first keeps the squares of huge and of tiny rows in range.
    """
    largest = x.detach().abs().amax(dim=-1, keepdim=True)
    unit = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return torch.linalg.vector_norm(x / unit, dim=-1, keepdim=True) * unit


def normalize(x: Tensor, eps: float) -> Tensor:
    """V / max(||v||_2, eps), as ``torch.nn.functional.normalize``."""
    if x.numel() == 0:
        return torch.empty_like(x)
    wide = x.to(accumulation_dtype(x.dtype))
    return (wide / _norm(wide).clamp_min(eps)).to(x.dtype)


def normalize_backward(grad: Tensor, x: Tensor, eps: float) -> Tensor:
    """(g - u <u, g>) / ||x|| with u = x / ||x||; g / eps where the norm is below eps."""
    if x.numel() == 0:
        return torch.empty_like(x)
    wide, grad = x.to(accumulation_dtype(x.dtype)), grad.to(accumulation_dtype(x.dtype))
    norm = _norm(wide)
    unit = wide / norm.clamp_min(eps)
    radial = torch.where(norm > eps, (unit * grad).sum(dim=-1, keepdim=True), 0.0)
    return ((grad - unit * radial) / norm.clamp_min(eps)).to(x.dtype)


# -- preference_embedding ----------------------------------------------------------------------


def select(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """The hidden states that are read: (..., T, H) at positions (...) -> (..., H)."""
    if positions is None:
        return hidden
    index = positions[..., None, None].expand(*positions.shape, 1, hidden.shape[-1])
    return hidden.gather(-2, index).squeeze(-2)


def check_positions(positions: Tensor, length: int) -> None:
    """Out-of-range positions raise on the CPU and fail a device assertion elsewhere."""
    valid = (positions >= 0) & (positions < length)
    if positions.device.type != "cpu":
        torch._assert_async(valid.all())
    elif not valid.all():
        bad = positions[~valid][0].item()
        raise IndexError(
            f"positions must lie in [0, {length}) for hidden of length {length}; got {bad}"
        )


def _project(
    hidden: Tensor, weight: Tensor, positions: Tensor | None, bias: Tensor | None
) -> Tensor:
    wide = accumulation_dtype(hidden.dtype)
    return F.linear(
        select(hidden, positions).to(wide), weight.to(wide), None if bias is None else bias.to(wide)
    )


def preference_embedding(
    hidden: Tensor,
    weight: Tensor,
    positions: Tensor | None,
    bias: Tensor | None,
    normalized: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Embedding (..., d) and, when normalized, the projection before it for the backward pass."""
    if positions is not None and not torch._C._are_functorch_transforms_active():
        check_positions(positions, hidden.shape[-2])
    projection = _project(hidden, weight, positions, bias)
    if not normalized:
        return projection.to(hidden.dtype, copy=True), projection.new_empty(0)
    return normalize(projection, eps).to(hidden.dtype, copy=True), projection


def preference_embedding_backward(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    positions: Tensor | None,
    bias: Tensor | None,
    projection: Tensor,
    normalized: bool,
    eps: float,
    output_mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of hidden (..., T, H) or (..., H), weight (d, H) and bias (d,).

    The forward pass's projection saves a kernel the work; here it is computed again, since the
    saved one would hide from PyTorch that it depends on hidden, weight and bias.
    """
    wide = accumulation_dtype(weight.dtype)
    grad = grad.to(wide)
    if normalized:
        grad = normalize_backward(grad, _project(hidden, weight, positions, bias), eps)
    grad_hidden, grad_weight, grad_bias = None, None, None
    if output_mask[0]:
        grad_hidden = (grad @ weight.to(wide)).to(weight.dtype)
        if positions is not None:
            index = positions[..., None, None].expand(*positions.shape, 1, weight.shape[-1])
            zeros = grad_hidden.new_zeros(hidden.shape)
            grad_hidden = zeros.scatter(-2, index, grad_hidden.unsqueeze(-2))
    rows = grad.reshape(-1, weight.shape[0])
    if output_mask[1]:
        selected = select(hidden, positions).reshape(-1, weight.shape[-1]).to(wide)
        grad_weight = (rows.transpose(0, 1) @ selected).to(weight.dtype)
    if output_mask[2]:
        grad_bias = rows.sum(dim=0).to(weight.dtype)
    return grad_hidden, grad_weight, grad_bias


# -- score -------------------------------------------------------------------------------------


def _wide_score(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    (xa, ya), (xb, yb) = _blocks(a), _blocks(b)
    blocks = xa * yb - ya * xb
    if scale is not None:
        blocks = blocks * scale.to(blocks.dtype)
    return blocks.sum(dim=-1)


def score(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    """sum_l scale_l (a[2l] b[2l+1] - a[2l+1] b[2l])."""
    return _wide_score(a, b, scale).to(a.dtype, copy=True)


def score_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a, b (..., d) and of the scale (..., k)."""
    (xa, ya), (xb, yb) = _blocks(a), _blocks(b)
    grad = grad.to(xa.dtype).unsqueeze(-1)
    if scale is None:
        weighted, grad_scale = grad, None
    else:
        weighted = grad * scale.to(xa.dtype)
        grad_scale = (grad * (xa * yb - ya * xb)).to(scale.dtype)
    grad_a = _interleave(weighted * yb, -weighted * xb, a.dtype)
    grad_b = _interleave(-weighted * ya, weighted * xa, b.dtype)
    return grad_a, grad_b, grad_scale


# -- preference_loss ---------------------------------------------------------------------------


def _logit(
    chosen: Tensor, rejected: Tensor, scale: Tensor | None, margin: Tensor | None, tau: float
) -> Tensor:
    s = _wide_score(chosen, rejected, scale)
    return (s if margin is None else s - margin) / tau


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None,
    margin: Tensor | None,
    target: Tensor | None,
    tau: float,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of sigmoid(z) against the target, z = (s - margin) / tau, and sigmoid(z)."""
    z = _logit(chosen, rejected, scale, margin, tau)
    if target is None:
        loss = -F.logsigmoid(z)
    else:
        # both signs of softplus instead of softplus(z) - target z: no cancellation when z is large
        loss = -target * F.logsigmoid(z) - (1 - target) * F.logsigmoid(-z)
    return loss, torch.sigmoid(z)


def preference_loss_backward(
    grad_loss: Tensor | None,
    grad_probability: Tensor | None,
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None,
    margin: Tensor | None,
    target: Tensor | None,
    tau: float,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of chosen, rejected (..., d), scale (..., k), margin (...) and target (...)."""
    z = _logit(chosen, rejected, scale, margin, tau)
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    grad_logit = torch.zeros_like(z)
    grad_target = None
    if target is not None:
        grad_target = torch.zeros_like(z) if grad_loss is None else -grad_loss * z
    if grad_loss is not None:
        slope = -q if target is None else (1 - target) * p - target * q
        grad_logit = grad_logit + grad_loss * slope
    if grad_probability is not None:
        grad_logit = grad_logit + grad_probability * p * q
    grad_score = grad_logit / tau
    grads = score_backward(grad_score, chosen, rejected, scale)
    return (*grads, None if margin is None else -grad_score, grad_target)


# -- matrices ----------------------------------------------------------------------------------


def _wide_cross(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    (xa, ya), (xb, yb) = _blocks(a), _blocks(b)
    total = xa.new_zeros(*a.shape[:-1], b.shape[-2])
    for block in range(a.shape[-1] // 2):
        forward = xa[..., :, None, block] * yb[..., None, :, block]
        reverse = ya[..., :, None, block] * xb[..., None, :, block]
        term = forward - reverse
        if scale is not None:
            term = term * scale[..., None, None, block].to(term.dtype)
        total = total + term
    return total


def _probability(s: Tensor, tau: float, dtype: torch.dtype, *, square: bool) -> Tensor:
    """sigmoid(s / tau): the small side with full relative accuracy, the large side its complement.

    The sign enters as a constant factor so that derivatives at s = 0 are right too. In a square
    matrix both sides of a pair come from the upper triangle: PyTorch's sigmoid of one number may
    differ in the last bit between two places of a tensor, and P + P.T is to be 1 exactly.
    """
    wins = s > 0
    sign = torch.where(wins, 1.0, -1.0).to(s.dtype)
    small = torch.sigmoid(-(s * sign) / tau).to(dtype)
    if square:
        upper = torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device).triu()
        wins = torch.where(upper, wins, ~wins.mT)
        small = torch.where(upper, small, small.mT)
    return torch.where(wins, 1 - small, small)


def _slope(s: Tensor, tau: float) -> Tensor:
    """D sigmoid(s / tau) / ds."""
    return torch.sigmoid(s / tau) * torch.sigmoid(-s / tau) / tau


def _skew_gradients(grad: Tensor, v: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Gradients of v and scale from those of the scores (..., K, K)."""
    x, y = _blocks(v)
    skew = grad - grad.transpose(-1, -2)
    pulled = skew @ y
    grad_v = _interleave(pulled * _rows(scale), -(skew @ x) * _rows(scale), v.dtype)
    grad_scale = None if scale is None else (x * pulled).sum(dim=-2).to(scale.dtype)
    return grad_v, grad_scale


def score_matrix(v: Tensor, scale: Tensor | None) -> Tensor:
    """All scores s(i > j) of (..., K, d) -> (..., K, K)."""
    return _wide_cross(v, v, scale).to(v.dtype)


def score_matrix_backward(
    grad: Tensor, v: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of v (..., K, d) and of the scale (..., k)."""
    return _skew_gradients(grad.to(accumulation_dtype(v.dtype)), v, scale)


def probability_matrix(v: Tensor, scale: Tensor | None, tau: float) -> Tensor:
    """All probabilities P(i > j) = sigmoid(s(i > j) / tau)."""
    return _probability(_wide_cross(v, v, scale), tau, v.dtype, square=True)


def probability_matrix_backward(
    grad: Tensor, v: Tensor, scale: Tensor | None, tau: float
) -> tuple[Tensor, Tensor | None]:
    """Gradients of v (..., K, d) and of the scale (..., k)."""
    s = _wide_cross(v, v, scale)
    return _skew_gradients(grad.to(s.dtype) * _slope(s, tau), v, scale)


def _cross_gradients(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a, b and scale from those of the scores (..., M, N)."""
    (xa, ya), (xb, yb) = _blocks(a), _blocks(b)
    pulled_x, pulled_y = grad @ yb, grad @ xb
    transposed = grad.transpose(-1, -2)
    rows = _rows(scale)
    grad_a = _interleave(pulled_x * rows, -pulled_y * rows, a.dtype)
    grad_b = _interleave(-(transposed @ ya) * rows, (transposed @ xa) * rows, b.dtype)
    if scale is None:
        return grad_a, grad_b, None
    grad_scale = (xa * pulled_x - ya * pulled_y).sum(dim=-2).to(scale.dtype)
    return grad_a, grad_b, grad_scale


def cross_score_matrix(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    """All scores s(a_m > b_n) of (..., M, d) against (..., N, d) -> (..., M, N)."""
    return _wide_cross(a, b, scale).to(a.dtype)


def cross_score_matrix_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a (..., M, d), b (..., N, d) and the scale (..., k)."""
    return _cross_gradients(grad.to(accumulation_dtype(a.dtype)), a, b, scale)


def cross_probability_matrix(a: Tensor, b: Tensor, scale: Tensor | None, tau: float) -> Tensor:
    """All probabilities P(a_m > b_n) = sigmoid(s(a_m > b_n) / tau)."""
    return _probability(_wide_cross(a, b, scale), tau, a.dtype, square=False)


def cross_probability_matrix_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, tau: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of a (..., M, d), b (..., N, d) and the scale (..., k)."""
    s = _wide_cross(a, b, scale)
    return _cross_gradients(grad.to(s.dtype) * _slope(s, tau), a, b, scale)


def score_matrix_out(v: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """:func:`score_matrix` into ``out``."""
    out.copy_(score_matrix(v, scale))


def probability_matrix_out(v: Tensor, scale: Tensor | None, tau: float, out: Tensor) -> None:
    """:func:`probability_matrix` into ``out``."""
    out.copy_(probability_matrix(v, scale, tau))


def cross_score_matrix_out(a: Tensor, b: Tensor, scale: Tensor | None, out: Tensor) -> None:
    """:func:`cross_score_matrix` into ``out``."""
    out.copy_(cross_score_matrix(a, b, scale))


def cross_probability_matrix_out(
    a: Tensor, b: Tensor, scale: Tensor | None, tau: float, out: Tensor
) -> None:
    """:func:`cross_probability_matrix` into ``out``."""
    out.copy_(cross_probability_matrix(a, b, scale, tau))
