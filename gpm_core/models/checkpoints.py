"""Loading and storing of general preference models, ours and published ones."""

from __future__ import annotations

import copy
import json
import os
import re
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from transformers import AutoConfig, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.quantizers import AutoQuantizationConfig
from transformers.utils.hub import cached_file

from gpm_core.data.files import PARTIAL, read_json
from gpm_core.models.configuration import GeneralPreferenceConfig

if TYPE_CHECKING:
    from gpm_core.models.general_preference import GeneralPreferenceModel

#: The class name in the config.json of the checkpoints that the GPM paper published.
PUBLISHED_ARCHITECTURE = "CustomRewardModel"
PUBLISHED_TAU = 0.1
#: What our config.json of that layout says of a gate: the name of the option of the paper's code,
#: whose own files say nothing.
PUBLISHED_GATE = "add_prompt_head"
#: What the weights of their heads are called there, and here.
_PUBLISHED_NAMES = {
    r"^value_head\.": "head.value_head.",
    r"^prompt_head\.": "head.prompt_head.",
}
_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"
#: Files of weights, and their index.
_WEIGHT_FILE = re.compile(
    r"model(\.(?P<variant>[^.]+?))?(-\d+-of-\d+)?\.safetensors"
    r"(\.index(\.(?P<index>[^.]+))?\.json)?"
)
#: Options of ``from_pretrained`` that configurations have an attribute for, too.
_NOT_OF_CONFIG = ("dtype", "torch_dtype", "attn_implementation", "quantization_config")
#: What finding a file on the hub depends on.
_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "subfolder")
_PUSH_OPTIONS = ("repo_id", "token", "commit_message", "private", "revision", "create_pr", "tags")
#: Parts of a model beside the backbone.
_PARTS = ("head", "temperature", "feature_standardization", "prompt_standardization")


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
        tokenizer = load_tokenizer(name, {k: options[k] for k in tokenizer_options(options)})
    return model, tokenizer


def tokenizer_options(options: dict[str, Any]) -> list[str]:
    """Those of the options of ``from_pretrained`` that a tokenizer takes, too."""
    known = (*_HUB_OPTIONS, "gguf_file", "trust_remote_code")
    return [name for name in options if name in known]


def load_tokenizer(name: str, options: dict[str, Any]) -> Any:
    """The tokenizer of a model, or None where it has none."""
    # A model without tokenizer works on token ids, and says so where it is given texts.
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **{"trust_remote_code": False, **options})
    except (OSError, ValueError):
        return None
    # Where there are no files, transformers may make one up, which knows special tokens alone.
    known = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    return tokenizer if known else None


def load(
    read: Callable[..., Any], name: str | os.PathLike[str], *args: Any, **kwargs: Any
) -> GeneralPreferenceModel | tuple[GeneralPreferenceModel, dict[str, Any]]:
    """See :meth:`GeneralPreferenceModel.from_pretrained`; ``read`` is transformers' own."""
    if (Path(name) / "adapter_config.json").is_file():
        raise ValueError(
            f"{name} holds an adapter, not a whole model: gpm_core.models.load_model merges it "
            "into its base, gpm_core.integrations.peft.load_lora puts it on top"
        )
    hub = {key: kwargs[key] for key in _HUB_OPTIONS if key in kwargs}
    config = kwargs.pop("config", None)
    if config is None or isinstance(config, (str, os.PathLike)):
        config, says_gate = _read_config(config or name, hub)
        if not (says_gate or "gate" in kwargs):
            _warn_of_no_gate(name, config)
        for key in [key for key in kwargs if hasattr(config, key) and key not in _NOT_OF_CONFIG]:
            setattr(config, key, kwargs.pop(key))
        config.check()
    elif not isinstance(config, GeneralPreferenceConfig):
        raise TypeError(f"config must be a GeneralPreferenceConfig; got {type(config).__name__}")
    wants_report = kwargs.pop("output_loading_info", False)
    options: dict[str, Any] = {"use_safetensors": True, **kwargs, "config": config}
    options["key_mapping"] = {**_PUBLISHED_NAMES, **(options.get("key_mapping") or {})}
    if options.get("quantization_config") is not None:
        options["quantization_config"] = _head_apart(options["quantization_config"])
    # Weights of another shape are random where transformers ignores them, and told of below.
    options["ignore_mismatched_sizes"] = True
    try:
        model, report = read(name, *args, **options, output_loading_info=True)
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are damaged (cut short?): {error}") from error
    _check_report(name, report)
    # transformers would give the weights their published names again where the model is saved.
    conversions = getattr(model, "_weight_conversions", None) or ()
    model._weight_conversions = [
        conversion
        for conversion in conversions
        if not set(conversion.source_patterns) & set(_PUBLISHED_NAMES)
    ] or None
    model.tokenizer = load_tokenizer(str(name), hub)
    return (model, report) if wants_report else model


def _head_apart(quantization: Any) -> Any:
    """The same quantization of the backbone alone: heads are small, and read as they are."""
    if isinstance(quantization, dict):
        quantization = AutoQuantizationConfig.from_dict(quantization)
    apart = copy.deepcopy(quantization)
    for name in ("llm_int8_skip_modules", "modules_to_not_convert", "skip_modules"):
        if hasattr(apart, name):
            setattr(apart, name, [*(getattr(apart, name) or ()), "head"])
    return apart


def _check_report(name: Any, report: dict[str, Any]) -> None:
    missing = sorted(key for key in report["missing_keys"] if "pooler." not in key)
    if missing:
        raise ValueError(
            f"{name} lacks the weights {', '.join(missing)}: it is no whole preference model, and "
            "what is missing would be random. GeneralPreferenceModel.from_backbone makes a new one"
        )
    if report["mismatched_keys"]:
        listed = ", ".join(
            f"{key} {tuple(stored)} instead of {tuple(expected)}"
            for key, stored, expected in sorted(report["mismatched_keys"])
        )
        raise ValueError(f"the weights of {name} do not fit its configuration: {listed}")
    own = tuple(f"{part}." for part in (*_PARTS, *(f"model.{part}" for part in _PARTS)))
    unknown = sorted(key for key in report["unexpected_keys"] if key.startswith(own))
    if unknown:
        raise ValueError(
            f"{name} has the weights {', '.join(unknown)}, of which its configuration knows "
            "nothing: with them it is another model"
        )


def read_model_config(name: Any, hub: dict[str, Any]) -> GeneralPreferenceConfig:
    """The configuration of a preference model, ours or published.

    Raises:
        OSError: if there is none.
        ValueError: if it is another kind of model.
    """
    return _read_config(name, hub)[0]


def _read_config(name: Any, hub: dict[str, Any]) -> tuple[GeneralPreferenceConfig, bool]:
    """The configuration, and whether its file says if there is a gate."""
    values, _ = PretrainedConfig.get_config_dict(name, **hub)
    if not values:
        raise OSError(f"{name} holds no model: it has no config.json")
    if values.get("model_type") == GeneralPreferenceConfig.model_type:
        return GeneralPreferenceConfig.from_dict(values), True
    if PUBLISHED_ARCHITECTURE in (values.get("architectures") or ()):
        return _published_config(name, hub, values.get(PUBLISHED_GATE)), PUBLISHED_GATE in values
    raise ValueError(
        f"{name} is a {values.get('model_type') or 'model of unknown type'}, not a preference "
        "model: GeneralPreferenceModel.from_backbone(...) puts a new head on it"
    )


def _warn_of_no_gate(name: Any, config: GeneralPreferenceConfig) -> None:
    # The softmax of a single block is 1: there a gate that is lost changes nothing.
    if config.gate is None and config.dim > 2:
        warnings.warn(
            f"{name} has no weight prompt_head.weight and is read as a model without a gate; this "
            "layout does not say whether it was trained with one. Pass gate=None if it was not, "
            "gate='softmax' if it was: then what is missing is an error",
            stacklevel=4,
        )


def _published_config(
    name: Any, hub: dict[str, Any], gated: bool | None
) -> GeneralPreferenceConfig:
    """``gated``: what config.json says of a gate, None if nothing."""
    shapes = _head_shapes(name, hub)
    if "value_head.weight" not in shapes:
        raise ValueError(
            f"{name} lacks the weight value_head.weight: a published preference model has one of "
            "shape [2k, hidden_size]"
        )
    backbone = AutoConfig.from_pretrained(name, trust_remote_code=False, **hub)
    # Of the head, not of the backbone.
    vars(backbone).pop(PUBLISHED_GATE, None)
    dim = shapes["value_head.weight"][0]
    gate = shapes.get("prompt_head.weight")
    expected = {(dim // 2, backbone.hidden_size), None}
    if shapes["value_head.weight"][1] != backbone.hidden_size or gate not in expected:
        raise ValueError(
            f"{name}: value_head.weight must be [2k, {backbone.hidden_size}] and "
            f"prompt_head.weight [k, {backbone.hidden_size}]; got {shapes}"
        )
    if gated is not None and gated != (gate is not None):
        raise ValueError(
            f"{name}: config.json says {PUBLISHED_GATE}: {json.dumps(gated)}, and the weight "
            f"prompt_head.weight is {'missing' if gate is None else 'there all the same'}"
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
    files, promised = {_WEIGHTS}, set[str]()
    if index is not None:
        weight_map = read_json(index)["weight_map"]
        promised = set(keys) & set(weight_map)
        files = {weight_map[key] for key in promised}
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(files):
        path = cached_file(name, file, **hub)
        try:
            with safe_open(path, "pt") as tensors:
                for key in set(keys) & set(tensors.keys()):
                    shapes[key] = tuple(tensors.get_slice(key).get_shape())
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged (cut short?): {error}") from error
    lost = sorted(promised - set(shapes))
    if lost:
        raise ValueError(
            f"{name} lacks the weight {', '.join(lost)}, which {_INDEX} promises in "
            f"{', '.join(sorted(files))}"
        )
    return shapes


def save(
    model: GeneralPreferenceModel,
    save: Callable[..., None],
    folder: str | os.PathLike[str],
    is_main_process: bool,
    **kwargs: Any,
) -> None:
    """See :meth:`GeneralPreferenceModel.save_pretrained`; ``save`` is transformers' own."""
    push = kwargs.pop("push_to_hub", False)
    hub = {key: kwargs.pop(key) for key in _PUSH_OPTIONS if key in kwargs}
    if kwargs.get("state_dict") is None and _is_sharded(model):
        # transformers knows its own shards, not those of FSDP2. Only the first process gets them.
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        kwargs["state_dict"] = get_model_state_dict(model, options=options)
        is_main_process = is_main_process and torch.distributed.get_rank() == 0
    if not is_main_process:
        # Other processes write nothing, but sharded weights are gathered from all of them.
        with tempfile.TemporaryDirectory(prefix=PARTIAL) as scratch:
            save(scratch, is_main_process=False, **kwargs)
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder) as name:
        partial = Path(name)
        save(partial, **kwargs)
        # transformers may know better which process is the main one.
        if model.tokenizer is not None and any(partial.iterdir()):
            model.tokenizer.save_pretrained(partial)
        _replace(partial, folder, kwargs.get("variant"))
    if push:
        model.push_to_hub(hub.pop("repo_id", folder.name), **hub)


def _is_sharded(model: Any) -> bool:
    """Whether PyTorch's FSDP2 has sharded it."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def _replace(partial: Path, folder: Path, variant: str | None) -> None:
    """Put the files of ``partial`` in the place of those of an earlier save: all of them, or none.

    config.json goes first and comes last: a folder that has it has all the rest, of one save.
    """
    new = sorted(partial.iterdir(), key=_is_config)
    names = {path.name for path in new}
    replaces_weights = any(_WEIGHT_FILE.fullmatch(name) for name in names)
    old = [
        path
        for path in folder.iterdir()
        if path.name in names or (replaces_weights and _is_weights(path, variant))
    ]
    retired = partial / PARTIAL
    retired.mkdir()
    try:
        for path in sorted(old, key=_is_config, reverse=True):
            os.replace(path, retired / path.name)
        for path in new:
            os.replace(path, folder / path.name)
    except BaseException:
        for path in new:
            if not path.exists():
                os.replace(folder / path.name, path)
        for path in sorted(retired.iterdir(), key=_is_config):
            os.replace(path, folder / path.name)
        raise


def _is_config(path: Path) -> bool:
    return path.name == "config.json"


def _is_weights(path: Path, variant: str | None) -> bool:
    match = _WEIGHT_FILE.fullmatch(path.name)
    return match is not None and (match["variant"] or match["index"]) == variant
