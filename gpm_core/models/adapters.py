"""Adapters (PEFT) of preference models: the model under one, and how the two are stored and read.

An adapter's folder holds ``adapter_model.safetensors`` (the adapter, and the whole head),
``adapter_config.json`` (which names the base), and the preference model's own ``config.json``.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils.hub import cached_file

try:
    import peft
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"adapters need the package {error.name}: pip install peft", name=error.name
    ) from error

from gpm_core.data.files import PARTIAL
from gpm_core.models.checkpoints import load_tokenizer, read_model_config
from gpm_core.models.general_preference import GeneralPreferenceModel
from gpm_core.models.loading import (
    ADAPTER_CONFIG,
    hub_options,
    is_preference_model,
    preference_options,
)

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_NEEDED = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)

#: Parts of a preference model beside the backbone: trained, or measured, and stored in full.
HEAD_MODULES = (
    "value_head",
    "prompt_head",
    "temperature",
    "feature_standardization",
    "prompt_standardization",
)


def head_modules(model: GeneralPreferenceModel) -> list[str]:
    """Names of the modules of :data:`HEAD_MODULES` that this model has."""
    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return [name for name in HEAD_MODULES if name in present]


class PreferencePeftModel(peft.PeftModel):  # type: ignore[misc]
    """A preference model with adapters, as :func:`gpm_core.integrations.peft.lora_model` makes it.

    A ``PeftModel`` through which all of the ``GeneralPreferenceModel`` is reached (``rank``,
    ``compare``, ...). Trained parts of the head are in float32 also over a 16-bit backbone, as
    the adapter's are; the preference configuration and the tokenizer are stored beside the adapter.
    """

    def __init__(
        self,
        model: GeneralPreferenceModel,
        peft_config: peft.PeftConfig,
        adapter_name: str = "default",
        autocast_adapter_dtype: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            model,
            peft_config,
            adapter_name,
            autocast_adapter_dtype=autocast_adapter_dtype,
            **kwargs,
        )
        if autocast_adapter_dtype:
            for module in self.modules():
                if isinstance(module, peft.utils.ModulesToSaveWrapper):
                    _widen(module.modules_to_save)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **kwargs: Any
    ) -> None:
        """Write adapter, head, both configurations, and the tokenizer where there is one.

        Files are written beside those of an earlier save and then take their places.

        Args:
            save_directory: the folder, made if needed.
            is_main_process: whether this process is to write.
            **kwargs: as ``PeftModel.save_pretrained``.

        Raises:
            ValueError: for ``safe_serialization=False``.
            OSError: if the folder cannot be written to.
        """
        if not kwargs.get("safe_serialization", True):
            raise ValueError("weights are stored as safetensors only: leave safe_serialization out")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.get_base_model()
        with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder) as name:
            partial = Path(name)
            if (folder / "README.md").is_file():
                shutil.copy(folder / "README.md", partial)  # PEFT extends a card that is there
            super().save_pretrained(str(partial), is_main_process=is_main_process, **kwargs)
            if not is_main_process:
                return
            model.config.save_pretrained(partial)
            if model.tokenizer is not None:
                model.tokenizer.save_pretrained(partial)
            files = [path for path in partial.rglob("*") if path.is_file()]
            # adapter_config.json last: a folder that has it has all the rest.
            for path in sorted(files, key=lambda path: path.name == ADAPTER_CONFIG):
                target = folder / path.relative_to(partial)
                target.parent.mkdir(exist_ok=True)
                os.replace(path, target)


def _widen(module: torch.nn.Module) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dtype in (torch.float16, torch.bfloat16):
            tensor.data = tensor.data.float()


def load_adapter(
    name: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | GeneralPreferenceModel | None = None,
    is_trainable: bool = False,
    **options: Any,
) -> PreferencePeftModel:
    """See :func:`gpm_core.integrations.peft.load_lora`."""
    folder = _local_folder(name, hub_options(options))
    adapter = peft.PeftConfig.from_pretrained(str(folder))
    # Where the adapter is does not say where its base is.
    of_base = {key: options[key] for key in options if key not in ("revision", "subfolder")}
    model, has_head = _base_model(folder, adapter, base, of_base)
    _check_head(folder, adapter, model, has_head)
    model.tokenizer = load_tokenizer(str(folder), {}) or model.tokenizer
    loaded: Any = PreferencePeftModel.from_pretrained(
        model, str(folder), is_trainable=is_trainable, torch_device=str(model.device)
    )
    return loaded.eval()


def load_merged(name: str | os.PathLike[str], **options: Any) -> GeneralPreferenceModel:
    """The model that an adapter and its base make together, without adapter."""
    adapted: Any = load_adapter(name, **options)
    model: GeneralPreferenceModel = adapted.merge_and_unload()
    return model.eval()


def _local_folder(name: str | os.PathLike[str], hub: dict[str, Any]) -> Path:
    """The folder of an adapter, fetched from the hub if it is not local."""
    found = {
        file: cached_file(name, file, _raise_exceptions_for_missing_entries=False, **hub)
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json", *_NEEDED)
    }
    for file in _NEEDED:
        if found[file] is None:
            raise OSError(f"{name} holds no adapter of a preference model: it has no {file}")
    return Path(str(found[ADAPTER_CONFIG])).parent


def _base_model(
    folder: Path,
    adapter: peft.PeftConfig,
    base: str | os.PathLike[str] | GeneralPreferenceModel | None,
    options: dict[str, Any],
) -> tuple[GeneralPreferenceModel, bool]:
    """The model under an adapter, and whether it has a trained head of its own."""
    if isinstance(base, GeneralPreferenceModel):
        if options:
            raise ValueError(f"base is a loaded model: it takes no {', '.join(sorted(options))}")
        return base, True
    source = adapter.base_model_name_or_path if base is None else os.fspath(base)
    if not source:
        raise ValueError(
            f"{folder / ADAPTER_CONFIG} does not say what model the adapter belongs to (one that "
            "was made in memory): pass base, its folder or name, or the model itself"
        )
    if base is None and adapter.revision is not None:
        options = {**options, "revision": adapter.revision}
    if is_preference_model(source, **hub_options(options)):
        return GeneralPreferenceModel.from_pretrained(source, **options), True
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} has no config.json, which says what head its adapter is for; adapters that "
            "gpm_core.integrations.peft.lora_model makes have one. Or pass base, the model itself"
        )
    head = preference_options(read_model_config(str(folder), {}))
    return GeneralPreferenceModel.from_backbone(source, options=options, **head), False


def _check_head(
    folder: Path, adapter: peft.PeftConfig, model: GeneralPreferenceModel, has_head: bool
) -> None:
    """Refuse an adapter without the head, where its base has none: the head would be random."""
    declared = getattr(adapter, "modules_to_save", None) or ()
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        stored = [f".{key}" for key in file.keys()]  # noqa: SIM118 (a file, not a dict)
    for module in head_modules(model):
        if module not in declared and has_head:
            continue
        if module not in declared or not any(f".{module}." in key for key in stored):
            raise ValueError(
                f"the adapter in {folder} lacks the weights of {module}, which would be random: it "
                "was made without modules_to_save, which "
                "gpm_core.integrations.peft.lora_model sets, or its file is damaged"
            )
