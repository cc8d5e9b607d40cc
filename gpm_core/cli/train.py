"""``gpm-core train``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from gpm_core.cli.options import (
    backbone_options,
    build_backbone,
    fit_options,
    quiet_transformers,
)
from gpm_core.training.options import HEAD_KINDS, HeadOptions, RunOptions
from gpm_core.training.run import train
from gpm_core.training.settings import FitSettings

_DEFAULTS = FitSettings()


@click.command(short_help="Train a preference model on pairs.")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the run: model, metrics, plots, checkpoints.",
)
@click.option(
    "--eval-data",
    type=click.Path(path_type=Path),
    help="Held-out pairs [default: a share of DATA].",
)
@click.option("--resume", is_flag=True, help="Continue the run in --output, if there is one.")
@click.option("--head", type=click.Choice(HEAD_KINDS), default="gpm", show_default=True)
@click.option("--dim", type=int, default=8, show_default=True, help="Width of embeddings, even.")
@click.option("--gate", type=click.Choice(["none", "softmax", "softplus"]), default="none")
@click.option("--init", type=click.Choice(["anchored", "paper"]), default="anchored")
@click.option("--tau", type=float, help="Temperature [default: 1 for bt, otherwise 0.1].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--checkpoint-steps",
    type=int,
    help="Also write a checkpoint every so many steps [default: each epoch].",
)
@click.option("--train-backbone", is_flag=True, help="Train the backbone too, end to end.")
@click.option(
    "--backbone-learning-rate",
    type=float,
    default=_DEFAULTS.backbone_learning_rate,
    show_default=True,
)
@click.option(
    "--weight-decay",
    type=float,
    default=_DEFAULTS.weight_decay,
    show_default=True,
    help="Of a trained backbone.",
)
@click.option("--warmup", type=float, default=_DEFAULTS.warmup, show_default=True)
@fit_options
@backbone_options
@click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
def command(
    data: Path, output: Path, eval_data: Path | None, resume: bool, quiet: bool, **values: Any
) -> None:
    r"""Train a preference model on DATA, a .jsonl, .jsonl.gz or .parquet file of pairs.

    Each record has "chosen" and "rejected": texts (perhaps with "prompt"), whole dialogues
    "\n\nHuman: ...\n\nAssistant: ...", or lists of {"role", "content"} messages; and perhaps
    "margin" and "target".
    """
    quiet_transformers()
    options = _run_options(values)
    result = train(data, output, options, eval_data=eval_data, resume=resume, progress=not quiet)
    heldout = result.metrics["heldout"]
    low, high = heldout["interval_95"]
    click.echo(
        f"held-out accuracy {heldout['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}, "
        f"{heldout['pairs']} pairs), loss {heldout['loss']:.3f}, "
        f"train accuracy {result.metrics['train']['accuracy']:.3f}, "
        f"{result.metrics['seconds']['total']:.0f} s"
    )
    click.echo(f"model: {output / 'model'}", file=sys.stderr)


def _run_options(values: dict[str, Any]) -> RunOptions:
    gate = values.pop("gate")
    head = HeadOptions(
        values.pop("head"),
        values.pop("dim"),
        None if gate == "none" else gate,
        values.pop("init"),
        values.pop("tau"),
    )
    backbone = build_backbone(values, trainable=values.pop("train_backbone"))
    fraction, steps = values.pop("heldout_fraction"), values.pop("checkpoint_steps")
    return RunOptions(head, backbone, FitSettings(**values), fraction, steps)
