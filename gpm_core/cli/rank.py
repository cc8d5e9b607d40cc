"""``gpm-core rank``."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

from gpm_core.cli.config import config_option
from gpm_core.cli.inference import (
    inference_options,
    model_options,
    open_model,
    opened,
    score_in_parts,
)
from gpm_core.cli.options import quiet_transformers
from gpm_core.data.files import check_writable
from gpm_core.data.messages import as_messages
from gpm_core.data.pairs import ResponseGroup
from gpm_core.data.reading import read_groups
from gpm_core.models.group_scores import GroupScores

#: Width of the column of responses in the table.
_COLUMN = 60


@click.command(short_help="Rank responses to a prompt, and say where preferences are cyclic.")
@config_option
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--prompt", help="The prompt, in place of FILE.")
@click.option("--response", "responses", multiple=True, help="A response to it; give several.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="JSON lines [default: to stdout]."
)
@model_options
@inference_options
def command(
    model: str,
    file: Path | None,
    prompt: str | None,
    responses: tuple[str, ...],
    output: Path | None,
    encode_batch_size: int,
    quiet: bool,
    **how: Any,
) -> None:
    """Rank the responses of each line of FILE, or those of --prompt, with MODEL.

    MODEL is the folder of a trained model, or a hub name (published GPM checkpoints included).

    A line has "responses" (a list of texts) and perhaps "prompt". For each, the output has "line",
    "ranking" (the best first: "index", "response", "mean_probability", "mean_score"),
    "condorcet_winner" (the response that is preferred to every other one, or null) and
    "cyclic_triples" (how many triples a > b > c > a there are, which no ranking can agree with).
    With --prompt and without --output, a table for people.
    """
    quiet_transformers()
    groups = _groups(file, prompt, responses)
    if output is not None:
        check_writable(output.parent)
    loaded = open_model(model, **how)
    scored = score_in_parts(loaded, groups, encode_batch_size, not quiet and file is not None)
    if file is None and output is None:
        for group, scores in scored:
            click.echo(_table(group, scores))
        return
    with opened(output) as stream:
        for group, scores in scored:
            stream.write(json.dumps(_record(group, scores)) + "\n")


def _groups(
    file: Path | None, prompt: str | None, responses: tuple[str, ...]
) -> list[ResponseGroup]:
    if (file is None) == (not responses):
        raise click.UsageError("give either FILE, or --response (and --prompt)")
    if file is None:
        return [ResponseGroup(as_messages(prompt), responses)]
    if prompt is not None:
        raise click.UsageError("--prompt goes with --response; the prompts of FILE are in it")
    return read_groups(file)


def _record(group: ResponseGroup, scores: GroupScores) -> dict[str, Any]:
    return {
        "line": group.line,
        "ranking": [
            {
                "index": i,
                "response": group.responses[i],
                "mean_probability": probability,
                "mean_score": score,
            }
            for i, probability, score in _in_order(scores)
        ],
        "condorcet_winner": scores.condorcet_winner(),
        "cyclic_triples": scores.cyclic_triples(),
    }


def _in_order(scores: GroupScores) -> list[tuple[int, float, float]]:
    probability, score = (values.tolist() for values in scores.means())
    return [(i, probability[i], score[i]) for i in scores.ranking()]


def _table(group: ResponseGroup, scores: GroupScores) -> str:
    rows = [
        (place, f"{probability:.3f}", f"{score:+.3f}", _short(group.responses[i]))
        for place, (i, probability, score) in enumerate(_in_order(scores), start=1)
    ]
    table = tabulate(rows, headers=("", "P(preferred)", "score", "response"))
    triples = scores.cyclic_triples()
    if not triples:
        return table
    return f"{table}\n{triples} cyclic triples: no ranking agrees with all preferences here"


def _short(text: str) -> str:
    return textwrap.shorten(text, _COLUMN, placeholder=" ...")
