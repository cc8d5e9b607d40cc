"""A line of the table of speeds, and what all lines share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

OURS = "gpm_core"
#: What every operation is compared with.
PEERS = ("eager", "torch.compile")
Contenders = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Row:
    """One line of the table: contenders by name, each a call without arguments."""

    name: str
    #: () -> name -> call; called once, so that inputs are made when needed and shared
    make: Callable[[], Contenders]
    #: contender -> the ratio (its time / ours) that is aimed at
    targets: dict[str, float]
    #: contenders whose result must agree with ours before anything is timed
    checked: tuple[str, ...]
    #: those of them that are left out where their package is not installed: name -> package
    optional: dict[str, str] = field(default_factory=dict)
    rounds: int = 51
    repeats: int = 1
    tolerance: dict[str, float] = field(default_factory=lambda: {"rtol": 1e-3, "atol": 1e-5})

    @property
    def differentiates(self) -> bool:
        """Whether gradients are a part of it."""
        return "backward" in self.name

    def missing(self) -> dict[str, str]:
        """Contenders that are not here, and the package that they need."""
        return {name: package for name, package in self.optional.items() if not installed(package)}


@cache
def installed(package: str) -> bool:
    return find_spec(package) is not None


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.compile`` for fixed shapes, one for each function."""
    return torch.compile(function, dynamic=False)


def unit(*shape: int) -> Tensor:
    """Embeddings on the sphere, the same each time."""
    return torch.nn.functional.normalize(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), dim=-1
    )


def check(row: Row, contenders: Contenders) -> None:
    """A speed is worth nothing on a wrong result: the peers must agree with us first."""
    with torch.set_grad_enabled(row.differentiates):
        expected = contenders[OURS]()
        for name in (name for name in row.checked if name in contenders):
            torch.testing.assert_close(contenders[name](), expected, **row.tolerance)
