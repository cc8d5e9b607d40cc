"""For transformers' ``Trainer``, which trains a ``GeneralPreferenceModel`` as it is."""

from __future__ import annotations

from typing import Any

import torch

from gpm_core.losses._common import accuracy_of


def preference_metrics(prediction: Any) -> dict[str, float]:
    """Metrics of an evaluation, under TRL's names: ``Trainer(compute_metrics=...)``.

    Args:
        prediction: transformers' ``EvalPrediction`` of P pairs: ``predictions`` (P,) are scores
            s(chosen > rejected), ``label_ids`` (P,) the probabilities that chosen is preferred.

    Returns:
        ``accuracy``: share of pairs whose score has the label's side, ties of either counted half;
        ``margin``: mean score; ``min_score`` and ``max_score``. The trainer puts "eval_" before.

    Raises:
        ValueError: if there is not one score and one label per pair.

    Example:
        >>> from transformers import EvalPrediction
        >>> preference_metrics(EvalPrediction(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 1.0])))
        {'accuracy': 0.5, 'margin': 0.5, 'min_score': -1.0, 'max_score': 2.0}
    """
    score = torch.as_tensor(prediction.predictions, dtype=torch.float64)
    labels = torch.as_tensor(prediction.label_ids, dtype=torch.float64)
    if score.dim() != 1 or score.shape != labels.shape or not len(score):
        raise ValueError(
            "predictions and label_ids must be (P,), a score and a label for each of P >= 1 pairs; "
            f"got {tuple(score.shape)} and {tuple(labels.shape)}"
        )
    return {
        "accuracy": accuracy_of(score, labels).item(),
        "margin": score.mean().item(),
        "min_score": score.min().item(),
        "max_score": score.max().item(),
    }
