"""Calls of every operation to count traffic on. Between them they launch every CUDA kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpm_core.backends._chunked_linear_logprob import GRADIENTS, STATES, Options

EPS, TAU = 1e-12, 0.1


@dataclass(frozen=True)
class Case:
    """A call of a backend's function.

    Attributes:
        operation: The function's name.
        size: What it works on, in words.
        kernels: The CUDA kernels that it launches, in their order.
        arguments: Of the function.
        spared: Bytes of arguments and results that need not be read or written.
    """

    operation: str
    size: str
    kernels: tuple[str, ...]
    arguments: tuple[Any, ...]
    spared: int = 0

    def run(self, backend: Any) -> Any:
        """The result of a backend."""
        return getattr(backend, self.operation)(*self.arguments)

    def least(self, result: Any) -> int:
        """Bytes that have to be moved: numbers needed are read once, results written once."""
        results = result if isinstance(result, tuple) else (result,)
        tensors = [t for t in (*self.arguments, *results) if isinstance(t, Tensor)]
        return sum(tensor.nbytes for tensor in tensors) - self.spared


@dataclass(frozen=True)
class Chunk(Case):
    """What ``linear_logprob`` does with a chunk of logits; the matrix products are PyTorch's."""

    def run(self, backend: Any) -> Any:
        """Results are written into arguments."""
        name = self.operation.replace("linear_logprob", "linear_logprob_chunk")
        return getattr(backend, name)(*self.arguments)

    def least(self, result: Any) -> int:
        """State and pulled rows are read and written, all else one of them."""
        both = (
            () if self.operation.endswith("_backward") else (self.arguments[5], self.arguments[7])
        )
        return super().least(tuple(both))


class _Numbers:
    """Random tensors of a dtype, or of the dtype that its sums are taken in.

    Attributes:
        fewer: What numbers of rows are divided by.
    """

    def __init__(self, dtype: torch.dtype, fewer: int) -> None:
        self.dtype = dtype
        self.fewer = fewer
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.dtype)

    def wide(self, *shape: int) -> Tensor:
        numbers = torch.randn(shape, generator=self._generator)
        return numbers.double() if self.dtype == torch.float64 else numbers


def _normalize(new: _Numbers) -> Iterator[Case]:
    for rows, width, team in [(4096, 8, "Lanes"), (512, 2048, "Block")]:
        rows //= new.fewer
        x, grad, size = new(rows, width), new(rows, width), f"{rows} x {width}"
        yield Case("normalize", size, (f"forward<{team}>",), (x, EPS))
        yield Case("normalize_backward", size, (f"backward<{team}>",), (grad, x, EPS))


def _pairs(new: _Numbers) -> Iterator[Case]:
    for rows, width in [(16384, 8), (1024, 64)]:
        rows //= new.fewer
        a, b, scale, grad = new(rows, width), new(rows, width), new(rows, width // 2), new(rows)
        size, numbers = f"{rows} x {width}", [new.wide(rows) for _ in range(4)]
        plain, full = (a, b, None, None, None, TAU), (a, b, scale, *numbers[:2], TAU)
        for more, calls in [
            ("", {"score": plain[:3], "preference_loss": plain}),
            (", scale", {"score": full[:3]}),
            (", all", {"preference_loss": full}),
        ]:
            for operation, arguments in calls.items():
                yield Case(operation, size + more, ("forward",), arguments)
                grads = (grad,) if operation == "score" else (numbers[2], numbers[3])
                if arguments is plain:
                    grads = (numbers[2], None)
                yield Case(
                    f"{operation}_backward", size + more, ("backward",), (*grads, *arguments)
                )


def _embeddings(new: _Numbers) -> Iterator[Case]:
    operation, backward = "preference_embedding", "preference_embedding_backward"
    length, width = 16, 8
    for rows, size, positions, kernel in [
        (64, 2048, torch.arange(64) % length, "forward<1>"),
        (512, 768, None, "forward<4>"),
    ]:
        rows //= new.fewer
        positions = None if positions is None else positions[:rows]
        tokens = () if positions is None else (length,)
        hidden, weight, bias = new(rows, *tokens, size), new(width, size), new(width)
        label = " x ".join(map(str, (rows, *tokens, size))) + f", d = {width}"
        unread = hidden.nbytes - rows * size * hidden.itemsize
        arguments = (hidden, weight, positions, bias)
        yield Case(operation, label, (kernel,), (*arguments, True, EPS), unread)
        rest = (new.wide(rows, width), True, EPS, [True, True, True])
        # The gradient of hidden is written only where it was read; bias is not needed at all.
        spared = 2 * unread + bias.nbytes
        grad = new(rows, width)
        yield Case(backward, label, ("backward",), (grad, *arguments, *rest), spared)


def _logprobs(new: _Numbers) -> Iterator[Case]:
    rows, columns, size = 256 // new.fewer, 2048, 512
    options = Options(temperature=0.7, softcap=30.0, entropy=True)
    target, label = torch.arange(rows) * 7, f"{rows} x {columns}"
    pulled = new.wide(rows, size)
    logits, given, out = new.wide(rows, columns), new.wide(rows, GRADIENTS), new(rows, columns)
    for more, results in [("", (None, None)), (f", H = {size}", (out, pulled))]:
        arguments = (logits, 0, target, None, options, new.wide(rows, STATES), *results)
        yield Chunk("linear_logprob", label + more, ("forward",), arguments)
    arguments = (logits, 0, target, None, options, given, out)
    yield Chunk("linear_logprob_backward", label, ("backward",), arguments)


def _matrices(new: _Numbers) -> Iterator[Case]:
    for batch, rows, columns, width, scaled in [
        (256, 16, 16, 8, False),
        (1, 512, 512, 8, False),
        (1, 300, 700, 8, False),
        (2, 256, 256, 16, False),
        (2, 256, 256, 64, True),
    ]:
        small = rows == 16
        if small:
            batch //= new.fewer
        elif new.fewer > 1:
            batch, rows, columns = 1, rows // 2, columns // 2
        scale = new(batch, width // 2) if scaled else None
        a, b, grad = new(batch, rows, width), new(batch, columns, width), new(batch, rows, columns)
        size = f"{batch} x {rows} x {columns}, d = {width}" + (", scale" if scaled else "")
        columns_together = 8 if new.dtype == torch.float64 else {8: 8, 16: 32, 64: 64}[width]
        pull = "small_matrices_backward" if small else f"matrix_pull<{columns_together}>"
        forward = ("small_matrices" if small else "matrix_tiles",)
        backward = (pull, "sum_partial") if scaled else (pull,)
        for kind, sets in [("", (a,)), ("cross_", (a, b))]:
            if kind == "" and rows != columns:
                continue
            for base, tau in [("score_matrix", ()), ("probability_matrix", (TAU,))]:
                given = (*sets, scale, *tau)
                yield Case(kind + base, size, forward, given)
                yield Case(f"{kind}{base}_backward", size, backward, (grad, *given))


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cases(dtype: torch.dtype, fewer: int = 1) -> Iterator[Case]:
    """All cases of a dtype; with so many times fewer rows where each takes long."""
    for make in (_normalize, _pairs, _embeddings, _logprobs, _matrices):
        yield from make(_Numbers(dtype, fewer))
