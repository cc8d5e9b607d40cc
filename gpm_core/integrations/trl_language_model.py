"""Losses of language models that regularise a preference model, in TRL's trainer."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpm_core.integrations.trl_config import model_options
from gpm_core.integrations.trl_language_model_options import regularisation
from gpm_core.losses import reference_free_dpo_loss, sft_loss
from gpm_core.models.general_preference import GeneralPreferenceModel
from gpm_core.models.language_model_head import (
    LanguageModelHead,
    language_model_head,
    load_language_model,
)


class Regularised(NamedTuple):
    """The loss of a batch of B pairs with its language-model terms."""

    #: () preference loss and language-model losses, each with its weight.
    loss: Tensor
    #: (B,) what is logged of each pair, by name, detached.
    metrics: dict[str, Tensor]


def new_model(
    name: str, args: Any, tokenizer: Any, options: dict[str, Any]
) -> GeneralPreferenceModel:
    """A new preference model on a backbone, with its language-model head if ``args`` need it."""
    if not regularisation(args) or args.language_model_head is not None:
        return GeneralPreferenceModel.from_backbone(
            name, tokenizer=tokenizer, options=options, **model_options(args)
        )
    _check_processes(args)
    loaded, tokenizer = load_language_model(name, tokenizer, options)
    head = LanguageModelHead.of(loaded)
    model = GeneralPreferenceModel.from_backbone(loaded, tokenizer=tokenizer, **model_options(args))
    model.language_model_head = head
    return model


def keep_language_model_head(model: GeneralPreferenceModel, args: Any) -> None:
    """Give the model the language-model head that ``args`` need, if it has none.

    Raises:
        ValueError: if there is none to be had, the model is not of one preference among responses
            that it reads one by one, or processes do not have whole weights.
    """
    if not regularisation(args):
        return
    _check_processes(args)
    if getattr(model.config, "criteria", None):
        raise ValueError(
            "sft_coefficient and dpo_coefficient are for models of one preference: with criteria, "
            "no response of a pair is the chosen one"
        )
    if model.config.head == "pair":
        raise ValueError(
            "sft_coefficient and dpo_coefficient are for models that read responses one by one: "
            "what a 'pair' head reads is no reply to a prompt"
        )
    if model.language_model_head is None:
        model.language_model_head = (
            LanguageModelHead.tied(model.model)
            if args.language_model_head is None
            else language_model_head(args.language_model_head, model)
        )
    if args.ddp_broadcast_buffers is None:
        # V x H numbers that never change, in every step.
        args.ddp_broadcast_buffers = False


def _check_processes(args: Any) -> None:
    """Raise ValueError where a process has not all of the weights when the model is loaded."""
    plugin = args.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        raise ValueError(
            "sft_coefficient and dpo_coefficient need whole embeddings, which DeepSpeed's ZeRO "
            "stage 3 partitions: use stage 2, or FSDP"
        )
    names = ("ACCELERATE_USE_FSDP", "FSDP_CPU_RAM_EFFICIENT_LOADING")
    if all(os.environ.get(name, "").lower() in ("1", "true", "yes", "on") for name in names):
        raise ValueError(
            "sft_coefficient and dpo_coefficient need the language-model head in each process, "
            "which FSDP's cpu_ram_efficient_loading loads in the first one alone: set it to false"
        )


def check_vocabulary(model: GeneralPreferenceModel) -> None:
    """Raise ValueError where embeddings were added that the language-model head does not know."""
    head = model.language_model_head
    if head is None or head.weight is None:
        return
    count = len(model.get_input_embeddings().weight)
    if count > len(head.weight):
        raise ValueError(
            f"the model has {count} embeddings and its language-model head {len(head.weight)} "
            "rows: chat_template_path of another tokenizer adds tokens, which the head does not "
            "know. Pass a .jinja file, or a tokenizer with the template as processing_class"
        )


def regularised(outputs: Any, labels: Tensor | None, args: Any) -> Regularised:
    """``(1 - sum w) * preference loss + sum w * language-model loss``, as arXiv 2410.02197's code.

    Of a pair with label p the chosen response is preferred with probability p, and the rejected one
    with 1 - p: so the losses are p times those of (chosen, rejected) and 1 - p times those of
    (rejected, chosen).

    Args:
        outputs: of a model that keeps its language-model head, with ``loss``, ``logps`` and
            ``response_lengths``.
        labels: (B,) probability that chosen is preferred; None for 1.
        args: a ``PreferenceConfig`` with one coefficient at least.
    """
    logps, lengths, preference = outputs["logps"], outputs["response_lengths"], outputs["loss"]
    chosen, rejected = logps.unbind(1)
    target = torch.ones_like(chosen) if labels is None else labels.to(chosen.dtype)
    weights = regularisation(args)
    metrics = {
        "logps/chosen": chosen,
        "logps/rejected": rejected,
        "preference_loss": preference.expand(len(chosen)),
    }
    if "sft" in weights:
        counts = lengths if args.sft_per_token else None
        losses = sft_loss(logps, counts, beta=args.sft_beta, reduction="none").loss
        metrics["sft_loss"] = target * losses[:, 0] + (1 - target) * losses[:, 1]
    if "dpo" in weights:
        forth, back = (
            reference_free_dpo_loss(
                logps[:, side],
                logps[:, 1 - side],
                lengths[:, side] if args.dpo_per_token else None,
                lengths[:, 1 - side] if args.dpo_per_token else None,
                beta=args.dpo_beta,
                margin=args.dpo_margin,
                reduction="none",
            ).loss
            for side in (0, 1)
        )
        metrics["dpo_loss"] = target * forth + (1 - target) * back
    loss = (1 - sum(weights.values())) * preference
    for name, weight in weights.items():
        loss = loss + weight * metrics[f"{name}_loss"].mean()
    return Regularised(loss, {name: values.detach() for name, values in metrics.items()})


def without_logps(outputs: Any) -> Any:
    """The outputs without what only the loss needed: what is left is gathered as predictions."""
    kept = {k: v for k, v in outputs.items() if k not in ("logps", "response_lengths")}
    return type(outputs)(**kept)
