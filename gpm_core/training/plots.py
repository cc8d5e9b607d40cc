"""Plots of a run, as PNG files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from gpm_core.data.files import atomic_file
from gpm_core.evaluation.metrics import reliability
from gpm_core.training.loop import History
from gpm_core.training.objective import Evaluation

TRAIN, HELDOUT = "#7a7a7a", "#0b6fa4"


def write_plots(
    folder: Path,
    history: History,
    train: Evaluation | None,
    heldout: Evaluation,
    target: Tensor | None,
) -> None:
    """Write curves.png, reliability.png and scores.png to ``folder``.

    Args:
        folder: made if needed.
        history: of the training.
        train: of the training pairs, or None.
        heldout: of the held-out pairs.
        target: (P,) of the held-out pairs, or None for 1.
    """
    folder.mkdir(exist_ok=True)
    _curves(folder / "curves.png", history)
    _reliability(folder / "reliability.png", heldout, target)
    _scores(folder / "scores.png", train, heldout)


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    # Figures without pyplot need no display and leave no global state behind.
    figure = Figure(figsize=(5 * columns, 4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]


def _save(figure: Figure, path: Path) -> None:
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def _curves(path: Path, history: History) -> None:
    figure, (loss, accuracy) = _figure(2)
    epochs = [record.epoch for record in history.epochs]
    for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
        for side, color in (("train", TRAIN), ("heldout", HELDOUT)):
            values = [getattr(record, f"{side}_{name}") for record in history.epochs]
            if None not in values:
                axes.plot(epochs, values, marker="o", markersize=3, color=color, label=side)
        axes.set(xlabel="epoch", ylabel=name)
        axes.legend()
    _save(figure, path)


def _reliability(path: Path, heldout: Evaluation, target: Tensor | None) -> None:
    figure, (axes,) = _figure(1)
    groups = reliability(heldout.probability, target)
    axes.plot([0.5, 1], [0.5, 1], color=TRAIN, linestyle=":", label="perfectly calibrated")
    axes.scatter(
        [group.confidence for group in groups],
        [group.accuracy for group in groups],
        s=[20 + 400 * group.count / len(heldout.score) for group in groups],
        color=HELDOUT,
        label="held-out pairs (area: how many)",
    )
    axes.set(
        xlabel="probability of the likelier side", ylabel="how often it was preferred", ylim=(0, 1)
    )
    axes.legend(loc="lower right")
    _save(figure, path)


def _scores(path: Path, train: Evaluation | None, heldout: Evaluation) -> None:
    figure, (axes,) = _figure(1)
    for evaluation, color, name in ((train, TRAIN, "train"), (heldout, HELDOUT, "heldout")):
        if evaluation is None:
            continue
        axes.hist(
            evaluation.score.numpy(), bins=40, density=True, alpha=0.6, color=color, label=name
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="score of chosen over rejected", ylabel="density of pairs")
    axes.legend()
    _save(figure, path)
