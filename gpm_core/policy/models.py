"""Policies: the model that a run starts from, and its iterates, adapters or whole models."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from gpm_core.integrations.trl_gpo_data import GroupEncoder
from gpm_core.models.conversations import resolve_text_format
from gpm_core.models.language_model_head import load_language_model
from gpm_core.models.loading import ADAPTER_CONFIG, is_adapter
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
    """The model that the run starts from, on the processor, in float32 unless it says otherwise.

    Weights are read from safetensors (or GGUF) files only.

    Raises:
        OSError: if there is no such model.
        ValueError: if weights are missing from its files, or it is an adapter or no causal
            language model.
    """
    if is_adapter(options.policy):
        raise ValueError(
            f"the policy {options.policy} is an adapter: merge it into its base first "
            "(merge_and_unload, save_pretrained)"
        )
    loading: dict[str, Any] = {"dtype": torch.float32, **options.policy_options}
    # Not None, which would load the tokenizer once more.
    model, _ = load_language_model(options.policy, False, loading)
    if "gguf_file" in loading:
        # Its weights are ordinary ones by now, and trained as such.
        model.is_quantized, model.hf_quantizer = False, None
        del model.config.quantization_config
    return model


def load_policy(options: GPOOptions, folder: Path | None, *, trainable: bool = False) -> Any:
    """An iterate, from its folder; None: the start.

    Args:
        options: of the run.
        folder: of an adapter, or of a whole model.
        trainable: keep an adapter apart, and train it. Otherwise it is merged into weights that
            hold what it adds.

    Raises:
        ModuleNotFoundError: for an adapter without the package ``peft``.
        OSError, ValueError: as :func:`load_start`.
    """
    if folder is None:
        return load_start(options)
    if not (folder / ADAPTER_CONFIG).is_file():
        return load_start(_elsewhere(options, folder))
    # Needs a package that full training does not need.
    import peft

    adapted = peft.PeftModel.from_pretrained(
        load_start(options),
        str(folder),
        is_trainable=trainable,
        # To be trained in float32; to be read, in the dtype of what it is added to.
        autocast_adapter_dtype=trainable,
    )
    if trainable or adapted.dtype not in (torch.float32, torch.float64):
        # Weights of 16 bits would round most of what was learned away.
        return adapted
    return adapted.merge_and_unload()


def _elsewhere(options: GPOOptions, folder: Path) -> GPOOptions:
    """The options that load a whole model which this run has written."""
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
