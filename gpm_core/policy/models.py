"""Policies: the model that a run starts from, and its iterates, adapters or whole models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpm_core.integrations.trl_gpo_data import GroupEncoder
from gpm_core.models.conversations import resolve_text_format
from gpm_core.models.loading import ADAPTER_CONFIG
from gpm_core.policy.options import GPOOptions


def load_tokenizer(options: GPOOptions) -> Any:
    """The policy's tokenizer.

    Raises:
        OSError: if there is none.
        ValueError: if it has no EOS token, which ends responses.
    """
    names = {"gguf_file", "revision", "token", "cache_dir", "subfolder", "local_files_only"}
    given = {key: options.policy_options[key] for key in names & options.policy_options.keys()}
    tokenizer = AutoTokenizer.from_pretrained(options.policy, **given)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {options.policy} has no EOS token, which ends responses"
        )
    return tokenizer


def prompt_encoder(options: GPOOptions, tokenizer: Any) -> GroupEncoder:
    """What makes token ids of prompts, as the trainer does.

    Raises:
        ValueError: for a text format that the tokenizer does not have.
    """
    text_format = resolve_text_format(options.text_format, True, tokenizer)
    return GroupEncoder(tokenizer, options.objective, text_format)


def load_start(options: GPOOptions) -> Any:
    """The model that the run starts from, on the processor, in float32 unless it says otherwise."""
    loading: dict[str, Any] = {"dtype": torch.float32, **options.policy_options}
    if isinstance(loading["dtype"], str):
        loading["dtype"] = getattr(torch, loading["dtype"])
    return AutoModelForCausalLM.from_pretrained(options.policy, **loading)


def load_policy(options: GPOOptions, folder: Path | None, *, trainable: bool = False) -> Any:
    """An iterate, from its folder; None: the start.

    Args:
        options: of the run.
        folder: of an adapter, or of a whole model.
        trainable: keep an adapter apart, and train it. Otherwise it is merged.
    """
    if folder is None:
        return load_start(options)
    if not (folder / ADAPTER_CONFIG).is_file():
        return load_start(_elsewhere(options, folder))
    # Needs a package that full training does not need.
    import peft

    adapted = peft.PeftModel.from_pretrained(
        load_start(options), str(folder), is_trainable=trainable
    )
    return adapted if trainable else adapted.merge_and_unload()


def _elsewhere(options: GPOOptions, folder: Path) -> GPOOptions:
    """The options that load a whole model which this run has written."""
    import dataclasses

    kept = {
        key: value
        for key, value in options.policy_options.items()
        if key not in ("gguf_file", "revision", "subfolder")
    }
    return dataclasses.replace(options, policy=str(folder), policy_options=kept)


def lora_config(options: GPOOptions) -> Any:
    """The adapter of a run's first iteration."""
    import peft

    alpha = 2 * options.lora_rank if options.lora_alpha is None else options.lora_alpha
    return peft.LoraConfig(
        r=options.lora_rank,
        lora_alpha=alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
