"""What TRL's ``RewardTrainer`` is told of a preference model."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from typing import Any

from packaging.version import Version
from trl import RewardConfig

__all__ = ["MINIMUM_TRL", "PreferenceConfig"]

#: Earlier ones prepare data in another way.
MINIMUM_TRL = "1.8.0"

if Version(importlib.metadata.version("trl")) < Version(MINIMUM_TRL):
    raise ImportError(
        f"gpm_core.integrations.trl needs trl >= {MINIMUM_TRL}; this is "
        f'{importlib.metadata.version("trl")}: pip install -U "trl>={MINIMUM_TRL}"'
    )

#: Fields of :class:`PreferenceConfig` that are options of a new model.
_MODEL_OPTIONS = (
    "head",
    "dim",
    "gate",
    "normalize",
    "init",
    "bias",
    "tau",
    "learn_tau",
    "scalar_weight",
    "cyclic_weight",
    "clip",
    "pooling",
    "standardize",
    "max_sequence_length",
    "text_format",
)


def _option(meaning: str) -> Any:
    return field(default=None, metadata={"help": meaning})


@dataclass
class PreferenceConfig(RewardConfig):  # type: ignore[misc]
    """TRL's ``RewardConfig``, and what the head of a new model is to be.

    The options of the model apply where the trainer makes one from the name of a backbone; each is
    that of :class:`gpm_core.models.GeneralPreferenceConfig`, whose default None stands for. Of
    TRL's own:

    - ``max_length`` (1024): pairs with a longer conversation are left out, as TRL does. None: all
      are kept, and cut as the model cuts what it is given in use.
    - ``label_smoothing_factor``: e in [0, 1): targets become (1 - e) p + e / 2.
    - ``center_rewards_coefficient``: c (r_chosen + r_rejected)^2 is added to the loss; for heads
      that have a reward, "bt" and "hybrid".

    Args:
        head: "gpm", "bt" or "hybrid".
        dim: width of the preference embedding.
        gate: "softmax" or "softplus".
        normalize: scale embeddings to unit length.
        init: "anchored" or "paper".
        bias: whether the head has a bias.
        tau: temperature.
        learn_tau: "one" or "per_block".
        scalar_weight, cyclic_weight, clip: of a hybrid head.
        pooling: "last", "mean" or "cls".
        standardize: centre and scale hidden states; measured on the first training pairs.
        max_sequence_length: most tokens of a conversation that the model reads in use.
        text_format: "chat", "plain" or "published".
        target_column: column with the probability that the chosen reply is preferred.
    """

    head: str | None = _option("Kind of head: 'gpm', 'bt' or 'hybrid'.")
    dim: int | None = _option("Even width of the preference embedding.")
    gate: str | None = _option("Gate at the prompt's end: 'softmax' or 'softplus'.")
    normalize: bool | None = _option("Whether embeddings are scaled to unit length.")
    init: str | None = _option("Initialisation of the head: 'anchored' or 'paper'.")
    bias: bool | None = _option("Whether the head has a bias.")
    tau: float | None = _option("Temperature of probabilities and of the loss.")
    learn_tau: str | None = _option("Learn the temperature: 'one', or 'per_block'.")
    scalar_weight: float | None = _option("Weight of a hybrid head's reward.")
    cyclic_weight: float | None = _option("Weight of a hybrid head's cyclic part.")
    clip: float | None = _option("Limit of a hybrid head's rewards.")
    pooling: str | None = _option("What represents a response: 'last', 'mean' or 'cls'.")
    standardize: bool | None = _option("Whether hidden states are centred and scaled.")
    max_sequence_length: int | None = _option("Most tokens that the model reads in use.")
    text_format: str | None = _option("How texts are read: 'chat', 'plain' or 'published'.")
    target_column: str = field(
        default="target",
        metadata={"help": "Column with the probability that the chosen reply is preferred."},
    )


def model_options(args: RewardConfig) -> dict[str, Any]:
    """What ``args`` say of a new model."""
    options = {name: getattr(args, name, None) for name in _MODEL_OPTIONS}
    return {name: value for name, value in options.items() if value is not None}
