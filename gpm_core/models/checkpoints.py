"""Loading and storing of general preference models, ours and published ones."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from gpm_core.data.files import PARTIAL, read_json
from gpm_core.models.configuration import GeneralPreferenceConfig

if TYPE_CHECKING:
    from gpm_core.models.general_preference import GeneralPreferenceModel

#: The class name in the config.json of the checkpoints that the GPM paper published.
PUBLISHED_ARCHITECTURE = "CustomRewardModel"
PUBLISHED_TAU = 0.1
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
#: What finding a file on the hub depends on.
_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")


def load_backbone(
    name: str, tokenizer: Any, options: dict[str, Any]
) -> tuple[PreTrainedModel, Any]:
    """A backbone without language-model head, and its tokenizer (None if it has none).

    Raises:
        OSError: if there is no such model.
        ValueError: if weights are missing from its files.
    """
    safe: dict[str, Any] = {"trust_remote_code": False}
    if "gguf_file" not in options:
        safe["use_safetensors"] = True
    # The pooler of an encoder is not used here, and language models' checkpoints have none.
    model, report = AutoModel.from_pretrained(
        name, **{**safe, **options, "output_loading_info": True}
    )
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        raise ValueError(f"the files of {name} lack the weights {', '.join(missing[:3])}")
    if tokenizer is None:
        tokenizer = _tokenizer(name, {k: options[k] for k in _tokenizer_options(options)})
    return model, tokenizer


def _tokenizer_options(options: dict[str, Any]) -> list[str]:
    known = (*_HUB_OPTIONS, "gguf_file", "trust_remote_code")
    return [name for name in options if name in known]


def _tokenizer(name: str, options: dict[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, **{"trust_remote_code": False, **options})
    except (OSError, ValueError):
        # A model without tokenizer works on token ids, and says so where it is given texts.
        return None


def load(
    read: Callable[..., Any], name: str, *args: Any, **kwargs: Any
) -> GeneralPreferenceModel | tuple[GeneralPreferenceModel, dict[str, Any]]:
    """See :meth:`GeneralPreferenceModel.from_pretrained`; ``read`` is transformers' own."""
    hub = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
    config = kwargs.pop("config", None)
    if config is None or isinstance(config, (str, os.PathLike)):
        config = read_model_config(config or name, hub)
    wants_report = kwargs.pop("output_loading_info", False)
    options: dict[str, Any] = {"use_safetensors": True, **kwargs, "config": config}
    if config.text_format == "published":
        options["key_mapping"] = {
            r"^value_head\.": "head.value_head.",
            r"^prompt_head\.": "head.prompt_head.",
        }
    model, report = read(name, *args, **options, output_loading_info=True)
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        raise ValueError(
            f"{name} lacks the weights {', '.join(missing)}: it is no whole preference model, and "
            "what is missing would be random. GeneralPreferenceModel.from_backbone makes a new one"
        )
    model.tokenizer = _tokenizer(str(name), hub)
    return (model, report) if wants_report else model


def read_model_config(name: Any, hub: dict[str, Any]) -> GeneralPreferenceConfig:
    """The configuration of a preference model, ours or published.

    Raises:
        OSError: if there is none.
        ValueError: if it is another kind of model.
    """
    values, _ = PretrainedConfig.get_config_dict(name, **hub)
    if values.get("model_type") == GeneralPreferenceConfig.model_type:
        return GeneralPreferenceConfig.from_dict(values)
    if PUBLISHED_ARCHITECTURE in (values.get("architectures") or ()):
        return _published_config(name, hub)
    raise ValueError(
        f"{name} is a {values.get('model_type') or 'model of unknown type'}, not a preference "
        "model: GeneralPreferenceModel.from_backbone(...) puts a new head on it"
    )


def _published_config(name: Any, hub: dict[str, Any]) -> GeneralPreferenceConfig:
    shapes = _head_shapes(name, hub)
    if "value_head.weight" not in shapes:
        raise ValueError(
            f"{name} lacks the weight value_head.weight: a published preference model has one of "
            "shape [2k, hidden_size]"
        )
    backbone = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
    dim = shapes["value_head.weight"][0]
    gate = shapes.get("prompt_head.weight")
    expected = {(dim // 2, backbone.hidden_size), None}
    if shapes["value_head.weight"][1] != backbone.hidden_size or gate not in expected:
        raise ValueError(
            f"{name}: value_head.weight must be [2k, {backbone.hidden_size}] and "
            f"prompt_head.weight [k, {backbone.hidden_size}]; got {shapes}"
        )
    return GeneralPreferenceConfig(
        backbone,
        dim=dim,
        gate=None if gate is None else "softmax",
        init="paper",
        tau=PUBLISHED_TAU,
        pooling="last",
        text_format="published",
    )


def _head_shapes(name: Any, hub: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the head's weights, from the safetensors headers alone."""
    index = cached_file(name, _INDEX, _raise_exceptions_for_missing_entries=False, **hub)
    keys = ("value_head.weight", "prompt_head.weight")
    if index is not None:
        weight_map = read_json(index)["weight_map"]
        files = {weight_map[key] for key in keys if key in weight_map}
    else:
        files = {_WEIGHTS}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(files):
        with safe_open(cached_file(name, file, **hub), "pt") as tensors:
            for key in set(keys) & set(tensors.keys()):
                shapes[key] = tuple(tensors.get_slice(key).get_shape())
    return shapes


def save(
    model: GeneralPreferenceModel,
    save: Callable[..., None],
    folder: str | os.PathLike[str],
    **kwargs: Any,
) -> None:
    """See :meth:`GeneralPreferenceModel.save_pretrained`; ``save`` is transformers' own."""
    if kwargs.get("is_main_process") is False:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    push = kwargs.pop("push_to_hub", False)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder) as name:
        partial = Path(name)
        save(partial, **kwargs)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(partial)
        new = {path.name for path in partial.iterdir()}
        # config.json last: a folder that has it has all the rest.
        for path in sorted(partial.iterdir(), key=lambda path: path.name == "config.json"):
            os.replace(path, folder / path.name)
    for old in folder.glob("model*.safetensors*"):
        if old.name not in new:
            old.unlink()
    if push:
        hub = {key: kwargs[key] for key in ("token", "commit_message", "private") if key in kwargs}
        model.push_to_hub(kwargs.get("repo_id", folder.name), **hub)
