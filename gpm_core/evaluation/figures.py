"""The pictures of a report, as PNG files, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gpm_core.data.files import atomic_file
from gpm_core.evaluation.estimates import Estimate

if TYPE_CHECKING:
    from gpm_core.evaluation.report import EvaluationReport

_MODEL, _MUTED = "#0b6fa4", "#7a7a7a"

#: Most points of a scatter plot; of more pairs every n-th is drawn.
_MOST_POINTS = 5000

_LENGTH_BINS = 8


def write_figures(report: EvaluationReport, folder: Path) -> list[Path]:
    """Write accuracy.png, and reliability.png and length.png where there are pairs.

    Without pairs, those of an earlier report are removed.

    Args:
        report: what to draw.
        folder: an existing one.

    Returns:
        The files' paths.
    """
    files = [_accuracy(report, folder / "accuracy.png")]
    for name, draw in (("reliability.png", _reliability), ("length.png", _length)):
        if report.pairs is None:
            (folder / name).unlink(missing_ok=True)
        else:
            files.append(draw(report, folder / name))
    return files


def _figure(width: float, height: float) -> Figure:
    # Figures without pyplot need no display and leave no global state behind.
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")
    return path


def _bars(value: Estimate) -> tuple[float, float]:
    if value.low is None or value.high is None:
        return 0.0, 0.0
    return max(0.0, value.value - value.low), max(0.0, value.high - value.value)


def _accuracy(report: EvaluationReport, path: Path) -> Path:
    whole = [("overall", report.overall)]
    if report.kind == "rewardbench":
        whole += list(report.sections.items())
    parts = [(result.name, result.accuracy) for result in report.subsets]
    return accuracy_figure(whole, parts, path, coin=report.kind != "rewardbench2")


def accuracy_figure(
    whole: Sequence[tuple[str, Estimate]],
    parts: Sequence[tuple[str, Estimate]],
    path: Path,
    *,
    coin: bool,
) -> Path:
    """Draw accuracies with their intervals, one below the other, in a file.

    Args:
        whole: names and figures that stand out.
        parts: those below them.
        path: of the picture.
        coin: also draw a line at 1/2.
    """
    named = [*whole, *parts]
    figure = _figure(6, 1.4 + 0.28 * len(named))
    axes = figure.add_subplot()
    for i, (_, value) in enumerate(named):
        low, high = _bars(value)
        color = _MODEL if i < len(whole) else _MUTED
        axes.errorbar(
            value.value, i, xerr=[[low], [high]], fmt="o", color=color, markersize=5, capsize=3
        )
    if coin:
        axes.axvline(0.5, color="black", linewidth=0.8, linestyle=":", label="a coin")
        axes.legend(loc="lower left", fontsize=8)
    axes.set_yticks(range(len(named)), [name for name, _ in named], fontsize=8)
    axes.margins(y=0.03)
    axes.invert_yaxis()
    axes.set(xlabel="accuracy and its interval", xlim=(-0.02, 1.02))
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    return _save(figure, path)


def _reliability(report: EvaluationReport, path: Path) -> Path:
    assert report.pairs is not None
    bins, count = report.pairs.reliability, len(report.table)
    figure = _figure(5, 4)
    axes = figure.add_subplot()
    axes.plot([0.5, 1], [0.5, 1], color=_MUTED, linestyle=":", label="perfectly calibrated")
    axes.scatter(
        [one.confidence for one in bins],
        [one.accuracy for one in bins],
        s=[20 + 400 * one.count / count for one in bins],
        color=_MODEL,
        label="pairs (area: how many)",
    )
    axes.set(
        xlabel="probability of the likelier side",
        ylabel="how often it was preferred",
        ylim=(-0.02, 1.02),
        title=f"expected calibration error {report.pairs.calibration_error:.3f}",
    )
    axes.legend(loc="lower right", fontsize=8)
    return _save(figure, path)


def _length(report: EvaluationReport, path: Path) -> Path:
    table = report.table
    difference, score = table.words[:, 0] - table.words[:, 1], table.score
    step = -(-len(table) // _MOST_POINTS)
    figure = _figure(6, 4)
    axes = figure.add_subplot()
    axes.scatter(
        difference[::step], score[::step], s=8, color=_MUTED, alpha=0.4, linewidths=0, label="pairs"
    )
    centres, means = _binned(difference, score)
    axes.plot(centres, means, color=_MODEL, marker="o", markersize=4, label="mean")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=10)
    axes.set(
        xlabel="words of the preferred response, less those of the other",
        ylabel="score of preferred over other",
    )
    axes.legend(loc="lower right", fontsize=8)
    return _save(figure, path)


def _binned(x: torch.Tensor, y: torch.Tensor) -> tuple[list[float], list[float]]:
    """Means of x and y over parts of about equal size, by x."""
    order = torch.argsort(x, stable=True)
    parts = [part for part in order.tensor_split(_LENGTH_BINS) if len(part)]
    return [float(x[part].mean()) for part in parts], [float(y[part].mean()) for part in parts]
