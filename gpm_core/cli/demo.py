"""``gpm-core demo``: the library end to end on shipped text."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click


def _prepare(output: Path) -> None:
    """Create the folder and try to write there, so that a failure costs no work."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise click.BadParameter(
            f"cannot write to the folder {output}: {error.strerror or error}",
            param_hint="--output",
        ) from error


def _even(_context: click.Context, _parameter: click.Parameter, value: int) -> int:
    if value % 2:
        raise click.BadParameter(f"must be even (blocks of two); got {value}")
    return value


@click.command("demo")
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("gpm-core-demo"),
    show_default=True,
    help="Folder for the pictures and results.json; created if need be.",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Repeats of the cross-validation, each with other splits and initial weights.",
)
@click.option(
    "--folds",
    type=click.IntRange(2, 20),
    default=5,
    show_default=True,
    help="Parts that the prompts are split into; each is held out once a repeat.",
)
@click.option(
    "--dim",
    type=click.IntRange(4, 12),
    callback=_even,
    default=4,
    show_default=True,
    help="Width of the preference embeddings, even. Their first block starts as a reward; cycles "
    "take one more.",
)
@click.option("--quiet", is_flag=True, help="Show no progress bars.")
def command(output: Path, seeds: int, folds: int, dim: int, quiet: bool) -> None:
    """Show on text what a general preference model can do and a scalar reward cannot.

    Derives cyclic preferences from rated responses as the GPM paper did, fits Bradley-Terry and
    general preference heads on frozen features, compares them on held-out prompts, and improves a
    policy with GPO. Takes about half a minute on two CPU cores and uses no network.
    """
    _prepare(output)
    try:
        from gpm_core.demo.crossval import ModelSettings
        from gpm_core.demo.run import DemoSettings, run_demo
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'gpm-core demo needs the package {error.name}: pip install "gpm_core[train]"',
            name=error.name,
        ) from error
    settings = DemoSettings(seeds=seeds, folds=folds, models=ModelSettings(dim=dim))
    run_demo(output, settings, echo=click.echo, progress=not quiet)
