"""Calls of the compiled kernels, where tensors live."""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

#: Numbers of the dtypes in ``gpm::DType``.
CODES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}

# A fresh result of this size is asked for in huge pages: it is written in tiles, and a page of
# 4 KiB, which the system clears at the first tile, would be out of the caches by the next.
_HUGE = 16 * 2**20


class Library:
    """The kernels of a compiled module: on the processor, or launched on a GPU's current stream."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def run(self, name: str, like: Tensor, *arguments: float) -> None:
        """Call a kernel for the dtype of ``like`` on its device.

        Raises:
            RuntimeError: where a GPU refuses the launch.
        """
        code = CODES[like.dtype]
        if like.is_cpu:
            getattr(self._module, name)(code, *arguments, torch.get_num_threads())
        else:
            index = like.get_device()
            stream = torch._C._cuda_getCurrentRawStream(index)
            getattr(self._module.cuda, name)(code, *arguments, index, stream)

    def new_matrix(self, like: Tensor, rows: int, columns: int) -> Tensor:
        """An empty result (..., rows, columns)."""
        out = like.new_empty(*like.shape[:-2], rows, columns)
        if out.nbytes >= _HUGE and out.is_cpu:
            self._module.advise_huge_pages(out.data_ptr(), out.nbytes)
        return out

    def partial_sums(self, scale: Tensor | None, rows: int) -> Tensor | None:
        """Where kernels leave parts of a scale's gradient, or None where they need no such place.

        CUDA kernels allocate nothing, and their blocks take so many rows of a set each.
        """
        if scale is None or scale.is_cpu:
            return None
        return self.new_partial_sums(scale, rows)

    def new_partial_sums(self, scale: Tensor, rows: int) -> Tensor:
        """(batch, tiles of rows, k) doubles."""
        tiles = -(-rows // self._module.cuda.GRADIENT_ROWS)
        shape = (scale.shape[:-1].numel(), tiles, scale.shape[-1])
        return scale.new_empty(shape, dtype=torch.float64)
