"""One training: a head and the last layers of the language model, with TRL's trainer."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback

from benchmarks.smollm2.frozen import FrozenStates, upper_decoder
from gpm_core.data import PreferencePair
from gpm_core.data.splitting import split_indices
from gpm_core.integrations.trl import PreferenceConfig, PreferenceTrainer
from gpm_core.models import GeneralPreferenceModel
from gpm_core.training.tuning import peak_memory

#: Conversations that standardization is measured on.
_MEASURED = 512


@dataclass(frozen=True)
class Setting:
    """One row of the comparison: the options of the model, and a learning rate."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)


def train_one(
    setting: Setting,
    backbone: Any,
    tokenizer: Any,
    frozen: FrozenStates,
    pairs: list[PreferencePair],
    *,
    seed: int,
    layers: int,
    learning_rate: float,
    epochs: float,
    batch_size: int,
) -> dict[str, Any]:
    """Train on 80 % of the prompts and say what comes out for each held-out pair."""
    started = time.perf_counter()
    train, heldout = split_indices(pairs, 0.2, seed)
    torch.manual_seed(seed)
    model = GeneralPreferenceModel.from_backbone(
        upper_decoder(backbone, frozen, layers), tokenizer=tokenizer, **setting.options
    )
    for module in (model.head, model.temperature):
        if module is not None:
            module.float()
    if model.config.standardize:
        rows = [frozen.row(2 * i + side) for i in train[: _MEASURED // 2] for side in (0, 1)]
        model.fit_standardization(
            [row.ids[: row.prompt_length] for row in rows],
            [row.ids[row.prompt_length :] for row in rows],
        )
    with tempfile.TemporaryDirectory() as folder:
        trainer = PreferenceTrainer(
            model,
            PreferenceConfig(
                folder,
                max_length=None,
                num_train_epochs=epochs,
                per_device_train_batch_size=batch_size,
                per_device_eval_batch_size=2 * batch_size,
                learning_rate=learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                bf16=True,
                use_cpu=True,
                gradient_checkpointing=False,
                report_to="none",
                save_strategy="no",
                logging_steps=10,
                seed=seed,
                disable_tqdm=True,
            ),
            train_dataset=_dataset(frozen, train),
            eval_dataset=_dataset(frozen, heldout),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trained = time.perf_counter()
        output = trainer.predict(trainer.eval_dataset, ignore_keys=["embeddings", "scale"])
    score, probability = output.predictions
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "setting": setting.name,
        "seed": seed,
        "heldout": heldout,
        "score": [float(value) for value in score],
        "probability": [float(value) for value in probability],
        "train_accuracy": sum(entry["accuracy"] for entry in log) / len(log),
        "last_train_loss": log[-1]["loss"],
        "seconds": trained - started,
        "peak_memory_bytes": peak_memory()["process"],
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _dataset(frozen: FrozenStates, which: list[int]) -> Dataset:
    rows = [(frozen.row(2 * i), frozen.row(2 * i + 1)) for i in which]
    return Dataset.from_list(
        [
            {
                "input_ids": [chosen.ids, rejected.ids],
                "prompt_lengths": [chosen.prompt_length, rejected.prompt_length],
            }
            for chosen, rejected in rows
        ]
    )
