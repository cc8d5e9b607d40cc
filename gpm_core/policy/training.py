"""The stage that trains a policy on rows of targets."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed

from gpm_core.data.files import PARTIAL, atomic_folder, write_json
from gpm_core.integrations.trl_gpo import GPOTrainer
from gpm_core.policy.models import load_policy, lora_config
from gpm_core.policy.options import GPOOptions, training_config
from gpm_core.policy.shards import Processes
from gpm_core.training.trainer_checkpoints import RunCallback, newest_whole, remove_unfinished

#: Log of the training, in the folder of its iteration.
LOG = "training.json"


def train_stage(
    options: GPOOptions,
    iteration: int,
    targets: list[Path],
    before: Path | None,
    tokenizer: Any,
    folder: Path,
    processes: Processes,
    *,
    progress: bool,
) -> None:
    """Train the iterate ``before`` on files of targets, and write ``folder``/policy.

    It goes on from the newest whole checkpoint that is in ``folder``/training.

    Args:
        options: of the run.
        iteration: from 1.
        targets: files of :func:`gpm_core.policy.targets.target_shard`.
        before: folder of the iterate to train, None: the start.
        tokenizer: of the policy.
        folder: of the iteration.
        processes: of which this is one; all of them call this.
        progress: show a progress bar on stderr.
    """
    work = folder / "training"
    checkpoints = work / "checkpoints"
    if processes.first:
        remove_unfinished(checkpoints)
    processes.wait()
    args = training_config(options, iteration, checkpoints, progress=progress)
    dataset = _dataset(targets, work / "cache", processes)
    # The adapter's first weights, and nothing else, are drawn before the trainer sets its seed.
    set_seed(args.seed)
    model = load_policy(options, before, trainable=True)
    adapted = hasattr(model, "peft_config")
    if adapted and args.gradient_checkpointing:
        model.enable_input_require_grads()
    trainer = GPOTrainer(
        model,
        args,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=lora_config(options) if options.tune == "lora" and not adapted else None,
    )
    # Without progress bars transformers prints every log instead; the log file has them all.
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(RunCallback(trainer))
    trainer.train(resume_from_checkpoint=newest_whole(checkpoints))
    _save(trainer, folder, processes)
    processes.wait()
    if processes.first:
        shutil.rmtree(work)
    processes.wait()


def _dataset(targets: list[Path], cache: Path, processes: Processes) -> Any:
    import datasets

    datasets.disable_progress_bars()

    def load() -> Any:
        return datasets.load_dataset(
            "parquet", data_files=list(map(str, targets)), split="train", cache_dir=str(cache)
        )

    # One writes the memory-mapped copy that all of them read.
    dataset = load() if processes.first else None
    processes.wait()
    return load() if dataset is None else dataset


def _save(trainer: Any, folder: Path, processes: Processes) -> None:
    """Write the log, and then the policy, which says that the stage is done.

    Raises:
        FloatingPointError: if a weight is not finite.
    """
    if not all(bool(p.isfinite().all()) for p in trainer.model.parameters() if p.requires_grad):
        raise FloatingPointError(
            f"weights became infinite or nan in training: delete {folder / 'training'}, and lower "
            "the learning rate in a new run"
        )
    partial = folder / f"{PARTIAL}policy"
    if processes.first:
        shutil.rmtree(partial, ignore_errors=True)
    processes.wait()
    trainer.save_model(str(partial))
    processes.wait()
    if not processes.first:
        return
    # A pickle, which nobody should have to trust; run.json says all of it.
    (partial / "training_args.bin").unlink(missing_ok=True)
    write_json(folder / LOG, [_finite(entry) for entry in trainer.state.log_history])
    with atomic_folder(folder / "policy") as whole:
        for path in partial.iterdir():
            path.rename(whole / path.name)
    partial.rmdir()


def _finite(entry: dict[str, Any]) -> dict[str, Any]:
    """A log with None for what JSON has no number for: norms of gradients, in half precision."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in entry.items()
    }
