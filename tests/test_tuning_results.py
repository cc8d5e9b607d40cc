"""What a run of a language model reports, and runs that evaluate when they like."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from criteria_models import rated

pytest.importorskip("trl", reason="the extra 'train' is not installed")
pytest.importorskip("peft", reason="the extra 'train' is not installed")

from tiny_models import learnable_pairs, save_tiny_causal, save_tiny_encoder, write_lines
from tiny_models import one_thread as one_thread

from gpm_core.data import labelled_pairs, read_pairs, read_rated
from gpm_core.evaluation.metrics import calibration_error
from gpm_core.training import (
    BackboneOptions,
    FitSettings,
    HeadOptions,
    RunOptions,
    TuneOptions,
    train,
    tune,
)
from gpm_core.training.sources import DataOptions

FAST = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "learning_rate": 5e-3,
    "dim": 4,
}


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_causal(tmp_path_factory.mktemp("causal"), chat=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lines(tmp_path_factory.mktemp("data") / "pairs.jsonl", learnable_pairs(40))


def tuned(backbone: str, data: Path, output: Path, **more: Any) -> Any:
    eval_data = more.pop("eval_data", None)
    options = TuneOptions(backbone, "full", trainer={**FAST, **more})
    return tune(data, output, options, eval_data=eval_data)


@pytest.mark.parametrize("learn_tau", [None, "per_block"])
def test_heldout_figures_are_of_probabilities_without_margins(
    tmp_path: Path, causal: str, learn_tau: str | None
) -> None:
    """Also where the loss of the training is smoothed, and the last batch a small one."""
    rows = [{**record, "margin": 0.05} for record in learnable_pairs(9, seed=2)]
    for i, record in enumerate(rows):
        record["target"] = [1.0, 0.3, 0.5][i % 3]
    heldout = write_lines(tmp_path / "heldout.jsonl", rows)
    data = write_lines(tmp_path / "pairs.jsonl", learnable_pairs(24))
    result = tuned(
        causal,
        data,
        tmp_path / "run",
        eval_data=heldout,
        per_device_eval_batch_size=4,
        label_smoothing_factor=0.3,
        learn_tau=learn_tau,
    )
    model, pairs = result.model, read_pairs(heldout)
    score, probability = (
        torch.tensor([ask(p.prompt, p.chosen, p.rejected) for p in pairs], dtype=torch.float64)
        for ask in (model.score, model.compare)
    )
    target = torch.tensor([p.target for p in pairs], dtype=torch.float64)
    tau = (score / torch.logit(probability)).median()
    losses = torch.nn.functional.binary_cross_entropy_with_logits((score - 0.05) / tau, target)
    found = result.metrics["heldout"]
    assert found["calibration_error"] == pytest.approx(
        calibration_error(probability, target), abs=1e-5
    )
    assert found["loss"] == pytest.approx(losses.item(), rel=1e-3)
    right = (score.sign() * (target - 0.5).sign() + 1) / 2
    assert found["accuracy"] == pytest.approx(right.mean().item())


def test_heldout_losses_of_criteria_are_not_smoothed(tmp_path: Path, causal: str) -> None:
    names = ["good", "opposite"]
    files = {
        name: write_lines(tmp_path / f"{name}.jsonl", rated(count, seed))
        for name, count, seed in (("train", 24, 0), ("heldout", 9, 5))
    }
    options = TuneOptions(
        causal,
        "full",
        trainer={**FAST, "label_smoothing_factor": 0.3, "per_device_eval_batch_size": 4},
        data=DataOptions(criteria=names),
    )
    result = tune(files["train"], tmp_path / "run", options, eval_data=files["heldout"])
    losses = []
    for pair in labelled_pairs(read_rated(files["heldout"]), names):
        for name, label in pair.targets.items():
            if label in (0.0, 1.0):  # else there is none
                p = result.model.compare(pair.prompt, pair.chosen, pair.rejected, criterion=name)
                losses.append(-torch.tensor(p if label == 1 else 1 - p).log().item())
    found = result.metrics["heldout"]
    assert found["labels"] == len(losses) < 18
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)


def test_an_evaluation_before_the_first_step_has_no_training_beside_it(
    tmp_path: Path, causal: str, data: Path
) -> None:
    result = tuned(causal, data, tmp_path / "run", eval_on_start=True)
    assert [record.step for record in result.history.epochs] == [4]
    log = json.loads((tmp_path / "run" / "log.json").read_text())
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [0, 4]


@pytest.mark.parametrize(
    "options",
    [
        {"eval_strategy": "no", "logging_steps": 1000, "save_strategy": "no"},
        {"eval_strategy": "steps", "eval_steps": 3},
        {"eval_strategy": "steps", "eval_steps": 1000},
    ],
    ids=["never", "not at the end", "later than the end"],
)
def test_a_run_is_evaluated_at_its_end(
    tmp_path: Path, causal: str, data: Path, options: dict[str, Any]
) -> None:
    result = tuned(causal, data, tmp_path / "run", **options)
    assert result.history.last.step == 4
    found = result.metrics["heldout"]
    assert result.history.last.heldout_loss == pytest.approx(found["loss"], rel=1e-4)
    assert result.history.last.heldout_accuracy == pytest.approx(found["accuracy"])
    assert result.metrics["train"]["loss"] > 0


def test_settings_that_are_tuples_resume(tmp_path: Path) -> None:
    """JSON has no tuples: equal settings must not differ from what was stored of them."""
    ratings = write_lines(tmp_path / "rated.jsonl", rated(24))
    options = RunOptions(
        backbone=BackboneOptions(save_tiny_encoder(tmp_path / "encoder")),
        head=HeadOptions(dim=2),
        fit=FitSettings(epochs=2),
        data=DataOptions(criteria=("good", "opposite")),  # type: ignore[arg-type]
    )
    first = train(ratings, tmp_path / "run", options)
    (tmp_path / "run" / "metrics.json").unlink()
    again = train(ratings, tmp_path / "run", options, resume=True)
    assert again.metrics["heldout"] == first.metrics["heldout"]
    other = replace(options, data=DataOptions(criteria=["opposite", "good"]))
    with pytest.raises(ValueError, match=r"setting data\.criteria was \['good', 'opposite'\]"):
        train(ratings, tmp_path / "run", other, resume=True)
