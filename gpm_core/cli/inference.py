"""What the commands that use a trained model share."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO, TypeVar

import click
from tqdm import tqdm

from gpm_core.cli.criteria import parse_weights
from gpm_core.data.files import atomic_file
from gpm_core.data.pairs import ResponseGroup
from gpm_core.models.group_scores import GroupScores
from gpm_core.models.loading import load_model

Function = TypeVar("Function", bound=Callable[..., Any])

#: Groups that are encoded together: enough to fill batches of about equal length.
GROUPS_AT_ONCE = 256


def model_options(function: Function) -> Function:
    """--device, --gate, --criterion and --criteria-weights, which :func:`open_model` takes."""
    for option in (
        click.option(
            "--criteria-weights",
            metavar="WEIGHTS",
            help="What MODEL's criteria weigh, as 'helpful=1,honest=0.5' [default: as stored].",
        ),
        click.option("--criterion", help="The only one of MODEL's criteria to go by."),
        click.option(
            "--gate",
            type=click.Choice(["none", "softmax"]),
            help="Whether a published checkpoint was trained with one, which its files do not say.",
        ),
        click.option("--device", default="cpu", show_default=True, help="As torch names it."),
    ):
        function = option(function)
    return function


def open_model(
    model: str,
    device: str,
    gate: str | None = None,
    criterion: str | None = None,
    criteria_weights: str | None = None,
) -> Any:
    """:func:`gpm_core.models.load_model`, as the options of :func:`model_options` say.

    Raises:
        click.UsageError: for both --criterion and --criteria-weights, or weights that are no
            numbers.
        ValueError: if they, or --gate, do not fit the model.
    """
    if criterion is not None and criteria_weights is not None:
        raise click.UsageError("--criterion and --criteria-weights: give one of them")
    weights = {criterion: 1.0} if criterion is not None else parse_weights(criteria_weights)
    said = {} if gate is None else {"gate": None if gate == "none" else gate}
    loaded: Any = load_model(model, device=device, **said)
    if weights is not None:
        loaded.set_criteria_weights(weights)
    return loaded


def inference_options(function: Function) -> Function:
    """--encode-batch-size and --quiet."""
    for option in (
        click.option("--quiet", "-q", is_flag=True, help="No progress bar."),
        click.option(
            "--encode-batch-size",
            type=click.IntRange(min=1),
            default=32,
            show_default=True,
            help="Texts per forward pass.",
        ),
    ):
        function = option(function)
    return function


def score_in_parts(
    model: Any, groups: Sequence[ResponseGroup], batch_size: int, progress: bool
) -> Iterator[tuple[ResponseGroup, GroupScores]]:
    """Each group with its scores, in memory that does not grow with their number."""
    with tqdm(total=len(groups), desc="scoring", unit="line", disable=not progress) as bar:
        for start in range(0, len(groups), GROUPS_AT_ONCE):
            some = groups[start : start + GROUPS_AT_ONCE]
            yield from zip(some, model.score_groups(some, batch_size=batch_size), strict=True)
            bar.update(len(some))


@contextlib.contextmanager
def opened(output: Path | None) -> Iterator[TextIO]:
    """A stream to ``output``, which appears when it is whole, or to stdout."""
    if output is None:
        yield sys.stdout
        return
    with atomic_file(output) as partial, open(partial, "w", encoding="utf-8") as stream:
        yield stream
