"""``gpm-core train``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from gpm_core.cli.config import TrainerCommand, config_option, trainer_arguments
from gpm_core.cli.criteria import parse_weights
from gpm_core.cli.options import (
    backbone_options,
    build_backbone,
    build_data,
    check_fit_options,
    data_options,
    fit_options,
    quiet_transformers,
)
from gpm_core.training import tuning
from gpm_core.training.options import HEAD_KINDS, HeadOptions, RunOptions
from gpm_core.training.run import train
from gpm_core.training.settings import FitSettings
from gpm_core.training.tuning import TuneOptions

_DEFAULTS = FitSettings()

#: Options that --tune passes to the trainer, under the trainer's name.
_TRAINER_NAMES = {
    "head": "head",
    "dim": "dim",
    "gate": "gate",
    "init": "init",
    "tau": "tau",
    "learn_tau": "learn_tau",
    "scalar_weight": "scalar_weight",
    "cyclic_weight": "cyclic_weight",
    "clip": "clip",
    "loss": "loss",
    "criteria_mode": "criteria_mode",
    "target_margin": "target_margin",
    "pooling": "pooling",
    "max_length": "max_sequence_length",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "encode_batch_size": "per_device_eval_batch_size",
    "learning_rate": "learning_rate",
    "label_smoothing": "label_smoothing_factor",
    "gradient_clip": "max_grad_norm",
    "warmup": "warmup_steps",
}
#: Options that mean nothing where a language model is trained, and the other way round.
_FEATURES_ONLY = ("view", "penalty", "device")
_TUNE_ONLY = ("layers", "lora_rank", "lora_alpha", "lora_dropout", "gguf_file", "too_long")


@click.command(cls=TrainerCommand, short_help="Train a preference model on pairs.")
@click.argument("data", required=False)
@config_option
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    help="Folder of the run: model, metrics, plots, checkpoints.",
)
@data_options
@click.option(
    "--criteria",
    metavar="CRITERIA",
    help="DATA are responses with ratings: a model of all these criteria, as 'helpful,honest'.",
)
@click.option("--resume", is_flag=True, help="Continue the run in --output, if there is one.")
@click.option(
    "--tune",
    type=click.Choice(["none", "lora", "last", "full"]),
    default="none",
    show_default=True,
    help="What of the backbone is trained: nothing (a head on fixed features), LoRA adapters, its "
    "last layers, or all of it.",
)
@click.option("--head", type=click.Choice(HEAD_KINDS), default="gpm", show_default=True)
@click.option("--dim", type=int, default=8, show_default=True, help="Width of embeddings, even.")
@click.option("--gate", type=click.Choice(["none", "softmax", "softplus"]), default="none")
@click.option("--init", type=click.Choice(["anchored", "paper"]), default="anchored")
@click.option("--tau", type=float, help="Temperature [default: 1 for bt, otherwise 0.1].")
@click.option(
    "--learn-tau",
    type=click.Choice(["one", "per_block"]),
    help="Learn the temperature, from --tau on: one, or one for each block.",
)
@click.option("--scalar-weight", type=float, help="Of a hybrid head's reward [default: 1].")
@click.option("--cyclic-weight", type=float, help="Of a hybrid head's cyclic part [default: 1].")
@click.option("--clip", type=float, help="Limit of a hybrid head's rewards [default: none].")
@click.option(
    "--criteria-mode",
    type=click.Choice(["heads", "gates"]),
    default="heads",
    show_default=True,
    help="Of --criteria: each has an embedding, or they weigh the blocks of one.",
)
@click.option(
    "--criteria-weights",
    metavar="WEIGHTS",
    help="What --criteria weigh in one preference, as 'helpful=1,honest=0.5' [default: equal].",
)
@click.option("--layers", type=int, default=2, show_default=True, help="Of --tune last.")
@click.option("--lora-rank", type=int, default=16, show_default=True, help="Of --tune lora.")
@click.option("--lora-alpha", type=float, help="Of --tune lora [default: twice the rank].")
@click.option("--lora-dropout", type=float, default=0.0, show_default=True, help="Of --tune lora.")
@click.option("--gguf-file", help="Name of a GGUF file in the backbone's folder to load (--tune).")
@click.option(
    "--too-long",
    type=click.Choice(["cut", "drop"]),
    default="cut",
    show_default=True,
    help="Conversations of more than --max-length tokens are cut, as in use, or their pairs are "
    "left out (--tune).",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--checkpoint-steps",
    type=int,
    help="Also write a checkpoint every so many steps [default: each epoch].",
)
@click.option("--warmup", type=float, default=_DEFAULTS.warmup, show_default=True)
@fit_options
@backbone_options
@click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
@click.pass_context
def command(
    context: click.Context,
    /,
    data: str | None,
    output: Path | None,
    eval_data: str | None,
    resume: bool,
    tune: str,
    quiet: bool,
    **values: Any,
) -> None:
    r"""Train a preference model on DATA: a file of pairs (.jsonl, .jsonl.gz, .json, .parquet, ...),
    a folder, or the name of a data set of the hub.

    Each record has "chosen" and "rejected": texts (perhaps with "prompt"), whole dialogues
    "\n\nHuman: ...\n\nAssistant: ...", or lists of {"role", "content"} messages; and perhaps
    "margin" and "target". With --ratings, --cycle or --criteria they have "prompt", "responses" and
    "ratings", or UltraFeedback's "completions".

    By default a head is trained on the fixed features of a backbone. With --tune the language model
    is trained too, by TRL's trainer, and every field of its configuration is an option, as
    --gradient_accumulation_steps 4.
    """
    if data is None or output is None:
        raise click.UsageError(f"{'DATA' if data is None else '--output'} is missing")
    quiet_transformers()
    _check_options(context, tune)
    how: dict[str, Any] = {"eval_data": eval_data, "resume": resume, "progress": not quiet}
    if tune == "none":
        if trainer_arguments(context):
            names = ", ".join(trainer_arguments(context))
            raise click.UsageError(f"{names}: for --tune lora, last or full only")
        metrics = train(data, output, _run_options(values), **how).metrics
    else:
        options = _tune_options(context, tune, values)
        metrics = tuning.tune(data, output, options, **how).metrics
    _report(metrics, output)


def _report(metrics: dict[str, Any], output: Path) -> None:
    # Under torchrun all processes come here, with the same figures.
    if os.environ.get("RANK", "0") != "0":
        return
    heldout = metrics["heldout"]
    low, high = heldout["interval_95"]
    click.echo(
        f"held-out accuracy {heldout['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, "
        f"{heldout['pairs']} pairs), loss {heldout['loss']:.3f}, "
        f"train accuracy {metrics['train']['accuracy']:.3f}, "
        f"{metrics['seconds']['total']:.0f} s"
    )
    for name, figures in heldout.get("criteria", {}).items():
        low, high = figures["interval_95"]
        click.echo(
            f"  {name}: accuracy {figures['accuracy']:.3f} ({low:.3f} to {high:.3f}, "
            f"{figures['labels']} labels), loss {figures['loss']:.3f}"
        )
    click.echo(f"model: {output / 'model'}", file=sys.stderr)


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)


def _check_options(context: click.Context, tune: str) -> None:
    check_fit_options(context)
    wrong = _TUNE_ONLY if tune == "none" else _FEATURES_ONLY
    given = [f"--{name.replace('_', '-')}" for name in wrong if _given(context, name)]
    if given:
        where = "--tune lora, last or full" if tune == "none" else "--tune none"
        raise click.UsageError(f"{', '.join(given)}: for {where} only")


def _run_options(values: dict[str, Any]) -> RunOptions:
    values["criteria_weights"] = parse_weights(values["criteria_weights"])
    for name in _TUNE_ONLY:
        values.pop(name)
    gate = values.pop("gate")
    head = HeadOptions(
        values.pop("head"),
        values.pop("dim"),
        None if gate == "none" else gate,
        values.pop("init"),
        values.pop("tau"),
        *(values.pop(name) for name in ("scalar_weight", "cyclic_weight", "clip", "learn_tau")),
        **{name: values.pop(name) for name in ("criteria_mode", "criteria_weights")},
    )
    backbone = build_backbone(values)
    data = build_data(values)
    fraction, steps = values.pop("heldout_fraction"), values.pop("checkpoint_steps")
    return RunOptions(head, backbone, FitSettings(**values), fraction, steps, data)


def _tune_options(context: click.Context, mode: Any, values: dict[str, Any]) -> TuneOptions:
    if values["backbone"] is None:
        raise click.UsageError("--tune needs --backbone, a language model or an encoder to train")
    fields = trainer_arguments(context)
    for name, field in _TRAINER_NAMES.items():
        if _given(context, name) and values[name] not in ("none", "auto"):
            if field in fields:
                raise click.UsageError(f"{name} and {field} are the same: give one of them")
            fields[field] = values[name]
    if values["too_long"] == "drop":
        if values["max_length"] is None:
            raise click.UsageError("--too-long drop needs --max-length")
        fields["max_length"] = values["max_length"]
    if values["criteria_weights"] is not None:
        fields["criteria_weights"] = parse_weights(values["criteria_weights"])
    if values["checkpoint_steps"] is not None:
        fields.update(save_strategy="steps", save_steps=values["checkpoint_steps"])
    if values["gguf_file"] is not None:
        fields["model_init_kwargs"] = {
            **(fields.get("model_init_kwargs") or {}),
            "gguf_file": values["gguf_file"],
        }
    return TuneOptions(
        values["backbone"],
        mode,
        values["layers"],
        values["lora_rank"],
        values["lora_alpha"],
        values["lora_dropout"],
        fields,
        values["heldout_fraction"],
        values["seed"],
        build_data(values),
    )
