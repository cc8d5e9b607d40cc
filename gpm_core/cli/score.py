"""``gpm-core score``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gpm_core.cli.config import config_option
from gpm_core.cli.inference import (
    inference_options,
    model_options,
    open_model,
    opened,
    score_in_parts,
)
from gpm_core.cli.options import quiet_transformers
from gpm_core.data.files import atomic_file, check_writable, write_json
from gpm_core.data.pairs import ResponseGroup
from gpm_core.data.reading import read_groups
from gpm_core.models.group_scores import GroupScores
from gpm_core.models.storage import save_tensors


@click.command(short_help="Score all pairs of responses with a trained model.")
@config_option
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="JSON lines [default: to stdout]."
)
@click.option(
    "--matrix",
    type=click.Path(path_type=Path),
    help="Also write each line's K x K probabilities, to a .safetensors or .json file.",
)
@model_options
@inference_options
def command(
    model: str,
    file: Path,
    output: Path | None,
    matrix: Path | None,
    encode_batch_size: int,
    quiet: bool,
    **how: Any,
) -> None:
    """Score the responses of each line of FILE with MODEL.

    MODEL is the folder of a trained model, or a hub name (published GPM checkpoints included).

    A line has "responses" (a list of texts) and perhaps "prompt", or is a pair with "chosen" and
    "rejected" (in this order). For each line, the output has "line", "ranking" (positions, the best
    first), and for each response "mean_probability" (of being preferred to the others) and
    "mean_score". Of a model of several criteria, these are of the one preference that they make,
    and "criteria" has the means of each.
    """
    quiet_transformers()
    _check_outputs(output, matrix)
    groups = read_groups(file)
    loaded = open_model(model, **how)
    scored = score_in_parts(loaded, groups, encode_batch_size, not quiet)
    matrices: dict[str, Any] = {}
    with opened(output) as stream:
        for group, scores in scored:
            stream.write(json.dumps(_record(group, scores)) + "\n")
            if matrix is not None:
                matrices[f"probability.{group.line}"] = scores.probability
    if matrix is not None:
        _write_matrices(matrix, matrices)


def _check_outputs(output: Path | None, matrix: Path | None) -> None:
    if matrix is not None and matrix.suffix not in (".safetensors", ".json"):
        raise ValueError(f"--matrix must end with .safetensors or .json; got {matrix}")
    for path in (output, matrix):
        if path is not None:
            check_writable(path.parent)


def _record(group: ResponseGroup, scores: GroupScores) -> dict[str, Any]:
    record = {"line": group.line, "ranking": scores.ranking(), **_means(scores)}
    if scores.criteria:
        record["criteria"] = {name: _means(each) for name, each in scores.criteria.items()}
    return record


def _means(scores: GroupScores) -> dict[str, list[float]]:
    probability, score = scores.means()
    return {"mean_probability": probability.tolist(), "mean_score": score.tolist()}


def _write_matrices(path: Path, matrices: dict[str, Any]) -> None:
    if path.suffix == ".json":
        write_json(path, {name: matrix.tolist() for name, matrix in matrices.items()})
        return
    with atomic_file(path) as partial:
        save_tensors(partial, matrices)
