"""Options that several commands share, and quiet for machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from gpm_core.training.options import BackboneOptions
from gpm_core.training.settings import FitSettings

Function = TypeVar("Function", bound=Callable[..., Any])

_DEFAULTS = FitSettings()


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


def build_backbone(values: dict[str, Any]) -> BackboneOptions:
    """The options of :func:`backbone_options` as :class:`BackboneOptions`, taken from values."""
    names = ("pooling", "view", "max_length", "encode_batch_size", "device")
    taken = {name: values.pop(name) for name in names}
    return BackboneOptions(name=values.pop("backbone"), **taken)


def quiet_transformers() -> None:
    """Keep transformers' own progress bars and advice off the terminal."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    logging.disable_progress_bar()
    logging.set_verbosity_error()


def _apply(options: tuple[Callable[[Function], Function], ...], function: Function) -> Function:
    for option in reversed(options):
        function = option(function)
    return function
