"""What a row of data says of its responses, in the form that an objective needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpm_core import ops
from gpm_core.objectives import targets
from gpm_core.ranking import hodge


class Judgement:
    """What a record says of its K responses, as scores or as probabilities (float64)."""

    def __init__(self, record: Mapping[str, Any], count: int, tau: float, is_pair: bool) -> None:
        self._record, self._count, self._tau = record, count, tau
        self.target: float | None = None
        if record.get("target") is not None:
            if not is_pair:
                raise ValueError("target is of a pair, 'chosen' and 'rejected'; this is a group")
            self.target = float(self.numbers("target", (), probability=True))
        self._certain = is_pair and self.target is None

    def numbers(
        self, name: str, shape: tuple[int | None, ...], *, probability: bool = False
    ) -> Tensor:
        """A field of the record, of a shape in which None is any size.

        Raises:
            ValueError: if it is of another shape, not finite, or no probability where it must be.
        """
        try:
            tensor = torch.as_tensor(self._record[name], dtype=torch.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be numbers; {error}") from error
        wanted = tuple(
            tensor.shape[i] if size is None and i < tensor.dim() else size
            for i, size in enumerate(shape)
        )
        if tensor.shape != wanted:
            raise ValueError(f"{name} must be {wanted} for this group; got {tuple(tensor.shape)}")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite")
        if probability and not bool(((tensor >= 0) & (tensor <= 1)).all()):
            raise ValueError(f"{name} must be probabilities, in [0, 1]; got {tensor.tolist()}")
        return tensor

    def _has(self, name: str) -> bool:
        return self._record.get(name) is not None

    def _embeddings(self) -> tuple[Tensor, Tensor | None]:
        v = self.numbers("embeddings", (self._count, None))
        if not self._has("scale"):
            return v, None
        return v, self.numbers("scale", (v.shape[1] // 2,))

    def _given_probabilities(self) -> Tensor | None:
        if self._has("probability_matrix"):
            return self.numbers("probability_matrix", (self._count, self._count), probability=True)
        if self.target is None:
            return None
        p = self.target
        return torch.tensor([[0.5, p], [1 - p, 0.5]], dtype=torch.float64)

    def score_matrix(self) -> Tensor | None:
        """S (K, K), or None where the record has no scores of pairs."""
        if self._has("score_matrix"):
            return self.numbers("score_matrix", (self._count, self._count))
        if self._has("embeddings"):
            return ops.score_matrix(*self._embeddings())
        probabilities = self._given_probabilities()
        if probabilities is None:
            return None
        scores = self._tau * (probabilities.log() - (1 - probabilities).log())
        if not bool(scores.isfinite().all()):
            raise ValueError(
                "a probability of 0 or 1 has no finite score: give scores, or choose an objective "
                "on probabilities, as 'sppo'"
            )
        return scores

    def probability_matrix(self) -> Tensor | None:
        """P (K, K), or None; of a pair without anything else, the chosen is preferred."""
        probabilities = self._given_probabilities()
        if probabilities is not None:
            return probabilities
        if self._has("embeddings") and not self._has("score_matrix"):
            v, scale = self._embeddings()
            return ops.probability_matrix(v, scale, tau=self._tau)
        scores = self.score_matrix()
        if scores is not None:
            return (scores / self._tau).sigmoid()
        if self._certain:
            return torch.tensor([[0.5, 1.0], [0.0, 0.5]], dtype=torch.float64)
        return None

    def scores(self) -> Tensor | None:
        """Mean scores (K,), or None."""
        if self._has("scores"):
            return self.numbers("scores", (self._count,))
        matrix = self.score_matrix()
        return None if matrix is None else targets.row_means(matrix)

    def win_rates(self) -> Tensor | None:
        """Mean win probabilities (K,), or None."""
        if self._has("win_rates"):
            return self.numbers("win_rates", (self._count,), probability=True)
        matrix = self.probability_matrix()
        return None if matrix is None else targets.row_means(matrix)

    def dynamic_win_rates(self, iteration: int, curriculum: float) -> Tensor | None:
        """DSPPO's mean win probabilities (K,) in round ``iteration``, or None."""
        matrix = self.score_matrix()
        if matrix is None:
            return None
        parts = hodge(matrix)
        scores = targets.dynamic_scores(
            parts.transitive, parts.cyclic, iteration=iteration, curriculum=curriculum
        )
        return targets.row_means((scores / self._tau).sigmoid())

    def quality(self) -> Tensor | None:
        """What responses are compared by, (K,), or None."""
        for name in ("scores", "win_rates"):
            if self._has(name):
                return self.numbers(name, (self._count,))
        if self._has("score_matrix") or self._has("embeddings"):
            return self.scores()
        return self.win_rates()
