"""Asking a model for all pairs of a group, a few groups at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpm_core.data import ResponseGroup
from gpm_core.evaluation.reading import LabelledGroup

#: Responses that are scored together: enough to fill batches of about equal length.
RESPONSES_AT_ONCE = 1024


class PairScores(Protocol):
    """All pairs of K responses, as :class:`gpm_core.models.GroupScores` has them."""

    @property
    def score(self) -> Tensor:
        """(K, K): s(i > j), above zero where i is preferred to j."""

    @property
    def probability(self) -> Tensor:
        """(K, K): P(i > j)."""


class GroupScorer(Protocol):
    """What can be evaluated: all models of :mod:`gpm_core.models`, and whatever does likewise."""

    def score_groups(
        self, groups: Sequence[ResponseGroup], *, batch_size: int = ..., progress: bool = ...
    ) -> Iterable[PairScores]:
        """Scores and probabilities of all pairs within each group, in the order of ``groups``."""


@dataclass(frozen=True)
class ScoredGroup:
    """A group with the model's ``score`` and ``probability`` (K, K), float64 on the CPU."""

    labels: LabelledGroup
    score: Tensor
    probability: Tensor

    @property
    def mean_probability(self) -> Tensor:
        """(K,) mean probability of each response to be preferred to the others; 1/2 without any."""
        others = len(self.score) - 1
        if not others:
            return torch.full((1,), 0.5, dtype=torch.float64)
        return (self.probability.sum(dim=1) - self.probability.diagonal()) / others


def score_data(
    model: GroupScorer,
    groups: Sequence[LabelledGroup],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Iterator[ScoredGroup]:
    """Score groups in their order, holding the matrices of about a thousand responses at a time.

    Args:
        model: what to ask.
        groups: with K responses each; memory grows with the square of the largest K.
        batch_size: texts per forward pass.
        progress: show progress on stderr.

    Raises:
        TypeError: if the model has no method ``score_groups``.
        ValueError: if it gives something else than finite (K, K) scores, and probabilities.
    """
    for labelled, scores in _answers(model, groups, batch_size, progress):
        yield _checked(labelled, scores)


def score_criteria(
    model: GroupScorer,
    groups: Sequence[LabelledGroup],
    criteria: Sequence[str],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> Iterator[dict[str, ScoredGroup]]:
    """The same by each of some criteria: each response still passes through the model once.

    Args:
        model: what to ask; its scores have ``criteria``, scores by name.
        groups: with K responses each.
        criteria: names of those to give.
        batch_size: texts per forward pass.
        progress: show progress on stderr.

    Raises:
        TypeError: if the model has no method ``score_groups``.
        ValueError: as :func:`score_data`, and if the scores lack one of the criteria.
    """
    for labelled, scores in _answers(model, groups, batch_size, progress):
        each: Mapping[str, PairScores] = getattr(scores, "criteria", {})
        missing = [name for name in criteria if name not in each]
        if missing:
            raise ValueError(f"the model gave no scores by {', '.join(missing)}")
        yield {name: _checked(labelled, each[name]) for name in criteria}


def _answers(
    model: GroupScorer, groups: Sequence[LabelledGroup], batch_size: int, progress: bool
) -> Iterator[tuple[LabelledGroup, PairScores]]:
    if not hasattr(model, "score_groups"):
        raise TypeError(
            f"model must have a method score_groups(groups, *, batch_size, progress), as those of "
            f"gpm_core.models; got {type(model).__name__}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}")
    from tqdm import tqdm

    with tqdm(total=len(groups), desc="scoring", unit="prompt", disable=not progress) as bar:
        for some in _chunks(groups):
            asked = [labelled.group for labelled in some]
            answers = model.score_groups(asked, batch_size=batch_size, progress=False)
            for labelled, scores in zip(some, answers, strict=True):
                yield labelled, scores
                bar.update()


def _chunks(groups: Sequence[LabelledGroup]) -> Iterator[Sequence[LabelledGroup]]:
    start = size = 0
    for i, labelled in enumerate(groups):
        count = len(labelled.group.responses)
        if size and size + count > RESPONSES_AT_ONCE:
            yield groups[start:i]
            start, size = i, 0
        size += count
    yield groups[start:]


def _checked(labelled: LabelledGroup, scores: PairScores) -> ScoredGroup:
    count = len(labelled.group.responses)
    place = f"for the prompt of line {labelled.group.line} the model gave"
    matrices = []
    for name in ("score", "probability"):
        matrix = getattr(scores, name).detach().double().cpu()
        if matrix.shape != (count, count):
            raise ValueError(
                f"{place} a {name} of shape {tuple(matrix.shape)}; expected {(count, count)}"
            )
        if not matrix.isfinite().all():
            raise ValueError(
                f"{place} a {name} that is not finite: check the model's weights and its dtype"
            )
        matrices.append(matrix)
    score, probability = matrices
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError(f"{place} a probability outside of [0, 1]")
    return ScoredGroup(labelled, score, probability)
