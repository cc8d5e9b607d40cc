"""Pairs of which only some have a margin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pair_models import learnable_pairs, pair_model, quiet, two_threads  # noqa: F401 (a fixture)
from tiny_models import save_tiny_causal, save_tiny_encoder, write_lines

pytest.importorskip("trl", reason="the extra 'train' is not installed")
pytest.importorskip("peft", reason="the extra 'train' is not installed")

import datasets

from gpm_core.data import parse_pair, read_pairs
from gpm_core.heads import BradleyTerryHead
from gpm_core.integrations.trl import PreferenceConfig, PreferenceTrainer
from gpm_core.models import PreferenceCollator, tokenize_pairs
from gpm_core.training import (
    BackboneOptions,
    FitSettings,
    HeadOptions,
    PairIndex,
    RunOptions,
    TuneOptions,
    evaluate_pairs,
    fit_head,
    train,
    tune,
)
from gpm_core.training.features import pair_index

MARGINS: list[float | None] = [0.4, None, -0.2, None, None, 0.1]


def records(margins: list[float | None] = MARGINS) -> list[dict[str, Any]]:
    made = learnable_pairs(len(margins))
    return [
        {**record, **({} if margin is None else {"margin": margin})}
        for record, margin in zip(made, margins, strict=True)
    ]


def expected_losses(score: torch.Tensor, tau: float, loss: str) -> torch.Tensor:
    """Of pairs with a margin and without, from the formulas."""
    losses = []
    for s, margin in zip(score.double().tolist(), MARGINS, strict=True):
        if loss == "logistic":
            z = torch.tensor((s - (margin or 0.0)) / tau, dtype=torch.float64)
            losses.append(torch.nn.functional.softplus(-z).item())
        else:
            wanted = 3.0 if margin is None else margin / tau
            losses.append((s / tau - wanted) ** 2 / 2)
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("loss", ["logistic", "regression"])
def test_the_loss_of_a_model(loss: str) -> None:
    model = pair_model(dim=4, tau=0.5, loss=loss, target_margin=3.0)
    batch = PreferenceCollator(0)(tokenize_pairs(records(), model))
    assert batch["margin"].isnan().tolist() == [margin is None for margin in MARGINS]
    output = model(**batch)
    losses = expected_losses(output.score, 0.5, loss)
    assert output.loss.item() == pytest.approx(losses.mean().item(), rel=1e-5)
    assert output.probability.isfinite().all()
    output.loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    # Of none with a margin it is the loss of pairs without margins.
    batch["margin"] = torch.full_like(batch["margin"], torch.nan)
    without = model(**{name: value for name, value in batch.items() if name != "margin"})
    assert model(**batch).loss.item() == pytest.approx(without.loss.item(), rel=1e-6)


@pytest.mark.parametrize("loss", ["logistic", "regression"])
def test_the_trainer_takes_null(loss: str, tmp_path: Path) -> None:
    model = pair_model(dim=4, tau=0.5, loss=loss, target_margin=3.0)
    rows = [{"margin": None, **record} for record in records()]
    trainer = PreferenceTrainer(
        model,
        PreferenceConfig(str(tmp_path), per_device_eval_batch_size=2, bf16=False, **quiet),
        train_dataset=datasets.Dataset.from_list(rows),
        eval_dataset=datasets.Dataset.from_list(rows),
    )
    score = torch.tensor([model.score(r["prompt"], r["chosen"], r["rejected"]) for r in rows])
    expected = expected_losses(score, 0.5, loss).mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_heads_on_features() -> None:
    index = pair_index([parse_pair(record) for record in records()], [1, 0, 2])
    assert index.margin is not None
    torch.testing.assert_close(index.margin, torch.tensor([torch.nan, 0.4, -0.2]), equal_nan=True)
    # Both pairs have the same features but for their place: one is a tie, the other is sure.
    features = torch.eye(4)
    head = BradleyTerryHead(4)
    margin = torch.tensor([0.0, torch.nan])
    settings = FitSettings(
        loss="regression", target_margin=3.0, penalty=0.0, epochs=300, learning_rate=0.05
    )
    fit_head(head, features, [0, 1], [2, 3], margin=margin, settings=settings)
    pairs = PairIndex(torch.tensor([0, 1]), torch.tensor([2, 3]), margin=margin)
    found = evaluate_pairs(head, features, pairs, settings=settings)
    torch.testing.assert_close(found.score, torch.tensor([0.0, 3.0]), atol=0.05, rtol=0)
    assert found.mean_loss < 0.01


@pytest.mark.parametrize("frozen", [True, False], ids=["features", "tune"])
def test_a_run_of_regression(frozen: bool, tmp_path: Path) -> None:
    """Its held-out figures are those of the model that it stored, in both ways of training."""
    margins: list[float | None] = [None if i % 3 else 0.02 for i in range(40)]
    data = write_lines(tmp_path / "pairs.jsonl", records(margins))
    heldout = [
        {**record, "margin": 0.02} if i % 2 else record
        for i, record in enumerate(learnable_pairs(9, seed=7))
    ]
    heldout_file = write_lines(tmp_path / "heldout.jsonl", heldout)
    if frozen:
        options = RunOptions(
            backbone=BackboneOptions(save_tiny_encoder(tmp_path / "backbone")),
            head=HeadOptions(dim=4),
            fit=FitSettings(loss="regression", target_margin=2.0, epochs=2, batch_size=8),
        )
        result: Any = train(data, tmp_path / "run", options, eval_data=heldout_file)
    else:
        fields = {
            "loss": "regression",
            "target_margin": 2.0,
            "dim": 4,
            "num_train_epochs": 2,
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 2,
            "learning_rate": 5e-3,
            "train_sampling_strategy": "group_by_length",
        }
        backbone = save_tiny_causal(tmp_path / "backbone", chat=True)
        tuned = TuneOptions(backbone, "full", trainer=fields)
        result = tune(data, tmp_path / "run", tuned, eval_data=heldout_file)
    logits = torch.tensor(
        [result.model.score(p.prompt, p.chosen, p.rejected) for p in read_pairs(heldout_file)]
    ).div(0.1)
    wanted = torch.tensor([0.2 if "margin" in record else 2.0 for record in heldout])
    found = result.metrics["heldout"]
    assert found["loss"] == pytest.approx(((logits - wanted) ** 2 / 2).mean().item(), rel=1e-3)
    assert found["accuracy"] == pytest.approx((logits > 0).float().mean().item())
    assert result.history.last.heldout_loss == pytest.approx(found["loss"], rel=1e-3)
