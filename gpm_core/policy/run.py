"""Iterated alignment: sample, judge, train, and again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpm_core._version import __version__
from gpm_core.data.files import PARTIAL, read_json, write_json
from gpm_core.data.messages import Message
from gpm_core.data.pairs import PreferencePair
from gpm_core.data.prompts import distinct_prompts, load_prompts
from gpm_core.data.splitting import check_disjoint, split_indices
from gpm_core.policy.evaluation import evaluate_policies
from gpm_core.policy.options import GPOOptions, training_config
from gpm_core.policy.reuse import take_over
from gpm_core.policy.sampling import resolve_engine
from gpm_core.policy.stages import Stages
from gpm_core.policy.targets import judgement_summary
from gpm_core.policy.training import LOG, train_stage
from gpm_core.training.folder import check_run_folder, claim_run_folder
from gpm_core.training.tuning import peak_memory

#: Options that may change when a run is resumed: they decide what fits into memory, and no result.
_OF_MEMORY = ("judge_batch_size", "vllm_options")


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
        FileNotFoundError: if there are no prompts, or no run to reuse.
        ModuleNotFoundError: without vLLM where it is chosen, or PEFT for "lora".
        FileExistsError: if there is a run in ``output`` already and ``resume`` is false, or other
            files are.
        OSError: if ``output`` cannot be written to, or there is no such policy or judge.
        ValueError: for bad data, a judge without embeddings, or if settings differ from those of
            the run to resume or reuse.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1; got {iterations}")
    output = Path(output)
    _refuse_sharding(options)
    resolve_engine(options)
    stages = Stages(options, output, progress=progress)
    # What the trainer would refuse is refused before anything is sampled.
    training_config(options, 1, output / "checkpoints", progress=False)
    settings = {k: v for k, v in options.as_dict().items() if k not in _OF_MEMORY}
    description = check_run_folder(output, settings, prompts, eval_prompts, resume)
    # All are to have looked at the folder before it changes.
    stages.processes.wait()
    if stages.processes.first:
        claim_run_folder(output, description)
        remove_partial_files(output)
        if reuse is not None:
            take_over(Path(reuse), output, description)
        _write_prompts(stages, prompts, eval_prompts)
    stages.processes.wait()
    _evaluate(stages, 0)
    for number in range(1, iterations + 1):
        is_new = _iterate(stages, number)
        _evaluate(stages, number)
        if stages.processes.first and (is_new or number == iterations):
            evaluate_policies([stages.output], stages.output / "evaluation")
        stages.processes.wait()
    metrics = _metrics(stages, iterations)
    if stages.processes.first:
        write_json(output / "metrics.json", metrics)
    policy = stages.policy(iterations)
    assert policy is not None
    return AlignmentResult(policy, metrics)


def _refuse_sharding(options: GPOOptions) -> None:
    """FSDP and DeepSpeed would have the reference run before they have set the model up."""
    variables = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    if any(os.environ.get(name, "false").lower() in ("true", "1") for name in variables) or any(
        options.trainer.get(name) for name in ("fsdp", "deepspeed")
    ):
        raise ValueError(
            "models are not sharded here: use several processes without FSDP and DeepSpeed (DDP), "
            "with LoRA and gradient checkpointing where memory is short"
        )


def remove_partial_files(output: Path) -> None:
    """Delete what killed processes left half written, anywhere in the folder of a run."""
    for path in list(output.rglob(f"{PARTIAL}*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write_prompts(
    stages: Stages, prompts: str | os.PathLike[str], eval_prompts: str | os.PathLike[str] | None
) -> None:
    """Prompts to train on, and held-out ones, none of which is on both sides."""
    names = ("train", "heldout")
    if all(stages.prompts(name).exists() for name in names):
        return
    options = stages.options
    train = load_prompts(prompts)
    if eval_prompts is not None:
        heldout = load_prompts(eval_prompts)
        check_disjoint(_as_pairs(train), _as_pairs(heldout))
    else:
        inside, outside = split_indices(_as_pairs(train), options.heldout_fraction, options.seed)
        train, heldout = [train[i] for i in inside], [train[i] for i in outside]
    stages.write_prompts("train", train, None)
    stages.write_prompts("heldout", heldout, options.heldout_prompts)


def _as_pairs(prompts: Sequence[tuple[Message, ...]]) -> list[PreferencePair]:
    return [PreferencePair(prompt, "", "") for prompt in distinct_prompts(prompts)]


def _iterate(stages: Stages, number: int) -> bool:
    """Train iterate ``number`` on what the one before it says; whether there was anything to do."""
    folder = stages.iteration(number)
    title = f"iteration {number}"
    if stages.processes.first:
        folder.mkdir(exist_ok=True)
    if stages.processes.agreed((folder / "policy").exists()):
        if stages.processes.first:
            shutil.rmtree(folder / "training", ignore_errors=True)
        return False
    prompts = stages.iteration_prompts(number)
    sampled = stages.sample(number - 1, prompts, folder, f"{title}: sampling")
    judged = stages.judge(stages.options.judge, sampled, folder, f"{title}: judging")
    targets = stages.targets(number, folder, sampled, judged)
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
    return True


def _evaluate(stages: Stages, number: int) -> None:
    """Sample and judge responses of iterate ``number`` to held-out prompts."""
    folder = stages.iteration(number) / "heldout"
    if stages.processes.first:
        folder.mkdir(parents=True, exist_ok=True)
    stages.processes.wait()
    title = f"iterate {number}"
    prompts = stages.prompts("heldout")
    sampled = stages.sample(
        number, prompts, folder, f"{title}: held-out responses", purpose="heldout"
    )
    stages.logps(number, sampled, folder, "logps", f"{title}: log-probabilities")
    if number:
        under = f"{title}: log-probabilities under the start"
        stages.logps(0, sampled, folder, "start_logps", under)
    for place, judge in enumerate((stages.options.judge, *stages.options.eval_judges)):
        stages.judge(judge, sampled, folder, f"{title}: judging", f"judgements-{place}")


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
            entry["judgements"] = judgement_summary(sorted((folder / "judgements").glob("[0-9]*")))
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
