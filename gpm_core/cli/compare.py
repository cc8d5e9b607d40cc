"""``gpm-core compare``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gpm_core.cli.config import config_option
from gpm_core.cli.options import (
    backbone_options,
    build_backbone,
    build_data,
    check_fit_options,
    data_options,
    fit_options,
    quiet_transformers,
)
from gpm_core.data.files import check_writable, write_json
from gpm_core.training.comparing import HEADS, PAIR_HEAD, compare
from gpm_core.training.settings import FitSettings


@click.command(short_help="Compare kinds of heads on the same pairs.")
@config_option
@click.argument("data")
@data_options
@click.option(
    "--seeds", type=click.IntRange(min=1), default=5, show_default=True, help="Seeds 0, 1, ..."
)
@click.option("--dim", type=int, default=8, show_default=True, help="Width of embeddings, even.")
@click.option(
    "--learn-tau", type=click.Choice(["one", "per_block"]), help="Learn the heads' temperatures."
)
@click.option(
    "--pair",
    is_flag=True,
    help="Also the baseline that scores two responses together, K^2 times for K of them.",
)
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
@click.pass_context
def command(
    context: click.Context,
    /,
    data: str,
    eval_data: str | None,
    seeds: int,
    dim: int,
    pair: bool,
    output: Path | None,
    features: Path | None,
    quiet: bool,
    **values: Any,
) -> None:
    """Train Bradley-Terry, general and hybrid heads on the same features of DATA.

    DATA is a file, a folder or the name of a data set of the hub, as for train. Each seed divides
    it by prompt anew, unless --eval-data or --eval-split say what is held out. Prints a Markdown
    table: held-out accuracy is the mean over seeds and its 95 % t-interval; "evaluations" is how
    often the head is evaluated for all pairs of K responses.
    """
    quiet_transformers()
    check_fit_options(context)
    backbone = build_backbone(values)
    fraction = values.pop("heldout_fraction")
    source = build_data(values)
    learn_tau = values.pop("learn_tau")
    fit = FitSettings(**values)
    heads = {
        name: replace(head, dim=dim, learn_tau=learn_tau)
        for name, head in {**HEADS, **(PAIR_HEAD if pair else {})}.items()
    }
    for folder in (None if output is None else output.parent, features):
        if folder is not None:
            check_writable(folder)
    pairs, heldout = source.read(data, eval_data)
    result = compare(
        pairs,
        seeds=range(seeds),
        heads=heads,
        backbone=backbone,
        fit=fit,
        heldout=heldout,
        heldout_fraction=fraction,
        cache=features,
        progress=not quiet,
    )
    if output is not None:
        write_json(output, result.as_dict())
    click.echo(result.markdown())
    share = f"{fraction:.0%} held out by prompt" if heldout is None else f"{len(heldout)} held out"
    click.echo(
        f"\n{result.pairs} pairs, {share}, {seeds} seeds; features took "
        f"{result.feature_seconds:.0f} s, seconds are per training"
    )
