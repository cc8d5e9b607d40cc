"""Checkpoints of transformers' trainer that a killed process leaves nothing wrong with.

The trainer writes a checkpoint's files one by one, in their place. What is whole has a list of
them, written last, and only from such a checkpoint a run continues.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from gpm_core.data.files import read_json, write_json
from gpm_core.training.checkpoint import PREFIX

#: Name and size of each file of a checkpoint.
FILES = "files.json"


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Lists a checkpoint's files once it is whole, and has figures logged in time.

    There is a log up to each evaluation, each checkpoint and the last step: it is a mean over the
    steps since the last one, and of those before a checkpoint a resumed run knows only what was
    logged.

    Args:
        trainer: whose processes are waited for, as each writes files of its own.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log where an evaluation or a checkpoint follows, or nothing."""
        ended = state.global_step >= state.max_steps
        control.should_log |= control.should_evaluate or control.should_save or ended

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """As after a step."""
        self.on_step_end(args, state, control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """List the files of the checkpoint that was written."""
        self.trainer.accelerator.wait_for_everyone()
        if state.is_world_process_zero:
            list_files(Path(args.output_dir) / f"{PREFIX}{state.global_step}")


def list_files(checkpoint: Path) -> None:
    """Write down that a checkpoint is whole, and what is in it."""
    sizes = {
        str(path.relative_to(checkpoint)): path.stat().st_size
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file()
    }
    write_json(checkpoint / FILES, sizes)


def is_whole(checkpoint: Path) -> bool:
    """Whether all files are there that were there when the checkpoint was finished."""
    try:
        sizes = read_json(checkpoint / FILES)
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest_whole(folder: Path) -> str | None:
    """The checkpoint of the latest step that is whole, or None."""
    found = [path for path in folder.glob(f"{PREFIX}*") if is_whole(path)]
    steps = {int(path.name.removeprefix(PREFIX)): str(path) for path in found}
    return steps[max(steps)] if steps else None


def remove_unfinished(folder: Path) -> None:
    """Delete the checkpoints that a killed process was writing, or deleting."""
    for path in folder.glob(f"{PREFIX}*"):
        if not is_whole(path):
            shutil.rmtree(path)
