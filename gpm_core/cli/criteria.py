"""Options of models of several criteria."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from gpm_core.models.loading import load_model

Function = TypeVar("Function", bound=Callable[..., Any])


def criteria_options(function: Function) -> Function:
    """--criterion and --criteria-weights, by which :func:`load_weighed` loads a model."""
    for option in (
        click.option(
            "--criteria-weights",
            metavar="WEIGHTS",
            help="What MODEL's criteria weigh, as 'helpful=1,honest=0.5' [default: as stored].",
        ),
        click.option("--criterion", help="The only one of MODEL's criteria to go by."),
    ):
        function = option(function)
    return function


def load_weighed(
    model: str, device: str, criterion: str | None, criteria_weights: str | None
) -> Any:
    """:func:`gpm_core.models.load_model`, with its criteria weighed as the options say.

    Raises:
        click.UsageError: if both options are given, or weights are no numbers.
        ValueError: if they do not fit the model.
    """
    if criterion is not None and criteria_weights is not None:
        raise click.UsageError("--criterion and --criteria-weights: give one of them")
    weights = {criterion: 1.0} if criterion is not None else parse_weights(criteria_weights)
    loaded = load_model(model, device=device)
    if weights is not None:
        loaded.set_criteria_weights(weights)
    return loaded


def parse_names(text: str | None) -> list[str] | None:
    """The names of 'helpful,honest'."""
    return None if text is None else [name.strip() for name in text.split(",")]


def parse_weights(text: str | None) -> dict[str, float] | None:
    """The weights of 'helpful=1,honest=0.5', by name.

    Raises:
        click.UsageError: if it has another form.
    """
    if text is None:
        return None
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            name = ""
        if not name.strip() or name.strip() in weights:
            raise click.UsageError(
                "--criteria-weights must be a number for each of some criteria, as "
                f"'helpful=1,honest=0.5'; got {text!r}"
            )
        weights[name.strip()] = value
    return weights
