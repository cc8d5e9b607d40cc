"""What TRL's trainer logs of each criterion of a preference model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def keep_labels(
    kept: Mapping[str, list[float]],
    criteria: Sequence[str],
    outputs: Any,
    labels: Tensor,
    gather: Callable[[Any], Any],
) -> None:
    """Add to ``kept`` what becomes of each label of a batch, for the means of the next log.

    Names are ``accuracy`` (of all labels), ``accuracy_<criterion>`` and ``loss_<criterion>``. A
    criterion without any label since the last log has no figures.

    Args:
        kept: lists by name, which appear when they are asked for.
        criteria: C names.
        outputs: of the model, with ``criteria_score`` and ``criteria_loss`` (B, C).
        labels: (B', C) of all processes, nan where there is none.
        gather: the same of a tensor (B, C) of this process.
    """
    score = gather(outputs["criteria_score"].float())
    losses = gather(outputs["criteria_loss"].float())
    correct = (score.sign() * (labels - 0.5).sign() + 1) / 2
    for c, name in enumerate(criteria):
        labelled = ~labels[:, c].isnan()
        if labelled.any():
            kept["accuracy"].extend(correct[labelled, c].tolist())
            kept[f"accuracy_{name}"].extend(correct[labelled, c].tolist())
            kept[f"loss_{name}"].extend(losses[labelled, c].tolist())
