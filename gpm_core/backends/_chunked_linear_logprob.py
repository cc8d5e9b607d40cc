"""``linear_logprob`` chunk by chunk: the matrix products, and kernels for all that is around them.

The logits (N, V) are computed in chunks of some tokens and some of the vocabulary, in memory that
each chunk finds used by the one before. A kernel reduces a chunk to a few numbers a row, and turns
it into what the next product multiplies:

    forward     logits = hidden @ weight.T       -> state of the rows: maximum, sum, target's logit
                pulled += exp(logits) @ weight      only where the projection is frozen
    backward    logits = hidden @ weight.T       -> gradient of the logits, in place
                grad_hidden += gradient @ weight
                grad_weight  = gradient.T @ hidden

The vocabulary is the outer loop, so that a part of the weight is converted once, and its gradient
is summed at once. 16-bit inputs are multiplied as they are where products can be kept in float32
(CUDA); elsewhere parts are converted to float32 first, since a product that is rounded to 16 bits
would cost each log-probability two digits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpm_core.backends._reference_linear_logprob import check_targets
from gpm_core.backends.reference import accumulation_dtype

#: Numbers of a row's state (``gpm::LogprobState``), and those that arrive at it in the backward
#: pass (``gpm::LogprobGradient``).
STATES, GRADIENTS = 5, 5

# Tokens of a chunk at most, and numbers of a chunk, on a processor and elsewhere. 16 MiB of
# float32: smaller ones are no faster, and threads wait for each other more often. A GPU has more
# to fill: there a sixteenth of all logits.
_TOKENS = {True: 2048, False: 4096}
_NUMBERS = {True: 2**22, False: 2**26}
_COLUMNS = 64  # columns are a multiple of it: whole vectors


@dataclass(frozen=True)
class Options:
    """What becomes of a product, and whether entropies are wanted."""

    temperature: float
    softcap: float | None
    entropy: bool


#: What a backend fuses, ``linear_logprob_chunk(logits, first, target, bias, options, state,
#: coefficients, pulled)`` and ``linear_logprob_chunk_backward(logits, first, target, bias, options,
#: gradients, coefficients)``; sizes and meaning are in ``csrc/include/gpm/linear_logprob.h``.
Kernel = Callable[..., None]


def _multiplies_16_bits(x: Tensor) -> bool:
    """Whether products of such tensors can be had in float32."""
    half = x.dtype in (torch.bfloat16, torch.float16)
    return half and x.is_cuda and torch.version.hip is None and hasattr(torch.ops.aten.mm, "dtype")


def _product(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """A @ b into ``out``, which may have more bits than the operands."""
    if a.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    return torch.mm(a, b, out_dtype=out.dtype, out=out)


def _add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    else:
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)


@dataclass(frozen=True)
class _Chunk:
    """Some tokens and a part of the vocabulary."""

    first: int
    last: int
    tokens: slice
    logits: Tensor
    coefficients: Tensor
    #: the part of the weight, and of the bias
    weight: Tensor
    bias: Tensor | None


def _sizes(tokens: int, vocabulary: int, on_cpu: bool) -> tuple[int, int]:
    """Tokens and columns of a chunk. They depend on the shape alone, and so do results."""
    rows = min(tokens, _TOKENS[on_cpu])
    numbers = _NUMBERS[on_cpu]
    if not on_cpu:
        numbers = min(numbers, max(tokens * vocabulary // 16, 2**22))
    most = max(numbers // rows, 1)
    parts = -(-vocabulary // most)
    columns = -(-vocabulary // (parts * _COLUMNS)) * _COLUMNS  # about the same for each
    return rows, min(columns, vocabulary)


def _chunks(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Iterator[_Chunk]:
    """The logits of ``rows`` (N, H), chunk by chunk, the tokens of a part of the weight in turn."""
    wide = accumulation_dtype(rows.dtype)
    (count, _), vocabulary = rows.shape, weight.shape[0]
    tokens, columns = _sizes(count, vocabulary, rows.is_cpu)
    memory = rows.new_empty(tokens * columns, dtype=wide)
    narrow = memory if rows.dtype == wide else rows.new_empty(tokens * columns)
    for first in range(0, vocabulary, columns):
        last = min(first + columns, vocabulary)
        part = weight[first:last].to(rows.dtype).contiguous()
        biases = None if bias is None else bias[first:last].to(wide).contiguous()
        for begin in range(0, count, tokens):
            block = slice(begin, min(begin + tokens, count))
            shape = (block.stop - begin, last - first)
            size = shape[0] * shape[1]
            logits = _product(memory[:size].view(shape), rows[block], part.t())
            yield _Chunk(first, last, block, logits, narrow[:size].view(shape), part, biases)


def _operand(rows: Tensor) -> Tensor:
    """Hidden states as products take them, contiguous so that these do not depend on a layout."""
    wide = accumulation_dtype(rows.dtype)
    return (rows if _multiplies_16_bits(rows) else rows.to(wide)).contiguous()


class _Selection:
    """The rows that count, where looking at data is free; on a GPU all, with zeros for the others.

    Zeros because padding may be anything, and 0 times that must be 0 in the weight's gradient.
    """

    def __init__(self, counted: Tensor) -> None:
        self._counted = counted
        some = counted.is_cpu and not bool(counted.all())
        self._index = counted.nonzero().squeeze(1) if some else None

    def take(self, rows: Tensor) -> Tensor:
        if self._index is not None:
            return rows[self._index]
        return rows if rows.is_cpu else self._masked(rows)

    def _masked(self, rows: Tensor) -> Tensor:
        counted = self._counted.view(-1, *(1 for _ in rows.shape[1:]))
        return torch.where(counted, rows, 0)

    def spread(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """Rows of the selection among zeros."""
        if self._index is not None:
            all_rows = rows.new_zeros(self._counted.shape[0], *rows.shape[1:])
            return all_rows.index_copy_(0, self._index, rows).view(shape)
        return (rows if rows.is_cpu else self._masked(rows)).view(shape)


def forward(
    kernel: Kernel,
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None,
    temperature: float,
    softcap: float | None,
    ignore_index: int,
    entropy: bool,
    frozen: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """``linear_logprob``; arguments and results as the reference's."""
    check_targets(target, weight.shape[0], ignore_index)
    options, wide = Options(temperature, softcap, entropy), accumulation_dtype(hidden.dtype)
    targets = target.reshape(-1)
    selection = _Selection(targets != ignore_index)
    targets = selection.take(targets)
    rows = _operand(selection.take(hidden.reshape(-1, hidden.shape[-1])))
    state = rows.new_zeros(rows.shape[0], STATES, dtype=wide)
    state[:, 0] = -torch.inf
    pulled = rows.new_zeros(rows.shape, dtype=wide) if frozen else None
    if rows.shape[0]:
        for chunk in _chunks(rows, weight, bias):
            of_tokens = None if pulled is None else pulled[chunk.tokens]
            kernel(
                chunk.logits,
                chunk.first,
                targets[chunk.tokens],
                chunk.bias,
                options,
                state[chunk.tokens],
                None if of_tokens is None else chunk.coefficients,
                of_tokens,
            )
            if of_tokens is not None:
                _add_product(of_tokens, chunk.coefficients, chunk.weight)
    maximum, rest, moment, logit, slope = state.unbind(dim=1)
    # Where the target has the largest logit, the rest alone says how far its probability is from 1.
    distance = logit - maximum
    share = distance.exp()
    total = rest + share
    log_total = torch.where(distance == 0, rest.log1p(), total.log())
    entropies = None
    if entropy:
        own = torch.where(share > 0, share * distance, 0)
        entropies = selection.spread(log_total - (moment + own) / total, target.shape)
    if pulled is not None:
        of_target = weight[targets].to(wide)
        total = total * temperature
        pulled.mul_((-1 / total).unsqueeze(1)).addcmul_(
            of_target, (slope * rest / total).unsqueeze(1)
        )
        pulled = selection.spread(pulled.to(hidden.dtype), hidden.shape)
    return (
        selection.spread(distance - log_total, target.shape),
        entropies,
        selection.spread(maximum + log_total, target.shape),
        pulled,
    )


def backward(
    kernel: Kernel,
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
    """``linear_logprob_backward``; arguments and results as the reference's."""
    options = Options(temperature, softcap, grad_entropy is not None)
    targets = target.reshape(-1)
    counted = targets != ignore_index
    arriving = _arriving(grad_logp, grad_entropy, logp, entropy, logsumexp)
    arriving[:, :2].masked_fill_(~counted.unsqueeze(1), 0)
    selection = _Selection(arriving[:, :2].ne(0).any(dim=1))
    targets, arriving = selection.take(targets), selection.take(arriving)
    rows = _operand(selection.take(hidden.reshape(-1, hidden.shape[-1])))
    sums = _Sums(rows, weight, output_mask)
    if rows.shape[0]:
        for chunk in _chunks(rows, weight, bias):
            kernel(
                chunk.logits,
                chunk.first,
                targets[chunk.tokens],
                chunk.bias,
                options,
                arriving[chunk.tokens],
                chunk.coefficients,
            )
            sums.add(chunk, rows[chunk.tokens])
    grad_hidden = sums.hidden
    if grad_hidden is not None:
        grad_hidden = selection.spread(grad_hidden.to(hidden.dtype), hidden.shape)
    return grad_hidden, sums.weight, None if sums.bias is None else sums.bias.to(hidden.dtype)


def _arriving(
    grad_logp: Tensor | None,
    grad_entropy: Tensor | None,
    logp: Tensor,
    entropy: Tensor | None,
    logsumexp: Tensor,
) -> Tensor:
    """What the backward kernel is given of each row, (N, GRADIENTS)."""
    absent = torch.zeros_like(logp)
    parts = (
        absent if grad_logp is None else grad_logp,
        absent if grad_entropy is None else grad_entropy,
        logsumexp,
        absent if grad_entropy is None or entropy is None else entropy,
        -logp.expm1(),
    )
    return torch.stack([part.reshape(-1) for part in parts], dim=1)


class _Sums:
    """The gradients that are asked for, summed over chunks in float32 at least."""

    def __init__(self, rows: Tensor, weight: Tensor, output_mask: list[bool]) -> None:
        wide = accumulation_dtype(rows.dtype)
        self.hidden = rows.new_zeros(rows.shape, dtype=wide) if output_mask[0] else None
        # Every part of it is written, if there are rows.
        make: Callable[..., Tensor] = weight.new_empty if rows.shape[0] else weight.new_zeros
        self.weight = make(weight.shape) if output_mask[1] else None
        self.bias = rows.new_zeros(weight.shape[0], dtype=wide) if output_mask[2] else None
        self._rows = rows.shape[0]
        self._part = rows.new_empty(0)

    def add(self, chunk: _Chunk, rows: Tensor) -> None:
        """Add what a chunk with the gradient of its logits contributes."""
        gradient = chunk.coefficients
        if self.hidden is not None:
            _add_product(self.hidden[chunk.tokens], gradient, chunk.weight)
        if self.bias is not None:
            self.bias[chunk.first : chunk.last] += gradient.sum(dim=0, dtype=self.bias.dtype)
        if self.weight is not None:
            self._add_to_weight(self.weight[chunk.first : chunk.last], chunk, rows)

    def _add_to_weight(self, finished: Tensor, chunk: _Chunk, rows: Tensor) -> None:
        """The tokens of a part follow one another: it is rounded when the last have been added."""
        gradient, wide = chunk.coefficients.t(), chunk.logits.dtype
        if chunk.tokens.start == 0:
            place = finished if finished.dtype == wide else torch.empty_like(finished, dtype=wide)
            self._part = _product(place, gradient, rows)
        else:
            _add_product(self._part, gradient, rows)
        if chunk.tokens.stop == self._rows and finished.dtype != wide:
            finished.copy_(self._part)
