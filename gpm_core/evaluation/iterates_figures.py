"""The pictures of a comparison of iterates, as PNG files, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from gpm_core.evaluation.estimates import Estimate
from gpm_core.evaluation.figures import _MODEL, _MUTED, _bars, _figure, _save
from gpm_core.evaluation.iterates import IterateComparison


def write_iterates_figures(comparison: IterateComparison, folder: Path) -> list[Path]:
    """Write win_rates.png, against_start.png and nash.png.

    Args:
        comparison: what to draw.
        folder: an existing one.

    Returns:
        The files' paths.
    """
    return [
        _win_rates(comparison, folder / "win_rates.png"),
        _against_start(comparison, folder / "against_start.png"),
        _nash(comparison, folder / "nash.png"),
    ]


def _win_rates(comparison: IterateComparison, path: Path) -> Path:
    names, rates = comparison.names, comparison.win_rate_matrix().numpy()
    side = 2.0 + 0.62 * len(names)
    figure = _figure(side + 0.8, side)
    axes = figure.add_subplot()
    # One scale for all reports: the same colour is the same win rate.
    image = axes.imshow(rates, cmap="RdBu", vmin=0.0, vmax=1.0)
    for (i, j), rate in np.ndenumerate(rates):
        low, high = comparison.win_rates[i][j].low, comparison.win_rates[i][j].high
        sure = low is not None and high is not None and not low <= 0.5 <= high
        axes.text(
            j,
            i,
            f"{rate:.2f}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if sure else "normal",
            color="white" if abs(rate - 0.5) > 0.3 else "black",
        )
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_title("win rate of row over column\n(bold: interval excludes 1/2)", fontsize=9)
    figure.colorbar(image, ax=axes, shrink=0.8)
    return _save(figure, path)


def _against_start(comparison: IterateComparison, path: Path) -> Path:
    panels = [("mean length, tokens per response", comparison.lengths)]
    if comparison.kl is not None:
        panels.append((f"KL from {comparison.names[0]}, nats per response", comparison.kl))
    figure = _figure(6 * len(panels), 4.2)
    for place, (label, values) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        _over(axes, comparison, values)
        axes.set(xlabel=label, ylabel=f"win rate against {comparison.names[0]}")
        axes.legend(loc="best", fontsize=8)
    return _save(figure, path)


def _over(axes: Axes, comparison: IterateComparison, values: Sequence[Estimate]) -> None:
    """Win rates against the start, plain and at equal length, over a figure of each iterate."""
    kinds: list[tuple[str, str, str, Sequence[Estimate | None]]] = [
        ("plain", "o", _MODEL, comparison.against_start),
        ("at equal length", "D", _MUTED, comparison.length_controlled_against_start),
    ]
    for label, marker, color, rates in kinds:
        known = [(x, y) for x, y in zip(values, rates, strict=True) if y is not None]
        axes.errorbar(
            [x.value for x, _ in known],
            [y.value for _, y in known],
            xerr=np.array([_bars(x) for x, _ in known]).T,
            yerr=np.array([_bars(y) for _, y in known]).T,
            fmt=marker,
            color=color,
            markersize=5,
            capsize=3,
            linewidth=1,
            label=label,
        )
    for name, x, y in zip(comparison.names, values, comparison.against_start, strict=True):
        axes.annotate(
            name, (x.value, y.value), xytext=(5, 5), textcoords="offset points", fontsize=8
        )
    axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.margins(x=0.12)
    axes.grid(alpha=0.25, linewidth=0.6)


def _nash(comparison: IterateComparison, path: Path) -> Path:
    names, weights = comparison.names, comparison.nash
    figure = _figure(6, 1.4 + 0.34 * len(names))
    axes = figure.add_subplot()
    axes.barh(range(len(names)), [weight.value for weight in weights], color=_MODEL, alpha=0.8)
    for i, (weight, share) in enumerate(zip(weights, comparison.nash_support, strict=True)):
        low, high = _bars(weight)
        axes.errorbar(weight.value, i, xerr=[[low], [high]], color="black", capsize=3, linewidth=1)
        axes.text(1.03, i, f"{100 * share:.0f} %", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1.02), xlabel="weight in the Nash mixture, and its interval")
    axes.set_title("right: share of resamples with it", fontsize=9, loc="right")
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    return _save(figure, path)
