"""Several criteria in one model: their weights, and the one preference that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gpm_core.heads import MultiCriteriaHead
from gpm_core.heads.criteria import checked_weights
from gpm_core.heads.criteria import combined_scale as combined_scale

CriteriaWeights = Mapping[str, float] | Sequence[float]

MODES = ("heads", "gates")


def resolve_weights(
    criteria: Sequence[str], weights: CriteriaWeights | None = None
) -> dict[str, float]:
    """What each criterion weighs: as ``weights`` say, or 1 / C each.

    Equal weights have sum 1, so that where all criteria agree the one preference is as sure as
    they are.

    Raises:
        TypeError: if ``weights`` is neither a mapping nor a sequence of numbers.
        ValueError: for an unknown name, another number of weights than criteria, a number that is
            not finite, or if all are 0.

    Example:
        >>> resolve_weights(["helpful", "honest"], {"honest": 2.0})
        {'helpful': 0.0, 'honest': 2.0}
    """
    if isinstance(weights, Tensor):
        raise TypeError("weights must be a mapping by name or a sequence of numbers; got a tensor")
    if weights is not None:
        checked = checked_weights(weights, tuple(criteria), torch.empty(0, dtype=torch.float64))
        if not checked.any():
            raise ValueError("weights are all 0: then no response is preferred to another")
    return dict(zip(criteria, weights_in_order(criteria, weights), strict=True))


def weights_in_order(criteria: Sequence[str], weights: CriteriaWeights | None) -> list[float]:
    """The numbers of :func:`resolve_weights`, checked before: plain Python, for compiled graphs."""
    if weights is None:
        return [1 / len(criteria)] * len(criteria)
    if isinstance(weights, Mapping):
        return [float(weights.get(name, 0.0)) for name in criteria]
    return [float(weight) for weight in weights]


def flat_embeddings(head: Any, embeddings: Tensor) -> Tensor:
    """What ``head.embed`` gave as one embedding per response: those of criteria in a row."""
    if isinstance(head, MultiCriteriaHead) and head.mode == "heads":
        return embeddings.flatten(-2)
    return embeddings


def each_embedding(head: MultiCriteriaHead, flat: Tensor) -> Tensor:
    """:func:`flat_embeddings` (..., d) or (..., C d) for each criterion: (..., 1, d) where they
    share it, else (..., C, d).
    """
    return flat.unflatten(-1, (-1, head.dim))


def head_scale(head: Any, prompt_hidden: Tensor | None = None) -> Tensor | None:
    """Weights of the blocks: (..., k), or (..., C, k) of a head of several criteria, 1 where it has
    none; None of other heads without.
    """
    scale: Tensor | None = head.scale(prompt_hidden)
    if scale is None and isinstance(head, MultiCriteriaHead):
        return head.value_head.weight.new_ones(len(head.criteria), head.dim // 2)
    return scale


class CriteriaInterface:
    """What models of several criteria know of them; those of one preference have none."""

    head: Any

    def _given_weights(self) -> CriteriaWeights | None:
        """The weights as they were given, None for equal ones."""
        return None

    def _keep_weights(self, weights: dict[str, float] | None) -> None:
        """Keep them, so that they are stored with the model."""
        raise NotImplementedError(f"{type(self).__name__} does not define _keep_weights")

    @property
    def criteria(self) -> tuple[str, ...]:
        """Names of the criteria, () of a model of one preference."""
        head = self.head
        return head.criteria if isinstance(head, MultiCriteriaHead) else ()

    @property
    def criteria_weights(self) -> dict[str, float]:
        """What each criterion weighs in the one preference of score, compare, rank, ..."""
        return resolve_weights(self.criteria, self._given_weights()) if self.criteria else {}

    def set_criteria_weights(self, weights: CriteriaWeights | None) -> None:
        """Say what each criterion weighs from now on; ``save_pretrained`` stores it.

        Args:
            weights: by name, where criteria that are not named weigh 0; or one number for each; or
                None for equal ones. Any sign; they are not normalized.

        Raises:
            TypeError: if they are no numbers.
            ValueError: if the model has no criteria; for an unknown name, another number of weights
                than criteria, a number that is not finite, or if all are 0.

        Example:
            >>> model.set_criteria_weights({"helpful": 1.0, "honest": 0.5})  # doctest: +SKIP
        """
        if not self.criteria:
            raise ValueError("this model has one preference and no criteria that could be weighed")
        self._keep_weights(None if weights is None else resolve_weights(self.criteria, weights))
