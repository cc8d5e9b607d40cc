"""Checkpoints in the layout of OpenRLHF's reward models and of the GPM paper's fork of it.

Weights ``model.*`` and ``value_head.weight`` beside the backbone's own config.json.
"""

from __future__ import annotations

import copy
import os
import re
from typing import Any

from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from gpm_core.models import GeneralPreferenceConfig, GeneralPreferenceModel, checkpoints

_HEADS = {
    "head.value_head.weight": "value_head.weight",
    "head.prompt_head.weight": "prompt_head.weight",
}


def save_published_layout(
    model: GeneralPreferenceModel,
    folder: str | os.PathLike[str],
    *,
    state_dict: dict[str, Tensor] | None = None,
    is_main_process: bool = True,
) -> None:
    """Write a model as the GPM paper's checkpoints are, for programs that read those.

    ``config.json`` is the backbone's with the architecture "CustomRewardModel" and a note,
    ``add_prompt_head``, of whether there is a gate: without it nobody would miss one that is lost.
    The safetensors hold ``model.*``, ``value_head.weight`` (2k, H) and with a gate
    ``prompt_head.weight`` (k, H). ``GeneralPreferenceModel.from_pretrained`` reads the same model
    back, bit by bit.

    Args:
        model: made with ``init="paper"``, ``text_format="published"``, the default temperature and
            pooling, and no gate or a softmax gate: the layout says nothing of any of them.
        folder: where to write; files of an earlier save are replaced.
        state_dict: the whole weights of a sharded model (``accelerator.get_state_dict(model)``).
        is_main_process: False to write nothing.

    Raises:
        OSError: if the folder cannot be written to.
        ValueError: if the layout cannot hold the model; names all that it cannot.
    """
    _check_published(model)
    weights = model.state_dict() if state_dict is None else state_dict
    tensors = {_HEADS.get(name, name): tensor for name, tensor in weights.items()}
    config: Any = copy.deepcopy(model.config.backbone_config)
    config.architectures = [checkpoints.PUBLISHED_ARCHITECTURE]
    config.dtype = model.dtype
    setattr(config, checkpoints.PUBLISHED_GATE, model.config.gate is not None)

    def write(folder: str | os.PathLike[str], **_: Any) -> None:
        PreTrainedModel.save_pretrained(model, folder, state_dict=tensors)
        config.save_pretrained(folder)

    checkpoints.save(model, write, folder, is_main_process=is_main_process)


def _check_published(model: GeneralPreferenceModel) -> None:
    config = model.config
    if config.head != "gpm":
        raise ValueError(f"the published layout holds head='gpm' alone; this is {config.head!r}")
    problems = [
        problem
        for wrong, problem in (
            (model.head.value_head.bias is not None, "the head's bias: make it with init='paper'"),
            (not config.normalize, "normalize=False"),
            (config.gate == "softplus", "gate='softplus': softmax, or none"),
            (config.learn_tau is not None, "a learned temperature"),
            (config.criteria is not None, "several criteria"),
            (config.tau != checkpoints.PUBLISHED_TAU, f"tau={config.tau}: 0.1 alone"),
            (config.standardize, "standardize=True"),
            (config.pooling != "last", f"pooling={config.pooling!r}: 'last' alone"),
            (
                config.text_format != "published",
                f"text_format={config.text_format!r}: it would be read back as 'published'",
            ),
            (config.max_sequence_length is not None, "max_sequence_length"),
        )
        if wrong
    ]
    if problems:
        raise ValueError(
            f"the published layout cannot hold {'; '.join(problems)}. save_pretrained can"
        )


def load_reward_model(
    name: str, *, value_head_prefix: str | None = None, **options: Any
) -> GeneralPreferenceModel:
    """A scalar reward model that OpenRLHF saved, as a model with ``head="bt"``.

    Args:
        name: local folder or hub name.
        value_head_prefix: name of its linear layer; None: as its config.json says, or "value_head".
        **options: as ``GeneralPreferenceModel.from_pretrained``: ``dtype``, ``device_map``, ...

    Raises:
        OSError: if there is no such model.
        ValueError: if it has no such layer.
        RuntimeError: if the layer gives more than one number.
    """
    backbone = AutoConfig.from_pretrained(name, trust_remote_code=False)
    if value_head_prefix is None:
        value_head_prefix = getattr(backbone, "value_head_prefix", "value_head")
    config = GeneralPreferenceConfig(backbone, head="bt")
    mapping = {rf"^{re.escape(str(value_head_prefix))}\.": "head.value_head."}
    model: Any = GeneralPreferenceModel.from_pretrained(
        name, config=config, key_mapping=mapping, **options
    )
    # transformers would rename weights back when it saves them, to names that this configuration
    # does not lead to.
    conversions: list[Any] = getattr(model, "_weight_conversions", None) or []
    model._weight_conversions = [
        one for one in conversions if "head.value_head." not in one.target_patterns
    ]
    loaded: GeneralPreferenceModel = model
    return loaded
