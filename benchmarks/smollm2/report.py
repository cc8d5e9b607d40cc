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


def prompt_numbers(pairs: Sequence[PreferencePair]) -> Tensor:
    """(P,) which prompt each pair belongs to, the unit that is resampled."""
    numbers: dict[Any, int] = {}
    return torch.tensor([numbers.setdefault(pair.prompt, len(numbers)) for pair in pairs])


def summarize(runs: list[dict[str, Any]], pairs: Sequence[PreferencePair]) -> list[dict[str, Any]]:
    """One record per setting, over the seeds that all settings have."""
    names = list(dict.fromkeys(run["setting"] for run in runs))
    seeds = sorted(
        set.intersection(*({r["seed"] for r in runs if r["setting"] == n} for n in names))
    )
    by_key = {(run["setting"], run["seed"]): run for run in runs}
    prompts = prompt_numbers(pairs)
    heldout = torch.cat([torch.tensor(by_key[BASELINE, seed]["heldout"]) for seed in seeds])
    baseline = _correct([by_key[BASELINE, seed] for seed in seeds])
    records = []
    for name in names:
        some = [by_key[name, seed] for seed in seeds]
        correct = _correct(some)
        probability = torch.cat([torch.tensor(run["probability"]) for run in some]).double()
        accuracy = Bootstrap().share(correct, prompts[heldout])
        difference = Bootstrap().mean(correct - baseline, prompts[heldout])
        records.append(
            {
                "setting": name,
                "seeds": seeds,
                "accuracy": [accuracy.value, accuracy.low, accuracy.high],
                "difference": [difference.value, difference.low, difference.high],
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
        "| head | held-out accuracy | minus Bradley-Terry | log loss | ECE | train accuracy | s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for record in records:
        value, low, high = record["accuracy"]
        gap, least, most = record["difference"]
        versus = "" if record["setting"] == BASELINE else f"{gap:+.3f} [{least:+.3f}, {most:+.3f}]"
        lines.append(
            f"| {record['setting']} | {value:.3f} [{low:.3f}, {high:.3f}] | {versus} | "
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


def _correct(runs: list[dict[str, Any]]) -> Tensor:
    score = torch.cat([torch.tensor(run["score"]) for run in runs]).double()
    return (torch.sign(score) + 1) / 2


def _mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)
