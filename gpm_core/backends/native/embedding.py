"""``preference_embedding``."""

from __future__ import annotations

from torch import Tensor

from gpm_core.backends.native.layout import (
    address,
    as_batch,
    as_rows,
    batch_address,
    pointer,
)
from gpm_core.backends.native.library import Library
from gpm_core.backends.reference import accumulation_dtype


def _hidden_rows(hidden: Tensor, positions: Tensor | None) -> Tensor:
    """(..., T, H) or, without positions, (..., H) as (rows, T or 1, H)."""
    if positions is None:
        return as_rows(hidden, hidden.shape[-1]).unsqueeze(1)
    return as_batch(hidden)


class Embedding:
    """``preference_embedding``."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def preference_embedding(
        self,
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
            weights = as_rows(weight, size)
            biases = None if bias is None else bias.contiguous()
            self._library.run(
                "preference_embedding",
                hidden,
                rows.shape[0],
                rows.shape[1],
                size,
                width,
                normalized,
                eps,
                *batch_address(rows),
                address(index)[0],
                *address(weights),
                address(biases)[0],
                out.data_ptr(),
                pointer(projection),
            )
        return out, projection

    def preference_embedding_backward(
        self,
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
        # An empty batch leaves them as they are.
        make_sum = hidden.new_empty if grad.numel() else hidden.new_zeros
        grad_weight = make_sum(weight.shape) if output_mask[1] else None
        grad_bias = make_sum(width) if output_mask[2] else None
        if grad.numel():
            rows = _hidden_rows(hidden, positions)
            index = None if positions is None else positions.reshape(-1).contiguous()
            weights, grads = as_rows(weight, size), as_rows(grad, width)
            # CUDA kernels do without.
            wide = accumulation_dtype(grad.dtype)
            workspace = grad.new_empty(grads.shape, dtype=wide) if grad.is_cpu else None
            self._library.run(
                "preference_embedding_backward",
                hidden,
                rows.shape[0],
                rows.shape[1],
                size,
                width,
                normalized,
                eps,
                *address(grads),
                *batch_address(rows),
                address(index)[0],
                *address(weights),
                pointer(projection),
                pointer(workspace),
                pointer(grad_hidden),
                pointer(grad_weight),
                pointer(grad_bias),
            )
        return grad_hidden, grad_weight, grad_bias
