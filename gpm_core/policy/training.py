"""The stage that trains a policy on rows of targets."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, set_seed

from gpm_core.data.files import PARTIAL, write_json
from gpm_core.integrations.trl_gpo import GPOConfig, GPOTrainer
from gpm_core.policy.models import load_policy, lora_config
from gpm_core.policy.options import GPOOptions
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
    args = _config(options, iteration, checkpoints, progress)
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


def _config(options: GPOOptions, iteration: int, checkpoints: Path, progress: bool) -> GPOConfig:
    on_gpu = torch.cuda.is_available()
    defaults: dict[str, Any] = {
        "report_to": "none",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "logging_steps": 10,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
        "bf16": on_gpu,
        "use_cpu": not on_gpu,
        "dataloader_pin_memory": on_gpu,
    }
    return GPOConfig(
        output_dir=str(checkpoints),
        seed=options.seed + iteration,
        disable_tqdm=not progress,
        objective=options.objective,
        iteration=iteration if options.objective == "dsppo" else None,
        # What is too long was left out as a prompt, and sampling ended responses.
        max_length=None,
        **{**defaults, **options.trainer},
    )


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
    """Write the log, and then the policy, which says that the stage is done."""
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
    write_json(folder / LOG, trainer.state.log_history)
    os.replace(partial, folder / "policy")
