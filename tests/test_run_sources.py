"""What the command trains on: folders, splits and ratings, on fixed features and by the trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import (
    learnable_pairs,
    one_thread,
    save_tiny_causal,
    save_tiny_encoder,
    write_lines,
)

pytest.importorskip("trl", reason="trl is not installed")
datasets = pytest.importorskip("datasets", reason="the extra 'train' is not installed")

from click.testing import CliRunner, Result  # noqa: E402

from gpm_core.cli import main  # noqa: E402
from gpm_core.training import DataOptions  # noqa: E402

__all__ = ["one_thread"]

MODES = ("none", "full")


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("backbones")
    return {
        "none": save_tiny_encoder(folder / "encoder"),
        "full": save_tiny_causal(folder / "causal"),
    }


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def metrics(backbones: dict[str, str], mode: str, output: Path, *arguments: object) -> Any:
    start = ["train", "-o", output, "--backbone", backbones[mode], "--tune", mode, "--epochs", 1]
    result = invoke(*start, "--quiet", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads((output / "metrics.json").read_text())


@pytest.mark.parametrize("mode", MODES)
def test_splits_of_a_folder(tmp_path: Path, backbones: dict[str, str], mode: str) -> None:
    parts = {"train": learnable_pairs(30), "test": learnable_pairs(7, seed=1)}
    splits = {name: datasets.Dataset.from_list(pairs) for name, pairs in parts.items()}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    run = [tmp_path / "run", tmp_path / "data", "--split", "train"]
    config = tmp_path / "run.yaml"
    config.write_text("dataset_test_split: test\n")
    assert metrics(backbones, mode, *run, "--config", config)["heldout"]["pairs"] == 7
    # Without a split to evaluate on, a share of the other.
    assert metrics(backbones, mode, tmp_path / "share", *run[1:])["heldout"]["pairs"] == 6
    start = ["train", *run[1:2], "-o", tmp_path / "other", "--backbone", backbones[mode]]
    refused = invoke(*start, "--tune", mode)
    assert refused.exit_code == 2
    assert "has the splits 'train', 'test': choose one" in refused.output
    resumed = invoke(*start, *run[2:], "--tune", mode, "-o", run[0], "--epochs", 1, "--resume")
    assert "setting data.eval_split was 'test'" in " ".join(resumed.output.split())


@pytest.fixture
def rated(tmp_path: Path) -> Path:
    """In each of 10 groups three responses that go in a circle, and one that is rated lowest."""
    ratings = {"a": [4, 3, 2, 1], "b": [2, 4, 3, 1], "c": [3, 2, 4, 1]}
    names = ("good", "so", "bad", "no")
    records = [
        {"prompt": f"w{i}", "responses": [f"w{i} {name}" for name in names], "ratings": ratings}
        for i in range(10)
    ]
    return write_lines(tmp_path / "rated.jsonl", records)


@pytest.mark.parametrize("mode", MODES)
def test_ratings(tmp_path: Path, backbones: dict[str, str], mode: str, rated: Path) -> None:
    def heldout(name: str, *arguments: object) -> int:
        found = metrics(backbones, mode, tmp_path / name, rated, *arguments)
        pairs: int = found["heldout"]["pairs"]
        return pairs

    # Of each of the two prompts held out: all pairs, those that are no ties, those of the circle.
    assert heldout("criterion", "--ratings", "a") == 2 * 6
    assert heldout("mean", "--ratings", "mean") == 2 * 3
    assert heldout("flag", "--cycle", "a, b,c") == 2 * 3
    config = tmp_path / "run.yaml"
    config.write_text("cycle: [a, b, c]\n")
    assert heldout("file", "--config", config) == 2 * 3


def test_what_cannot_be_made_of_ratings(tmp_path: Path, rated: Path) -> None:
    with pytest.raises(ValueError, match="ways to make pairs"):
        DataOptions(ratings="a", cycle=["a", "b", "c"])
    with pytest.raises(ValueError, match="'d'"):
        DataOptions(ratings="d").read(rated, None)
    flat = write_lines(
        tmp_path / "flat.jsonl", [{"prompt": "w1", "responses": ["a", "b"], "ratings": [1, 1]}]
    )
    with pytest.raises(ValueError, match="no two responses with different ratings"):
        DataOptions(ratings="mean").read(flat, None)


def test_chosen_is_the_higher_rating(rated: Path) -> None:
    pairs, heldout = DataOptions(ratings="b").read(rated, None)
    assert heldout is None
    assert {(p.chosen, p.rejected) for p in pairs if p.prompt[0].content == "w3"} == {
        ("w3 so", "w3 bad"),
        ("w3 so", "w3 good"),
        ("w3 so", "w3 no"),
        ("w3 bad", "w3 good"),
        ("w3 bad", "w3 no"),
        ("w3 good", "w3 no"),
    }
