"""``linear_logprob``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gpm_core.backends import _chunked_linear_logprob as chunked
from gpm_core.backends.native.layout import address, pointer
from gpm_core.backends.native.library import Library


class LinearLogprob:
    """``linear_logprob``: PyTorch's matrix products, and kernels around them."""

    def __init__(self, library: Library) -> None:
        self._library = library

    def linear_logprob(self, *arguments: Any) -> tuple[Tensor | None, ...]:
        return chunked.forward(self.linear_logprob_chunk, *arguments)

    def linear_logprob_backward(self, *arguments: Any) -> tuple[Tensor | None, ...]:
        return chunked.backward(self.linear_logprob_chunk_backward, *arguments)

    def linear_logprob_chunk(
        self,
        logits: Tensor,
        first: int,
        target: Tensor,
        bias: Tensor | None,
        options: chunked.Options,
        state: Tensor,
        coefficients: Tensor | None,
        pulled: Tensor | None,
    ) -> None:
        self._library.run(
            "linear_logprob",
            logits if coefficients is None else coefficients,
            *logits.shape,
            first,
            0 if pulled is None else pulled.shape[1],
            options.temperature,
            options.softcap or 0.0,
            options.entropy,
            logits.data_ptr(),
            target.data_ptr(),
            address(bias)[0],
            state.data_ptr(),
            pointer(coefficients),
            pointer(pulled),
        )

    def linear_logprob_chunk_backward(
        self,
        logits: Tensor,
        first: int,
        target: Tensor,
        bias: Tensor | None,
        options: chunked.Options,
        gradients: Tensor,
        coefficients: Tensor,
    ) -> None:
        self._library.run(
            "linear_logprob_backward",
            coefficients,
            *logits.shape,
            first,
            options.temperature,
            options.softcap or 0.0,
            options.entropy,
            logits.data_ptr(),
            target.data_ptr(),
            address(bias)[0],
            gradients.data_ptr(),
            coefficients.data_ptr(),
        )
