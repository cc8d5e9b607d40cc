"""Samples of the start that another run has drawn already."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from gpm_core.data.files import PARTIAL, atomic_folder, read_json
from gpm_core.training.folder import RUN

#: What the start's samples and their judgements follow from.
_SHARED = (
    "policy",
    "policy_options",
    "judge",
    "eval_judges",
    "sampling",
    "prompts_per_iteration",
    "text_format",
    "heldout_fraction",
    "heldout_prompts",
    "heldout_responses",
    "seed",
)
_FOLDERS = (
    "prompts",
    "iteration-000/heldout",
    "iteration-001/responses",
    "iteration-001/judgements",
)


def take_over(source: Path, output: Path, description: dict[str, Any]) -> None:
    """Copy the prompts, and the samples and judgements of the start, from another run.

    They are what this run would draw itself. What it has already stays.

    Args:
        source: folder of the other run.
        output: folder of this run.
        description: of this run, as its run.json has it.

    Raises:
        FileNotFoundError: if there is no run.
        ValueError: if it differs in what decides them; names it.
    """
    if not (source / RUN).is_file():
        raise FileNotFoundError(f"{source}: not the folder of a run, it has no {RUN}")
    other = read_json(source / RUN)
    pairs = [(name, other.get(name), description[name]) for name in ("data", "eval_data")]
    given, wanted = other["settings"], description["settings"]
    pairs += [(name, given.get(name), wanted[name]) for name in _SHARED]
    for name, theirs, ours in pairs:
        if theirs != ours:
            raise ValueError(
                f"the samples of {source} cannot be reused: its {name} was {theirs!r} and is "
                f"{ours!r} here"
            )
    for name in _FOLDERS:
        if (source / name).is_dir() and not (output / name).exists():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            with atomic_folder(output / name, replace=True) as partial:
                shutil.copytree(
                    source / name,
                    partial,
                    ignore=shutil.ignore_patterns(f"{PARTIAL}*"),
                    dirs_exist_ok=True,
                )
