"""``gpm-core eval``."""

from __future__ import annotations

from pathlib import Path

import click

from gpm_core.cli.criteria import criteria_options, load_weighed
from gpm_core.cli.options import quiet_transformers
from gpm_core.data.files import check_writable
from gpm_core.data.pairs import PreferencePair
from gpm_core.data.reading import read_pairs
from gpm_core.evaluation import EvaluationData, evaluate, read_evaluation
from gpm_core.evaluation.reading import KINDS, Kind
from gpm_core.training.sources import DataOptions


@click.command(short_help="Evaluate a preference model on pairs or on a benchmark.")
@click.argument("model")
@click.argument("file")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for report.json, report.md and pictures; made if need be.",
)
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="auto",
    show_default=True,
    help="What FILE is; auto tells by its records.",
)
@click.option("--split", help="Of a folder or a data set of the hub, as test.")
@click.option(
    "--ratings",
    metavar="CRITERION",
    help="FILE is responses with ratings: pairs by this criterion, or the 'mean' of all.",
)
@click.option(
    "--cycle",
    metavar="CRITERIA",
    help="FILE is responses with ratings: cyclic pairs over these criteria, as 'a,b,c'.",
)
@click.option(
    "--train-data",
    type=click.Path(path_type=Path),
    help="Pairs that MODEL was trained on, to report seen and new pairs apart.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Texts per forward pass.",
)
@click.option("--device", default="cpu", show_default=True, help="As torch names it.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--bootstrap-samples", type=click.IntRange(min=100), default=1000, show_default=True)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the intervals.",
)
@criteria_options
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
def command(
    model: str,
    file: str,
    output: Path,
    kind: Kind,
    split: str | None,
    ratings: str | None,
    cycle: str | None,
    train_data: Path | None,
    batch_size: int,
    device: str,
    seed: int,
    bootstrap_samples: int,
    confidence: float,
    criterion: str | None,
    criteria_weights: str | None,
    quiet: bool,
) -> None:
    """Evaluate MODEL, the folder or hub name of a preference model, on FILE and print the report.

    FILE is a .jsonl, .json, .jsonl.gz, .json.gz or .parquet file of pairs ("chosen", "rejected",
    perhaps "prompt" and "subset"), of RewardBench's shape, or of RewardBench 2's ("chosen" and
    "rejected" are lists of texts); or a folder or the name of a data set of the hub, of pairs. With
    --ratings or --cycle, it is responses with ratings. The report has accuracies with intervals,
    calibration, cycles, and length bias.

    A MODEL of several criteria is evaluated by the one preference that they make; by one of them
    with --criterion, as with --ratings of the same name.
    """
    quiet_transformers()
    # Mistakes in files and folders show before the model is loaded.
    data = _read(file, kind, split, ratings, cycle)
    train_pairs = None if train_data is None else read_pairs(train_data)
    check_writable(output)
    report = evaluate(
        load_weighed(model, device, criterion, criteria_weights),
        data,
        train_pairs=train_pairs,
        batch_size=batch_size,
        seed=seed,
        bootstrap_samples=bootstrap_samples,
        confidence=confidence,
        progress=not quiet,
    )
    click.echo(report.markdown())
    files = report.write(output)
    click.echo(f"written: {', '.join(map(str, files))}", err=True)


def _read(
    source: str, kind: Kind, split: str | None, ratings: str | None, cycle: str | None
) -> EvaluationData | list[PreferencePair]:
    criteria = None if cycle is None else [name.strip() for name in cycle.split(",")]
    options = DataOptions(split, None, ratings, criteria)
    made = ratings is not None or cycle is not None
    if not made and split is None and not Path(source).is_dir() and Path(source).suffix:
        return read_evaluation(source, kind)
    if kind not in ("auto", "pairs"):
        raise click.UsageError(f"--kind {kind} is for a file of that benchmark")
    return options.read(source, None)[0]
