"""``gpm-core policies``."""

from __future__ import annotations

from pathlib import Path

import click

from gpm_core.cli.options import quiet_transformers


@click.command(short_help="Compare the iterates of several runs of gpo.")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the report.",
)
def command(runs: tuple[Path, ...], output: Path) -> None:
    """Compare the start and all iterates of RUNS, folders of gpm-core gpo.

    They must have started from the same policy, and have the same held-out prompts and judges. The
    report has win rates of all pairs with intervals, at equal length too, the Nash mixture, and
    figures, in a folder of its own for each judge.
    """
    quiet_transformers()
    from gpm_core.policy.evaluation import evaluate_policies

    for name in evaluate_policies(runs, output):
        click.echo((output / name / "comparison.md").read_text(encoding="utf-8"))
