"""What every preference model says of the responses to one prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gpm_core import ops
from gpm_core.losses import one_temperature
from gpm_core.models.criteria import CriteriaInterface, combined_scale, each_embedding


@dataclass(frozen=True)
class RankedResponse:
    """A response in a ranking: its position in the input, itself, and how it does on average.

    ``mean_probability`` and ``mean_score`` are over the other responses (1/2 and 0 without any).
    """

    index: int
    response: Any
    mean_probability: float
    mean_score: float


@dataclass(frozen=True)
class GroupScores:
    """All pairs of K responses: ``score`` and ``probability``, (K, K) float32 on the CPU.

    Where a response is preferred to another, the score is above zero and the probability above 1/2.
    Against M others (K, M), and then without means or a ranking. Of a model of several criteria
    these are of the one preference that they make; ``criteria`` has those of each, by name.
    """

    score: Tensor
    probability: Tensor
    criteria: Mapping[str, GroupScores] = field(default_factory=dict)

    def means(self) -> tuple[Tensor, Tensor]:
        """Mean probability and mean score (K,) of each response against the others."""
        others = max(len(self.score) - 1, 1)
        probability = (self.probability.sum(dim=1) - self.probability.diagonal()) / others
        if len(self.score) == 1:
            probability = torch.full((1,), 0.5)
        return probability, self.score.sum(dim=1) / others

    def ranking(self) -> list[int]:
        """Positions of the responses by mean probability, the best first; ties in input order."""
        probability = self.means()[0].tolist()
        return sorted(range(len(probability)), key=lambda i: (-probability[i], i))

    def condorcet_winner(self) -> int | None:
        """The response that is preferred to every other one, or None; 0 of one response."""
        wins = (self.score > 0).sum(dim=1)
        best = int(wins.argmax())
        return best if int(wins[best]) == len(self.score) - 1 else None

    def cyclic_triples(self) -> int:
        """How many of the triples are cyclic: a preferred to b, b to c, and c to a."""
        wins = (self.score > 0).double()
        # Each cycle is met from each of its three members.
        return round(float(((wins @ wins) * wins.T).sum()) / 3)


@dataclass(frozen=True)
class GroupEmbeddings:
    """K responses as a model sees them, from which its preferences follow, also of other groups.

    Attributes:
        embeddings: (K, d) float32.
        scale: (d / 2,) float32, weight of each block for this prompt, or None for one.
        tau: temperature of probabilities: a number, or (d / 2,) float32, one for each block.
        criteria: of a model of several criteria, the same as each of them sees it, by name.
    """

    embeddings: Tensor
    scale: Tensor | None
    tau: float | Tensor
    criteria: Mapping[str, GroupEmbeddings] = field(default_factory=dict)

    def logit_scale(self) -> tuple[Tensor | None, float]:
        """Scale of scores s, and the one temperature of P = sigmoid(s / tau), for operations.

        A temperature for each block is a weight of each block, see
        :func:`gpm_core.losses.one_temperature`.
        """
        if isinstance(self.tau, float):
            return self.scale, self.tau
        scale, tau = one_temperature(self.scale, self.tau)
        return scale, tau.item()

    def against(self, others: Tensor) -> GroupScores:
        """All pairs of these responses and M others to the prompt, embeddings (M, d): (K, M).

        Of several criteria, those of the one preference that they make alone.
        """
        others = others.to(self.embeddings)
        scale, tau = self.logit_scale()
        return GroupScores(
            ops.cross_score_matrix(self.embeddings, others, scale).cpu(),
            ops.cross_probability_matrix(self.embeddings, others, scale, tau=tau).cpu(),
        )

    def scores(self) -> GroupScores:
        """All pairs of these responses, (K, K)."""
        scale, tau = self.logit_scale()
        return GroupScores(
            ops.score_matrix(self.embeddings, scale).cpu(),
            ops.probability_matrix(self.embeddings, scale, tau=tau).cpu(),
            {name: criterion.scores() for name, criterion in self.criteria.items()},
        )


def check_groups(prompts: Sequence[Any], responses: Sequence[Sequence[Any]]) -> None:
    """Refuse a number of prompts other than that of the groups, and groups without a response."""
    if len(prompts) != len(responses):
        raise ValueError(
            f"there must be one prompt per group; got {len(prompts)} prompts and "
            f"{len(responses)} groups"
        )
    if not all(len(some) for some in responses):
        raise ValueError("each prompt needs at least one response; got a group without any")


class GroupScoring(CriteriaInterface):
    """Scores, probabilities and rankings of responses, from all pairs of a group.

    K responses are encoded once each, whatever is asked of them. Of several criteria, all go by the
    one preference that they make (:meth:`set_criteria_weights`), or by the ``criterion`` that is
    named.
    """

    def embed_groups(
        self,
        prompts: Sequence[Any],
        responses: Sequence[Sequence[Any]],
        *,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Iterator[GroupEmbeddings]:
        """Embeddings of each of N groups of responses, without gradients.

        Args:
            prompts: N prompts.
            responses: N groups, K of them or another number to each prompt.
            batch_size: texts per backbone pass.
            progress: show a progress bar on stderr.

        Raises:
            ValueError: for a group without a response, or a number of prompts other than N.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define embed_groups")

    def _described(
        self, embeddings: Tensor, scale: Tensor | None, tau: float | Tensor
    ) -> GroupEmbeddings:
        """K responses from what the head says: embeddings (K, d), scale (k,) or None; of C criteria
        (K, d) or (K, C d), and (C, k).
        """
        embeddings, scale = embeddings.float(), None if scale is None else scale.float()
        if not self.criteria:
            return GroupEmbeddings(embeddings, scale, tau)
        assert scale is not None
        each = each_embedding(self.head, embeddings).unbind(dim=1)
        taus = tau.chunk(len(each)) if isinstance(tau, Tensor) else [tau] * len(each)
        copies = len(self.criteria) // len(each)  # all share one, or each has its own
        parts = zip(self.criteria, [*each] * copies, scale, [*taus] * copies, strict=True)
        return GroupEmbeddings(
            embeddings,
            combined_scale(scale, [*self.criteria_weights.values()], self.head.mode),
            tau,
            {name: GroupEmbeddings(*part) for name, *part in parts},
        )

    def _score_many(
        self,
        prompts: Sequence[Any],
        responses: Sequence[Sequence[Any]],
        *,
        batch_size: int,
        progress: bool = False,
    ) -> Iterator[GroupScores]:
        """All pairs within each of N groups, ``responses[i]`` to ``prompts[i]``."""
        groups = self.embed_groups(prompts, responses, batch_size=batch_size, progress=progress)
        for group in groups:
            yield group.scores()

    def _group(
        self, prompt: Any, responses: Sequence[Any], criterion: str | None = None
    ) -> GroupScores:
        if not len(responses):
            raise ValueError("responses must hold at least one response; got none")
        if criterion is not None and criterion not in self.criteria:
            known = ", ".join(self.criteria) or "none, but one preference"
            raise ValueError(f"unknown criterion {criterion!r}; the model has {known}")
        scores = next(
            iter(self._score_many([prompt], [responses], batch_size=min(len(responses), 32)))
        )
        return scores if criterion is None else scores.criteria[criterion]

    def score(self, prompt: Any, a: Any, b: Any, *, criterion: str | None = None) -> float:
        """s(a > b), above zero where ``a`` is preferred to ``b`` as a reply to ``prompt``."""
        return float(self._group(prompt, [a, b], criterion).score[0, 1])

    def compare(self, prompt: Any, a: Any, b: Any, *, criterion: str | None = None) -> float:
        """P(a > b) in [0, 1]: how probable it is that ``a`` is preferred to ``b``."""
        return float(self._group(prompt, [a, b], criterion).probability[0, 1])

    def score_matrix(
        self, prompt: Any, responses: Sequence[Any], *, criterion: str | None = None
    ) -> Tensor:
        """S (K, K) float32 of K responses: S[i, j] = s(i > j), before division by tau.

        Of a temperature for each block, the one that they make, see
        :func:`gpm_core.losses.one_temperature`.

        Raises:
            ValueError: if there are no responses, or no such criterion.
        """
        return self._group(prompt, responses, criterion).score

    def preference_matrix(
        self, prompt: Any, responses: Sequence[Any], *, criterion: str | None = None
    ) -> Tensor:
        """P (K, K) float32 of K responses: P[i, j] that response i is preferred to j.

        Raises:
            ValueError: if there are no responses, or no such criterion.
        """
        return self._group(prompt, responses, criterion).probability

    def rank(
        self, prompt: Any, responses: Sequence[Any], *, criterion: str | None = None
    ) -> list[RankedResponse]:
        """The responses by mean probability of being preferred to the others, the best first.

        Raises:
            ValueError: if there are no responses, or no such criterion.
        """
        scores = self._group(prompt, responses, criterion)
        probability, score = (values.tolist() for values in scores.means())
        return [RankedResponse(i, responses[i], probability[i], score[i]) for i in scores.ranking()]
