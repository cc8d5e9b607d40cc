"""For transformers' ``Trainer``, which trains a ``GeneralPreferenceModel`` as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from gpm_core.losses import accuracy_of


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


def criteria_metrics(criteria: Sequence[str]) -> Callable[[Any], dict[str, float]]:
    """The same of a model of several criteria: ``Trainer(compute_metrics=criteria_metrics(...))``.

    Args:
        criteria: C names, as the model's.

    Returns:
        A function of transformers' ``EvalPrediction`` of P pairs: ``predictions`` are the scores
        (P,) of the one preference and those (P, C) of each criterion, ``label_ids`` (P, C), nan
        where there is no label. Its metrics are ``accuracy``, of all labels that there are,
        ``accuracy_<criterion>``, and ``margin``, ``min_score`` and ``max_score`` of the one
        preference. A criterion without any label has no accuracy.

    Raises:
        ValueError: (the function) if there are not C scores and labels for each pair.

    Example:
        >>> from transformers import EvalPrediction
        >>> scores = torch.tensor([2.0, -1.0]), torch.tensor([[3.0, 1.0], [1.0, -3.0]])
        >>> labels = torch.tensor([[1.0, 0.0], [1.0, float("nan")]])
        >>> metrics = criteria_metrics(["helpful", "honest"])(EvalPrediction(scores, labels))
        >>> metrics["accuracy_helpful"], metrics["accuracy_honest"]
        (1.0, 0.0)
    """
    names = tuple(criteria)

    def metrics(prediction: Any) -> dict[str, float]:
        both = prediction.predictions
        if not isinstance(both, (tuple, list)) or len(both) != 2:
            raise ValueError(
                "predictions must be the scores (P,) of pairs and those (P, C) of each criterion, "
                "as a model of several criteria gives them"
            )
        one, score, labels = (
            torch.as_tensor(values, dtype=torch.float64) for values in (*both, prediction.label_ids)
        )
        if not len(one) or not score.shape == labels.shape == (len(one), len(names)):
            raise ValueError(
                f"there must be a score and a label for each of P >= 1 pairs and each of "
                f"{', '.join(names)}; got {tuple(score.shape)} and {tuple(labels.shape)}"
            )
        labelled = ~labels.isnan()
        each = {
            f"accuracy_{name}": accuracy_of(score[has, c], labels[has, c]).item()
            for c, (name, has) in enumerate(zip(names, labelled.T, strict=True))
            if has.any()
        }
        return {
            "accuracy": accuracy_of(score[labelled], labels[labelled]).item(),
            **each,
            "margin": one.mean().item(),
            "min_score": one.min().item(),
            "max_score": one.max().item(),
        }

    return metrics
