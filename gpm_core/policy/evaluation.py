"""Reports on the iterates of one run, or of several against each other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpm_core.data.files import read_json
from gpm_core.evaluation import IterateComparison, compare_iterates, write_iterates_report
from gpm_core.policy.heldout import mean_lengths, read_logps, win_rates
from gpm_core.policy.shards import all_rows
from gpm_core.training.folder import RUN


@dataclass(frozen=True)
class _Iterate:
    """Where the held-out responses of an iterate are, and what it is called."""

    name: str
    folder: Path

    def files(self, name: str) -> list[Path]:
        """Files of a stage, in order."""
        return sorted((self.folder / name).glob("[0-9]*"))


def evaluate_policies(
    runs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]
) -> dict[str, IterateComparison]:
    """Compare the start and all iterates of runs of :func:`gpm_core.policy.align`, by each judge.

    Runs must have started from the same policy and have the same held-out prompts and judges.
    Samples of the start are those of the first run.

    Args:
        runs: folders of runs, of which each may be under way.
        output: gets a folder for each judge: "judge", that which the runs were trained by, and
            "eval-judge-1" and so on, with comparison.json, comparison.md and figures.

    Returns:
        The comparison by each judge.

    Raises:
        FileNotFoundError: if a folder holds no run, or one without an evaluated iterate.
        ValueError: if runs differ in what they must share.
    """
    folders, output = [Path(run) for run in runs], Path(output)
    settings = [_settings(run) for run in folders]
    _check_same(folders, settings)
    names = _names(folders, settings)
    start = _Iterate("start", _heldout(folders[0], 0))
    iterates = [start]
    judges = 1 + len(settings[0]["eval_judges"])
    for run, name in zip(folders, names, strict=True):
        found = _evaluated(run, judges)
        if not found:
            raise FileNotFoundError(f"{run}: no iterate of this run has been evaluated")
        iterates += [_Iterate(f"{name}-{number}", _heldout(run, number)) for number in found]
    lengths = torch.stack([mean_lengths(each.files("responses")) for each in iterates], dim=1)
    kl = torch.stack([_kl(each) for each in iterates], dim=1)
    comparisons = {}
    for place in range(judges):
        files = [each.files(f"judgements-{place}") for each in iterates]
        comparison = compare_iterates(
            win_rates(files), lengths, [each.name for each in iterates], kl=kl
        )
        name = f"eval-judge-{place}" if place else "judge"
        (output / name).mkdir(parents=True, exist_ok=True)
        write_iterates_report(comparison, output / name)
        comparisons[name] = comparison
    return comparisons


def _settings(run: Path) -> dict[str, Any]:
    if not (run / RUN).is_file():
        raise FileNotFoundError(f"{run}: not the folder of a run, it has no {RUN}")
    settings: dict[str, Any] = read_json(run / RUN)["settings"]
    if "objective" not in settings:
        raise ValueError(f"{run} is a run that trained no policy")
    return settings


def _check_same(runs: Sequence[Path], settings: Sequence[dict[str, Any]]) -> None:
    for run, each in zip(runs[1:], settings[1:], strict=True):
        for name in ("policy", "policy_options", "text_format", "judge", "eval_judges"):
            if each[name] != settings[0][name]:
                raise ValueError(
                    f"runs to compare must have the same {name}; {runs[0]} has "
                    f"{settings[0][name]!r} and {run} {each[name]!r}"
                )
        for name in ("max_new_tokens", "temperature", "top_p"):
            if each["sampling"][name] != settings[0]["sampling"][name]:
                raise ValueError(
                    f"runs to compare must sample alike; {name} is "
                    f"{settings[0]['sampling'][name]} in {runs[0]} and {each['sampling'][name]} in "
                    f"{run}"
                )
        prompts = [
            [row["prompt"] for row in all_rows([folder / "prompts" / "heldout.parquet"])]
            for folder in (runs[0], run)
        ]
        if prompts[0] != prompts[1]:
            raise ValueError(
                f"runs to compare must have the same held-out prompts; those of {runs[0]} and "
                f"{run} differ: give both the same eval_prompts"
            )


def _names(runs: Sequence[Path], settings: Sequence[dict[str, Any]]) -> list[str]:
    """Objectives, or where these do not tell runs apart the names of their folders."""
    objectives = [str(each["objective"]) for each in settings]
    return objectives if len(set(objectives)) == len(runs) else [run.name for run in runs]


def _heldout(run: Path, number: int) -> Path:
    return run / f"iteration-{number:03d}" / "heldout"


def _evaluated(run: Path, judges: int) -> list[int]:
    """Numbers of the iterates that all judges have judged."""
    found = []
    for folder in sorted(run.glob("iteration-*")):
        number = int(folder.name.removeprefix("iteration-"))
        each = _Iterate("", folder / "heldout")
        wanted = len(each.files("responses"))
        stages = ["logps", "start_logps", *(f"judgements-{place}" for place in range(judges))]
        if number and wanted and all(len(each.files(stage)) == wanted for stage in stages):
            found.append(number)
    return found


def _kl(iterate: _Iterate) -> torch.Tensor:
    """(P,) float64: mean of log pi(y) - log pi_start(y) over responses; 0 for the start itself."""
    own = read_logps(iterate.files("logps")).double()
    if iterate.name == "start":
        return torch.zeros(len(own), dtype=torch.float64)
    return (own - read_logps(iterate.files("start_logps")).double()).mean(dim=1)
