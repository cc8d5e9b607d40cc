"""What TRL's trainer logs of each criterion of a preference model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class LabelsWeighAlike:
    """What makes a trainer weigh labels of several criteria alike, in training and evaluation.

    A batch's loss is the mean over the labels that it has. Where micro-batches of a step, or the
    processes, have more labels or fewer, a mean of such means is not the mean over all labels: each
    counts by its number of labels here, so that the gradient of a step is that of one batch of all.
    """

    accelerator: Any
    model: Any
    _metrics: Any
    _preference_model: Any
    #: Labels of a micro-batch of a process, the mean over those of a step; None of one preference.
    _mean_labels: Tensor | None = None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """The micro-batches of a step, whose labels are counted; as ``Trainer``."""
        inherited: Any = super()
        samples, items = inherited.get_batch_samples(*args, **kwargs)
        if samples and self._preference_model.criteria:
            counts = torch.stack([_count(batch["labels"]) for batch in samples])
            self._mean_labels = self.accelerator.gather(counts).mean()
        return samples, items

    def _weighed(self, loss: Tensor, labels: Tensor) -> Tensor:
        """The mean loss of labels as a part of the mean over the step."""
        if self._mean_labels is None or not self.model.training:
            return loss
        least = torch.finfo(loss.dtype).tiny
        return loss * (_count(labels) / self._mean_labels.clamp(min=least))

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """As ``Trainer``, but that the loss of several criteria is the mean over all labels."""
        inherited: Any = super()
        # Left by a prediction, which logs nothing.
        self._metrics["eval"].clear()
        output = inherited.evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        criteria, kept = self._preference_model.criteria, self._metrics["eval"]
        losses = [loss for name in criteria for loss in kept.get(f"loss_{name}", ())]
        if losses:
            output.metrics[f"{metric_key_prefix}_loss"] = sum(losses) / len(losses)
        return output


def _count(labels: Tensor) -> Tensor:
    """Number () of the labels that there are, float32."""
    return (~labels.isnan()).sum().float()


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
