"""Several criteria in a run: labels of pairs, and what a model makes of each label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gpm_core import ops
from gpm_core.data.criteria import CriteriaPair
from gpm_core.data.pairs import PreferencePair
from gpm_core.evaluation.metrics import calibration_error, wilson_interval
from gpm_core.heads import MultiCriteriaHead
from gpm_core.losses import (
    MultiCriteriaLossOutput,
    Reduction,
    Temperature,
    multi_criteria_loss,
    one_temperature,
)
from gpm_core.models.criteria import each_embedding, flat_embeddings, head_scale
from gpm_core.training.objective import (
    Evaluation,
    PairIndex,
    gather_prompts,
    sides_of_scores,
)


def label_matrix(
    pairs: Sequence[PreferencePair], rows: Sequence[int], criteria: Sequence[str]
) -> Tensor:
    """Labels (P, C) float32 of the pairs ``rows`` by each criterion, nan where there is none."""
    labels = [
        pair.labels(criteria) if isinstance(pair, CriteriaPair) else [float("nan")] * len(criteria)
        for pair in (pairs[i] for i in rows)
    ]
    return torch.tensor(labels, dtype=torch.float32).reshape(len(rows), len(criteria))


def check_labels(name: str, target: Tensor, criteria: Sequence[str]) -> None:
    """Raise ValueError unless each criterion has a label in ``target`` (P, C)."""
    counts = (~target.isnan()).sum(dim=0).tolist()
    without = [c for c, count in zip(criteria, counts, strict=True) if not count]
    if without:
        raise ValueError(
            f"the {name} pairs have no label of {', '.join(without)}: no two responses are rated "
            "on it there"
        )


@dataclass(frozen=True)
class CriteriaEvaluation:
    """What a model makes of P pairs by each of C criteria: all (P, C), on the CPU.

    Attributes:
        criteria: C names.
        score: s_c(chosen > rejected), of a temperature for each block the one whose blocks it
            weighs.
        probability: sigmoid(score / tau).
        loss: cross-entropy of a label, 0 where there is none.
        target: labels in [0, 1], nan where there is none.
    """

    criteria: tuple[str, ...]
    score: Tensor
    probability: Tensor
    loss: Tensor
    target: Tensor

    def labels(self, criterion: str | None = None) -> tuple[Evaluation, Tensor]:
        """The L labels that there are, by one criterion or by all, and their targets (L,)."""
        places = slice(None) if criterion is None else self.criteria.index(criterion)
        target = self.target[:, places]
        labelled = ~target.isnan()
        score, probability, loss = (
            values[:, places][labelled] for values in (self.score, self.probability, self.loss)
        )
        target = target[labelled]
        correct = (torch.sign(score) * torch.sign(target - 0.5) + 1) / 2
        return Evaluation(score, probability, loss, correct), target

    def figures(self) -> dict[str, dict[str, float]]:
        """Loss and accuracy by each criterion that has labels."""
        each = {name: self.labels(name)[0] for name in self.criteria}
        return {
            name: {"loss": result.mean_loss, "accuracy": result.accuracy}
            for name, result in each.items()
            if len(result.score)
        }

    def summary(self) -> dict[str, Any]:
        """As metrics.json has it: of all labels, and under "criteria" of those of each criterion.

        The labels of a pair are no independent draws: the interval over all counts pairs.
        """
        pairs = int((~self.target.isnan()).any(dim=1).sum())
        each = {name: self.labels(name) for name in self.criteria}
        return {
            **_summary(*self.labels(), pairs),
            "pairs": pairs,
            "labels": sum(len(target) for _, target in each.values()),
            "criteria": {
                name: {**_summary(result, target, len(target)), "labels": len(target)}
                for name, (result, target) in each.items()
                if len(target)
            },
        }


def _summary(result: Evaluation, target: Tensor, count: int) -> dict[str, Any]:
    return {
        "accuracy": result.accuracy,
        "interval_95": list(wilson_interval(result.accuracy * count, count)),
        "loss": result.mean_loss,
        "calibration_error": calibration_error(result.probability, target),
    }


def criteria_loss(
    head: MultiCriteriaHead,
    hidden: Tensor,
    prompt_hidden: Tensor | None,
    target: Tensor,
    temperature: Temperature | None = None,
    *,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
) -> MultiCriteriaLossOutput:
    """:func:`gpm_core.losses.multi_criteria_loss` of a batch of pairs.

    Args:
        head: of C criteria.
        hidden: (2B, H): the B chosen responses, then the B rejected ones.
        prompt_hidden: (B, H) of the prompts, for a gate.
        target: (B, C), nan where there is no label.
        temperature: a learned one; None for the head's own, which is fixed.
        label_smoothing: in [0, 1).
        reduction: "mean", "sum" or "none".
    """
    chosen, rejected = head.embed(hidden).chunk(2)
    return multi_criteria_loss(
        chosen,
        rejected,
        head_scale(head, prompt_hidden),
        target,
        label_smoothing=label_smoothing,
        tau=head.tau if temperature is None else temperature,
        reduction=reduction,
    )


@torch.no_grad()
def evaluate_criteria(
    head: MultiCriteriaHead,
    features: Tensor,
    pairs: PairIndex,
    prompt_features: Tensor | None = None,
    temperature: Temperature | None = None,
) -> CriteriaEvaluation:
    """What a head of several criteria makes of all labels of ``pairs``.

    Args:
        head: the head; left as it is.
        features: (N, H) standardized features.
        pairs: P pairs of rows of ``features``, with ``target`` (P, C).
        prompt_features: (M, H) features that ``pairs.prompt`` names rows of, for a gate.
        temperature: a learned one; None for the head's own.

    Raises:
        ValueError: if the pairs have no targets.
    """
    if pairs.target is None:
        raise ValueError("pairs need target (P, C), a label for each criterion")
    was_training = head.training
    nn.Module.eval(head)
    hidden = torch.cat((features[pairs.chosen], features[pairs.rejected]))
    gates = gather_prompts(pairs, prompt_features)
    each = each_embedding(head, flat_embeddings(head, head.embed(hidden)))
    chosen, rejected = each.chunk(2)
    scale, tau = head_scale(head, gates), head.tau if temperature is None else temperature()
    if isinstance(tau, Tensor) and tau.dim():
        scale, tau = one_temperature(scale, tau)
    score = ops.score(chosen, rejected, scale)
    head.train(was_training)
    return evaluate_criteria_scores(head.criteria, score, float(tau), pairs.target)


def evaluate_criteria_scores(
    criteria: Sequence[str], score: Tensor, tau: float, target: Tensor
) -> CriteriaEvaluation:
    """Probabilities and losses of P pairs from their scores by each criterion, of whatever model.

    Args:
        criteria: C names.
        score: (P, C) s_c(chosen > rejected).
        tau: temperature that scores are divided by.
        target: (P, C), nan where there is no label.
    """
    score, target = score.detach().float().cpu(), target.float().cpu()
    loss, probability, *_ = multi_criteria_loss(
        *sides_of_scores(score), target, tau=tau, reduction="none"
    )
    return CriteriaEvaluation(tuple(criteria), score, probability, loss, target)
