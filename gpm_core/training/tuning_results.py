"""What a training run of a language model gave: held-out figures, and a history of its log."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gpm_core.evaluation.metrics import calibration_error, wilson_interval
from gpm_core.losses import one_temperature
from gpm_core.models.outputs import GeneralPreferenceOutput
from gpm_core.training.criteria import evaluate_criteria_scores
from gpm_core.training.loop import EpochRecord, History
from gpm_core.training.objective import Evaluation, evaluate_scores
from gpm_core.training.settings import FitSettings


def evaluate_trainer(trainer: Any) -> tuple[dict[str, Any], Evaluation, Tensor]:
    """What the model makes of the held-out pairs, summed up and each, and their labels.

    From the scores, as of a head on fixed features: probabilities are without margins, and losses
    without label smoothing and regularisation.
    """
    model = trainer.model
    wanted = "criteria_score" if model.criteria else "score"
    if "margin" in trainer.eval_dataset.column_names:
        # Beside the labels, because not every sampler keeps the order of the data.
        trainer.label_names = ["labels", "margin"]
        trainer.data_collator = partial(_with_margins, trainer.data_collator)
    output = trainer.predict(
        trainer.eval_dataset,
        ignore_keys=[name for name in _output_fields() if name != wanted],
        metric_key_prefix="heldout",
    )
    given = output.label_ids if isinstance(output.label_ids, tuple) else (output.label_ids,)
    score, labels, *margins = (
        torch.as_tensor(values).float() for values in (output.predictions, *given)
    )
    tau = model.config.tau if (learned := model._learned_tau()) is None else learned
    if isinstance(tau, Tensor) and tau.dim():
        tau = one_temperature(None, tau)[1]
    if model.criteria:
        result = evaluate_criteria_scores(model.criteria, score, float(tau), labels)
        return result.summary(), *result.labels()
    settings = FitSettings(loss=model.config.loss, target_margin=model.config.target_margin)
    margin = margins[0] if margins else None
    evaluation = evaluate_scores(score, float(tau), margin, labels, settings)
    return _summary(evaluation, labels), evaluation, labels


def _output_fields() -> list[str]:
    """Names of what a model's ``forward`` returns."""
    return [field.name for field in dataclasses.fields(GeneralPreferenceOutput)]


def _with_margins(collate: Any, rows: Sequence[Any]) -> dict[str, Tensor]:
    """A batch that has margins, also where none of its pairs has one."""
    batch: dict[str, Tensor] = collate(rows)
    return {"margin": torch.full((len(rows),), float("nan")), **batch}


def _summary(result: Evaluation, labels: Tensor) -> dict[str, Any]:
    correct = float(result.correct.double().sum())
    return {
        "accuracy": result.accuracy,
        "interval_95": list(wilson_interval(correct, len(labels))),
        "loss": result.mean_loss,
        "calibration_error": calibration_error(result.probability, labels),
        "pairs": len(labels),
    }


def is_evaluated(state: Any) -> bool:
    """Whether there was an evaluation after the last step."""
    log, last = state.log_history, state.global_step
    return any("eval_loss" in entry and entry["step"] == last for entry in log)


def history_of(log: list[dict[str, Any]], criteria: Sequence[str]) -> History:
    """One record per evaluation, with the means of the training before it, over steps.

    An evaluation before the first step, or without a step since the last one, has none.
    """
    records: list[EpochRecord] = []
    losses: list[float] = []
    accuracies: list[float] = []
    step = 0
    for entry in log:
        if "loss" in entry:
            losses += [entry["loss"]] * (entry["step"] - step)
            accuracies += [entry["accuracy"]] * (entry["step"] - step)
            step = entry["step"]
        if "eval_loss" in entry and losses:
            count = len(losses)
            records.append(
                EpochRecord(
                    len(records) + 1,
                    entry["step"],
                    sum(losses) / count,
                    sum(accuracies) / count,
                    entry["eval_loss"],
                    entry.get("eval_accuracy"),
                    _criteria_figures(entry, criteria) if criteria else None,
                )
            )
            losses, accuracies = [], []
    if not records:
        raise ValueError("the run took no step: set num_train_epochs, or max_steps, above 0")
    return History(tuple(records))


def _criteria_figures(
    entry: dict[str, Any], criteria: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Loss and accuracy of an evaluation by each criterion that had labels."""
    return {
        name: {figure: entry[f"eval_{figure}_{name}"] for figure in ("loss", "accuracy")}
        for name in criteria
        if f"eval_loss_{name}" in entry
    }
