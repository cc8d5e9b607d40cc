"""Training of language models with their heads, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("trl", reason="the extra 'train' is not installed")
pytest.importorskip("peft", reason="the extra 'train' is not installed")

from safetensors.torch import load_file
from tiny_models import learnable_pairs, save_tiny_causal, save_tiny_encoder, write_lines
from tiny_models import one_thread as one_thread

from gpm_core.cli import main
from gpm_core.data import parse_pair
from gpm_core.models import load_model
from gpm_core.training import TuneOptions, tune

FAST = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 2,
    "learning_rate": 5e-3,
    "dim": 4,
    "gate": "softmax",
}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_causal(tmp_path_factory.mktemp("causal"), chat=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", learnable_pairs(60))


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_lora_from_a_file_of_options_with_trls_names(
    tmp_path: Path, causal: str, data: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model_name_or_path: {causal}\ndataset_name: {data}\noutput_dir: {tmp_path / 'run'}\n"
        "use_peft: true\nlora_r: 4\nhead: gpm\ndim: 4\ngate: softmax\nlogging_steps: 2\n"
        "per_device_train_batch_size: 8\nnum_train_epochs: 1\nlearning_rate: 0.01\n"
    )
    # What the command line says stands over what the file says.
    output = run("train", "--config", config, "--num-train-epochs", "3", "--quiet")
    assert output.startswith("held-out accuracy 1.000")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["settings"]["mode"] == "lora"
    assert metrics["settings"]["lora_rank"] == 4
    assert metrics["settings"]["trainer"]["num_train_epochs"] == 3
    assert metrics["heldout"]["pairs"] == 12
    assert metrics["peak_memory_bytes"]["process"] > 0
    model = load_model(tmp_path / "run" / "model")
    assert model.get_base_model().config.gate == "softmax"
    pairs = [parse_pair(record) for record in learnable_pairs(40, seed=5)]
    right = [model.score(pair.prompt, pair.chosen, pair.rejected) > 0 for pair in pairs]
    assert sum(right) >= 38, "what was stored is what was trained"
    ranked = run(
        "rank",
        tmp_path / "run" / "model",
        "--response",
        "bad",
        "--response",
        "good",
        "--prompt",
        "w1",
    )
    assert ranked.splitlines()[2].endswith("good")


def test_equal_seeds_give_equal_bits_also_when_resumed(
    tmp_path: Path, causal: str, data: Path
) -> None:
    options = TuneOptions(causal, "full", trainer=FAST)
    whole = tune(data, tmp_path / "whole", options)
    assert whole.metrics["heldout"]["accuracy"] > 0.9
    run_again = tune(data, tmp_path / "again", options)
    assert run_again.metrics["heldout"] == whole.metrics["heldout"]
    # As if the process had been killed in the second epoch.
    for name in ("metrics.json", "log.json"):
        (tmp_path / "again" / name).unlink()
    latest = max((tmp_path / "again" / "checkpoints").glob("checkpoint-*"), key=lambda p: p.name)
    for path in sorted(latest.iterdir()):
        path.unlink()
    latest.rmdir()
    resumed = tune(data, tmp_path / "again", options, resume=True)
    assert resumed.metrics["heldout"] == whole.metrics["heldout"]
    assert [r.step for r in resumed.history.epochs] == [6, 12]
    for name, tensor in weights(tmp_path / "whole").items():
        assert torch.equal(tensor, weights(tmp_path / "again")[name]), name
    other = tune(data, tmp_path / "other", TuneOptions(causal, "full", trainer=FAST, seed=1))
    assert other.metrics["heldout"]["loss"] != whole.metrics["heldout"]["loss"]


def test_last_trains_the_last_layers_and_the_head(tmp_path: Path, causal: str, data: Path) -> None:
    arguments = [
        "--backbone",
        causal,
        "--tune",
        "last",
        "--layers",
        "1",
        "--epochs",
        "1",
        "--learning-rate",
        "0.01",
        "--head",
        "bt",
        "--quiet",
    ]
    run("train", data, "-o", tmp_path / "run", *arguments)
    before, after = load_file(Path(causal) / "model.safetensors"), weights(tmp_path / "run")
    changed = {
        name for name in after if name in before and not torch.equal(after[name], before[name])
    }
    assert changed == {name for name in after if ".layers.1." in name} | {"model.norm.weight"}
    assert "head.value_head.weight" in after
    message = refused("train", data, "-o", tmp_path / "more", *arguments, "--layers", "3")
    assert "the backbone has 2 layers; cannot train the last 3" in message


def test_an_encoder_in_full_with_evaluation_data(tmp_path: Path, data: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "encoder")
    heldout = write_lines(tmp_path / "eval.jsonl", learnable_pairs(20, seed=3))
    arguments = [
        "--backbone",
        encoder,
        "--tune",
        "full",
        "--epochs",
        "3",
        "--batch-size",
        "8",
        "--learning-rate",
        "0.003",
        "--head",
        "hybrid",
        "--dim",
        "4",
        "--quiet",
    ]
    run("train", data, "-o", tmp_path / "run", "--eval-data", heldout, *arguments)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["heldout"]["pairs"] == 20
    assert metrics["heldout"]["accuracy"] > 0.9
    assert sorted(p.name for p in (tmp_path / "run" / "plots").iterdir()) == [
        "curves.png",
        "reliability.png",
        "scores.png",
    ]
    lines = run("score", tmp_path / "run" / "model", heldout, "--quiet").splitlines()
    assert sum(json.loads(line)["ranking"] == [0, 1] for line in lines) >= 18
    leak = write_lines(tmp_path / "leak.jsonl", learnable_pairs(1))
    message = refused("train", data, "-o", tmp_path / "leak", "--eval-data", leak, *arguments)
    assert "prompt" in message


def test_wrong_options_cost_no_work(tmp_path: Path, causal: str, data: Path) -> None:
    start = ["train", data, "-o", tmp_path / "run"]
    tuned = [*start, "--backbone", causal, "--tune", "lora"]
    assert "No such option '--bogus'" in refused(*tuned, "--bogus", "1")
    assert "--weight_decay needs a value" in refused(*tuned, "--weight_decay")
    assert "for --tune lora, last or full only" in refused(*start, "--weight_decay", "0.1")
    assert "--lora-rank: for --tune lora, last or full only" in refused(*start, "--lora-rank", "4")
    assert "--penalty: for --tune none only" in refused(*tuned, "--penalty", "1")
    assert "--tune needs --backbone" in refused(*start, "--tune", "full")
    both = refused(*tuned, "--epochs", "1", "--num_train_epochs", "2")
    assert "epochs and num_train_epochs are the same" in both
    assert "the run sets output_dir by itself" in refused(*tuned, "--output_dir", "x")
    config = tmp_path / "run.yaml"
    config.write_text("lerning_rate: 1")
    assert "did you mean learning_rate?" in refused(*tuned, "--config", config)
    config.write_text("- a list")
    assert "expected 'option: value' lines" in refused(*tuned, "--config", config)
    config.write_text("a: [")
    assert "cannot be read as YAML" in refused(*tuned, "--config", config)
    assert "DATA is missing" in refused("train", "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_of_features_from_a_file(tmp_path: Path, data: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "encoder")
    config = tmp_path / "run.yaml"
    config.write_text(f"backbone: {encoder}\nhead: bt\nepochs: 3\nseed: 4\n")
    run("train", data, "-o", tmp_path / "run", "--config", config, "--seed", "5", "--quiet")
    settings = json.loads((tmp_path / "run" / "metrics.json").read_text())["settings"]
    assert (settings["head"]["kind"], settings["fit"]["epochs"]) == ("bt", 3)
    assert settings["fit"]["seed"] == 5
