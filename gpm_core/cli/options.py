"""Options that several commands share, and quiet for machines."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from gpm_core.cli.criteria import parse_names
from gpm_core.training.options import BackboneOptions
from gpm_core.training.settings import LOSSES, FitSettings
from gpm_core.training.sources import DataOptions

Function = TypeVar("Function", bound=Callable[..., Any])

_DEFAULTS = FitSettings()


def data_options(function: Function) -> Function:
    """What DATA are, and what is held out."""
    options = (
        click.option("--eval-data", help="Held-out pairs [default: a share of DATA]."),
        click.option("--split", help="Of a folder or a data set of the hub, as train."),
        click.option("--eval-split", help="The same of --eval-data, or without it of DATA."),
        click.option(
            "--ratings",
            metavar="CRITERION",
            help="DATA are responses with ratings: pairs by this criterion, or the 'mean' of all.",
        ),
        click.option(
            "--cycle",
            metavar="CRITERIA",
            help="DATA are responses with ratings: cyclic pairs over these criteria, as 'a,b,c'.",
        ),
    )
    return _apply(options, function)


def backbone_options(function: Function) -> Function:
    """The options of a backbone: --backbone, --pooling, --view, --max-length and the like."""
    options = (
        click.option(
            "--backbone",
            metavar="NAME",
            help="Local folder or hub name of a transformers encoder or causal language model "
            "[default: the installed MiniLM].",
        ),
        click.option(
            "--pooling",
            type=click.Choice(["auto", "mean", "last", "cls"]),
            default="auto",
            show_default=True,
        ),
        click.option(
            "--view",
            type=click.Choice(["auto", "response", "dialogue", "both"]),
            default="auto",
            show_default=True,
            help="What represents a response: the reply, the dialogue up to it, or both.",
        ),
        click.option("--max-length", type=int, help="Most tokens of a text."),
        click.option(
            "--encode-batch-size",
            type=int,
            default=32,
            show_default=True,
            help="Texts per forward pass without gradients.",
        ),
        click.option("--device", default="auto", show_default=True, help="As torch names it."),
    )
    return _apply(options, function)


def fit_options(function: Function) -> Function:
    """The options of the optimizer."""
    options = (
        click.option("--epochs", type=int, default=_DEFAULTS.epochs, show_default=True),
        click.option("--batch-size", type=int, default=_DEFAULTS.batch_size, show_default=True),
        click.option(
            "--learning-rate",
            type=float,
            default=_DEFAULTS.learning_rate,
            show_default=True,
            help="Peak rate of the head, for tau = 1; it is multiplied by tau.",
        ),
        click.option(
            "--penalty",
            type=float,
            default=_DEFAULTS.penalty,
            show_default=True,
            help="Precision of the prior on the head's weights; 0 for none.",
        ),
        click.option(
            "--label-smoothing", type=float, default=_DEFAULTS.label_smoothing, show_default=True
        ),
        click.option(
            "--loss",
            type=click.Choice(LOSSES),
            default=_DEFAULTS.loss,
            show_default=True,
            help="Cross-entropy of the probability, or regression of the logit.",
        ),
        click.option(
            "--target-margin",
            type=float,
            default=_DEFAULTS.target_margin,
            show_default=True,
            help="Of --loss regression: what a pair's logit is to be.",
        ),
        click.option("--gradient-clip", type=float, help="Largest norm of the gradient."),
        click.option(
            "--heldout-fraction",
            type=float,
            default=0.2,
            show_default=True,
            help="Share of the pairs to hold out, by prompt.",
        ),
    )
    return _apply(options, function)


def check_fit_options(context: click.Context) -> None:
    """Refuse a --target-margin that the loss would not look at.

    Raises:
        click.UsageError: if it is given without --loss regression.
    """
    source = context.get_parameter_source("target_margin")
    if context.params["loss"] != "regression" and source is not ParameterSource.DEFAULT:
        raise click.UsageError("--target-margin: for --loss regression only")


def build_backbone(values: dict[str, Any]) -> BackboneOptions:
    """The options of :func:`backbone_options` as :class:`BackboneOptions`, taken from values."""
    names = ("pooling", "view", "max_length", "encode_batch_size", "device")
    taken = {name: values.pop(name) for name in names}
    return BackboneOptions(name=values.pop("backbone"), **taken)


def build_data(values: dict[str, Any]) -> DataOptions:
    """The options of :func:`data_options` but ``eval_data``, and ``criteria`` if there are any,
    taken from values.
    """
    names = ("split", "eval_split", "ratings")
    return DataOptions(
        **{name: values.pop(name) for name in names},
        cycle=parse_names(values.pop("cycle")),
        criteria=parse_names(values.pop("criteria", None)),
    )


def quiet_transformers() -> None:
    """Keep transformers' own progress bars and advice off the terminal."""
    from transformers.utils import logging as untyped

    # Advice to those who write the code: no option of ours would heed it.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging: Any = untyped
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _apply(options: tuple[Callable[[Function], Function], ...], function: Function) -> Function:
    for option in reversed(options):
        function = option(function)
    return function
