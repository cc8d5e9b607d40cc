"""Iterated alignment: sample, judge, train, and again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpm_core._version import __version__
from gpm_core.data.files import read_json, write_json
from gpm_core.data.messages import Message
from gpm_core.data.pairs import PreferencePair
from gpm_core.data.prompts import distinct_prompts, load_prompts
from gpm_core.data.splitting import check_disjoint, split_indices
from gpm_core.policy.evaluation import evaluate_policies
from gpm_core.policy.options import GPOOptions
from gpm_core.policy.reuse import take_over
from gpm_core.policy.stages import Stages
from gpm_core.policy.targets import judgement_summary
from gpm_core.policy.training import LOG, train_stage
from gpm_core.training.folder import check_run_folder, claim_run_folder
from gpm_core.training.tuning import peak_memory


@dataclass(frozen=True)
class AlignmentResult:
    """What a run gave: the folder of its last iterate, and its metrics (as in metrics.json)."""

    policy: Path
    metrics: dict[str, Any]


def align(
    prompts: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: GPOOptions,
    *,
    iterations: int = 3,
    eval_prompts: str | os.PathLike[str] | None = None,
    reuse: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: bool = False,
) -> AlignmentResult:
    """Align a language model with a preference model, by iterations of any objective.

    Each iteration (arXiv 2410.02197, section 5) samples K responses to each prompt from the
    current iterate, has the judge embed each of them once, makes targets of the scores of all
    pairs, and trains the next iterate on them. Before the first and after each, responses to
    held-out prompts are sampled, and all iterates so far are compared by them.

    The output folder gets run.json (settings and digests of the data, written first), prompts/,
    and for each iteration iteration-001/ and so on with responses/ and targets/ (parquet),
    judgements/ (safetensors), training.json, policy/ (the iterate: adapter or model) and heldout/;
    evaluation/ with a report for each judge, and at the very end metrics.json. Each file is whole
    or not there. A run that was stopped goes on with what is missing; one that has ended goes on
    with more iterations. Equal seeds, prompts, settings and numbers of threads give equal results
    on a processor, also when resumed.

    Under ``accelerate launch`` or ``torchrun`` all processes call it, on a file system that they
    share: they divide the files of each stage among them, and train together.

    Args:
        prompts: to align on: a file, a folder or a hub name, as
            :func:`gpm_core.data.load_prompts` reads them.
        output: the run's folder; made if needed.
        options: see :class:`GPOOptions`.
        iterations: how many iterates to train.
        eval_prompts: held-out prompts; None: a share of ``prompts``, drawn by the seed. Prompts
            that are in both are an error.
        reuse: folder of another run, from whose samples of the start this one begins, which differs
            in how it trains alone: a comparison on the same samples.
        resume: go on with the run that is there, or start one if there is none.
        progress: show progress bars on stderr.

    Raises:
        FileExistsError: if there is a run in ``output`` already and ``resume`` is false, or other
            files are.
        OSError: if ``output`` cannot be written to, or there is no such policy or judge.
        TypeError: for a judge without embeddings.
        ValueError: for bad data, or if settings differ from those of the run to resume or reuse.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    output = Path(output)
    description = check_run_folder(output, options.as_dict(), prompts, eval_prompts, resume)
    train, heldout = _divided(prompts, eval_prompts, options)
    stages = Stages(options, output, progress=progress)
    # All are to have looked at the folder before it changes.
    stages.processes.wait()
    if stages.processes.first:
        claim_run_folder(output, description)
        if reuse is not None:
            take_over(Path(reuse), output, description)
        stages.write_prompts("train", train, None)
        stages.write_prompts("heldout", heldout, options.heldout_prompts)
    stages.processes.wait()
    _evaluate(stages, 0)
    for number in range(1, iterations + 1):
        _iterate(stages, number)
        _evaluate(stages, number)
    metrics = _metrics(stages, iterations)
    if stages.processes.first:
        write_json(output / "metrics.json", metrics)
    policy = stages.policy(iterations)
    assert policy is not None
    return AlignmentResult(policy, metrics)


def _divided(
    prompts: str | os.PathLike[str],
    eval_prompts: str | os.PathLike[str] | None,
    options: GPOOptions,
) -> tuple[list[tuple[Message, ...]], list[tuple[Message, ...]]]:
    """Prompts to train on, and held-out ones, none of which is on both sides."""
    train = load_prompts(prompts)
    if eval_prompts is not None:
        heldout = load_prompts(eval_prompts)
        check_disjoint(_as_pairs(train), _as_pairs(heldout))
        return train, heldout
    inside, outside = split_indices(_as_pairs(train), options.heldout_fraction, options.seed)
    return [train[i] for i in inside], [train[i] for i in outside]


def _as_pairs(prompts: Sequence[tuple[Message, ...]]) -> list[PreferencePair]:
    return [PreferencePair(prompt, "", "") for prompt in distinct_prompts(prompts)]


def _iterate(stages: Stages, number: int) -> None:
    """Train iterate ``number`` on what the one before it says."""
    folder = stages.iteration(number)
    title = f"iteration {number}"
    if stages.processes.first:
        folder.mkdir(exist_ok=True)
    stages.processes.wait()
    done = (folder / "policy").exists()
    stages.processes.wait()
    if done:
        return
    stages.sample(number - 1, stages.iteration_prompts(number), folder, f"{title}: sampling")
    judged = stages.judge(stages.options.judge, folder, f"{title}: judging")
    targets = stages.targets(number, folder, judged)
    with stages.timed(folder, "training"):
        train_stage(
            stages.options,
            number,
            targets,
            stages.policy(number - 1),
            stages.tokenizer,
            folder,
            stages.processes,
            progress=stages.progress,
        )


def _evaluate(stages: Stages, number: int) -> None:
    """Sample and judge responses of iterate ``number`` to held-out prompts; compare all so far."""
    folder = stages.iteration(number) / "heldout"
    if stages.processes.first:
        folder.mkdir(parents=True, exist_ok=True)
    stages.processes.wait()
    title = f"iterate {number}"
    prompts = stages.prompts("heldout")
    stages.sample(number, prompts, folder, f"{title}: held-out responses", purpose="heldout")
    stages.logps(number, folder, "logps", f"{title}: log-probabilities")
    if number:
        stages.logps(0, folder, "start_logps", f"{title}: log-probabilities under the start")
    for place, judge in enumerate((stages.options.judge, *stages.options.eval_judges)):
        stages.judge(judge, folder, f"{title}: judging", f"judgements-{place}")
    if stages.processes.first and number:
        evaluate_policies([stages.output], stages.output / "evaluation", iterations=number)
    stages.processes.wait()


def _metrics(stages: Stages, iterations: int) -> dict[str, Any]:
    """What metrics.json holds."""
    per_iteration = []
    for number in range(iterations + 1):
        folder = stages.iteration(number)
        entry: dict[str, Any] = {"iteration": number, "seconds": {}}
        for where, prefix in ((folder, ""), (folder / "heldout", "heldout ")):
            if (where / "seconds.json").exists():
                for name, seconds in read_json(where / "seconds.json").items():
                    entry["seconds"][prefix + name] = seconds
        if number:
            entry["judgements"] = judgement_summary(sorted((folder / "judgements").glob("*")))
            entry["training"] = _last_logs(read_json(folder / LOG))
        per_iteration.append(entry)
    comparisons = sorted((stages.output / "evaluation").glob("*/comparison.json"))
    return {
        "iterations": per_iteration,
        "evaluation": {path.parent.name: _summary(read_json(path)) for path in comparisons},
        "settings": stages.options.as_dict(),
        "processes": stages.processes.count,
        "versions": {"gpm_core": __version__, "torch": torch.__version__},
        "peak_memory_bytes": peak_memory(),
    }


def _summary(comparison: dict[str, Any]) -> dict[str, Any]:
    """What a comparison says of each iterate; all of it is in evaluation/."""
    columns = ("against_start", "length_controlled_against_start", "lengths", "kl", "nash")
    return {
        name: {column: comparison[column][place] for column in columns}
        for place, name in enumerate(comparison["names"])
    }


def _last_logs(log: list[dict[str, Any]]) -> dict[str, Any]:
    """The last value of each figure that was logged in training."""
    last: dict[str, Any] = {}
    for entry in log:
        last.update(entry)
    return last
