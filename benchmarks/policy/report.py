"""The report of the recorded alignment."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gpm_core.data.files import atomic_file, read_json, write_json
from gpm_core.evaluation import Estimate, IterateComparison

NAME = "policy"
PICTURES = ("win_rates.png", "against_start.png")


def write(
    output: Path,
    work: Path,
    names: Sequence[str],
    comparisons: Mapping[str, IterateComparison],
    command: str,
) -> None:
    """Write policy.json, the tables of it as policy-tables.md, and figures, to ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    metrics = {name: read_json(work / name / "metrics.json") for name in names}
    judges = {name: read_json(work / name / "metrics.json") for name in ("judge", "other-judge")}
    record = {
        "command": command,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "judges": {name: each["heldout"] for name, each in judges.items()},
        "runs": {name: _without_places(each, work) for name, each in metrics.items()},
        "comparisons": {name: each.to_dict() for name, each in comparisons.items()},
    }
    write_json(output / f"{NAME}.json", record)
    tables = [_iterates(comparisons), _pairs(comparisons["judge"]), _cost(metrics)]
    with atomic_file(output / f"{NAME}-tables.md") as partial:
        partial.write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    for picture in PICTURES:
        shutil.copy(work / "comparison" / "judge" / picture, output / f"{NAME}_{picture}")


def _without_places(metrics: Mapping[str, Any], work: Path) -> dict[str, Any]:
    """Metrics without the folders of the machine that they were made on."""
    settings = dict(metrics["settings"])
    settings["policy"] = "SmolLM2-135M-Instruct"
    settings["judge"] = os.path.relpath(settings["judge"], work)
    settings["eval_judges"] = [os.path.relpath(each, work) for each in settings["eval_judges"]]
    return {**metrics, "settings": settings}


def _cell(estimate: Estimate | None, digits: int = 3) -> str:
    if estimate is None:
        return "-"
    value = f"{estimate.value:.{digits}f}"
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    marks = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, marks, *rows))


def _iterates(comparisons: Mapping[str, IterateComparison]) -> str:
    judge, other = comparisons["judge"], comparisons["eval-judge-1"]
    rows = []
    for i, name in enumerate(judge.names):
        rows.append(
            [
                name,
                _cell(judge.against_start[i]),
                _cell(judge.length_controlled_against_start[i]),
                _cell(other.against_start[i]),
                _cell(judge.lengths[i], 1),
                "-" if judge.kl is None else _cell(judge.kl[i], 2),
                f"{judge.nash[i].value:.2f}",
            ]
        )
    head = ["iterate", "win rate", "at equal length", "by the other judge", "tokens", "KL", "Nash"]
    return _table(head, rows)


def _pairs(comparison: IterateComparison) -> str:
    rows = [
        [name, *(_cell(cell) for cell in row)]
        for name, row in zip(comparison.names, comparison.win_rates, strict=True)
    ]
    return _table(["", *comparison.names], rows)


def _cost(metrics: Mapping[str, Any]) -> str:
    """Seconds of each stage, and the most memory."""
    rows = []
    for name, each in metrics.items():
        memory = each["peak_memory_bytes"]["process"] / 2**30
        for entry in each["iterations"]:
            seconds = entry["seconds"]
            rows.append(
                [
                    f"{name}-{entry['iteration']}" if entry["iteration"] else f"{name}: start",
                    *(
                        f"{seconds[stage]:.0f}" if stage in seconds else "-"
                        for stage in ("sampling", "judgements", "training")
                    ),
                    f"{sum(s for n, s in seconds.items() if n.startswith('heldout')):.0f}",
                    f"{memory:.1f}",
                ]
            )
    return _table(["", "sampling, s", "judging, s", "training, s", "evaluation, s", "GiB"], rows)
