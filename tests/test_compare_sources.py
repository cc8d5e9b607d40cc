"""What ``compare`` trains and evaluates on, and that it trains as ``train`` does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tiny_models import learnable_pairs, save_tiny_encoder, write_lines
from tiny_models import one_thread as one_thread

datasets = pytest.importorskip("datasets", reason="the extra 'train' is not installed")

from gpm_core.cli import main  # noqa: E402
from gpm_core.data import parse_pair  # noqa: E402
from gpm_core.training import (  # noqa: E402
    BackboneOptions,
    FitSettings,
    HeadOptions,
    RunOptions,
    compare,
    train,
)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def compared(encoder: str, output: Path, *arguments: object) -> Any:
    start = ["compare", *arguments, "--backbone", encoder, "--seeds", 2, "--epochs", 1]
    result = invoke(*start, "--dim", 4, "--quiet", "--output", output)
    assert result.exit_code == 0, result.output
    return json.loads(output.read_text()), result.output


def test_splits_of_a_folder(tmp_path: Path, encoder: str) -> None:
    parts = {"train": learnable_pairs(30), "test": learnable_pairs(7, seed=1)}
    splits = {name: datasets.Dataset.from_list(pairs) for name, pairs in parts.items()}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "data"))
    data = tmp_path / "data"
    arguments = [data, "--split", "train", "--eval-split", "test"]
    found, output = compared(encoder, tmp_path / "two.json", *arguments)
    assert (found["pairs"], found["heldout_pairs"], found["heldout_fraction"]) == (37, 7, None)
    assert "37 pairs, 7 held out, 2 seeds" in output
    found, output = compared(encoder, tmp_path / "one.json", data, "--split", "train")
    assert (found["pairs"], found["heldout_pairs"], found["heldout_fraction"]) == (30, None, 0.2)
    assert "30 pairs, 20% held out by prompt, 2 seeds" in output
    refused = invoke("compare", data, "--backbone", encoder)
    assert refused.exit_code == 2
    assert "has the splits 'train', 'test': choose one" in refused.output


def test_ratings_and_cycles(tmp_path: Path, encoder: str) -> None:
    ratings = {"a": [4, 3, 2, 1], "b": [2, 4, 3, 1], "c": [3, 2, 4, 1]}
    records = [
        {
            "prompt": f"w{i}",
            "responses": [f"w{i} {name}" for name in ("good", "so", "bad", "no")],
            "ratings": ratings,
        }
        for i in range(10)
    ]
    data = write_lines(tmp_path / "rated.jsonl", records)
    # Of four responses six pairs by one criterion; of the three that go in a circle, three.
    found, _ = compared(encoder, tmp_path / "rated.json", data, "--ratings", "a")
    assert found["pairs"] == 60
    found, _ = compared(encoder, tmp_path / "cycle.json", data, "--cycle", "a,b,c")
    assert found["pairs"] == 30
    both = invoke("compare", data, "--backbone", encoder, "--ratings", "a", "--cycle", "a,b,c")
    assert both.exit_code == 2
    assert "ratings and cycle are two ways to make pairs: give one of them" in both.output


def test_what_is_held_out_must_not_be_trained_on(tmp_path: Path, encoder: str) -> None:
    data = write_lines(tmp_path / "pairs.jsonl", learnable_pairs(20))
    leak = write_lines(tmp_path / "leak.jsonl", learnable_pairs(1))
    refused = invoke("compare", data, "--eval-data", leak, "--backbone", encoder)
    assert refused.exit_code == 2
    assert "1 of the prompts to test on are also trained on" in " ".join(refused.output.split())
    pairs = [parse_pair(record) for record in learnable_pairs(20)]
    backbone = BackboneOptions(encoder)
    with pytest.raises(ValueError, match="1 of the prompts to test on are also trained on"):
        compare(pairs, heldout=pairs[:1], backbone=backbone)
    with pytest.raises(ValueError, match="pairs to hold out; got 20 and 0"):
        compare(pairs, heldout=[], backbone=backbone)


@pytest.mark.parametrize("apart", [True, False])
def test_the_same_seed_gives_what_train_gives(tmp_path: Path, encoder: str, apart: bool) -> None:
    data = write_lines(tmp_path / "pairs.jsonl", learnable_pairs(40))
    heldout = write_lines(tmp_path / "heldout.jsonl", learnable_pairs(15, seed=1))
    shared = ["--backbone", encoder, "--epochs", 3, "--dim", 4, "--quiet", "--learn-tau", "one"]
    shared += ["--loss", "regression", "--target-margin", 3, "--batch-size", 8]
    shared += ["--learning-rate", 0.02]
    shared += ["--eval-data", heldout] if apart else []
    path = tmp_path / "compared.json"
    result = invoke("compare", data, *shared, "--seeds", 2, "-o", path)
    assert result.exit_code == 0, result.output
    heads = json.loads(path.read_text())["heads"]
    for name, kind in (("Bradley-Terry", "bt"), ("GPM, anchored", "gpm"), ("Hybrid", "hybrid")):
        run = tmp_path / kind
        result = invoke("train", data, "-o", run, *shared, "--head", kind, "--seed", 1)
        assert result.exit_code == 0, result.output
        metrics = json.loads((run / "metrics.json").read_text())
        assert heads[name]["heldout_accuracy"][1] == metrics["heldout"]["accuracy"]
        assert heads[name]["heldout_loss"][1] == pytest.approx(metrics["heldout"]["loss"])
        calibration = metrics["heldout"]["calibration_error"]
        assert heads[name]["calibration_error"][1] == pytest.approx(calibration)
    # Of given pairs seeds decide weights and order alone, of a share also which they are.
    accuracies = {tuple(head["heldout_loss"]) for head in heads.values()}
    assert all(first != second for first, second in accuracies)


def test_only_the_heads_that_are_asked_for(tmp_path: Path, encoder: str) -> None:
    """With a gate and a temperature for each block, trained as ``train`` does."""
    data = write_lines(tmp_path / "pairs.jsonl", learnable_pairs(40))
    head = HeadOptions("gpm", dim=4, gate="softmax", learn_tau="per_block")
    fit = FitSettings(epochs=3, batch_size=8, learning_rate=0.02, seed=3)
    result = compare(
        [parse_pair(record) for record in learnable_pairs(40)],
        heads={"mine": head, "default": HeadOptions("bt")},
        seeds=[3],
        backbone=BackboneOptions(encoder),
        fit=fit,
    )
    assert list(result.heads) == ["mine", "default"]
    options = RunOptions(head, BackboneOptions(encoder), fit)
    metrics = train(data, tmp_path / "run", options).metrics
    mine = result.heads["mine"]
    assert mine.heldout_accuracy == [metrics["heldout"]["accuracy"]]
    assert mine.heldout_loss == [pytest.approx(metrics["heldout"]["loss"])]
    assert mine.train_accuracy == [metrics["train"]["accuracy"]]
    written = json.loads(json.dumps(result.as_dict()))
    assert written["heads"]["mine"]["heldout_accuracy_interval_95"] is None
    # What was compared, the temperatures that nobody named among it.
    heads = written["settings"]["heads"]
    chosen = {"dim": 4, "gate": "softmax", "learn_tau": "per_block", "tau": 0.1}
    assert {name: heads["mine"][name] for name in chosen} == chosen
    assert (heads["default"]["kind"], heads["default"]["tau"]) == ("bt", 1.0)
