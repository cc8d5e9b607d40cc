"""What TRL's ``RewardTrainer`` is told of a preference model."""

from __future__ import annotations

import importlib.metadata
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from packaging.version import Version
from trl import RewardConfig

from gpm_core.integrations.trl_language_model_options import LanguageModelOptions

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
    "loss",
    "target_margin",
    "max_sequence_length",
    "text_format",
    "criteria",
    "criteria_mode",
    "criteria_weights",
)


def _option(meaning: str) -> Any:
    return field(default=None, metadata={"help": meaning})


@dataclass
class PreferenceConfig(LanguageModelOptions, RewardConfig):  # type: ignore[misc]
    """TRL's ``RewardConfig``, and what the head of a new model is to be.

    The options of the model apply where the trainer makes one from the name of a backbone; each is
    that of :class:`gpm_core.models.GeneralPreferenceConfig`, whose default None stands for. Of
    TRL's own:

    - ``max_length`` (1024): pairs with a longer conversation are left out, as TRL does. None: all
      are kept, and cut as the model cuts what it is given in use.
    - ``label_smoothing_factor``: e in [0, 1): targets become (1 - e) p + e / 2.
    - ``center_rewards_coefficient``: c (r_chosen + r_rejected)^2 is added to the loss; for heads
      that have a reward, "bt" and "hybrid".

    Losses of language models that regularise: see
    :class:`~gpm_core.integrations.trl_language_model_options.LanguageModelOptions`.

    Args:
        head: "gpm", "bt", "hybrid" or "pair".
        dim: width of the preference embedding.
        gate: "softmax" or "softplus".
        normalize: scale embeddings to unit length.
        init: "anchored" or "paper".
        bias: whether the head has a bias.
        tau: temperature.
        learn_tau: "one" or "per_block".
        scalar_weight, cyclic_weight, clip: of a hybrid head.
        pooling: "last", "mean" or "cls".
        loss: "logistic" or "regression".
        target_margin: what the logit of a pair is to be under "regression".
        standardize: centre and scale hidden states; measured on the first training pairs.
        max_sequence_length: most tokens of a conversation that the model reads in use.
        text_format: "chat", "plain" or "published".
        criteria: names of several criteria.
        criteria_mode: "heads" or "gates".
        criteria_weights: what each weighs in the one preference that they make, by name.
        target_column: column with the probability that the chosen reply is preferred, or of several
            criteria with one for each, by name.
    """

    # transformers reads these from JSON.
    _VALID_DICT_FIELDS = [*RewardConfig._VALID_DICT_FIELDS, "criteria_weights"]  # noqa: RUF012

    head: str | None = _option("Kind of head: 'gpm', 'bt', 'hybrid' or 'pair'.")
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
    loss: str | None = _option("Loss of the pairs: 'logistic' or 'regression'.")
    target_margin: float | None = _option("What a pair's logit is to be under 'regression'.")
    standardize: bool | None = _option("Whether hidden states are centred and scaled.")
    max_sequence_length: int | None = _option("Most tokens that the model reads in use.")
    text_format: str | None = _option("How texts are read: 'chat', 'plain' or 'published'.")
    criteria: list[str] | None = field(
        default=None, metadata={"help": "Names of several criteria, with labels of their own."}
    )
    criteria_mode: str | None = _option(
        "An embedding for each criterion, 'heads', or one, 'gates'."
    )
    criteria_weights: dict[str, float] | str | None = field(
        default=None, metadata={"help": "What criteria weigh in one preference, by name, as JSON."}
    )
    target_column: str = field(
        default="target",
        metadata={"help": "Column with the probability that the chosen reply is preferred."},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_language_model()


def warn_of_rounding(model: Any) -> None:
    """Warn where a learned temperature cannot take the steps of a usual rate.

    Args:
        model: a ``GeneralPreferenceModel``, as it is about to be trained.
    """
    trained = [
        parameter.dtype
        for name, parameter in model.named_parameters()
        if "temperature" in name.split(".") and parameter.requires_grad
    ]
    if torch.bfloat16 in trained or torch.float16 in trained:
        warnings.warn(
            f"the learned temperature is {trained[0]}, which rounds steps of a usual learning rate "
            "away, so that it stays as it is: load the weights in float32 (and set bf16=True), or "
            "leave learn_tau out",
            stacklevel=3,
        )


def model_options(args: RewardConfig) -> dict[str, Any]:
    """What ``args`` say of a new model."""
    options = {name: getattr(args, name, None) for name in _MODEL_OPTIONS}
    return {name: value for name, value in options.items() if value is not None}
