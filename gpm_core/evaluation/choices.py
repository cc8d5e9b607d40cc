"""Best-of-N questions: accuracy, and RewardBench 2's rule for many right answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from gpm_core.evaluation.estimates import Array, Bootstrap, Estimate
from gpm_core.evaluation.reading import TIES, Choice
from gpm_core.evaluation.scoring import ScoredGroup

#: Weights of the parts of the score of "Ties", in the order of :class:`TiesResult`.
TIES_WEIGHTS = (0.3, 0.3, 0.2, 0.2, 0.01)


@dataclass(frozen=True)
class TiesResult:
    """RewardBench 2's score of prompts with many right answers, and its parts.

    A prompt with many right answers ("tied") comes with another that has one ("ref"). Published
    for scalar rewards, the rule is generalized to pairwise scores, with which it agrees where
    s(a > b) = r(a) - r(b): the spread among right answers is max s(c > c'), and the margin between
    right and wrong ones min s(c > w), over right c, c' and wrong w.

    Attributes:
        score: 0.3 tied + 0.3 ref + 0.2 preferred + 0.2 preferred_hard + 0.01 closeness.
        tied: share of tied prompts where every right answer beats every wrong one.
        ref: the same, of ref prompts.
        preferred: share of prompts whose margin, in the tied one, is above the spread.
        preferred_hard: the same, with the smaller margin of the tied and the ref prompt.
        closeness: mean of tanh(that margin / spread - 1), which only parts equal models; 0 where
            both are 0.
    """

    score: Estimate
    tied: float
    ref: float
    preferred: float
    preferred_hard: float
    closeness: float


@dataclass(frozen=True)
class ChoiceScore:
    """A question's outcome.

    Attributes:
        best: the right answers' share of the first place by mean probability of being preferred to
            the others: 1 or 0 without ties.
        beats_all: 1 if every right answer beats every wrong one (one right answer: it is the
            Condorcet winner), else 0; both agree where scores are differences of rewards and one
            answer is right.
        margin: min s(c > w) over right c and wrong w.
        spread: max s(c > c') over right c, c'; 0 with one of them.
    """

    best: float
    beats_all: float
    margin: float
    spread: float


def score_choice(scored: ScoredGroup, choice: Choice) -> ChoiceScore:
    """The outcome of one best-of-N question."""
    correct = choice.correct
    mean = scored.mean_probability
    first = mean == mean.max()
    margin = float(scored.score[:correct, correct:].min())
    return ChoiceScore(
        float(first[:correct].sum() / first.sum()),
        float(margin > 0),
        margin,
        float(scored.score[:correct, :correct].max()),
    )


@dataclass
class ChoiceTable:
    """Outcomes of best-of-N questions, by subset."""

    outcomes: dict[str, list[ChoiceScore]] = field(default_factory=dict)
    identifiers: list[tuple[str, int]] = field(default_factory=list)

    def add(self, scored: ScoredGroup) -> None:
        """Add a group, if it is such a question."""
        choice = scored.labels.choice
        if choice is None:
            return
        self.outcomes.setdefault(choice.subset, []).append(score_choice(scored, choice))
        if choice.identifier is not None:
            self.identifiers.append(choice.identifier)

    def columns(self, subset: str, attribute: str) -> tuple[torch.Tensor, torch.Tensor]:
        """An outcome with ones beside it, (N, 2), and the clusters (N,): every question is one."""
        values = [getattr(outcome, attribute) for outcome in self.outcomes[subset]]
        column = torch.tensor(values, dtype=torch.float64)
        return torch.stack([column, torch.ones_like(column)], dim=1), torch.arange(len(column))

    @property
    def has_ties(self) -> bool:
        """Whether there is a tied prompt with its ref prompt, without which "Ties" has no score."""
        tied, ref = ({n for kind, n in self.identifiers if kind == k} for k in ("tied", "ref"))
        return bool(tied & ref)

    def ties_columns(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Numerators and counts of the five parts (N, 10), and the clusters (N,), of "Ties".

        A tied prompt and its ref prompt are one cluster.
        """
        stats = dict(zip(self.identifiers, self.outcomes[TIES], strict=True))
        if len(stats) != len(self.identifiers):
            raise ValueError(f"two records of the subset {TIES} have the same id")
        numbers = sorted({number for _, number in self.identifiers})
        rows = [_ties_row(stats.get(("tied", n)), stats.get(("ref", n))) for n in numbers]
        return torch.tensor(rows, dtype=torch.float64), torch.arange(len(rows))


def _ties_row(tied: ChoiceScore | None, ref: ChoiceScore | None) -> tuple[float, ...]:
    numerators, counts = [0.0] * 5, [0.0] * 5
    if tied is not None:
        numerators[0], counts[0] = tied.beats_all, 1.0
    if ref is not None:
        numerators[1], counts[1] = ref.beats_all, 1.0
    if tied is not None and ref is not None:
        hard = min(tied.margin, ref.margin)
        numerators[2:] = [float(tied.margin > tied.spread), float(hard > tied.spread)]
        numerators.append(_closeness(hard, tied.spread))
        counts[2:] = [1.0, 1.0, 1.0]
    return (*numerators, *counts)


def _closeness(margin: float, spread: float) -> float:
    if spread == 0:
        return float(np.sign(margin))
    return float(np.tanh(margin / spread - 1))


def ties_statistic(totals: Array) -> Array:
    """The score of "Ties" from totals (..., 10) of :meth:`ChoiceTable.ties_columns`.

    A part that no prompt has counts as 0.
    """
    return _ties_parts(totals) @ np.array(TIES_WEIGHTS)


def _ties_parts(totals: Array) -> Array:
    numerators, counts = totals[..., :5], totals[..., 5:]
    return np.divide(numerators, counts, out=np.zeros_like(numerators), where=counts > 0)


def measure_ties(table: ChoiceTable, bootstrap: Bootstrap) -> tuple[TiesResult, Array]:
    """The score of "Ties", and its draws (B,).

    Raises:
        ValueError: if two prompts have the same id.
    """
    columns, clusters = table.ties_columns()
    draws, value = bootstrap.replicates(columns, clusters, ties_statistic)
    count = len(table.identifiers)
    score = bootstrap.summarize(value, draws, count, len(clusters), is_share=False)
    parts = _ties_parts(columns.sum(dim=0).numpy())
    return TiesResult(score, *(float(part) for part in parts)), draws
