"""The one table that all operations are tested with: shapes that hurt, for every operation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gpm_core import ops
from gpm_core.testing import make_tensor

#: (dtype, layout, device) -> tensor
Maker = Callable[[torch.dtype, str, str], torch.Tensor]


@dataclass(frozen=True)
class Case:
    op: str
    label: str
    function: Callable[..., Any]
    makers: tuple[Maker, ...]
    #: cheap enough for numerical differentiation
    small: bool = False

    def __str__(self) -> str:
        return f"{self.op}-{self.label}"

    def make(self, dtype: torch.dtype, layout: str, device: str = "cpu") -> list[Any]:
        """Arguments of the function."""
        return [maker(dtype, layout, device) for maker in self.makers]


def _embeddings(*shape: int, seed: int = 0) -> Maker:
    return lambda dtype, layout, device: make_tensor(
        *shape, dtype=dtype, layout=layout, seed=seed, device=device
    )


def _wide(*shape: int, seed: int = 0) -> Maker:
    def make(dtype: torch.dtype, layout: str, device: str) -> torch.Tensor:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return make_tensor(*shape, dtype=wide, seed=seed, device=device).sigmoid()

    return make


def _positions(*values: int, shape: tuple[int, ...]) -> Maker:
    return lambda dtype, layout, device: torch.tensor(
        values, dtype=torch.int64, device=device
    ).reshape(shape)


def _case(op: str, label: str, function: Callable[..., Any], *makers: Any, small: bool) -> Case:
    return Case(op, label, function, makers, small)


def _normalize() -> list[Case]:
    shapes = [(0, 3), (1, 1), (3, 4), (5, 17), (2, 3, 64), (7, 129), (300, 33), (3, 1100), (4,)]
    return [
        _case(
            "normalize",
            str(s),
            ops.normalize,
            _embeddings(*s),
            small=0 < torch.Size(s).numel() < 50,
        )
        for s in shapes
    ]


def _score() -> list[Case]:
    cases = []
    for batch in [(0,), (1,), (), (3,), (2, 0, 3), (17,), (2, 5, 3), (1000,)]:
        for width in (2, 6, 10):
            small = 0 < torch.Size(batch).numel() < 7 and width < 10
            a, b = _embeddings(*batch, width), _embeddings(*batch, width, seed=1)
            scale = _embeddings(*batch, width // 2, seed=2)
            label = f"{batch}x{width}"
            cases.append(_case("score", label, ops.score, a, b, small=small))
            cases.append(_case("score", f"{label}-scale", ops.score, a, b, scale, small=small))
    broadcast = (_embeddings(4, 1, 6), _embeddings(5, 6, seed=1), _embeddings(3, seed=2))
    return [*cases, _case("score", "broadcast", ops.score, *broadcast, small=True)]


def _loss(a: Any, b: Any, scale: Any, margin: Any, target: Any) -> Any:
    return ops.preference_loss(a, b, scale=scale, margin=margin, target=target, tau=0.5)


def _preference_loss() -> list[Case]:
    cases = []
    for batch in [(0,), (1,), (3,), (17,), (2, 3), (513,)]:
        small = 0 < torch.Size(batch).numel() < 7
        a, b = _embeddings(*batch, 6), _embeddings(*batch, 6, seed=1)
        cases.append(_case("preference_loss", f"{batch}", ops.preference_loss, a, b, small=small))
        full = (a, b, _embeddings(*batch, 3, seed=2), _wide(*batch, seed=3), _wide(*batch, seed=4))
        cases.append(_case("preference_loss", f"{batch}-full", _loss, *full, small=small))
    return cases


def _embed(hidden: Any, weight: Any, positions: Any = None, bias: Any = None) -> Any:
    return ops.preference_embedding(hidden, weight, positions, bias=bias)


def _embed_raw(hidden: Any, weight: Any, positions: Any = None, bias: Any = None) -> Any:
    return ops.preference_embedding(hidden, weight, positions, bias=bias, normalize=False)


def _preference_embedding() -> list[Case]:
    cases = []
    for label, function in (("unit", _embed), ("raw", _embed_raw)):
        for batch, length, size, width in [
            ((0,), 3, 4, 2),
            ((1,), 1, 1, 1),
            ((2,), 3, 5, 2),
            ((3,), 7, 67, 6),
            ((2, 2), 3, 33, 13),
            ((9,), 4, 300, 8),
        ]:
            count = torch.Size(batch).numel()
            hidden = _embeddings(*batch, length, size, seed=5)
            weight, bias = _embeddings(width, size, seed=6), _embeddings(width, seed=7)
            values = [(3 * i + 1) % length for i in range(count)]
            positions = _positions(*values, shape=batch)
            name = f"{label}-{batch}x{length}x{size}x{width}"
            small = 0 < count < 3 and size < 10
            arguments = (hidden, weight, positions, bias)
            cases.append(_case("preference_embedding", name, function, *arguments, small=small))
            rows = (_embeddings(*batch, size, seed=5), weight)
            cases.append(
                _case("preference_embedding", f"{name}-rows", function, *rows, small=small)
            )
    return cases


def _targets(*shape: int, size: int) -> Maker:
    """Every seventh is ignored."""

    def make(dtype: torch.dtype, layout: str, device: str) -> torch.Tensor:
        numbers = torch.arange(torch.Size(shape).numel(), device=device)
        ignored = numbers % 7 == 5
        return torch.where(ignored, -100, (numbers * 5 + 1) % size).reshape(shape)

    return make


def _logprob(hidden: Any, weight: Any, target: Any, bias: Any = None) -> Any:
    return ops.linear_logprob(hidden, weight, target, bias)


def _logprob_full(hidden: Any, weight: Any, target: Any, bias: Any) -> Any:
    options = {"temperature": 0.7, "softcap": 2.0, "entropy": True}
    return ops.linear_logprob(hidden, weight, target, bias, **options)


def _logprob_frozen(vocabulary: int) -> Callable[..., Any]:
    """With a projection that is no argument, and so needs no gradient."""

    def function(hidden: Any, target: Any) -> Any:
        shape = (vocabulary, hidden.shape[-1])
        # Eighths, which every dtype has.
        eighths = torch.arange(shape[0] * shape[1], device=hidden.device) * 37 % 17 - 8
        weight = (eighths / 8).to(hidden.dtype).reshape(shape)
        return ops.linear_logprob(hidden, weight, target, temperature=0.7, softcap=2.0)

    return function


def _linear_logprob() -> list[Case]:
    cases = []
    for batch, size, vocabulary in [
        ((0,), 3, 5),
        ((1,), 1, 1),
        ((), 4, 3),
        ((3,), 4, 7),
        ((2, 9), 5, 18),
        ((7,), 33, 1031),
    ]:
        count = torch.Size(batch).numel()
        hidden, weight = _embeddings(*batch, size), _embeddings(vocabulary, size, seed=1)
        arguments = (hidden, weight, _targets(*batch, size=vocabulary))
        full = (*arguments, _embeddings(vocabulary, seed=2))
        label, small = f"{batch}x{size}x{vocabulary}", 0 < count < 7 and size < 10
        cases.append(_case("linear_logprob", label, _logprob, *arguments, small=small))
        cases.append(_case("linear_logprob", f"{label}-full", _logprob_full, *full, small=small))
        frozen = (_logprob_frozen(vocabulary), arguments[0], arguments[2])
        cases.append(_case("linear_logprob", f"{label}-frozen", *frozen, small=small))
    return cases


def _probability(v: Any, scale: Any = None) -> Any:
    return ops.probability_matrix(v, scale, tau=0.7)


def _cross_probability(a: Any, b: Any, scale: Any = None) -> Any:
    return ops.cross_probability_matrix(a, b, scale, tau=0.7)


def _square() -> list[Case]:
    cases = []
    for op, function in (("score_matrix", ops.score_matrix), ("probability_matrix", _probability)):
        for batch, rows, width in [
            ((), 0, 2),
            ((), 1, 2),
            ((), 3, 4),
            ((2,), 5, 6),
            ((0,), 4, 6),
            ((11,), 5, 6),
            ((2, 20), 16, 4),
            ((3,), 17, 10),
            ((1,), 130, 8),
            ((2,), 300, 2),
            ((3,), 9, 34),
            ((), 70, 68),
        ]:
            small = 0 < torch.Size(batch).numel() * rows < 12
            v, scale = _embeddings(*batch, rows, width), _embeddings(*batch, width // 2, seed=2)
            label = f"{batch}x{rows}x{width}"
            cases.append(_case(op, label, function, v, small=small))
            cases.append(_case(op, f"{label}-scale", function, v, scale, small=small))
    return cases


def _cross() -> list[Case]:
    cases = []
    for op, function in (
        ("cross_score_matrix", ops.cross_score_matrix),
        ("cross_probability_matrix", _cross_probability),
    ):
        for batch, rows, columns, width in [
            ((), 0, 3, 2),
            ((), 3, 0, 2),
            ((), 1, 1, 2),
            ((), 2, 3, 4),
            ((2,), 5, 1, 6),
            ((0,), 4, 2, 6),
            ((3,), 17, 33, 6),
            ((1,), 70, 1030, 4),
            ((3,), 9, 7, 34),
            ((), 70, 66, 68),
        ]:
            small = 0 < torch.Size(batch).numel() * rows * columns < 12
            a, b = _embeddings(*batch, rows, width), _embeddings(*batch, columns, width, seed=1)
            scale = _embeddings(*batch, width // 2, seed=2)
            label = f"{batch}x{rows}x{columns}x{width}"
            cases.append(_case(op, label, function, a, b, small=small))
            cases.append(_case(op, f"{label}-scale", function, a, b, scale, small=small))
    return cases


CASES = [
    *_normalize(),
    *_score(),
    *_preference_loss(),
    *_preference_embedding(),
    *_linear_logprob(),
    *_square(),
    *_cross(),
]
SMALL = [case for case in CASES if case.small]
OPS = sorted({case.op for case in CASES})
