"""``gpm-core check``."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import click
import tabulate

from gpm_core.cli.config import config_option
from gpm_core.data.checking import KINDS, DataReport, check_file
from gpm_core.data.files import check_writable, write_json


@click.command(short_help="Report what is wrong or odd in a data file, by line.")
@config_option
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--json", "output", type=click.Path(path_type=Path), help="Also write the report as JSON."
)
@click.option(
    "--show",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    help="Problems of each kind to print.",
)
@click.option(
    "--most",
    type=click.IntRange(min=0),
    default=1000,
    show_default=True,
    help="Problems of each kind to write to --json.",
)
def command(file: Path, output: Path | None, show: int, most: int) -> None:
    """Read all of FILE, pairs or rated responses, and report problems by line.

    Errors are what training and scoring would refuse; warnings are what they would read: pairs that
    repeat or contradict an earlier one, empty or identical replies, unusual roles, texts that were
    decoded wrongly, and the like. Ends with status 1 if there are errors.
    """
    if output is not None:
        check_writable(output.parent)
    report = check_file(file, most=max(most, show))
    _print_problems(report, show)
    _print_summary(report)
    if output is not None:
        write_json(output, report.as_dict())
    if report.errors:
        sys.exit(1)


def _print_problems(report: DataReport, show: int) -> None:
    shown: Counter[str] = Counter()
    for problem in report.problems:
        shown[problem.kind] += 1
        if shown[problem.kind] <= show:
            where = f"{report.place} {problem.line}: " if problem.line else ""
            click.echo(_printable(f"{where}{problem.severity}: {problem.message} [{problem.kind}]"))


def _printable(text: str) -> str:
    # A message may quote what no terminal can write.
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _print_summary(report: DataReport) -> None:
    if report.counts:
        first = {problem.kind: problem.line for problem in reversed(report.problems)}
        rows = [
            (KINDS[kind], kind, count, first.get(kind, "")) for kind, count in report.counts.items()
        ]
        click.echo()
        click.echo(tabulate.tabulate(rows, headers=["", "kind", "count", f"first {report.place}"]))
        click.echo()
    forms = ", ".join(f"{count} {form}" for form, count in report.forms.items()) or "none readable"
    click.echo(
        f"{report.path}: {report.records} records ({forms}), {report.errors} errors, "
        f"{report.warnings} warnings"
    )
