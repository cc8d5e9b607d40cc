"""Checkpoints: folders from which a training continues as if it had never stopped."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpm_core.data.files import PARTIAL, atomic_folder, read_json, write_json
from gpm_core.models.storage import load_tensors, save_tensors
from gpm_core.training.loop import Progress, TrainingLoop

PREFIX = "checkpoint-"
STATE = "state.json"
FILES = ("weights.safetensors", "optimizer.safetensors", "random.safetensors")
KEPT = 2


def save_checkpoint(run: Path, loop: TrainingLoop, weights: dict[str, Tensor]) -> Path:
    """Write ``checkpoint-<step>`` in the run's folder, whole or not at all; keep the last two.

    Args:
        run: the run's folder.
        loop: whose optimizer and progress are saved.
        weights: tensors of the model by name.
    """
    path = run / f"{PREFIX}{loop.progress.step}"
    with atomic_folder(path, replace=True) as partial:
        contents = (weights, _optimizer_tensors(loop), _random_tensors())
        for name, tensors in zip(FILES, contents, strict=True):
            save_tensors(partial / name, tensors)
        digests = {name: _digest(partial / name) for name in FILES}
        write_json(partial / STATE, {"progress": loop.progress.as_dict(), "sha256": digests})
    for old in _by_step(run)[KEPT:]:
        shutil.rmtree(old)
    return path


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of the latest step that is whole, by its own digests, or None."""
    return next((path for path in _by_step(run) if _is_whole(path)), None)


def load_checkpoint(path: Path, loop: TrainingLoop) -> dict[str, Tensor]:
    """Put a loop's optimizer and progress and torch's random numbers in the state of ``path``.

    Returns:
        The weights, for the caller to put in the model.

    Raises:
        OSError, ValueError: if it cannot be read.
    """
    weights, optimizer, random = (load_tensors(path / name) for name in FILES)
    loop.progress = Progress.from_dict(read_json(path / STATE)["progress"])
    loop.optimizer.state.clear()
    for name, parameter in loop.named.items():
        prefix = f"{name}:"
        state = {
            key.removeprefix(prefix): value.to("cpu" if key.endswith(":step") else parameter.device)
            for key, value in optimizer.items()
            if key.startswith(prefix)
        }
        if state:
            loop.optimizer.state[parameter] = state
    torch.set_rng_state(random["cpu"])
    if "cuda" in random and torch.cuda.is_available():
        torch.cuda.set_rng_state(random["cuda"])
    return weights


def remove_partial(run: Path) -> None:
    """Delete what a killed process left half written in the run's folder."""
    for path in run.glob(f"{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _optimizer_tensors(loop: TrainingLoop) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in loop.named.items():
        state: dict[str, Any] = loop.optimizer.state.get(parameter, {})
        for key, value in state.items():
            tensors[f"{name}:{key}"] = value
    return tensors


def _random_tensors() -> dict[str, Tensor]:
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    return tensors


def _by_step(run: Path) -> list[Path]:
    found = [
        path
        for path in run.glob(f"{PREFIX}*")
        if path.is_dir() and path.name.removeprefix(PREFIX).isdigit()
    ]
    return sorted(found, key=lambda path: -int(path.name.removeprefix(PREFIX)))


def _is_whole(path: Path) -> bool:
    try:
        digests = read_json(path / STATE)["sha256"]
        return all(_digest(path / name) == digests[name] for name in FILES)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
