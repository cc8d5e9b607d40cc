"""Any preference model, by its folder or hub name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from gpm_core.models.general_preference import GeneralPreferenceModel
from gpm_core.models.preference_model import PreferenceModel
from gpm_core.models.storage import is_model_folder


def load_model(
    name: str | os.PathLike[str], *, device: str | torch.device | None = None, **options: Any
) -> PreferenceModel | GeneralPreferenceModel:
    """A trained preference model of either kind, in evaluation mode.

    Args:
        name: folder of a :class:`PreferenceModel` or a :class:`GeneralPreferenceModel`, or the hub
            name of the latter (published GPM checkpoints included).
        device: where to put it; None: the processor, or what ``options`` say.
        **options: of ``GeneralPreferenceModel.from_pretrained``: dtype, device_map, revision, ...

    Raises:
        OSError: if there is no model.
        ValueError: if it is damaged or another kind of model.
    """
    model: Any
    if is_model_folder(Path(name)):
        if options:
            raise ValueError(f"{name} takes no options; got {', '.join(map(repr, options))}")
        model = PreferenceModel.from_pretrained(name)
    else:
        model = GeneralPreferenceModel.from_pretrained(str(name), **options)
    return model if device is None else model.to(device)
