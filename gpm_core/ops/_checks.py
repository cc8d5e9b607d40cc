"""Validation at the public boundary: what was given, what was expected, what to do.

Wrong types and dtypes raise ``TypeError``, wrong shapes and values ``ValueError``, wrong devices
``RuntimeError``. Nothing here looks at the data of a tensor, so nothing synchronizes a device.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """A shape that prints as a tuple."""
    return tuple(tensor.shape)


def check_tensor(name: str, value: Any, *, least_dims: int, form: str) -> None:
    """``value`` must be a floating-point tensor with at least ``least_dims`` dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor {form}; got {type(value).__name__}")
    if value.dtype not in _DTYPES:
        raise TypeError(
            f"{name} must be float64, float32, bfloat16 or float16; got {value.dtype}. "
            f"Convert it, for instance with {name}.float()"
        )
    if value.dim() < least_dims:
        raise ValueError(f"{name} must be {form}; got shape {shape_of(value)}")


def check_embedding(name: str, value: Any, *, least_dims: int, form: str) -> None:
    """A preference embedding: a tensor as above whose last dimension is even and not empty."""
    check_tensor(name, value, least_dims=least_dims, form=form)
    width = value.shape[-1]
    if width < 2 or width % 2:
        raise ValueError(
            f"{name} must be {form} with an even width d = 2k >= 2 "
            f"(k blocks of two coordinates); got shape {shape_of(value)}"
        )


def check_same(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Both tensors must have one dtype and one device."""
    if value.dtype != other.dtype:
        raise TypeError(
            f"{name} and {other_name} must have the same dtype; got {value.dtype} and "
            f"{other.dtype}. Convert one of them"
        )
    if value.device != other.device:
        raise RuntimeError(
            f"{name} and {other_name} must be on the same device; got {value.device} and "
            f"{other.device}. Move one of them with .to(device)"
        )


def check_width(a_name: str, a: Tensor, b_name: str, b: Tensor) -> None:
    """Both embeddings must have one width."""
    if a.shape[-1] != b.shape[-1]:
        raise ValueError(
            f"{a_name} and {b_name} must have the same width d; got shapes {shape_of(a)} and "
            f"{shape_of(b)}"
        )


def broadcast_batch(**batches: tuple[int, ...]) -> tuple[int, ...]:
    """The common leading dimensions of the named shapes."""
    distinct = set(batches.values())
    if len(distinct) == 1:
        return distinct.pop()
    try:
        return tuple(torch.broadcast_shapes(*batches.values()))
    except RuntimeError:
        given = ", ".join(f"{name} {tuple(shape)}" for name, shape in batches.items())
        raise ValueError(f"leading dimensions do not broadcast: {given}") from None


def expand_scale(
    scale: Any, embedding_name: str, embedding: Tensor, batch: tuple[int, ...]
) -> Tensor | None:
    """Check a per-block scale (..., k) and expand it to ``batch``."""
    if scale is None:
        return None
    blocks = embedding.shape[-1] // 2
    form = f"of shape (..., k) with k = {blocks}, half the width of {embedding_name}"
    check_tensor("scale", scale, least_dims=1, form=form)
    if scale.shape[-1] != blocks:
        raise ValueError(f"scale must be {form} {shape_of(embedding)}; got shape {shape_of(scale)}")
    check_same("scale", scale, embedding_name, embedding)
    if scale.shape[:-1] == batch:
        return scale
    try:
        return scale.expand(*batch, blocks)
    except RuntimeError:
        raise ValueError(
            f"scale must broadcast to the batch {tuple(batch)} of {embedding_name} "
            f"{shape_of(embedding)}, one gate per prompt; got shape {shape_of(scale)}"
        ) from None


def check_positive(name: str, value: Any, like: Tensor, hint: str) -> Any:
    """A finite float above zero (a symbolic one under a dynamic ``torch.compile``).

    It must be above zero in the dtype that ``like`` is computed in, too.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, torch.SymFloat)):
        raise TypeError(f"{name} must be a float; got {type(value).__name__}. {hint}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and above zero; got {value}. {hint}")
    if value < (2.0**-1022 if like.dtype == torch.float64 else 2.0**-126):
        raise ValueError(f"{name} must be a normal number in {like.dtype}; got {value}. {hint}")
    return value if isinstance(value, torch.SymFloat) else float(value)


def check_tau(tau: Any, like: Tensor) -> Any:
    """The temperature of sigmoid(s / tau)."""
    return check_positive(
        "tau", tau, like, "tau divides the score; 0.1 is usual for unit embeddings"
    )


def check_out(
    out: Any,
    shape: tuple[int, ...],
    like_name: str,
    like: Tensor,
    inputs: tuple[Tensor | None, ...],
) -> None:
    """An ``out`` tensor must fit the result, share no gradient and no memory with the inputs."""
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a torch.Tensor; got {type(out).__name__}")
    if shape_of(out) != tuple(shape):
        raise ValueError(f"out must have shape {tuple(shape)}; got {shape_of(out)}")
    check_same("out", out, like_name, like)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (out, *inputs)):
        raise RuntimeError(
            "out= does not support gradients, but one of the tensors requires them. "
            "Call without out=, or under torch.no_grad()"
        )
    if torch.compiler.is_compiling():
        return
    if torch._debug_has_internal_overlap(out) == 1:
        raise RuntimeError("out must not be expanded: several of its elements share memory")
    memory = out.untyped_storage().data_ptr()
    if memory and any(t is not None and t.untyped_storage().data_ptr() == memory for t in inputs):
        raise RuntimeError("out must not share memory with the inputs; pass a tensor of its own")


def _autocast_enabled(first: Any) -> bool:
    """Whether autocast is on for the device of an operation's first argument."""
    if not isinstance(first, Tensor):
        return False
    if first.is_cpu:
        return torch.is_autocast_enabled("cpu")
    device = first.device.type
    # The meta device has no autocast, and asking whether it is on raises.
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def float32_under_autocast(*tensors: Any) -> tuple[Any, ...]:
    """Inputs as autocast's float32 list treats them: half precision is widened, float64 stays.

    Outside of autocast they come back as they are. Scores are small differences of products and
    are divided by a small tau: what is rounded to half precision here is lost to the loss.
    """
    if not _autocast_enabled(tensors[0]):
        return tensors
    return tuple(
        t.float() if isinstance(t, Tensor) and t.dtype in (torch.float16, torch.bfloat16) else t
        for t in tensors
    )


def lower_precision_under_autocast(*tensors: Any) -> tuple[Any, ...]:
    """Inputs as autocast's lower-precision list treats them, like those of a linear layer."""
    if not _autocast_enabled(tensors[0]):
        return tensors
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(
        t.to(dtype)
        if isinstance(t, Tensor) and t.is_floating_point() and t.dtype != torch.float64
        else t
        for t in tensors
    )
