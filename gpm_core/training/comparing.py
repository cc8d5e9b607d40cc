"""Comparing heads on the same data, features, divisions and settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpm_core.data.pairs import PreferencePair
from gpm_core.data.splitting import check_disjoint, split_indices
from gpm_core.evaluation.metrics import calibration_error, mean_interval
from gpm_core.models.preference_model import PreferenceModel
from gpm_core.training.features import pair_features, pair_index
from gpm_core.training.fit import fit_head, standardization
from gpm_core.training.objective import Evaluation, PairIndex, evaluate_pairs
from gpm_core.training.options import BackboneOptions, HeadOptions, RunOptions
from gpm_core.training.settings import FitSettings

#: What ``compare`` trains by default.
HEADS: dict[str, HeadOptions] = {
    "Bradley-Terry": HeadOptions("bt"),
    "GPM, anchored": HeadOptions("gpm"),
    "GPM, paper's initialisation": HeadOptions("gpm", init="paper"),
    "Hybrid": HeadOptions("hybrid"),
}
#: The baseline that reads pairs, which costs more with each response.
PAIR_HEAD: dict[str, HeadOptions] = {"Pair": HeadOptions("pair")}


@dataclass(frozen=True)
class HeadResult:
    """What one head reached, one number per seed in each list, and what it costs in use.

    ``head_evaluations`` is how often the head is evaluated for all pairs of K responses, "K" or
    "K^2"; each response passes through the backbone once for all heads alike.
    """

    heldout_accuracy: list[float] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    heldout_loss: list[float] = field(default_factory=list)
    calibration_error: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    head_evaluations: str = "K"


@dataclass(frozen=True)
class Comparison:
    """Results by head, and how they were obtained.

    Attributes:
        heads: by the name shown.
        seeds: one training per head and seed.
        pairs: how many there are, held-out ones included.
        heldout_fraction: share of them that each seed held out; None where held-out pairs were
            given apart.
        heldout_pairs: how many those were, or None.
        feature_seconds: the backbone's.
        settings: of the fits, the backbone and, by the name shown, the heads.
    """

    heads: dict[str, HeadResult]
    seeds: list[int]
    pairs: int
    heldout_fraction: float | None
    heldout_pairs: int | None
    feature_seconds: float
    settings: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """As JSON, means and intervals included (null where one seed gives no interval)."""
        result = asdict(self)
        for name, head in self.heads.items():
            mean, low, high = mean_interval(head.heldout_accuracy)
            result["heads"][name]["heldout_accuracy_mean"] = mean
            result["heads"][name]["heldout_accuracy_interval_95"] = (
                [low, high] if len(self.seeds) > 1 else None
            )
        return result

    def markdown(self) -> str:
        """A table, one row per head: mean over seeds, with Student's 95 % t-interval."""
        lines = [
            "| head | held-out accuracy | train accuracy | held-out loss | ECE | seconds "
            "| evaluations |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, head in self.heads.items():
            mean, _, high = mean_interval(head.heldout_accuracy)
            spread = f" ± {high - mean:.3f}" if len(self.seeds) > 1 else ""
            others = [
                mean_interval(values)[0]
                for values in (head.train_accuracy, head.heldout_loss, head.calibration_error)
            ]
            cells = " | ".join(f"{value:.3f}" for value in others)
            seconds = mean_interval(head.seconds)[0]
            lines.append(
                f"| {name} | {mean:.3f}{spread} | {cells} | {seconds:.1f} "
                f"| {head.head_evaluations} |"
            )
        return "\n".join(lines)


def compare(
    pairs: Sequence[PreferencePair],
    *,
    seeds: Sequence[int] = range(5),
    heads: dict[str, HeadOptions] | None = None,
    backbone: BackboneOptions | None = None,
    fit: FitSettings | None = None,
    heldout: Sequence[PreferencePair] | None = None,
    heldout_fraction: float = 0.2,
    cache: Path | None = None,
    progress: bool = False,
) -> Comparison:
    """Train several heads on the same features, over several random divisions by prompt.

    A seed decides the division, the initial weights and the order of pairs, so that in one seed all
    heads see the same. Features are computed once. Where held-out pairs are given, there is one
    division, and intervals over seeds tell nothing of the choice of pairs.

    Args:
        pairs: the data.
        seeds: one training per head and seed.
        heads: by the name to show; None for :data:`HEADS`.
        backbone: a frozen one; None for the default.
        fit: settings of all heads; its own seed is not used.
        heldout: pairs to hold out, none of whose prompts is in ``pairs``; None: a share of these.
        heldout_fraction: that share.
        cache: folder to keep features in.
        progress: show progress on stderr.

    Raises:
        ValueError: without seeds, if ``pairs`` cannot be divided, or ``heldout`` has their prompts.
    """
    heads = HEADS if heads is None else heads
    backbone = BackboneOptions() if backbone is None else backbone
    fit = FitSettings() if fit is None else fit
    if not seeds:
        raise ValueError("seeds must hold at least one number; got none")
    divisions = _divisions(pairs, heldout, heldout_fraction, seeds)
    pairs = [*pairs, *(heldout or ())]
    started = time.perf_counter()
    model = RunOptions(backbone=backbone).build_model()
    features, prompts = pair_features(
        model,
        pairs,
        with_prompts=any(head.uses_prompt for head in heads.values()),
        cache=cache,
        batch_size=backbone.encode_batch_size,
        progress=progress,
    )
    feature_seconds = time.perf_counter() - started
    results = {name: HeadResult(head_evaluations=head.evaluations) for name, head in heads.items()}
    for seed, division in zip(seeds, divisions, strict=True):
        train_head = _prepare(model, pairs, division, features, prompts, replace(fit, seed=seed))
        for name, head in heads.items():
            train_head(head, results[name])
    settings = {
        "fit": fit.as_dict(),
        "backbone": asdict(backbone),
        "heads": {name: head.as_dict() for name, head in heads.items()},
    }
    del settings["fit"]["seed"]
    return Comparison(
        results,
        list(seeds),
        len(pairs),
        heldout_fraction if heldout is None else None,
        None if heldout is None else len(heldout),
        feature_seconds,
        settings,
    )


def _divisions(
    pairs: Sequence[PreferencePair],
    heldout: Sequence[PreferencePair] | None,
    heldout_fraction: float,
    seeds: Sequence[int],
) -> list[tuple[list[int], list[int]]]:
    """For each seed the rows to train on and those to hold out, the latter behind ``pairs``."""
    if heldout is None:
        return [split_indices(pairs, heldout_fraction, seed) for seed in seeds]
    if not pairs or not heldout:
        raise ValueError(
            "there must be pairs to train on and pairs to hold out; got "
            f"{len(pairs)} and {len(heldout)}"
        )
    check_disjoint(pairs, heldout)
    count = len(pairs)
    division = list(range(count)), list(range(count, count + len(heldout)))
    return [division] * len(seeds)


def _prepare(
    model: PreferenceModel,
    pairs: Sequence[PreferencePair],
    division: tuple[list[int], list[int]],
    features: Tensor,
    prompts: Tensor | None,
    fit: FitSettings,
) -> Callable[[HeadOptions, HeadResult], None]:
    """A function that trains one head on this division and appends what it reached."""
    train, heldout = (pair_index(pairs, rows) for rows in division)
    mean, std = standardization(features[torch.cat((train.chosen, train.rejected))])
    standardized = (features - mean) / std
    gates = None
    if prompts is not None:
        mean, std = standardization(prompts[division[0]])
        gates = (prompts - mean) / std

    def train_head(options: HeadOptions, result: HeadResult) -> None:
        started = time.perf_counter()
        with torch.random.fork_rng():
            torch.manual_seed(fit.seed)
            head = options.build(model.feature_size)
        temperature = options.build_temperature(head)
        fit_head(
            head,
            standardized,
            train.chosen,
            train.rejected,
            gates,
            train.margin,
            train.target,
            fit,
            prompt_index=train.prompt,
            temperature=temperature,
        )
        result.seconds.append(time.perf_counter() - started)

        def evaluated(some: PairIndex) -> Evaluation:
            return evaluate_pairs(head, standardized, some, gates, fit, temperature)

        final = evaluated(heldout)
        result.heldout_accuracy.append(final.accuracy)
        result.heldout_loss.append(final.mean_loss)
        result.calibration_error.append(calibration_error(final.probability, heldout.target))
        result.train_accuracy.append(evaluated(train).accuracy)

    return train_head
