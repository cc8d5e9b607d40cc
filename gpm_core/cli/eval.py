"""``gpm-core eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gpm_core.cli.config import config_option
from gpm_core.cli.criteria import parse_names
from gpm_core.cli.inference import model_options, open_model
from gpm_core.cli.options import quiet_transformers
from gpm_core.data.criteria import load_labelled
from gpm_core.data.files import check_writable
from gpm_core.data.pairs import PreferencePair
from gpm_core.data.records import EXTENSIONS
from gpm_core.evaluation import EvaluationData, evaluate, evaluate_by_criteria, read_evaluation
from gpm_core.evaluation.reading import KINDS, Kind
from gpm_core.training.sources import DataOptions

#: What --criteria is for all that the model has.
ALL = "all"


@click.command(short_help="Evaluate a preference model on pairs or on a benchmark.")
@config_option
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
    "--criteria",
    metavar="CRITERIA",
    help="FILE is responses with ratings, or pairs with labels: a report by each of these criteria "
    "of MODEL, as 'helpful,honest', or by 'all'.",
)
@click.option(
    "--train-data",
    help="What MODEL was trained on, as FILE, to report seen and new pairs apart.",
)
@click.option("--train-split", help="Of a folder or a data set of the hub, as train.")
@click.option(
    "--train-ratings",
    metavar="CRITERION",
    help="--train-data are responses with ratings, as of --ratings [default: as FILE].",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    help="Texts per forward pass.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--bootstrap-samples", type=click.IntRange(min=100), default=1000, show_default=True)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Of the intervals.",
)
@model_options
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
def command(
    model: str,
    file: str,
    output: Path,
    kind: Kind,
    split: str | None,
    ratings: str | None,
    cycle: str | None,
    criteria: str | None,
    train_data: str | None,
    train_split: str | None,
    train_ratings: str | None,
    batch_size: int,
    seed: int,
    bootstrap_samples: int,
    confidence: float,
    quiet: bool,
    **how: Any,
) -> None:
    """Evaluate MODEL, the folder or hub name of a preference model, on FILE and print the report.

    FILE is a .jsonl, .json, .jsonl.gz, .json.gz or .parquet file of pairs ("chosen", "rejected",
    perhaps "prompt" and "subset"), of RewardBench's shape, or of RewardBench 2's ("chosen" and
    "rejected" are lists of texts); or a folder or the name of a data set of the hub, of pairs. With
    --ratings or --cycle, it is responses with ratings. The report has accuracies with intervals,
    calibration, cycles, and length bias.

    A MODEL of several criteria is evaluated by the one preference that they make; with --criterion
    by one of them, as with --ratings of the same name; and with --criteria by each, in one pass and
    one report.
    """
    quiet_transformers()
    figures: dict[str, Any] = {
        "batch_size": batch_size,
        "seed": seed,
        "bootstrap_samples": bootstrap_samples,
        "confidence": confidence,
        "progress": not quiet,
    }
    # Mistakes in files and folders show before the model is loaded.
    if criteria is not None:
        _refuse_beside_criteria(click.get_current_context())
        labelled = load_labelled(file, split)
        check_writable(output)
        names = None if criteria == ALL else parse_names(criteria)
        name = Path(file).name
        loaded = open_model(model, **how)
        report: Any = evaluate_by_criteria(loaded, labelled, names, source=name, **figures)
    else:
        cyclic = parse_names(cycle)
        data = _read(file, kind, DataOptions(split, None, ratings, cyclic))
        train_pairs = None
        if train_data is None and (train_split or train_ratings):
            raise click.UsageError("--train-split and --train-ratings are of --train-data")
        if train_data is not None:
            made = (ratings, cyclic) if train_ratings is None else (train_ratings, None)
            train_pairs, _ = DataOptions(train_split, None, *made).read(train_data, None)
        check_writable(output)
        report = evaluate(open_model(model, **how), data, train_pairs=train_pairs, **figures)
    click.echo(report.markdown())
    files = report.write(output)
    click.echo(f"written: {', '.join(map(str, files))}", err=True)


def _refuse_beside_criteria(context: click.Context) -> None:
    others = (
        *("ratings", "cycle", "criterion", "criteria_weights"),
        *("train_data", "train_split", "train_ratings"),
    )
    given = [f"--{name.replace('_', '-')}" for name in others if context.params[name] is not None]
    given += ["--kind"] if context.params["kind"] != "auto" else []
    if given:
        raise click.UsageError(f"--criteria goes without {', '.join(given)}")


def _read(source: str, kind: Kind, options: DataOptions) -> EvaluationData | list[PreferencePair]:
    own = source.lower().endswith(EXTENSIONS) and not Path(source).is_dir()
    if own and options == DataOptions():
        return read_evaluation(source, kind)
    if kind not in ("auto", "pairs"):
        raise click.UsageError(f"--kind {kind} is for a file of that benchmark")
    return options.read(source, None)[0]
