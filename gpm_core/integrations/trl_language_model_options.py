"""Options of the language-model losses that regularise a preference model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from gpm_core.losses import reference_free_dpo_loss, sft_loss

#: Losses, by what their options start with.
LOSSES = ("sft", "dpo")


def _field(default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"help": meaning})


@dataclass
class LanguageModelOptions:
    """Language-model losses beside the preference loss, of a backbone that has such a head.

    ``loss = (1 - sft_coefficient - dpo_coefficient) * preference loss + sft_coefficient * sft loss
    + dpo_coefficient * dpo loss``, as in the reference code of arXiv 2410.02197, which has one of
    the two at a time. They hold the backbone to being a language model. The head that they need is
    the backbone's own; it is not trained (tied embeddings are, as the backbone is), and not stored.

    Args:
        sft_coefficient: weight of :func:`gpm_core.losses.sft_loss`, in (0, 1); None for none.
        sft_beta: None for the negative log-likelihood, or the factor in the log-sigmoid.
        sft_per_token: means over the tokens of a response, or sums.
        dpo_coefficient: weight of :func:`gpm_core.losses.reference_free_dpo_loss`.
        dpo_beta, dpo_margin: as there.
        dpo_per_token: means over tokens (there beta is usually 2), or sums.
        language_model_head: folder or hub name of the language model whose head is used. None: the
            backbone that a new model is made of; of a stored model, its tied embeddings.
    """

    sft_coefficient: float | None = _field(None, "Weight of the SFT loss, in (0, 1).")
    sft_beta: float | None = _field(None, "Factor in the SFT loss's log-sigmoid [none: NLL].")
    sft_per_token: bool = _field(True, "SFT loss of means over tokens, not of sums.")
    dpo_coefficient: float | None = _field(None, "Weight of the reference-free DPO loss.")
    dpo_beta: float = _field(0.1, "Inverse temperature of the DPO loss.")
    dpo_margin: float = _field(0.0, "Margin of the DPO loss.")
    dpo_per_token: bool = _field(False, "DPO loss of means over tokens, not of sums.")
    language_model_head: str | None = _field(None, "Language model whose head the losses use.")

    def check_language_model(self) -> None:
        """Raise TypeError or ValueError unless each option is one that the losses take."""
        given = regularisation(self)
        for name, weight in given.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)):
                raise TypeError(f"{name}_coefficient must be a number; got {weight!r}")
            if not 0 < weight < 1:
                raise ValueError(f"{name}_coefficient must be between 0 and 1; got {weight}")
        if sum(given.values()) >= 1:
            raise ValueError(
                "sft_coefficient + dpo_coefficient must be below 1, so that the preference loss "
                f"has a weight; got {sum(given.values())}"
            )
        if self.language_model_head is not None and not given:
            raise ValueError(
                "language_model_head is for sft_coefficient and dpo_coefficient: give one of them"
            )
        # The losses' own checks, before a model is loaded.
        nothing = torch.zeros(1)
        sft_loss(nothing, None, beta=self.sft_beta)
        reference_free_dpo_loss(nothing, nothing, beta=self.dpo_beta, margin=self.dpo_margin)


def regularisation(args: Any) -> dict[str, float]:
    """The weights of the losses that there are, by :data:`LOSSES`; of a plain RewardConfig none."""
    weights = {name: getattr(args, f"{name}_coefficient", None) for name in LOSSES}
    return {name: weight for name, weight in weights.items() if weight is not None}
