"""Whole runs: what they write, and that they survive being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import (
    learnable_pairs,
    one_thread,
    save_tiny_causal,
    save_tiny_encoder,
    write_lines,
)

from gpm_core.data import parse_pair
from gpm_core.models import PreferenceModel
from gpm_core.training import (
    BackboneOptions,
    FitSettings,
    HeadOptions,
    RunOptions,
    compare,
    train,
)

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_causal(tmp_path_factory.mktemp("causal"), chat=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", learnable_pairs(120))


def options_for(backbone: str, **fit: object) -> RunOptions:
    settings = {"epochs": 3, "batch_size": 16, "learning_rate": 2e-2, **fit}
    return RunOptions(
        HeadOptions("gpm", dim=4),
        BackboneOptions(backbone, device="cpu"),
        FitSettings(**settings),  # type: ignore[arg-type]
    )


def without_times(path: Path) -> dict:
    metrics = json.loads((path / "metrics.json").read_text())
    assert set(metrics.pop("seconds")) == {"features", "training", "total"}
    return metrics


def test_a_run_writes_what_it_says(tmp_path: Path, encoder: str, data: Path) -> None:
    result = train(data, tmp_path / "run", options_for(encoder, epochs=10))
    metrics = without_times(tmp_path / "run")
    assert metrics["heldout"]["accuracy"] > 0.9
    low, high = metrics["heldout"]["interval_95"]
    assert low < metrics["heldout"]["accuracy"] <= high
    assert (metrics["heldout"]["pairs"], metrics["train"]["pairs"]) == (24, 96)
    assert metrics["epochs"][-1]["heldout_accuracy"] == metrics["heldout"]["accuracy"]
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "run.json",
        "features",
        "model",
        "plots",
        "metrics.json",
        "checkpoint-54",
        "checkpoint-60",
    }
    for plot in ("curves", "reliability", "scores"):
        content = (tmp_path / "run" / "plots" / f"{plot}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
    loaded = PreferenceModel.from_pretrained(tmp_path / "run" / "model")
    prompt, replies = "w1 w2", ["w3 good good", "w3 bad bad"]
    assert loaded.rank(prompt, replies)[0].index == 0
    expected = result.model.preference_matrix(prompt, replies)
    assert torch.equal(loaded.preference_matrix(prompt, replies), expected)


def test_margins_and_targets_of_a_file_are_used(tmp_path: Path, encoder: str) -> None:
    records = [{**record, "target": 0.0} for record in learnable_pairs(120)]
    path = write_lines(tmp_path / "reversed.jsonl", records)
    result = train(path, tmp_path / "run", options_for(encoder, epochs=10))
    assert result.metrics["heldout"]["accuracy"] > 0.9
    assert result.model.rank("w1", ["good good", "bad bad"])[0].index == 1


def start(data: Path, output: Path, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "gpm_core.cli", "train", str(data), "-o", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "-q", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()


def middle_of_an_epoch(run: Path, per_epoch: int) -> bool:
    steps = [int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")]
    return bool(steps) and max(steps) > per_epoch and max(steps) % per_epoch != 0


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, encoder: str, data: Path) -> None:
    arguments = ["--backbone", encoder, "--batch-size", "8", "--epochs", "40"]
    arguments += ["--checkpoint-steps", "5"]
    whole, killed = start(data, tmp_path / "whole", *arguments), None
    finish(whole)
    killed = start(data, tmp_path / "killed", *arguments)
    deadline = time.monotonic() + 120
    while not middle_of_an_epoch(tmp_path / "killed", 12):
        assert killed.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    finish(start(data, tmp_path / "killed", "--resume", *arguments))
    for name in ("model/model.safetensors", "model/config.json"):
        ours, theirs = tmp_path / "killed" / name, tmp_path / "whole" / name
        assert ours.read_bytes() == theirs.read_bytes()
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".partial-*"))


def test_resume_passes_over_a_damaged_checkpoint(tmp_path: Path, encoder: str, data: Path) -> None:
    options = options_for(encoder)
    train(data, tmp_path / "run", options)
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    expected = without_times(tmp_path / "run")
    newest = tmp_path / "run" / "checkpoint-18" / "weights.safetensors"
    newest.write_bytes(newest.read_bytes()[:-8])
    train(data, tmp_path / "run", options, resume=True)
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights
    assert without_times(tmp_path / "run") == expected


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path, encoder: str, data: Path) -> None:
    options = options_for(encoder, epochs=1)
    train(data, tmp_path / "run", options)
    with pytest.raises(FileExistsError, match="already holds a run: continue it with --resume"):
        train(data, tmp_path / "run", options)
    other = replace(options, fit=replace(options.fit, learning_rate=0.1))
    with pytest.raises(ValueError, match=r"fit\.learning_rate was 0\.02 .* and is 0\.1 now"):
        train(data, tmp_path / "run", other, resume=True)
    changed = write_lines(tmp_path / "other.jsonl", learnable_pairs(120, seed=5))
    with pytest.raises(ValueError, match="contents of data differ"):
        train(changed, tmp_path / "run", options, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"not a run's \(thesis\.txt\)"):
        train(data, tmp_path / "mine", options)


def test_an_output_that_cannot_be_written_costs_no_work(tmp_path: Path, data: Path) -> None:
    (tmp_path / "file").write_text("")
    options = options_for("no backbone is loaded before this")
    with pytest.raises(OSError, match="cannot write to the output folder"):
        train(data, tmp_path / "file" / "run", options)


def test_an_evaluation_file_is_held_out(tmp_path: Path, encoder: str, data: Path) -> None:
    other = write_lines(tmp_path / "eval.jsonl", learnable_pairs(30, seed=9))
    result = train(data, tmp_path / "run", options_for(encoder), eval_data=other)
    assert result.metrics["train"]["pairs"] == 120
    assert result.metrics["heldout"]["pairs"] == 30


def test_compare_trains_all_heads_on_the_same_divisions(tmp_path: Path, encoder: str) -> None:
    pairs = [parse_pair(record, i) for i, record in enumerate(learnable_pairs(80))]
    settings = FitSettings(epochs=2)
    arguments = {"seeds": [0, 1], "backbone": BackboneOptions(encoder), "fit": settings}
    result = compare(pairs, cache=tmp_path, **arguments)
    assert list(result.heads) == [
        "Bradley-Terry",
        "GPM, anchored",
        "GPM, paper's initialisation",
        "Hybrid",
    ]
    assert all(len(head.heldout_accuracy) == 2 for head in result.heads.values())
    assert len(list(tmp_path.glob("*.safetensors"))) == 1
    again = compare(pairs, cache=tmp_path, **arguments)
    for name, head in result.heads.items():
        assert again.heads[name].heldout_loss == head.heldout_loss
    assert len(result.markdown().splitlines()) == 6
    json.dumps(result.as_dict(), allow_nan=False)
