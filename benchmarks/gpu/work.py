"""What is timed and what the sanitizers watch: every operation, its peer, its sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import peers
from gpm_core import ops

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """One operation. Inputs are made for sizes, whose meaning ``sizes`` names."""

    op: str
    sizes: str
    #: plain PyTorch of the same arguments and results, and what torch.compile gets
    peer: Callable[..., Any]
    #: (sizes, device) -> arguments in float32
    make: Callable[[Sizes, str], list[Tensor]]
    small: Sizes
    large: Sizes
    #: with ``--quick``
    less: Sizes
    #: (sizes, device) -> arguments in float32, with all those that are optional
    make_all: Callable[[Sizes, str], list[Tensor]]
    #: the operation of ``make_all``'s arguments, some of which have names only
    call_all: Callable[..., Any]
    #: sizes that hurt: one, not a multiple of a vector or a tile, several tiles
    nasty: tuple[Sizes, ...]
    #: dtype of the results, where it is not that of the inputs
    result_dtype: torch.dtype | None = None
    #: arguments -> those of their numbers that must be read
    needed: Callable[[list[Tensor]], list[Tensor]] = lambda inputs: inputs

    @property
    def ours(self) -> Callable[..., Any]:
        """The public operation."""
        return getattr(ops, self.op)


def _normal(device: str, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)


def _unit(device: str, *shape: int, seed: int = 0) -> Tensor:
    return F.normalize(_normal(device, *shape, seed=seed), dim=-1)


def _one(sizes: Sizes, device: str) -> list[Tensor]:
    return [_unit(device, *sizes)]


def _pairs(sizes: Sizes, device: str) -> list[Tensor]:
    return [_unit(device, *sizes), _unit(device, *sizes, seed=1)]


def _two_sets(sizes: Sizes, device: str) -> list[Tensor]:
    *batch, rows, columns, width = sizes
    return [_unit(device, *batch, rows, width), _unit(device, *batch, columns, width, seed=1)]


def _scaled_pairs(sizes: Sizes, device: str) -> list[Tensor]:
    *batch, width = sizes
    return [*_pairs(sizes, device), _normal(device, *batch, width // 2, seed=2)]


def _loss_arguments(sizes: Sizes, device: str) -> list[Tensor]:
    *batch, _ = sizes
    margin, target = (_normal(device, *batch, seed=seed).sigmoid() for seed in (3, 4))
    return [*_scaled_pairs(sizes, device), margin, target]


def _scaled_one(sizes: Sizes, device: str) -> list[Tensor]:
    *batch, _, width = sizes
    return [*_one(sizes, device), _normal(device, *batch, width // 2, seed=2)]


def _scaled_sets(sizes: Sizes, device: str) -> list[Tensor]:
    *batch, _, _, width = sizes
    return [*_two_sets(sizes, device), _normal(device, *batch, width // 2, seed=2)]


def _hidden_states(sizes: Sizes, device: str) -> list[Tensor]:
    batch, length, size, width = sizes
    weight = _normal(device, width, size, seed=1) / size**0.5
    positions = (torch.arange(batch, device=device) * 3 + 1) % length
    return [_normal(device, batch, length, size), weight, positions]


def _biased_hidden_states(sizes: Sizes, device: str) -> list[Tensor]:
    return [*_hidden_states(sizes, device), _normal(device, sizes[-1], seed=2)]


def _tokens(sizes: Sizes, device: str) -> list[Tensor]:
    count, size, vocabulary = sizes
    weight = _normal(device, vocabulary, size, seed=1) / size**0.5
    target = (torch.arange(count, device=device) * 5 + 1) % vocabulary
    return [_normal(device, count, size), weight, target]


def _biased_tokens(sizes: Sizes, device: str) -> list[Tensor]:
    return [*_tokens(sizes, device), _normal(device, sizes[-1], seed=2)]


def _picked(inputs: list[Tensor]) -> list[Tensor]:
    """Of the hidden states only the rows at the positions are read."""
    hidden, *others = inputs
    return [hidden[:, 0], *others]


def _loss_of_all(
    chosen: Tensor, rejected: Tensor, scale: Tensor, margin: Tensor, target: Tensor
) -> Any:
    # Margin and target are as exact as the loss.
    wide = torch.promote_types(chosen.dtype, torch.float32)
    margin, target = margin.to(wide), target.to(wide)
    return ops.preference_loss(chosen, rejected, scale=scale, margin=margin, target=target)


def _embedding_of_all(hidden: Tensor, weight: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
    return ops.preference_embedding(hidden, weight, positions, bias=bias)


def _logprob_of_all(hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor) -> Any:
    options = {"temperature": 0.7, "softcap": 30.0, "entropy": True}
    return ops.linear_logprob(hidden, weight, target, bias, **options)


def eager_normalize(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def eager_score(a: Tensor, b: Tensor) -> Tensor:
    return (a[..., 0::2] * b[..., 1::2] - a[..., 1::2] * b[..., 0::2]).sum(dim=-1)


def eager_score_matrix(v: Tensor) -> Tensor:
    return peers.rotate(v) @ v.mT


def eager_cross_score_matrix(a: Tensor, b: Tensor) -> Tensor:
    return peers.rotate(a) @ b.mT


def eager_cross_probability_matrix(a: Tensor, b: Tensor, tau: float = 0.1) -> Tensor:
    return torch.sigmoid((peers.rotate(a) @ b.mT) / tau)


_ROWS = {"small": (1024, 8), "large": (2**22, 8), "less": (2**19, 8)}
_NASTY_ROWS = ((1, 2), (17, 6), (1031, 10), (3, 5, 66))
_SQUARE = {"small": (256, 16, 8), "large": (16384, 8), "less": (4096, 8)}
_NASTY_SQUARE = ((1, 2), (3, 17, 10), (2, 130, 6), (20, 16, 4))
_CROSS = {"small": (256, 16, 16, 8), "large": (16384, 16384, 8), "less": (4096, 4096, 8)}
_NASTY_CROSS = ((1, 1, 2), (5, 1, 6), (3, 17, 33, 10), (70, 1030, 4))


def _rows(op: str, peer: Callable[..., Any], **others: Any) -> Work:
    everything = {"make": _pairs, "make_all": _scaled_pairs, "call_all": getattr(ops, op)}
    return Work(op, "(B, d)", peer, nasty=_NASTY_ROWS, **_ROWS, **(everything | others))


def _square(op: str, peer: Callable[..., Any]) -> Work:
    return Work(
        op,
        "(..., K, d)",
        peer,
        _one,
        make_all=_scaled_one,
        call_all=getattr(ops, op),
        nasty=_NASTY_SQUARE,
        **_SQUARE,
    )


def _cross(op: str, peer: Callable[..., Any]) -> Work:
    return Work(
        op,
        "(..., M, N, d)",
        peer,
        _two_sets,
        make_all=_scaled_sets,
        call_all=getattr(ops, op),
        nasty=_NASTY_CROSS,
        **_CROSS,
    )


WORKS = (
    _rows("normalize", eager_normalize, make=_one, make_all=_one),
    _rows("score", eager_score),
    _rows(
        "preference_loss",
        peers.eager_preference_loss,
        make_all=_loss_arguments,
        call_all=_loss_of_all,
        result_dtype=torch.float32,
    ),
    Work(
        "preference_embedding",
        "(B, T, H, d)",
        peers.eager_preference_embedding,
        _hidden_states,
        small=(8, 512, 2048, 8),
        large=(16384, 2, 4096, 8),
        less=(2048, 2, 4096, 8),
        make_all=_biased_hidden_states,
        call_all=_embedding_of_all,
        nasty=((1, 1, 1, 1), (3, 7, 67, 6), (9, 4, 300, 13)),
        needed=_picked,
    ),
    # Its products take the time, not memory: of the bandwidth it can reach only a small part.
    Work(
        "linear_logprob",
        "(N, H, V)",
        peers.eager_linear_logprob,
        _tokens,
        small=(256, 576, 8192),
        large=(4096, 2048, 131072),
        less=(1024, 1024, 32768),
        make_all=_biased_tokens,
        call_all=_logprob_of_all,
        nasty=((1, 1, 1), (3, 5, 67), (70, 33, 1031)),
        result_dtype=torch.float32,
    ),
    _square("score_matrix", eager_score_matrix),
    _square("probability_matrix", peers.eager_probability_matrix),
    _cross("cross_score_matrix", eager_cross_score_matrix),
    _cross("cross_probability_matrix", eager_cross_probability_matrix),
)


def cast(inputs: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Floating-point tensors in this dtype, indices as they are."""
    return [x.to(dtype) if x.is_floating_point() else x for x in inputs]


def size_in_bytes(tensors: list[Tensor]) -> int:
    return sum(x.nbytes for x in tensors)


def minimum_bytes(work: Work, inputs: list[Tensor], outputs: list[Tensor], backward: bool) -> int:
    """What cannot be avoided: every input read once, every result written once.

    A backward pass reads the inputs again, since the loss lies between, and the gradient of the
    first result; it writes the gradients of all inputs.
    """
    read = size_in_bytes(work.needed(inputs))
    dtype = work.result_dtype or inputs[0].dtype
    results = [output.numel() * dtype.itemsize for output in outputs]
    forward = read + sum(results)
    if not backward:
        return forward
    return forward + results[0] + read + size_in_bytes([x for x in inputs if x.requires_grad])
