"""The command line, as a user runs it: a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import learnable_pairs, save_tiny_encoder, write_lines

from gpm_core.models import PreferenceModel


def run(*arguments: object, code: int = 0, without: str | None = None) -> tuple[str, str]:
    """Output and errors of ``gpm-core`` with these arguments.

    ``without`` names a package that the process is to find missing.
    """
    command = [sys.executable, "-m", "gpm_core.cli"]
    if without is not None:
        block = f"import sys; sys.modules[{without!r}] = None; from gpm_core.cli import run; run()"
        command = [sys.executable, "-c", block]
    result = subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert result.returncode == code, result.stderr
    return result.stdout, result.stderr


def error(*arguments: object, without: str | None = None) -> str:
    """The one line that a mistake of the user ends with."""
    output, errors = run(*arguments, code=2, without=without)
    assert output == ""
    assert errors.startswith("Error: "), errors
    assert len(errors.splitlines()) == 1, errors
    return errors


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", learnable_pairs(120))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder: str, data: Path) -> Path:
    output = tmp_path_factory.mktemp("runs") / "deep" / "run"
    arguments = ["--backbone", encoder, "--learning-rate", 0.02, "--dim", 4, "--gate", "softmax"]
    stdout, _ = run("train", data, "--output", output, "--batch-size", 16, *arguments)
    assert stdout.startswith("held-out accuracy ")
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["settings"]["head"]["gate"] == "softmax"
    assert metrics["heldout"]["accuracy"] > 0.9
    return output


def test_help_lists_the_commands_without_the_extra() -> None:
    output, _ = run("--help", without="transformers")
    for name in ("train", "score", "compare", "demo", "doctor"):
        assert name in output


def test_a_missing_extra_is_one_line(data: Path, tmp_path: Path) -> None:
    for package in ("transformers", "safetensors"):
        line = error("train", data, "-o", tmp_path / "run", without=package)
        assert 'pip install "gpm_core[train]"' in line
        assert package in line
    assert not (tmp_path / "run").exists()


def test_score_ranks_and_writes_matrices(trained: Path, tmp_path: Path) -> None:
    groups = [
        {"prompt": "w1 w2", "responses": ["bad bad w3", "w1 w2", "good good w3"]},
        {"responses": ["w4"]},
        {"prompt": "w5", "chosen": "good good", "rejected": "bad bad"},
    ]
    file = write_lines(tmp_path / "groups.jsonl", groups)
    matrices = tmp_path / "matrices.safetensors"
    output, _ = run("score", trained / "model", file, "--matrix", matrices)
    first, second, third = map(json.loads, output.splitlines())
    assert first["ranking"] == [2, 1, 0]
    assert sorted(first["mean_probability"]) == first["mean_probability"]
    assert second == {
        "line": 2,
        "ranking": [0],
        "mean_probability": [0.5],
        "mean_score": [0.0],
    }
    assert third["line"] == 3
    assert third["ranking"] == [0, 1]

    model = PreferenceModel.from_pretrained(trained / "model")
    expected = model.preference_matrix("w1 w2", groups[0]["responses"])
    saved = load_file(matrices)
    torch.testing.assert_close(saved["probability.1"], expected, atol=1e-6, rtol=1e-6)
    assert saved["probability.3"].shape == (2, 2)

    run(
        "score",
        trained / "model",
        file,
        "-o",
        tmp_path / "o.jsonl",
        "--matrix",
        tmp_path / "m.json",
    )
    assert (tmp_path / "o.jsonl").read_text() == output
    table = json.loads((tmp_path / "m.json").read_text())
    assert table["probability.1"] == saved["probability.1"].tolist()


def test_compare_prints_a_table(encoder: str, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "out" / "compare.json"
    arguments = ["--backbone", encoder, "--seeds", 2, "--epochs", 2, "--dim", 4, "-q"]
    output, errors = run("compare", data, *arguments, "--output", path)
    assert errors == ""
    rows = [line for line in output.splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0].strip("| ") for row in rows[1:]] == [
        "Bradley-Terry",
        "GPM, anchored",
        "GPM, paper's initialisation",
        "Hybrid",
    ]
    written = json.loads(path.read_text())
    assert written["seeds"] == [0, 1]
    low, high = written["heads"]["Hybrid"]["heldout_accuracy_interval_95"]
    assert low <= written["heads"]["Hybrid"]["heldout_accuracy_mean"] <= high


def test_mistakes_end_with_one_line(
    trained: Path, encoder: str, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    bad = write_lines(tmp_path / "bad.jsonl", [{"chosen": "a", "rejected": "b"}, {"chosen": "a"}])
    assert f"{bad}, line 2: field 'rejected' is missing" in error("train", bad, "-o", out)
    assert "no such file" in error("train", tmp_path / "none.jsonl", "-o", tmp_path / "other")
    assert "already holds a run" in error("train", data, "-o", trained, "--backbone", encoder)
    assert "dim must be even" in error("train", data, "-o", tmp_path / "odd", "--dim", 3)
    assert "learning_rate" in error("train", data, "-o", tmp_path / "x", "--learning-rate", -1)
    (tmp_path / "file").write_text("")
    assert "cannot write" in error("train", data, "-o", tmp_path / "file" / "run")
    assert "no preference model there" in error("score", tmp_path, data)
    assert "must end with .safetensors" in error(
        "score", trained / "model", data, "--matrix", tmp_path / "m.csv"
    )
    assert not (tmp_path / "odd").exists()


def test_a_bad_data_file_leaves_no_run_behind(data: Path, encoder: str, tmp_path: Path) -> None:
    bad = write_lines(tmp_path / "bad.jsonl", [{"chosen": "a"}])
    error("train", bad, "-o", tmp_path / "run", "--backbone", encoder)
    arguments = ["-o", tmp_path / "run", "--backbone", encoder, "--epochs", 1, "-q"]
    run("train", data, *arguments)
    assert (tmp_path / "run" / "metrics.json").is_file()
