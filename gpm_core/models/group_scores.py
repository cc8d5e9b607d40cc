"""What every preference model says of the responses to one prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpm_core import ops


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

    Against M others (K, M), and then without means or a ranking.
    """

    score: Tensor
    probability: Tensor

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
    """

    embeddings: Tensor
    scale: Tensor | None
    tau: float | Tensor

    def logit_scale(self) -> tuple[Tensor | None, float]:
        """Scale and temperature that give P = sigmoid(s / tau) as operations take them.

        A temperature for each block is a weight of each block.
        """
        if isinstance(self.tau, float):
            return self.scale, self.tau
        return (1 / self.tau if self.scale is None else self.scale / self.tau), 1.0

    def against(self, others: Tensor) -> GroupScores:
        """All pairs of these responses and M others to the prompt, embeddings (M, d): (K, M)."""
        others = others.to(self.embeddings)
        scale, tau = self.logit_scale()
        return GroupScores(
            ops.cross_score_matrix(self.embeddings, others, self.scale).cpu(),
            ops.cross_probability_matrix(self.embeddings, others, scale, tau=tau).cpu(),
        )

    def scores(self) -> GroupScores:
        """All pairs of these responses, (K, K)."""
        scale, tau = self.logit_scale()
        return GroupScores(
            ops.score_matrix(self.embeddings, self.scale).cpu(),
            ops.probability_matrix(self.embeddings, scale, tau=tau).cpu(),
        )


class GroupScoring:
    """Scores, probabilities and rankings of responses, from all pairs of a group.

    K responses are encoded once each, whatever is asked of them.
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

    def _group(self, prompt: Any, responses: Sequence[Any]) -> GroupScores:
        if not len(responses):
            raise ValueError("responses must hold at least one response; got none")
        return next(
            iter(self._score_many([prompt], [responses], batch_size=min(len(responses), 32)))
        )

    def score(self, prompt: Any, a: Any, b: Any) -> float:
        """s(a > b), above zero where ``a`` is preferred to ``b`` as a reply to ``prompt``."""
        return float(self._group(prompt, [a, b]).score[0, 1])

    def compare(self, prompt: Any, a: Any, b: Any) -> float:
        """P(a > b) in [0, 1]: how probable it is that ``a`` is preferred to ``b``."""
        return float(self._group(prompt, [a, b]).probability[0, 1])

    def score_matrix(self, prompt: Any, responses: Sequence[Any]) -> Tensor:
        """S (K, K) float32 of K responses: S[i, j] = s(i > j), before division by tau.

        Raises:
            ValueError: if there are no responses.
        """
        return self._group(prompt, responses).score

    def preference_matrix(self, prompt: Any, responses: Sequence[Any]) -> Tensor:
        """P (K, K) float32 of K responses: P[i, j] that response i is preferred to j.

        Raises:
            ValueError: if there are no responses.
        """
        return self._group(prompt, responses).probability

    def rank(self, prompt: Any, responses: Sequence[Any]) -> list[RankedResponse]:
        """The responses by mean probability of being preferred to the others, the best first.

        Raises:
            ValueError: if there are no responses.
        """
        scores = self._group(prompt, responses)
        probability, score = (values.tolist() for values in scores.means())
        return [RankedResponse(i, responses[i], probability[i], score[i]) for i in scores.ranking()]
