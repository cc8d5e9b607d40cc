"""``gpm-core compare``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gpm_core.cli.options import (
    backbone_options,
    build_backbone,
    fit_options,
    quiet_transformers,
)
from gpm_core.data.files import check_writable, write_json
from gpm_core.data.reading import read_pairs
from gpm_core.training.comparing import HEADS, compare
from gpm_core.training.settings import FitSettings


@click.command(short_help="Compare kinds of heads on the same pairs.")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Seeds 0, 1, ..."
)
@click.option("--dim", type=int, default=8, show_default=True, help="Width of embeddings, even.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Also write all numbers as JSON."
)
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Folder to keep the features in, for the next time.",
)
@fit_options
@backbone_options
@click.option("--quiet", "-q", is_flag=True, help="No progress bars.")
def command(
    data: Path,
    seeds: int,
    dim: int,
    output: Path | None,
    features: Path | None,
    quiet: bool,
    **values: Any,
) -> None:
    """Train Bradley-Terry, general and hybrid heads on the same features of DATA.

    Each seed divides DATA by prompt anew. Prints a Markdown table: held-out accuracy is the mean
    over seeds and its 95 % t-interval.
    """
    quiet_transformers()
    backbone = build_backbone(values)
    fraction = values.pop("heldout_fraction")
    fit = FitSettings(**values)
    heads = {name: replace(head, dim=dim) for name, head in HEADS.items()}
    for folder in (None if output is None else output.parent, features):
        if folder is not None:
            check_writable(folder)
    pairs = read_pairs(data)
    result = compare(
        pairs,
        seeds=range(seeds),
        heads=heads,
        backbone=backbone,
        fit=fit,
        heldout_fraction=fraction,
        cache=features,
        progress=not quiet,
    )
    if output is not None:
        write_json(output, result.as_dict())
    click.echo(result.markdown())
    click.echo(
        f"\n{result.pairs} pairs, {fraction:.0%} held out by prompt, {seeds} seeds; features took "
        f"{result.feature_seconds:.0f} s, seconds are per training"
    )
