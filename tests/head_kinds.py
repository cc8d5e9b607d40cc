"""Heads of every kind, for the tests of heads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpm_core import testing
from gpm_core.heads import BradleyTerryHead, HybridHead, PreferenceHead

HIDDEN = 6

#: label -> constructor, width of the embedding, and number of blocks that a scale weighs, if any
KINDS: dict[str, tuple[Callable[..., Any], int, int | None]] = {
    "preference": (lambda **k: PreferenceHead(HIDDEN, 4, **k), 4, None),
    "preference-paper": (lambda **k: PreferenceHead(HIDDEN, 4, init="paper", **k), 4, None),
    "preference-raw": (lambda **k: PreferenceHead(HIDDEN, 4, normalize=False, **k), 4, None),
    "preference-softmax": (lambda **k: PreferenceHead(HIDDEN, 4, "softmax", **k), 4, 2),
    "preference-softplus": (lambda **k: PreferenceHead(HIDDEN, 4, "softplus", **k), 4, 2),
    "bradley-terry": (lambda **k: BradleyTerryHead(HIDDEN, **k), 2, None),
    "bradley-terry-bias": (lambda **k: BradleyTerryHead(HIDDEN, bias=True, **k), 2, None),
    "hybrid": (lambda **k: HybridHead(HIDDEN, 4, scalar_weight=0.5, **k), 6, 3),
    "hybrid-softmax": (lambda **k: HybridHead(HIDDEN, 4, "softmax", clip=0.5, **k), 6, 3),
    "hybrid-paper": (lambda **k: HybridHead(HIDDEN, 4, "softplus", init="paper", **k), 6, 3),
}


def random_head(kind: str, **options: Any) -> Any:
    """A head of this kind whose weights are large enough that every part of it shows."""
    head = KINDS[kind][0](**options)
    for i, (name, parameter) in enumerate(head.named_parameters()):
        with torch.no_grad():
            noise = testing.make_tensor(*parameter.shape, seed=20 + i, scale=0.7)
            parameter.copy_(parameter + noise if "bias" in name else noise)
    return head


def states(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return testing.make_tensor(*shape, HIDDEN, dtype=dtype, seed=seed)
