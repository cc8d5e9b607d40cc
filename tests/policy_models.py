"""A tiny policy, a judge that has opinions, and options of short runs."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny_models import save_tiny_causal, write_lines
from transformers import AutoModelForCausalLM

from gpm_core.models import GeneralPreferenceModel
from gpm_core.policy import GPOOptions, SamplingOptions

GENERATED = 5


def make_models(folder: Path) -> Path:
    """``folder`` with policy/, judge/, other_judge/ and prompts.jsonl."""
    policy = save_tiny_causal(folder / "policy", chat=True)
    model = AutoModelForCausalLM.from_pretrained(policy)
    for config in (model.config, model.generation_config):
        # As the tokenizer has them.
        config.pad_token_id, config.bos_token_id, config.eos_token_id = 0, 2, 3
    with torch.no_grad():
        # Far from uniform, and within reach of an adapter below it.
        model.lm_head.weight.mul_(20)
    model.save_pretrained(policy)
    # Preferences that do not depend on the prompt are those that few prompts teach.
    for seed, (name, gate) in enumerate((("judge", None), ("other_judge", "softmax"))):
        torch.manual_seed(seed)
        judge = GeneralPreferenceModel.from_backbone(
            policy, dim=4, init="paper", gate=gate, pooling="mean"
        )
        judge.save_pretrained(folder / name)
    prompts = [{"prompt": f"w{i} w{2 * i + 1}"} for i in range(24)]
    write_lines(folder / "prompts.jsonl", prompts)
    return folder


def options_of(models: Path, sampling: dict[str, Any] | None = None, **options: Any) -> GPOOptions:
    """Options of a run that learns something within seconds."""
    how = SamplingOptions(responses=4, max_new_tokens=GENERATED, shard_size=6, batch_size=12)
    trainer = {
        "beta": 0.03,
        "centered": True,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 4,
        "num_train_epochs": 6,
        "logging_steps": 1,
    }
    return GPOOptions(
        str(models / "policy"),
        str(models / "judge"),
        sampling=replace(how, **(sampling or {})),
        trainer={**trainer, **options.pop("trainer", {})},
        **{"heldout_fraction": 0.25, **options},
    )


def start_process(code: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """``python -c code arguments``, with one thread and this folder to import from."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "FSDP"))}
    where = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(filter(None, [environment.pop("PYTHONPATH", ""), *where]))
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env={**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], seconds: float = 300) -> str:
    """What a process said, which must end well."""
    said, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, said
    return said
