"""Runs with several criteria: heads on features, language models, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

pytest.importorskip("trl", reason="the extra 'train' is not installed")
pytest.importorskip("peft", reason="the extra 'train' is not installed")

from criteria_models import rated
from pair_models import save_tiny_backbone
from tiny_models import one_thread as one_thread
from tiny_models import save_tiny_encoder, write_lines

from gpm_core.cli import main
from gpm_core.heads import MultiCriteriaHead
from gpm_core.models import load_model
from gpm_core.training import (
    BackboneOptions,
    DataOptions,
    FitSettings,
    HeadOptions,
    PairIndex,
    RunOptions,
    TuneOptions,
    evaluate_criteria,
    evaluate_pairs,
    fit_head,
    train,
    tune,
)
from gpm_core.training.fit import head_groups

NAN = float("nan")
NAMES = ["good", "opposite"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_backbone(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "rated.jsonl", rated(60))


# -- heads on features -------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["heads", "gates"])
def test_what_a_head_makes_of_each_label(mode: Any) -> None:
    torch.manual_seed(0)
    features = torch.randn(8, 6)
    head = MultiCriteriaHead(6, 4, NAMES, mode)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn_like(parameter))
    target = torch.tensor([[1.0, NAN], [0.0, 0.5], [NAN, NAN], [1.0, 1.0]])
    pairs = PairIndex(torch.arange(4), torch.arange(4, 8), target=target)
    result = evaluate_criteria(head, features, pairs)
    score = head.score(features[:4], features[4:]).detach()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(
        score / head.tau, target.nan_to_num(), reduction="none"
    )
    (good, labels), (opposite, _) = result.labels("good"), result.labels("opposite")
    assert labels.tolist() == [1.0, 0.0, 1.0]
    torch.testing.assert_close(good.score, score[[0, 1, 3], 0])
    torch.testing.assert_close(good.loss, losses[[0, 1, 3], 0])
    torch.testing.assert_close(opposite.probability, torch.sigmoid(score[[1, 3], 1] / head.tau))
    right = [float(score[0, 0] > 0), float(score[1, 0] < 0), float(score[3, 0] > 0)]
    assert good.correct.tolist() == right
    assert opposite.correct.tolist() == [0.5, float(score[3, 1] > 0)]
    summary = result.summary()
    assert (summary["pairs"], summary["labels"]) == (3, 5)
    assert summary["criteria"]["good"]["accuracy"] == pytest.approx(sum(right) / 3)
    assert summary["loss"] == pytest.approx(
        (losses[[0, 1, 3], 0].sum() + losses[[1, 3], 1].sum()).item() / 5
    )
    with pytest.raises(TypeError, match="evaluate_criteria"):
        evaluate_pairs(head, features, pairs)


def test_training_of_a_head_and_what_does_not_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(800, 16, generator=generator)
    chosen, rejected = torch.arange(400), torch.arange(400, 800)
    first = (features[chosen, 0] > features[rejected, 0]).float()
    target = torch.stack([first, 1 - first], dim=1)
    target[::3, 1] = NAN
    torch.manual_seed(0)
    head = MultiCriteriaHead(16, 4, NAMES, "heads")
    heldout = PairIndex(chosen[300:], rejected[300:], target=target[300:])
    history = fit_head(
        head,
        features,
        chosen[:300],
        rejected[:300],
        target=target[:300],
        heldout=heldout,
        settings=FitSettings(epochs=40, batch_size=16, learning_rate=1e-2),
    )
    figures = history.last.heldout_criteria
    assert figures is not None
    assert min(figures[name]["accuracy"] for name in NAMES) > 0.9
    result = evaluate_criteria(head, features, heldout)
    assert figures == result.figures()
    assert history.last.heldout_loss == pytest.approx(result.labels()[0].mean_loss)
    for wrong, said in (
        ({"target": first}, r"target must be \(400, 2\), a label for each"),
        ({}, "got None"),
        ({"target": target + 1}, r"must be in \[0, 1\], or nan"),
        ({"target": target, "margin": torch.ones(400)}, "a margin is of one preference"),
    ):
        with pytest.raises(ValueError, match=said):
            fit_head(head, features, chosen, rejected, **wrong)


def test_weights_of_blocks_that_read_no_features_are_trained_freely() -> None:
    settings = FitSettings(learning_rate=1e-3, penalty=2.0)

    def groups(gate: Any) -> dict[str, tuple[float, float]]:
        made = head_groups(MultiCriteriaHead(16, 8, NAMES, "gates", gate), 100, settings)
        return {name: (group.rate, group.penalty) for group in made for name in group.members}

    # A logit moves by about as much as by a step of 16 weights of features.
    assert groups(None)["head.prompt_head.weight"] == (4e-3, 0.0)
    assert groups(None)["head.value_head.weight"] == pytest.approx((1e-4, 2 * 0.16 / 0.01))
    # Four blocks under a softmax: each counts a quarter at first.
    assert groups("softmax")["head.prompt_head.weight"] == pytest.approx((1e-3, 2 * 0.16))
    assert groups("softmax")["head.value_head.weight"] == pytest.approx((4e-4, 2 * 0.16 / 0.16))


def run_options(encoder: str, **head: Any) -> RunOptions:
    return RunOptions(
        HeadOptions(dim=4, **head),
        BackboneOptions(encoder, device="cpu"),
        FitSettings(epochs=12, batch_size=16, learning_rate=2e-2),
        data=DataOptions(criteria=NAMES),
    )


def test_a_run_on_features(tmp_path: Path, encoder: str, data: Path) -> None:
    options = run_options(encoder, criteria_weights={"good": 1.0}, gate="softmax")
    result = train(data, tmp_path / "run", options)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    heldout = metrics["heldout"]
    assert (heldout["pairs"], set(heldout["criteria"])) == (12, set(NAMES))
    assert heldout["labels"] == sum(each["labels"] for each in heldout["criteria"].values())
    assert min(each["accuracy"] for each in heldout["criteria"].values()) == 1.0
    last = metrics["epochs"][-1]["heldout_criteria"]
    for name in NAMES:
        assert last[name]["loss"] == pytest.approx(heldout["criteria"][name]["loss"])
    assert (tmp_path / "run" / "plots" / "curves.png").is_file()
    model: Any = load_model(tmp_path / "run" / "model")
    assert model.criteria_weights == {"good": 1.0, "opposite": 0.0}
    replies = ["w1 w2 w3 good good", "w1 w2 w3 bad bad"]
    assert model.score("w2", *replies) == model.score("w2", *replies, criterion="good") > 0
    assert model.score("w2", *replies, criterion="opposite") < 0
    # As if it had been killed: the same bits.
    again = train(data, tmp_path / "again", options)
    (tmp_path / "again" / "metrics.json").unlink()
    resumed = train(data, tmp_path / "again", options, resume=True)
    assert again.metrics["heldout"] == resumed.metrics["heldout"] == result.metrics["heldout"]
    assert resumed.history == result.history


def test_settings_of_a_run_that_do_not_fit(tmp_path: Path, encoder: str) -> None:
    for options, said in (
        ({"head": HeadOptions("bt")}, "need head 'gpm'"),
        ({"fit": FitSettings(loss="regression")}, "need loss 'logistic'"),
        ({"head": HeadOptions(criteria_weights={"nice": 1.0})}, "unknown criteria"),
    ):
        with pytest.raises(ValueError, match=said):
            RunOptions(data=DataOptions(criteria=NAMES), **options)
    with pytest.raises(ValueError, match="need criteria of the data"):
        RunOptions(HeadOptions(criteria_mode="gates"))
    with pytest.raises(ValueError, match="cycle and criteria are two ways to make pairs"):
        DataOptions(cycle=["a", "b"], criteria=["a"])
    records = [{**record, "ratings": {"good": [1, 2], "rare": [None, 3]}} for record in rated(10)]
    data = write_lines(tmp_path / "rare.jsonl", records)
    rare = DataOptions(criteria=["good", "rare"])
    with pytest.raises(ValueError, match="training pairs have no label of rare"):
        train(data, tmp_path / "a", RunOptions(backbone=BackboneOptions(encoder), data=rare))
    with pytest.raises(ValueError, match="training pairs have no label of rare"):
        tune(data, tmp_path / "b", TuneOptions(encoder, "full", data=rare))
    with pytest.raises(ValueError, match="the run sets criteria by itself"):
        TuneOptions(encoder, trainer={"criteria": ["a"]})


# -- language models and the command line ------------------------------------------------------


def command(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.stdout if status == 0 else " ".join(result.output.split())


def test_tuning_with_adapters_from_the_command_line(
    tmp_path: Path, causal: str, data: Path
) -> None:
    fields = "--num_train_epochs 4 --learning_rate 0.01 --use_cpu true --logging_steps 3"
    output = command(
        *("train", data, "--output", tmp_path / "run", "--criteria", "good, opposite", "--quiet"),
        *("--tune", "lora", "--backbone", causal, "--dim", 4, "--batch-size", 8),
        *("--criteria-weights", "good=1, opposite=-1", *fields.split()),
    )
    lines = output.splitlines()
    assert lines[0].startswith("held-out accuracy 1.000")
    assert [line.split(":")[0] for line in lines[1:3]] == ["  good", "  opposite"]
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    heldout = metrics["heldout"]
    assert heldout["criteria"]["opposite"]["accuracy"] == 1.0
    assert heldout["labels"] == 12 + heldout["criteria"]["opposite"]["labels"]
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert any("loss_opposite" in entry and "accuracy_good" in entry for entry in log)
    model = tmp_path / "run" / "model"
    line = {"prompt": "w1", "responses": ["w2 good good", "w2 bad bad"]}
    asked = write_lines(tmp_path / "asked.jsonl", [line])

    def scored(*options: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(command("score", model, asked, "--quiet", *options))
        return answer

    one = scored()
    good, opposite = (one["criteria"][name]["mean_score"][0] for name in NAMES)
    assert good > 0 > opposite
    assert one["mean_score"][0] == pytest.approx(good - opposite, abs=1e-6)
    assert scored("--criterion", "opposite")["mean_score"][0] == pytest.approx(opposite)
    halved = scored("--criteria-weights", "opposite=0.5")
    assert halved["mean_score"][0] == pytest.approx(opposite / 2)
    assert halved["ranking"] == [1, 0]
    ranked = json.loads(command("rank", model, asked, "--criterion", "opposite", "--quiet"))
    assert ranked["ranking"][0]["response"] == "w2 bad bad"
    report = command(
        *("eval", model, data, "--output", tmp_path / "report", "--quiet"),
        *("--ratings", "opposite", "--criterion", "opposite", "--bootstrap-samples", 100),
    )
    assert "**Accuracy: 1.000" in report


def test_heads_from_a_file_of_options(tmp_path: Path, encoder: str, data: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"data: {data}\noutput: {tmp_path / 'run'}\nbackbone: {encoder}\nepochs: 12\n"
        "criteria: [good, opposite]\ncriteria_weights: {opposite: 2}\ncriteria_mode: gates\n"
        "batch_size: 16\nlearning_rate: 0.02\n"
    )
    command("train", "--config", config, "--quiet")
    model: Any = load_model(tmp_path / "run" / "model")
    assert model.head.mode == "gates"
    assert model.criteria_weights == {"good": 0.0, "opposite": 2.0}
    for options, said in (
        (["--criterion", "good", "--criteria-weights", "good=1"], "give one of them"),
        (["--criteria-weights", "good:1"], "must be a number for each of some criteria"),
        (["--criterion", "nice"], "unknown criteria ['nice']"),
    ):
        answer = ["--response", "a", "--response", "b", *options]
        assert said in command("rank", tmp_path / "run" / "model", *answer, status=2)
    both = command(
        "train", data, "-o", tmp_path / "x", "--criteria", "good", "--ratings", "good", status=2
    )
    assert "ratings and criteria are two ways to make pairs" in both
