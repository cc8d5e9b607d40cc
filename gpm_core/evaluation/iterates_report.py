"""A comparison of iterates, as Markdown and files."""

from __future__ import annotations

import os
from pathlib import Path

from gpm_core.data.files import atomic_file, check_writable, write_json
from gpm_core.evaluation.estimates import Estimate
from gpm_core.evaluation.iterates import IterateComparison
from gpm_core.evaluation.report import _cell, _table


def write_iterates_report(
    comparison: IterateComparison, folder: str | os.PathLike[str]
) -> list[Path]:
    """Write comparison.json, comparison.md and pictures (PNG); each file whole or not at all.

    Pictures are win_rates.png (all pairs), against_start.png (over length, and over KL where it is
    known) and nash.png.

    Args:
        comparison: what :func:`compare_iterates` found.
        folder: made if needed; files of an earlier report are replaced.

    Returns:
        The files' paths.

    Raises:
        OSError: if they cannot be written.
        ModuleNotFoundError: without matplotlib.
    """
    from gpm_core.evaluation.iterates_figures import write_iterates_figures

    folder = Path(folder)
    check_writable(folder)
    write_json(folder / "comparison.json", comparison.to_dict())
    with atomic_file(folder / "comparison.md") as partial:
        partial.write_text(iterates_markdown(comparison) + "\n", encoding="utf-8")
    pictures = write_iterates_figures(comparison, folder)
    return [folder / "comparison.json", folder / "comparison.md", *pictures]


def iterates_markdown(comparison: IterateComparison) -> str:
    """The comparison to read.

    Example:
        >>> even = torch.full((100, 1, 1), 0.5)
        >>> comparison = compare_iterates(even, torch.full((100, 1), 20.0), ["start"])
        >>> iterates_markdown(comparison).splitlines()[0]
        '# Iterates of a policy'
    """
    parts = [_head(comparison), _against_start(comparison)]
    if len(comparison.names) > 1:
        parts += [_win_rates(comparison), _length_controlled(comparison)]
    return "\n\n".join([*parts, _mixture(comparison), _cycles(comparison)])


def _head(comparison: IterateComparison) -> str:
    return (
        f"# Iterates of a policy\n\n{comparison.prompts:,} held-out prompts. In brackets: "
        f"{100 * comparison.confidence:g} % intervals, bootstrap over prompts "
        f"({comparison.bootstrap_samples:,} samples), or Wilson's (of win rates only) where "
        "prompts are few or all alike. They say how figures vary with prompts and samples, not "
        "with the training or the judge, and each holds by itself, not all of them together."
    )


def _against_start(comparison: IterateComparison) -> str:
    headers = ["iterate", "win rate", "at equal length", "tokens per response"]
    if comparison.kl is not None:
        headers.append("KL from the start, nats per response")
    rows = []
    for i, name in enumerate(comparison.names):
        controlled = _controlled(comparison, i, 0)
        row = [name, str(comparison.against_start[i]), controlled, _tokens(comparison.lengths[i])]
        rows.append([*row, *([] if comparison.kl is None else [str(comparison.kl[i])])])
    return f"## Against {comparison.names[0]}\n\n{_table(headers, rows)}{_footnote(comparison)}"


def _tokens(length: Estimate) -> str:
    if length.low is None or length.high is None:
        return f"{length.value:.1f}"
    return f"{length.value:.1f} [{length.low:.1f}, {length.high:.1f}]"


def _win_rates(comparison: IterateComparison) -> str:
    rows = [
        [name, *(_cell(cell) for cell in row)]
        for name, row in zip(comparison.names, comparison.win_rates, strict=True)
    ]
    return f"## Win rates of rows over columns\n\n{_table(['', *comparison.names], rows)}"


def _length_controlled(comparison: IterateComparison) -> str:
    places = range(len(comparison.names))
    rows = [
        [name, *(_controlled(comparison, i, j) for j in places)]
        for i, name in enumerate(comparison.names)
    ]
    table = _table(["", *comparison.names], rows)
    return (
        "## Win rates at equal length\n\nRead off a logistic regression of the win rate on the "
        f"difference of lengths, at 0.\n\n{table}{_footnote(comparison)}"
    )


def _controlled(comparison: IterateComparison, i: int, j: int) -> str:
    value = comparison.length_controlled[i][j]
    far = value is not None and comparison.extrapolated[i][j]
    return _cell(value) + "*" * far


def _footnote(comparison: IterateComparison) -> str:
    if not any(any(row) for row in comparison.extrapolated):
        return ""
    return (
        "\n\n\\*: one of the two is longer on every prompt, equal length was never seen. -: by the "
        "same on every prompt, which cannot be told from quality."
    )


def _mixture(comparison: IterateComparison) -> str:
    others = len(comparison.names) - 1
    rows = [
        [
            name,
            str(comparison.nash[i]),
            f"{100 * comparison.nash_support[i]:.1f} %",
            f"{comparison.copeland[i]:g} of {others}",
            f"{len(comparison.surely_beaten[i])}",
        ]
        for i, name in enumerate(comparison.names)
    ]
    headers = ["iterate", "weight", "resamples with it", "beats", "interval above 1/2"]
    return (
        "## Nash mixture\n\nThe mixture of iterates that none of them beats; how many of the "
        f"others each beats, ties half.\n\n{_table(headers, rows)}"
    )


def _cycles(comparison: IterateComparison) -> str:
    count, sure = comparison.cyclic_triples, comparison.cycles
    if not count:
        return "## Cycles\n\nNo three iterates beat each other in a circle."
    lines = [f"{' > '.join((*cycle, cycle[0]))}" for cycle in sure]
    text = (
        f"## Cycles\n\n{count:,} of the triples {'is' if count == 1 else 'are'} a circle by the "
        f"win rates alone, {len(sure)} with three intervals that exclude 1/2"
    )
    return f"{text}{':' if sure else '.'}" + "".join(f"\n\n- {line}" for line in lines)
