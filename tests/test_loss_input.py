"""What the losses of preferences refuse, and what they say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from gpm_core import losses
from gpm_core.losses import (
    BradleyTerryLoss,
    bradley_terry_loss,
    general_preference_loss,
)


@pytest.mark.parametrize("loss", [bradley_terry_loss, BradleyTerryLoss()], ids=["fn", "module"])
def test_rewards_of_different_shapes(loss: Any) -> None:
    """(B, 1) against (B,) would make B x B pairs."""
    with pytest.raises(ValueError, match=r"rewards of the same shape; got \(3, 1\) and \(3,\)"):
        loss(torch.zeros(3, 1), torch.zeros(3))
    with pytest.raises(ValueError, match=r"got \(3,\) and \(\)"):
        loss(torch.zeros(3), torch.tensor(0.0))
    with pytest.raises(TypeError, match="rejected must be a tensor of rewards; got float"):
        loss(torch.zeros(3), 0.0)
    with pytest.raises(TypeError, match="chosen must be a tensor of rewards; got list"):
        loss([0.0], torch.zeros(1))
    with pytest.raises(TypeError, match="same dtype"):
        loss(torch.zeros(3), torch.zeros(3).double())


@pytest.mark.parametrize("argument", ["margin", "target"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_margins_and_targets_are_not_broadcast(argument: str, smoothing: float) -> None:
    a, b = torch.zeros(3, 4), torch.zeros(3, 4)
    for wrong in (torch.zeros(3, 1), torch.zeros(1), torch.zeros(2, 3)):
        options = {argument: wrong, "label_smoothing": smoothing}
        with pytest.raises(ValueError, match=r"must have one number per pair, shape \(3,\)"):
            general_preference_loss(a, b, **options)
        with pytest.raises(ValueError, match=r"must have one number per pair, shape \(3,\)"):
            bradley_terry_loss(a[:, 0], b[:, 0], **options)
    with pytest.raises(TypeError, match=f"{argument} must be .*got torch.int64"):
        general_preference_loss(
            a, b, **{argument: torch.ones(3).long(), "label_smoothing": smoothing}
        )


@pytest.mark.parametrize("loss", [general_preference_loss, bradley_terry_loss])
def test_bad_options(loss: Any) -> None:
    a = torch.zeros(2, 4)
    for smoothing in (-0.1, 1.0, 2.0, math.nan):
        with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 1\)"):
            loss(a, a, label_smoothing=smoothing)
    with pytest.raises(ValueError, match="reduction must be 'mean', 'sum' or 'none'; got 'avg'"):
        loss(a, a, reduction="avg")
    for tau in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="tau must be finite and above zero"):
            loss(a, a, tau=tau)
    with pytest.raises(ValueError, match="margin must be finite; got nan"):
        loss(a, a, margin=math.nan)


def test_embeddings_of_different_shapes() -> None:
    with pytest.raises(ValueError, match=r"same shape \(\.\.\., d\); got \(3, 4\) and \(1, 4\)"):
        general_preference_loss(torch.zeros(3, 4), torch.zeros(1, 4))
    with pytest.raises(ValueError, match="k = 2"):
        general_preference_loss(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, 4))


def test_public_names() -> None:
    assert losses.PreferenceLossOutput._fields == ("loss", "probability", "accuracy")
