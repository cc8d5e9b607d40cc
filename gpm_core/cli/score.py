"""``gpm-core score``."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

import click
from tqdm import tqdm

from gpm_core.cli.options import quiet_transformers
from gpm_core.data.files import atomic_file, check_writable, write_json
from gpm_core.data.pairs import ResponseGroup
from gpm_core.data.reading import read_groups
from gpm_core.models.group_scores import GroupScores
from gpm_core.models.preference_model import PreferenceModel
from gpm_core.models.storage import save_tensors

#: Groups that are encoded together: enough to fill batches of about equal length.
GROUPS_AT_ONCE = 256


@click.command(short_help="Score and rank responses with a trained model.")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="JSON lines [default: to stdout]."
)
@click.option(
    "--matrix",
    type=click.Path(path_type=Path),
    help="Also write each line's K x K probabilities, to a .safetensors or .json file.",
)
@click.option("--encode-batch-size", type=click.IntRange(min=1), default=32, show_default=True)
@click.option("--device", default="cpu", show_default=True, help="As torch names it.")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
def command(
    model: Path,
    file: Path,
    output: Path | None,
    matrix: Path | None,
    encode_batch_size: int,
    device: str,
    quiet: bool,
) -> None:
    """Score the responses of each line of FILE with MODEL, the folder of a trained model.

    A line has "responses" (a list of texts) and perhaps "prompt", or is a pair with "chosen" and
    "rejected" (in this order). For each line, the output has "line", "ranking" (positions, the best
    first), and for each response "mean_probability" (of being preferred to the others) and
    "mean_score".
    """
    quiet_transformers()
    _check_outputs(output, matrix)
    groups = read_groups(file)
    loaded = PreferenceModel.from_pretrained(model).to(device)
    scored = _score(loaded, groups, encode_batch_size, not quiet)
    matrices: dict[str, Any] = {}
    with _opened(output) as stream:
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


def _score(
    model: PreferenceModel, groups: list[ResponseGroup], batch_size: int, progress: bool
) -> Iterator[tuple[ResponseGroup, GroupScores]]:
    with tqdm(total=len(groups), desc="scoring", unit="line", disable=not progress) as bar:
        for start in range(0, len(groups), GROUPS_AT_ONCE):
            some = groups[start : start + GROUPS_AT_ONCE]
            scores: Iterable[GroupScores] = model.score_groups(some, batch_size=batch_size)
            yield from zip(some, scores, strict=True)
            bar.update(len(some))


@contextlib.contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    if output is None:
        yield sys.stdout
        return
    with atomic_file(output) as partial, open(partial, "w", encoding="utf-8") as stream:
        yield stream


def _record(group: ResponseGroup, scores: GroupScores) -> dict[str, Any]:
    probability, score = scores.means()
    return {
        "line": group.line,
        "ranking": scores.ranking(),
        "mean_probability": probability.tolist(),
        "mean_score": score.tolist(),
    }


def _write_matrices(path: Path, matrices: dict[str, Any]) -> None:
    if path.suffix == ".json":
        write_json(path, {name: matrix.tolist() for name, matrix in matrices.items()})
        return
    with atomic_file(path) as partial:
        save_tensors(partial, matrices)
