"""A preference model as a folder: model.safetensors and config.json, nothing that is executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from gpm_core._version import __version__
from gpm_core.data.files import atomic_folder, read_json, write_json
from gpm_core.heads import (
    BradleyTerryHead,
    HybridHead,
    MultiCriteriaHead,
    PairPreferenceHead,
    PreferenceHead,
)
from gpm_core.losses import Temperature

FORMAT = "gpm_core.preference_model"
FORMAT_VERSION = 2
WEIGHTS = "model.safetensors"
CONFIG = "config.json"

Head = PreferenceHead | BradleyTerryHead | HybridHead | MultiCriteriaHead | PairPreferenceHead

_HEADS: dict[str, type[Head]] = {
    kind.__name__: kind
    for kind in (
        PreferenceHead,
        BradleyTerryHead,
        HybridHead,
        MultiCriteriaHead,
        PairPreferenceHead,
    )
}
_OPTIONS: dict[str, tuple[str, ...]] = {
    "PreferenceHead": ("hidden_size", "dim", "gate", "normalize", "init", "tau"),
    "BradleyTerryHead": ("hidden_size", "tau"),
    "PairPreferenceHead": ("hidden_size", "width", "tau"),
    "HybridHead": (
        "hidden_size",
        "dim",
        "gate",
        "normalize",
        "scalar_weight",
        "cyclic_weight",
        "clip",
        "init",
        "tau",
    ),
    "MultiCriteriaHead": (
        "hidden_size",
        "dim",
        "criteria",
        "mode",
        "gate",
        "normalize",
        "init",
        "tau",
    ),
}


def head_config(head: Head) -> dict[str, Any]:
    """A head's class and options, as JSON that :func:`build_head` reads."""
    kind = type(head).__name__
    if kind not in _HEADS:
        raise TypeError(f"head must be one of {', '.join(_HEADS)}; got {kind}")
    options = {name: getattr(head, name) for name in _OPTIONS[kind]}
    if isinstance(head, (PreferenceHead, BradleyTerryHead)):
        options["bias"] = head.value_head.bias is not None
    return {"class": kind, "options": options}


def build_head(config: dict[str, Any]) -> Head:
    """The head that :func:`head_config` described, with fresh weights.

    Raises:
        ValueError: for an unknown class or options it does not take.
    """
    kind = config.get("class")
    if kind not in _HEADS:
        raise ValueError(f"unknown head class {kind!r}; expected one of {', '.join(_HEADS)}")
    try:
        return _HEADS[kind](**config["options"])
    except (TypeError, KeyError) as error:
        raise ValueError(f"the options of the head {kind} do not fit: {error}") from error


def temperature_config(temperature: Temperature) -> dict[str, Any]:
    """The options of a learned temperature, as JSON that :func:`build_temperature` reads."""
    return {name: getattr(temperature, name) for name in ("initial", "blocks", "minimum")}


def build_temperature(config: dict[str, Any] | None) -> Temperature | None:
    """The temperature that :func:`temperature_config` described, at its start; None of None.

    Raises:
        ValueError: for options that it does not take.
    """
    if config is None:
        return None
    try:
        return Temperature(**config)
    except TypeError as error:
        raise ValueError(f"the options of the temperature do not fit: {error}") from error


def save_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor]) -> None:
    """Write tensors, copied to the CPU, to a safetensors file."""
    save_file({name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}, path)


def load_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged; names the file.
    """
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    return tensors


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Copy ``tensors`` into those of ``module`` named the same.

    Raises:
        ValueError: unless names and shapes agree exactly; names those that do not.
    """
    own = {name: value for name, value in module.state_dict().items() if name in tensors}
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            raise ValueError(
                f"{source}: tensor {name!r} has shape {tuple(tensors[name].shape)}, expected "
                f"{tuple(value.shape)}"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])


def check_names(expected: set[str], found: set[str], source: str) -> None:
    """Raise ValueError, naming them, for tensors that are missing or not expected."""
    problems = [
        f"{word} tensors {', '.join(sorted(names))}"
        for word, names in (("missing", expected - found), ("unexpected", found - expected))
        if names
    ]
    if problems:
        raise ValueError(f"{source}: {'; '.join(problems)}")


def write_model(
    folder: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    config: dict[str, Any],
) -> None:
    """Write a model folder, whole or not at all; replaces a model that is there already.

    Args:
        folder: where; its parent must exist.
        tensors: what goes to model.safetensors.
        config: what goes to config.json, beside format and versions.

    Raises:
        FileExistsError: if ``folder`` holds anything but a model.
        OSError: if it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not is_model_folder(folder) and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} exists and holds no preference model; name a new or an empty folder"
        )
    with atomic_folder(folder, replace=True) as partial:
        save_tensors(partial / WEIGHTS, tensors)
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "gpm_core_version": __version__,
        }
        write_json(partial / CONFIG, {**header, **config})


def is_model_folder(folder: Path) -> bool:
    """Whether ``folder`` holds a model of ours."""
    try:
        config = read_json(folder / CONFIG)
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("format") == FORMAT


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the config.json of a model folder.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        ValueError: if it is not a model of ours, or of a later format.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: no preference model there (no {CONFIG}); a training run saves it in the "
            "folder 'model' of its output"
        )
    config = read_json(path)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(f"{path}: not a preference model of gpm_core (no format {FORMAT!r})")
    if config.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {config.get('format_version')}, expected {FORMAT_VERSION}; "
            "it was written by another version of gpm_core"
        )
    missing = {"backbone", "head", "view"} - set(config)
    if missing:
        raise ValueError(f"{path}: {', '.join(sorted(missing))} missing")
    return config
