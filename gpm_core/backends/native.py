"""The compiled kernels: C++ on CPU tensors.

This file allocates results and hands pointers, sizes and strides to :mod:`gpm_core._C`. Leading
dimensions become one; only a layout that cannot be described by one stride a dimension, or a last
dimension that is not contiguous, is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gpm_core.backends.reference import accumulation_dtype

_missing: str | None = None
try:
    import gpm_core._C as _C
except ModuleNotFoundError:
    _missing = "gpm_core._C was not built (GPM_CORE_BUILD=none, or no compiler at install time)"
except ImportError as error:
    _missing = f"gpm_core._C cannot be loaded: {error}"

_CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}


def why_not(op: str, device_type: str, dtype: torch.dtype) -> str | None:
    """Needs the compiled module, CPU tensors and a floating-point dtype."""
    if _missing is not None:
        return _missing
    if device_type != "cpu":
        return f"has no kernels for {device_type} tensors"
    if dtype not in _CODES:
        return f"has no kernels for {dtype}"
    return None


def build_info() -> dict[str, object] | None:
    """What the compiled module says of itself, or None where there is none."""
    return None if _missing is not None else _C.build_info()


def _rows(x: Tensor, width: int) -> Tensor:
    """(..., width) as (rows, width) with contiguous rows."""
    if x.dim() != 2:
        x = x.reshape(-1, width)
    return x if x.stride(1) == 1 or width == 1 else x.contiguous()


def _numbers(x: Tensor) -> Tensor:
    """(...) as (rows,) with any stride."""
    return x if x.dim() == 1 else x.reshape(-1)


def _batch(x: Tensor) -> Tensor:
    """(..., rows, width) as (batch, rows, width) with contiguous rows."""
    if x.dim() != 3:
        x = x.reshape(x.shape[:-2].numel(), *x.shape[-2:])
    return x if x.stride(2) == 1 or x.shape[-1] == 1 else x.contiguous()


def _at(x: Tensor | None) -> tuple[int, int]:
    """Address and row stride; zeros where absent."""
    return (0, 0) if x is None else (x.data_ptr(), x.stride(0))


def _batch_at(x: Tensor) -> tuple[int, int, int]:
    return x.data_ptr(), x.stride(0), x.stride(1)


def _empty_like(x: Tensor) -> Tensor:
    """A contiguous result of the same shape."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _scale_rows(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else _rows(scale, scale.shape[-1])


def _pointer(x: Tensor | None) -> int:
    """Address of a result, 0 where there is none."""
    return 0 if x is None or not x.numel() else x.data_ptr()


# -- rows --------------------------------------------------------------------------------------


def normalize(x: Tensor, eps: float) -> Tensor:
    out = _empty_like(x)
    if out.numel():
        width = x.shape[-1]
        rows = _rows(x, width)
        _C.normalize(
            _CODES[x.dtype],
            rows.shape[0],
            width,
            eps,
            *_at(rows),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out


def normalize_backward(grad: Tensor, x: Tensor, eps: float) -> Tensor:
    out = _empty_like(x)
    if out.numel():
        width = x.shape[-1]
        rows, grads = _rows(x, width), _rows(grad, width)
        _C.normalize_backward(
            _CODES[x.dtype],
            rows.shape[0],
            width,
            eps,
            *_at(grads),
            *_at(rows),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out


def score(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    out = a.new_empty(a.shape[:-1])
    if out.numel():
        width = a.shape[-1]
        first, second, scales = _rows(a, width), _rows(b, width), _scale_rows(scale)
        _C.score(
            _CODES[a.dtype],
            first.shape[0],
            width,
            *_at(first),
            *_at(second),
            *_at(scales),
            out.data_ptr(),
            torch.get_num_threads(),
        )
    return out


def score_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    grad_a, grad_b = _empty_like(a), _empty_like(b)
    grad_scale = None if scale is None else _empty_like(scale)
    if grad.numel():
        width = a.shape[-1]
        first, second, scales = _rows(a, width), _rows(b, width), _scale_rows(scale)
        grads = _numbers(grad).contiguous()
        _C.score_backward(
            _CODES[a.dtype],
            first.shape[0],
            width,
            grads.data_ptr(),
            *_at(first),
            *_at(second),
            *_at(scales),
            grad_a.data_ptr(),
            grad_b.data_ptr(),
            _pointer(grad_scale),
            torch.get_num_threads(),
        )
    return grad_a, grad_b, grad_scale


# -- preference_loss ---------------------------------------------------------------------------


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    scale: Tensor | None,
    margin: Tensor | None,
    target: Tensor | None,
    tau: float,
) -> tuple[Tensor, Tensor]:
    wide = accumulation_dtype(chosen.dtype)
    batch = chosen.shape[:-1]
    loss, probability = chosen.new_empty(batch, dtype=wide), chosen.new_empty(batch, dtype=wide)
    if loss.numel():
        width = chosen.shape[-1]
        first, second, scales = _rows(chosen, width), _rows(rejected, width), _scale_rows(scale)
        margins = None if margin is None else _numbers(margin)
        targets = None if target is None else _numbers(target)
        _C.preference_loss(
            _CODES[chosen.dtype],
            first.shape[0],
            width,
            tau,
            *_at(first),
            *_at(second),
            *_at(scales),
            *_at(margins),
            *_at(targets),
            loss.data_ptr(),
            probability.data_ptr(),
            torch.get_num_threads(),
        )
    return loss, probability


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
    wide = accumulation_dtype(chosen.dtype)
    batch = chosen.shape[:-1]
    grad_chosen, grad_rejected = _empty_like(chosen), _empty_like(rejected)
    grad_scale = None if scale is None else _empty_like(scale)
    grad_margin = None if margin is None else chosen.new_empty(batch, dtype=wide)
    grad_target = None if target is None else chosen.new_empty(batch, dtype=wide)
    if grad_chosen.numel():
        width = chosen.shape[-1]
        first, second, scales = _rows(chosen, width), _rows(rejected, width), _scale_rows(scale)
        margins = None if margin is None else _numbers(margin)
        targets = None if target is None else _numbers(target)
        losses = None if grad_loss is None else _numbers(grad_loss).contiguous()
        probabilities = (
            None if grad_probability is None else _numbers(grad_probability).contiguous()
        )
        _C.preference_loss_backward(
            _CODES[chosen.dtype],
            first.shape[0],
            width,
            tau,
            _at(losses)[0],
            _at(probabilities)[0],
            *_at(first),
            *_at(second),
            *_at(scales),
            *_at(margins),
            *_at(targets),
            grad_chosen.data_ptr(),
            grad_rejected.data_ptr(),
            _pointer(grad_scale),
            _pointer(grad_margin),
            _pointer(grad_target),
            torch.get_num_threads(),
        )
    return grad_chosen, grad_rejected, grad_scale, grad_margin, grad_target


# -- preference_embedding ----------------------------------------------------------------------


def _hidden_rows(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """(..., T, H) or, without positions, (..., H) as (rows, T or 1, H)."""
    if positions is None:
        return _rows(hidden, hidden.shape[-1]).unsqueeze(1)
    return _batch(hidden)


def preference_embedding(
    hidden: Tensor,
    weight: Tensor,
    positions: Tensor | None,
    bias: Tensor | None,
    normalized: bool,
    eps: float,
) -> tuple[Tensor, Tensor]:
    width, size = weight.shape
    wide = accumulation_dtype(hidden.dtype)
    shape = (*(hidden.shape[:-1] if positions is None else positions.shape), width)
    out = hidden.new_empty(shape)
    projection = hidden.new_empty(shape if normalized else 0, dtype=wide)
    if out.numel():
        rows = _hidden_rows(hidden, positions)
        index = None if positions is None else positions.reshape(-1).contiguous()
        weights = _rows(weight, size)
        biases = None if bias is None else bias.contiguous()
        _C.preference_embedding(
            _CODES[hidden.dtype],
            rows.shape[0],
            rows.shape[1],
            size,
            width,
            normalized,
            eps,
            *_batch_at(rows),
            _at(index)[0],
            *_at(weights),
            _at(biases)[0],
            out.data_ptr(),
            _pointer(projection),
            torch.get_num_threads(),
        )
    return out, projection


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
    width, size = weight.shape
    # Only the rows that were read get a gradient, so all others must be zero already.
    make_hidden = hidden.new_empty if positions is None else hidden.new_zeros
    grad_hidden = make_hidden(hidden.shape) if output_mask[0] else None
    # Zero, since an empty batch leaves them so.
    grad_weight = hidden.new_zeros(weight.shape) if output_mask[1] else None
    grad_bias = hidden.new_zeros(width) if output_mask[2] else None
    if grad.numel():
        rows = _hidden_rows(hidden, positions)
        index = None if positions is None else positions.reshape(-1).contiguous()
        weights, grads = _rows(weight, size), _rows(grad, width)
        workspace = grad.new_empty(grads.shape, dtype=accumulation_dtype(grad.dtype))
        _C.preference_embedding_backward(
            _CODES[hidden.dtype],
            rows.shape[0],
            rows.shape[1],
            size,
            width,
            normalized,
            eps,
            *_at(grads),
            *_batch_at(rows),
            _at(index)[0],
            *_at(weights),
            _pointer(projection),
            workspace.data_ptr(),
            _pointer(grad_hidden),
            _pointer(grad_weight),
            _pointer(grad_bias),
            torch.get_num_threads(),
        )
    return grad_hidden, grad_weight, grad_bias


# -- matrices ----------------------------------------------------------------------------------


def _writable(out: Tensor) -> Tensor:
    """A result (..., rows, columns) as (batch, rows, columns) with contiguous rows.

    Where ``out`` has no such view it is a new tensor, and :func:`_deliver` copies it.
    """
    shape = (out.shape[:-2].numel(), *out.shape[-2:])
    try:
        view = out.view(shape)
    except RuntimeError:
        return out.new_empty(shape)
    return view if shape[-1] == 1 or view.stride(2) == 1 else out.new_empty(shape)


# A fresh result of this size is asked for in huge pages: it is written in tiles, and a page of
# 4 KiB, which the system clears at the first tile, would be out of the caches by the next.
_HUGE = 16 * 2**20


def _new_matrix(like: Tensor, rows: int, columns: int) -> Tensor:
    """An empty result (..., rows, columns)."""
    out = like.new_empty(*like.shape[:-2], rows, columns)
    if out.nbytes >= _HUGE:
        _C.advise_huge_pages(out.data_ptr(), out.nbytes)
    return out


def _deliver(result: Tensor, out: Tensor) -> None:
    if result.data_ptr() != out.data_ptr():
        out.copy_(result.view(out.shape))


def _square(name: str, v: Tensor, scale: Tensor | None, out: Tensor, *tau: float) -> None:
    if out.numel() == 0:
        return
    batch, scales, result = _batch(v), _scale_rows(scale), _writable(out)
    getattr(_C, name)(
        _CODES[v.dtype],
        *batch.shape,
        *_batch_at(batch),
        *_at(scales),
        *_batch_at(result),
        *tau,
        torch.get_num_threads(),
    )
    _deliver(result, out)


def _square_backward(
    name: str, grad: Tensor, v: Tensor, scale: Tensor | None, *tau: float
) -> tuple[Tensor, Tensor | None]:
    grad_v = _empty_like(v)
    if grad.numel() == 0:
        return grad_v, None if scale is None else scale.new_zeros(scale.shape)
    grad_scale = None if scale is None else _empty_like(scale)
    batch, scales, grads = _batch(v), _scale_rows(scale), _batch(grad)
    getattr(_C, name)(
        _CODES[v.dtype],
        *batch.shape,
        *_batch_at(grads),
        *_batch_at(batch),
        *_at(scales),
        grad_v.data_ptr(),
        _pointer(grad_scale),
        *tau,
        torch.get_num_threads(),
    )
    return grad_v, grad_scale


def score_matrix(v: Tensor, scale: Tensor | None) -> Tensor:
    out = _new_matrix(v, v.shape[-2], v.shape[-2])
    _square("score_matrix", v, scale, out)
    return out


def score_matrix_out(v: Tensor, scale: Tensor | None, out: Tensor) -> None:
    _square("score_matrix", v, scale, out)


def score_matrix_backward(
    grad: Tensor, v: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    return _square_backward("score_matrix_backward", grad, v, scale)


def probability_matrix(v: Tensor, scale: Tensor | None, tau: float) -> Tensor:
    out = _new_matrix(v, v.shape[-2], v.shape[-2])
    _square("probability_matrix", v, scale, out, tau)
    return out


def probability_matrix_out(v: Tensor, scale: Tensor | None, tau: float, out: Tensor) -> None:
    _square("probability_matrix", v, scale, out, tau)


def probability_matrix_backward(
    grad: Tensor, v: Tensor, scale: Tensor | None, tau: float
) -> tuple[Tensor, Tensor | None]:
    return _square_backward("probability_matrix_backward", grad, v, scale, tau)


def _cross(name: str, a: Tensor, b: Tensor, scale: Tensor | None, out: Tensor, *tau: float) -> None:
    if out.numel() == 0:
        return
    first, second, scales, result = _batch(a), _batch(b), _scale_rows(scale), _writable(out)
    getattr(_C, name)(
        _CODES[a.dtype],
        *result.shape,
        a.shape[-1],
        *_batch_at(first),
        *_batch_at(second),
        *_at(scales),
        *_batch_at(result),
        *tau,
        torch.get_num_threads(),
    )
    _deliver(result, out)


def _cross_backward(
    name: str, grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, *tau: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    if grad.numel() == 0:
        # One of the sets is empty; what the other one's gradient sums over is too.
        no_scale = None if scale is None else scale.new_zeros(scale.shape)
        return a.new_zeros(a.shape), b.new_zeros(b.shape), no_scale
    grad_a, grad_b = _empty_like(a), _empty_like(b)
    grad_scale = None if scale is None else _empty_like(scale)
    first, second, scales, grads = _batch(a), _batch(b), _scale_rows(scale), _batch(grad)
    getattr(_C, name)(
        _CODES[a.dtype],
        *grads.shape,
        a.shape[-1],
        *_batch_at(grads),
        *_batch_at(first),
        *_batch_at(second),
        *_at(scales),
        grad_a.data_ptr(),
        grad_b.data_ptr(),
        _pointer(grad_scale),
        *tau,
        torch.get_num_threads(),
    )
    return grad_a, grad_b, grad_scale


def cross_score_matrix(a: Tensor, b: Tensor, scale: Tensor | None) -> Tensor:
    out = _new_matrix(a, a.shape[-2], b.shape[-2])
    _cross("cross_score_matrix", a, b, scale, out)
    return out


def cross_score_matrix_out(a: Tensor, b: Tensor, scale: Tensor | None, out: Tensor) -> None:
    _cross("cross_score_matrix", a, b, scale, out)


def cross_score_matrix_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return _cross_backward("cross_score_matrix_backward", grad, a, b, scale)


def cross_probability_matrix(a: Tensor, b: Tensor, scale: Tensor | None, tau: float) -> Tensor:
    out = _new_matrix(a, a.shape[-2], b.shape[-2])
    _cross("cross_probability_matrix", a, b, scale, out, tau)
    return out


def cross_probability_matrix_out(
    a: Tensor, b: Tensor, scale: Tensor | None, tau: float, out: Tensor
) -> None:
    _cross("cross_probability_matrix", a, b, scale, out, tau)


def cross_probability_matrix_backward(
    grad: Tensor, a: Tensor, b: Tensor, scale: Tensor | None, tau: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    return _cross_backward("cross_probability_matrix_backward", grad, a, b, scale, tau)
