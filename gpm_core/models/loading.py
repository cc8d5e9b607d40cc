"""Any preference model, by its folder or hub name."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.utils.hub import cached_file

from gpm_core.models.checkpoints import PUBLISHED_ARCHITECTURE
from gpm_core.models.configuration import GeneralPreferenceConfig
from gpm_core.models.general_preference import GeneralPreferenceModel
from gpm_core.models.preference_model import PreferenceModel
from gpm_core.models.storage import is_model_folder

#: What is in the folder of an adapter (PEFT), whatever else is.
ADAPTER_CONFIG = "adapter_config.json"
#: What finding a file on the hub depends on.
_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")


def load_model(
    name: str | os.PathLike[str], *, device: str | torch.device | None = None, **options: Any
) -> PreferenceModel | GeneralPreferenceModel:
    """A trained preference model of any kind, in evaluation mode.

    Args:
        name: folder of a :class:`PreferenceModel` or a :class:`GeneralPreferenceModel`, or the hub
            name of the latter (published GPM checkpoints included); or of an adapter (LoRA) of
            one, which is merged into its base.
        device: where to put it; None: the processor, or what ``options`` say.
        **options: of ``GeneralPreferenceModel.from_pretrained``: dtype, device_map, revision, ...

    Raises:
        OSError: if there is no model.
        ValueError: if it is damaged or another kind of model.
        ModuleNotFoundError: for an adapter without the package ``peft``.
    """
    model: Any
    if is_model_folder(Path(name)):
        if options:
            raise ValueError(f"{name} takes no options; got {', '.join(map(repr, options))}")
        model = PreferenceModel.from_pretrained(name)
    elif is_adapter(name, **hub_options(options)):
        # Needs a package that no other model needs.
        from gpm_core.models.adapters import load_merged

        model = load_merged(name, **options)
    else:
        model = GeneralPreferenceModel.from_pretrained(str(name), **options)
    return model if device is None else model.to(device)


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options of ``from_pretrained`` that say where on the hub a file is."""
    return {key: options[key] for key in _HUB_OPTIONS if key in options}


def is_adapter(name: str | os.PathLike[str], **hub: Any) -> bool:
    """Whether there is an adapter (PEFT) under this name, a folder or one of the hub."""
    if Path(name).is_dir():
        return (Path(name) / ADAPTER_CONFIG).is_file()
    try:
        found = cached_file(
            name, ADAPTER_CONFIG, _raise_exceptions_for_missing_entries=False, **hub
        )
    except OSError:
        return False  # whatever is wrong with the name, the one who opens it will say
    return found is not None


def is_preference_model(name: str | os.PathLike[str], **hub: Any) -> bool:
    """Whether a folder or hub name is that of a model with a preference head, not of a backbone.

    Raises:
        OSError: if there is no model.
    """
    values, _ = PretrainedConfig.get_config_dict(name, **hub)
    return values.get(
        "model_type"
    ) == GeneralPreferenceConfig.model_type or PUBLISHED_ARCHITECTURE in (
        values.get("architectures") or ()
    )


def preference_options(config: GeneralPreferenceConfig) -> dict[str, Any]:
    """The options that ``from_backbone`` makes a model of the same kind with."""
    parameters = inspect.signature(GeneralPreferenceConfig.__init__).parameters.values()
    names = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    return {name: getattr(config, name) for name in names}
