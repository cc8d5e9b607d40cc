"""What a general preference model says of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.utils.generic import ModelOutput


@dataclass
class GeneralPreferenceOutput(ModelOutput):  # type: ignore[misc]
    """What :meth:`GeneralPreferenceModel.forward` returns; None where it does not apply.

    Attributes:
        loss: () mean loss of the pairs; of several criteria, of the labels that there are.
        score: (B,) s(chosen > rejected) of the pairs, without gradient, above zero where the
            probability (without a margin) is above 1/2: of a temperature for each block, the score
            whose blocks it weighs, see :func:`gpm_core.losses.one_temperature`. Of several
            criteria, that of the one preference that they make.
        probability: (B,) sigmoid((score - margin) / tau), without gradient.
        embeddings: (N, d) or (B, K, d) preference embeddings, (..., C d) where each of C criteria
            has its own.
        scale: (N, k) or (B, k) weight of the blocks (gate values), None without a gate; (k,) or
            (C k,) where it is the same for all prompts.
        criteria_score: (B, C) score by each criterion, without gradient.
        criteria_probability: (B, C) sigmoid(score / tau) by each criterion, without gradient.
        criteria_loss: (B, C) loss of each label, 0 where there is none, without gradient.
        criteria_scale: (N, C, k), (B, C, k) or (C, k) weight of the blocks for each criterion.
        logps: (B, 2) log-probabilities of the responses of pairs, summed over their tokens, with
            gradient; of a model that keeps its ``language_model_head``.
        response_lengths: (B, 2) int64, how many tokens these were summed over.
    """

    loss: Tensor | None = None
    score: Tensor | None = None
    probability: Tensor | None = None
    embeddings: Tensor | None = None
    scale: Tensor | None = None
    criteria_score: Tensor | None = None
    criteria_probability: Tensor | None = None
    criteria_loss: Tensor | None = None
    criteria_scale: Tensor | None = None
    logps: Tensor | None = None
    response_lengths: Tensor | None = None
