"""The demonstration's pictures: PNG files, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor

from gpm_core import ops
from gpm_core.data.files import atomic_file
from gpm_core.demo.cycles import CRITERIA, PreferenceSet
from gpm_core.demo.report import label

#: Okabe and Ito's colours, which colour-blind readers can tell apart.
COLORS = dict(zip(CRITERIA, ("#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True))
_INK, _MUTED = "#222222", "#777777"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: Path) -> Path:
    with atomic_file(path) as partial:
        figure.savefig(partial, format="png")
    return path


def _two_lines(criterion: str) -> str:
    return label(criterion).replace(" ", "\n")


def _quiet(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.tick_params(labelsize=8)


def _arrow(axes: Axes, begin: Any, end: Any, *, bend: float = 0.0, shrink: float = 0.0) -> None:
    axes.add_patch(
        FancyArrowPatch(
            tuple(begin),
            tuple(end),
            arrowstyle="-|>",
            mutation_scale=14,
            linewidth=1.6,
            color=_INK,
            connectionstyle=f"arc3,rad={bend}",
            shrinkA=shrink,
            shrinkB=shrink,
        )
    )


def _edge_indices(preference_set: PreferenceSet) -> list[tuple[int, int]]:
    return [
        (CRITERIA.index(better), CRITERIA.index(worse)) for better, worse in preference_set.edges
    ]


def _draw_ring(axes: Axes, preference_set: PreferenceSet, probability: Tensor) -> None:
    angles = np.pi / 2 - 2 * np.pi * np.arange(len(CRITERIA)) / len(CRITERIA)
    places = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    for place, criterion in zip(places, CRITERIA, strict=True):
        axes.scatter(place[0], place[1], s=3400, color=COLORS[criterion], zorder=3)
        axes.text(
            place[0],
            place[1],
            _two_lines(criterion),
            ha="center",
            va="center",
            fontsize=7.2,
            color="white",
            weight="bold",
            zorder=4,
        )
    for better, worse in _edge_indices(preference_set):
        _arrow(axes, places[better], places[worse], shrink=31)
        middle = 0.5 * (places[better] + places[worse]) * 0.62
        axes.text(
            middle[0],
            middle[1],
            f"{probability[better, worse]:.2f}",
            ha="center",
            va="center",
            fontsize=9,
        )
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    axes.axis("off")
    axes.set_title("a > b: a is preferred to b\n(GPM's held-out probability)", fontsize=10)


def _draw_matrix(axes: Axes, probability: Tensor, edges: Sequence[tuple[int, int]]) -> Any:
    image = axes.imshow(probability.numpy(), cmap="RdBu", vmin=0, vmax=1)
    count = len(CRITERIA)
    for row in range(count):
        for column in range(count):
            value = float(probability[row, column])
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                fontsize=10,
                color="white" if abs(value - 0.5) > 0.27 else _INK,
            )
    for row, column in edges:
        axes.add_patch(
            Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, ec=_INK, lw=1.8)
        )
    names = [_two_lines(criterion) for criterion in CRITERIA]
    axes.set_xticks(range(count), names, fontsize=7.5)
    axes.set_yticks(range(count), names, fontsize=7.5)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def draw_matrices(path: Path, matrices: dict[str, Tensor], preference_set: PreferenceSet) -> Path:
    """The cycle, and the models' mean held-out probabilities between the criteria's responses.

    Args:
        path: of the PNG file.
        matrices: (K, K) probabilities in the order of ``CRITERIA`` for "gpm" and "bt".
        preference_set: whose preferences are framed.
    """
    figure = _figure(12.4, 4.3)
    ring, general, scalar = figure.subplots(1, 3, width_ratios=(1, 1.12, 1.12))
    edges = _edge_indices(preference_set)
    _draw_ring(ring, preference_set, matrices["gpm"])
    _draw_matrix(general, matrices["gpm"], edges)
    general.set_title("General preference model", fontsize=10)
    image = _draw_matrix(scalar, matrices["bt"], edges)
    scalar.set_title("Bradley-Terry: the optimum is a tie", fontsize=10)
    bar = figure.colorbar(image, ax=scalar, shrink=0.85)
    bar.set_label("P(row is preferred to column)", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(
        "Held-out prompts: preferences between the responses best on each criterion "
        "(framed: the cycle)",
        fontsize=11.5,
    )
    return _save(figure, path)


def _block_scores(embeddings: Tensor, edges: Sequence[tuple[int, int]]) -> list[float]:
    """Each block's part of the mean score of the set's preferences."""
    better, worse = zip(*edges, strict=True)
    scores = []
    for start in range(0, embeddings.shape[-1], 2):
        block = embeddings[..., start : start + 2].contiguous()
        scores.append(ops.score_matrix(block)[:, list(better), list(worse)].mean().item())
    return scores


def _draw_block(axes: Axes, points: np.ndarray, edges: Sequence[tuple[int, int]]) -> None:
    circle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(circle), np.sin(circle), color=_MUTED, linewidth=0.7, linestyle=":")
    axes.axhline(0, color=_MUTED, linewidth=0.5)
    axes.axvline(0, color=_MUTED, linewidth=0.5)
    centres = points.mean(axis=0)
    for index, criterion in enumerate(CRITERIA):
        axes.scatter(
            points[:, index, 0],
            points[:, index, 1],
            s=20,
            color=COLORS[criterion],
            alpha=0.45,
            linewidths=0,
        )
    for better, worse in edges:
        _arrow(axes, centres[better], centres[worse], bend=0.18, shrink=5)
    for index, criterion in enumerate(CRITERIA):
        axes.scatter(
            centres[index, 0],
            centres[index, 1],
            s=110,
            color=COLORS[criterion],
            edgecolors="white",
            linewidths=1.4,
            zorder=5,
            label=label(criterion),
        )
    axes.set(xlim=(-1.08, 1.08), ylim=(-1.08, 1.08), aspect="equal")
    _quiet(axes)


def draw_blocks(path: Path, embeddings: Tensor, preference_set: PreferenceSet) -> Path:
    """The two-dimensional blocks of held-out responses' embeddings, one panel for each.

    Args:
        path: of the PNG file.
        embeddings: (N, K, d) of N prompts' responses in the order of ``CRITERIA``.
        preference_set: its preferences are drawn as arrows between the criteria's means.
    """
    blocks = embeddings.shape[-1] // 2
    edges = _edge_indices(preference_set)
    scores = _block_scores(embeddings, edges)
    figure = _figure(max(4.4 * blocks, 7.4), 5.3)
    panels = figure.subplots(1, blocks, squeeze=False)[0]
    points = embeddings.numpy()
    for block, axes in enumerate(panels):
        _draw_block(axes, points[..., 2 * block : 2 * block + 2], edges)
        axes.set_title(
            f"block {block + 1}: mean score of the cycle's pairs {scores[block]:.2f}",
            fontsize=10,
        )
    figure.suptitle(
        f"Embeddings of {len(points)} held-out prompts' responses. A response beats what lies\n"
        "counterclockwise of it; arrows between the means point from chosen to rejected",
        fontsize=11,
    )
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(CRITERIA), fontsize=9, frameon=False
    )
    return _save(figure, path)


def _draw_win_rate(axes: Axes, against_start: dict[str, Any]) -> None:
    lines = (
        ("gpm", "win_rate_truth", "GPO on GPM, judged by the ratings", "#0072B2", "-"),
        ("gpm", "win_rate_model", "GPO on GPM, judged by the GPM", "#0072B2", "--"),
        ("bt", "win_rate_truth", "GPO on BT, judged by the ratings", "#D55E00", "-"),
    )
    for kind, measure, name, color, style in lines:
        trace = against_start[kind][measure]
        axes.plot([row["mean"] for row in trace], style, color=color, label=name, linewidth=1.8)
        low, high = [row["low"] for row in trace], [row["high"] for row in trace]
        axes.fill_between(range(len(trace)), low, high, color=color, alpha=0.13, linewidth=0)
    axes.axhline(0.5, color=_MUTED, linewidth=0.8, linestyle=":")
    axes.set(ylim=(0.4, 1.0), ylabel="P(policy > start)")
    axes.set_title("Win rate against the start policy (95 % over prompts)", fontsize=10)
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _draw_shares(
    axes: Axes, shares: Sequence[Sequence[float]], style: str = "-", named: bool = True
) -> None:
    for index, criterion in enumerate(CRITERIA):
        axes.plot(
            [share[index] for share in shares],
            style,
            color=COLORS[criterion],
            linewidth=1.8,
            label=label(criterion) if named else None,
        )
    axes.set(ylim=(0, 1), ylabel="share of the policy")


def _draw_best_response(axes: Axes, self_play: dict[str, Any]) -> None:
    for name, color in (("current", "#D55E00"), ("average", "#0072B2")):
        for judge, style in (("truth", "-"), ("model", "--")):
            judged = "ratings" if judge == "truth" else "GPM"
            axes.plot(
                self_play[name][f"best_response_{judge}"],
                style,
                color=color,
                linewidth=1.6,
                label=f"{name} policy, by the {judged}",
            )
    axes.axhline(0.5, color=_MUTED, linewidth=0.8, linestyle=":")
    axes.set(ylim=(0.48, 1.14), ylabel="its win rate")
    axes.set_yticks([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    axes.set_title("Self-play: the best response to the policy (0.5: none)", fontsize=10)
    axes.legend(fontsize=8, frameon=False, ncols=2, loc="upper right")


def draw_gpo(path: Path, gpo: dict[str, Any]) -> Path:
    """Win rates and the policy's shares over GPO's iterations, from ``summarize_gpo``."""
    figure = _figure(11.6, 7.2)
    (win, moved), (beaten, circling) = figure.subplots(2, 2)
    _draw_win_rate(win, gpo["against_start"])
    _draw_shares(moved, gpo["against_start"]["gpm"]["share"])
    moved.set_title("GPO on GPM against the start: what the policy plays", fontsize=10)
    moved.legend(fontsize=8, frameon=False, loc="center right")
    _draw_best_response(beaten, gpo["self_play"])
    _draw_shares(circling, gpo["self_play"]["current"]["share"])
    _draw_shares(circling, gpo["self_play"]["average"]["share"], "--", named=False)
    circling.axhline(1 / len(CRITERIA), color=_MUTED, linewidth=0.8, linestyle=":")
    circling.set_title("Self-play circles; dashed: average so far (dotted: uniform)", fontsize=10)
    for axes in (win, moved, beaten, circling):
        axes.set_xlabel("iteration")
        _quiet(axes)
    figure.suptitle("General Preference Optimization on held-out prompts", fontsize=12)
    return _save(figure, path)
