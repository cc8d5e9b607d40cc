"""Losses of preference models: functions, and modules that hold their options.

Preference losses return a :class:`PreferenceLossOutput`: the loss to differentiate, and the
probability and accuracy to log.

==================================  ==========================================================
embeddings (and a gate)             :func:`general_preference_loss`, :func:`regression_loss`
a hybrid head's embeddings          the same: its ``embed`` and ``scale`` are such embeddings
embeddings, labels per criterion    :func:`multi_criteria_loss`
rewards                             :func:`bradley_terry_loss`
scores of pairs, from any model     :func:`score_loss`
log-probabilities of responses      :func:`sft_loss`, :func:`reference_free_dpo_loss`
==================================  ==========================================================

Wherever a loss takes ``tau`` it takes a number, or a :class:`Temperature` to learn it;
:func:`one_temperature` makes one of those of blocks.
"""

from gpm_core.losses._common import PreferenceLossOutput, Reduction
from gpm_core.losses._common import accuracy_of as accuracy_of
from gpm_core.losses.criteria import MultiCriteriaLossOutput, multi_criteria_loss
from gpm_core.losses.language_model import (
    LanguageModelLossOutput,
    reference_free_dpo_loss,
    sft_loss,
)
from gpm_core.losses.modules import BradleyTerryLoss, GeneralPreferenceLoss
from gpm_core.losses.preference import (
    bradley_terry_loss,
    general_preference_loss,
    regression_loss,
    score_loss,
)
from gpm_core.losses.temperature import Temperature, one_temperature

__all__ = [
    "BradleyTerryLoss",
    "GeneralPreferenceLoss",
    "LanguageModelLossOutput",
    "MultiCriteriaLossOutput",
    "PreferenceLossOutput",
    "Reduction",
    "Temperature",
    "bradley_terry_loss",
    "general_preference_loss",
    "multi_criteria_loss",
    "one_temperature",
    "reference_free_dpo_loss",
    "regression_loss",
    "score_loss",
    "sft_loss",
]
