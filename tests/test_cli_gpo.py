"""``gpm-core gpo`` and ``gpm-core policies``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_models import one_thread

pytest.importorskip("accelerate", reason="the extra 'train' is not installed")

from policy_models import make_models
from test_policy_run import rows

from gpm_core.cli import main

__all__ = ["one_thread"]

CONFIG = """
model_name_or_path: {models}/policy
judge: {models}/judge
num_generations: 3
max_new_tokens: 4
shard_size: 9
heldout_fraction: 0.25
iterations: 1
beta: 0.1
centered: true
learning_rate: 1e-3
per_device_train_batch_size: 6
"""


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_models(tmp_path_factory.mktemp("models"))
    (folder / "run.yaml").write_text(CONFIG.format(models=folder))
    return folder


@pytest.fixture(scope="module")
def run(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "gpo"
    said = invoke(
        *("gpo", models / "prompts.jsonl", "--output", folder, "--config", models / "run.yaml"),
        *("--quiet", "--max_log_ratio", 20, "--responses", 4),
    )
    assert "| gpo-1" in said
    return folder


def test_options_are_those_of_file_and_flags(models, run) -> None:
    settings = json.loads((run / "run.json").read_text())["settings"]
    assert settings["policy"] == str(models / "policy")
    assert settings["sampling"]["responses"] == 4
    assert settings["sampling"]["max_new_tokens"] == 4
    assert settings["trainer"] == {
        "beta": 0.1,
        "centered": True,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 6,
        "max_log_ratio": 20,
    }
    assert (run / "iteration-001" / "policy" / "adapter_model.safetensors").is_file()
    assert all(len(row["responses"]) == 4 for row in rows(run / "iteration-001" / "responses"))


def test_resumed_it_trains_further(models, run, tmp_path) -> None:
    shutil.copytree(run, tmp_path / "run")
    call = (
        *("gpo", models / "prompts.jsonl", "--output", tmp_path / "run"),
        *("--config", models / "run.yaml", "--quiet", "--max_log_ratio", 20, "--responses", 4),
    )
    assert "--resume" in refused(*call)
    assert "| gpo-2" in invoke(*call, "--resume", "--iterations", 2)


def test_runs_begin_from_the_same_samples_and_are_compared(models, run, tmp_path) -> None:
    call = (
        *("gpo", models / "prompts.jsonl", "--config", models / "run.yaml", "--quiet"),
        *("--objective", "dpo", "--reuse", run, "--centered", "null"),
    )
    assert "sampling was" in refused(*call, "--output", tmp_path / "other", "--responses", 3)
    shutil.rmtree(tmp_path / "other")
    invoke(*call, "--output", tmp_path / "dpo", "--responses", 4)
    for name in ("iteration-001/responses", "iteration-000/heldout/responses"):
        assert rows(tmp_path / "dpo" / name) == rows(run / name)
    seconds = json.loads((tmp_path / "dpo" / "iteration-001" / "seconds.json").read_text())
    assert "training" in seconds
    assert "sampling" not in seconds
    said = invoke("policies", run, tmp_path / "dpo", "--output", tmp_path / "report")
    assert "| gpo-1" in said
    assert "| dpo-1" in said
    assert (tmp_path / "report" / "judge" / "against_start.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--policy", "x"], "--judge"),
        (["--policy", "x", "--judge", "y", "--responses", "1"], "responses must be at least 2"),
        (["--policy", "x", "--judge", "y", "--opponents", "all"], "--opponents"),
        (
            ["--policy", "x", "--judge", "y", "--epochs", "2", "--num_train_epochs", "3"],
            "epochs and num_train_epochs are the same",
        ),
    ],
)
def test_wrong_options_are_refused(models, tmp_path, more, match) -> None:
    call = ("gpo", models / "prompts.jsonl", "--output", tmp_path / "run", *more)
    assert match in refused(*call)
    assert not (tmp_path / "run" / "run.json").exists()
