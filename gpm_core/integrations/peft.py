"""Adapters (LoRA and others of PEFT) on a preference model, with the head trained beside them."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from typing import Any

try:
    import peft
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"gpm_core.integrations.peft needs the package {error.name}: pip install peft",
        name=error.name,
    ) from error

from gpm_core.models.adapters import PreferencePeftModel, head_modules, load_adapter
from gpm_core.models.general_preference import GeneralPreferenceModel

__all__ = ["PreferencePeftModel", "load_lora", "lora_model", "preference_peft_config"]

#: As usual for LoRA: scaled by alpha / rank = 2.
DEFAULT_RANK = 16
DEFAULT_ALPHA = 32


def preference_peft_config(
    model: GeneralPreferenceModel, config: peft.PeftConfig | None = None
) -> peft.PeftConfig:
    """A copy of a PEFT configuration, with what a preference model needs.

    ``modules_to_save`` gets all that is trained or measured beside the backbone (``value_head``,
    ``prompt_head``, a learned temperature, standardization); ``target_modules`` is "all-linear"
    where none are named, which leaves these out; ``task_type`` is None, with which PEFT hands all
    arguments to ``forward``; and ``base_model_name_or_path`` names the base.

    Args:
        model: the model that the adapter is for.
        config: None: LoRA of rank 16 and alpha 32.

    Raises:
        TypeError: if ``config`` is no PEFT configuration.
        ValueError: for prompt learning, whose virtual tokens would move the prompt's end.
    """
    if config is None:
        config = peft.LoraConfig(r=DEFAULT_RANK, lora_alpha=DEFAULT_ALPHA)
    if not isinstance(config, peft.PeftConfig):
        raise TypeError(
            "config must be a peft configuration, as peft.LoraConfig(...); got "
            f"{type(config).__name__}"
        )
    if config.is_prompt_learning:
        raise ValueError(
            f"{config.peft_type.value} adds virtual tokens, which a preference model does not "
            "count in its prompts: use LoRA or another adapter of weights"
        )
    config = copy.deepcopy(config)
    given = list(getattr(config, "modules_to_save", None) or ())
    config.modules_to_save = [*given, *(m for m in head_modules(model) if m not in given)]
    if getattr(config, "target_modules", None) is None and not getattr(
        config, "target_parameters", None
    ):
        config.target_modules = "all-linear"
    config.task_type = None
    names = (model.config._name_or_path, model.config.backbone_config._name_or_path)
    config.base_model_name_or_path = next((name for name in names if name), None)
    return config


def lora_model(
    model: GeneralPreferenceModel,
    config: peft.PeftConfig | None = None,
    *,
    rank: int | None = None,
    alpha: float | None = None,
    dropout: float | None = None,
    target_modules: str | Sequence[str] | None = None,
    autocast_adapter_dtype: bool = True,
) -> PreferencePeftModel:
    """A preference model whose backbone is trained through adapters, and whose head in full.

    Any trainer takes it as it takes the model; ``save_pretrained`` stores the adapter, the head and
    the configuration, and :func:`load_lora` or ``gpm_core.models.load_model`` read them.
    ``merge_and_unload()`` gives a plain ``GeneralPreferenceModel``.

    Args:
        model: changed in place: its weights are frozen, adapters are put into it. It must be what
            the files of its name hold, as the adapter is stored without it.
        config: a PEFT configuration (``peft.LoraConfig``, ...), which is copied; instead of it:
        rank: of LoRA; None: 16.
        alpha: its scale times the rank; None: twice the rank.
        dropout: before the adapters, in [0, 1); None: 0.
        target_modules: names of the linear layers that get adapters; None: all of the backbone.
        autocast_adapter_dtype: keep adapters and head in float32 over a 16-bit backbone; False for
            DeepSpeed ZeRO-3.

    Raises:
        TypeError: if ``model`` is no ``GeneralPreferenceModel``, or ``config`` of PEFT.
        ValueError: if both ``config`` and options of LoRA are given, for prompt learning, or an
            option that PEFT refuses.

    Example:
        >>> from gpm_core.models import GeneralPreferenceModel
        >>> model = GeneralPreferenceModel.from_backbone("Qwen/Qwen3-0.6B")  # doctest: +SKIP
        >>> lora_model(model, rank=8).print_trainable_parameters()  # doctest: +SKIP
    """
    if not isinstance(model, GeneralPreferenceModel):
        raise TypeError(f"model must be a GeneralPreferenceModel; got {type(model).__name__}")
    options = {"rank": rank, "alpha": alpha, "dropout": dropout, "target_modules": target_modules}
    given = [name for name, value in options.items() if value is not None]
    if config is not None and given:
        raise ValueError(f"{', '.join(given)} must be said in config, which is given too")
    if config is None:
        rank = DEFAULT_RANK if rank is None else rank
        if target_modules is not None and not isinstance(target_modules, str):
            target_modules = list(target_modules)
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank if alpha is None else alpha,
            lora_dropout=0.0 if dropout is None else dropout,
            target_modules=target_modules,
        )
    return PreferencePeftModel(
        model,
        preference_peft_config(model, config),
        autocast_adapter_dtype=autocast_adapter_dtype,
    )


def load_lora(
    name: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | GeneralPreferenceModel | None = None,
    is_trainable: bool = False,
    **options: Any,
) -> PreferencePeftModel:
    """A preference model with its adapter, in evaluation mode, ready to score or to train on.

    Args:
        name: folder or hub name of an adapter that :func:`lora_model` made.
        base: the model below, where it is not where ``adapter_config.json`` says: folder or hub
            name of a backbone or of a preference model, or a loaded ``GeneralPreferenceModel``.
        is_trainable: whether adapter and head get gradients.
        **options: for loading the base: ``dtype``, ``device_map``, ``quantization_config``, ...;
            ``revision`` is the adapter's.

    Raises:
        OSError: if there is no adapter in safetensors, or no base.
        ValueError: if the adapter does not say its base, or lacks the head: a head is never made
            up at random.

    Example:
        >>> load_lora("run/checkpoint-500").rank("Why?", ["Because.", "No."])  # doctest: +SKIP
    """
    return load_adapter(name, base=base, is_trainable=is_trainable, **options)
