"""From recorded runs to a table with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpm_core.data import PreferencePair
from gpm_core.evaluation import Bootstrap, calibration_error, mean_interval

BASELINE = "Bradley-Terry"
#: The same with the temperature of all other heads, and so with logits that move as fast.
SAME_TAU = "Bradley-Terry, tau = 0.1"


def prompt_numbers(pairs: Sequence[PreferencePair]) -> Tensor:
    """(P,) which prompt each pair belongs to, the unit that is resampled."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(pair.prompt, len(numbers)) for pair in pairs])


def summarize(runs: list[dict[str, Any]], pairs: Sequence[PreferencePair]) -> list[dict[str, Any]]:
    """One record per setting, over the seeds that all settings have.

    Differences of accuracies are of the same pairs: from :data:`BASELINE` and :data:`SAME_TAU`.
    """
    names = list(dict.fromkeys(run["setting"] for run in runs))
    seeds = sorted(
        set.intersection(*({r["seed"] for r in runs if r["setting"] == n} for n in names))
    )
    by_key = {(run["setting"], run["seed"]): run for run in runs}
    prompts = prompt_numbers(pairs)
    heldout = torch.cat([torch.tensor(by_key[BASELINE, seed]["heldout"]) for seed in seeds])
    baselines = {
        "difference": _correct([by_key[BASELINE, seed] for seed in seeds]),
        "difference_same_tau": _correct([by_key[SAME_TAU, seed] for seed in seeds]),
    }
    records = []
    for name in names:
        some = [by_key[name, seed] for seed in seeds]
        correct = _correct(some)
        probability = torch.cat([torch.tensor(run["probability"]) for run in some]).double()
        accuracy = Bootstrap().share(correct, prompts[heldout])
        differences = {
            key: Bootstrap().mean(correct - baseline, prompts[heldout])
            for key, baseline in baselines.items()
        }
        records.append(
            {
                "setting": name,
                "seeds": seeds,
                "accuracy": [accuracy.value, accuracy.low, accuracy.high],
                **{key: [gap.value, gap.low, gap.high] for key, gap in differences.items()},
                "log_loss": float(-probability.clamp(1e-7, 1).log().mean()),
                "calibration_error": calibration_error(probability),
                "train_accuracy": _mean(run["train_accuracy"] for run in some),
                "seconds": _mean(run["seconds"] for run in some),
                "peak_memory_gib": max(run["peak_memory_bytes"] for run in some) / 2**30,
                "trained_parameters": some[0]["trained_parameters"],
            }
        )
    return records


def table(records: list[dict[str, Any]]) -> str:
    """Markdown, one row per setting."""
    lines = [
        "| head | held-out accuracy | minus Bradley-Terry | minus the same at tau = 0.1 "
        "| log loss | ECE | train accuracy | s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        value, low, high = record["accuracy"]
        name = record["setting"]
        versus = "" if name == BASELINE else _gap(record["difference"])
        same_tau = "" if name == SAME_TAU else _gap(record["difference_same_tau"])
        lines.append(
            f"| {name} | {value:.3f} [{low:.3f}, {high:.3f}] | {versus} | {same_tau} | "
            f"{record['log_loss']:.3f} | {record['calibration_error']:.3f} | "
            f"{record['train_accuracy']:.3f} | {record['seconds']:.0f} |"
        )
    return "\n".join(lines)


def study_table(records: list[dict[str, Any]]) -> str:
    """Markdown of :func:`benchmarks.smollm2.heads.study`, means and t-intervals over seeds."""
    lines = [
        "| head | standardized | raw |",
        "|---|---:|---:|",
    ]
    for name in dict.fromkeys(record["head"] for record in records):
        cells = []
        for scaled in (True, False):
            some = [r for r in records if r["head"] == name and r["standardized"] == scaled]
            mean, _, high = mean_interval([r["heldout_accuracy"] for r in some])
            spread = "" if math.isnan(high) else f" ± {high - mean:.3f}"
            fit = _mean(r["train_accuracy"] for r in some)
            cells.append(f"{mean:.3f}{spread} (train {fit:.3f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _gap(difference: Sequence[float]) -> str:
    gap, least, most = difference
    return f"{gap:+.3f} [{least:+.3f}, {most:+.3f}]"


def _correct(runs: list[dict[str, Any]]) -> Tensor:
    score = torch.cat([torch.tensor(run["score"]) for run in runs]).double()
    return (torch.sign(score) + 1) / 2


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)
