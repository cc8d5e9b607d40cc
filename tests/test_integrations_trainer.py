from __future__ import annotations

import pytest
import torch
from pair_models import (
    learnable_pairs,
    pair_model,
    quiet,
    two_threads,  # noqa: F401 (a fixture)
    weights,
)
from safetensors.torch import load_file

pytest.importorskip("accelerate", reason="the extra 'train' is not installed")

from transformers import EvalPrediction, Trainer, TrainingArguments

from gpm_core.integrations.trainer import preference_metrics
from gpm_core.models import GeneralPreferenceModel, LanguageModelHead
from gpm_core.models.collation import PreferenceCollator, tokenize_pairs

HEAD = {"dim": 4, "gate": "softmax", "learn_tau": "one"}


def trainer(model, folder, *, count=32, evaluate=9, metrics=preference_metrics, **options):
    arguments = {**quiet, "learning_rate": 3e-3, "num_train_epochs": 3, "save_strategy": "no"}
    return Trainer(
        model=model,
        args=TrainingArguments(str(folder), **{**arguments, **options}),
        train_dataset=tokenize_pairs(learnable_pairs(count), model),
        eval_dataset=tokenize_pairs(learnable_pairs(evaluate, seed=1), model),
        data_collator=PreferenceCollator(model.tokenizer.pad_token_id),
        processing_class=model.tokenizer,
        compute_metrics=metrics,
    )


# -- metrics -----------------------------------------------------------------------------------


def test_metrics_by_hand() -> None:
    scores = torch.tensor([2.0, -1.0, 0.0, -0.5, 0.25])
    labels = torch.tensor([1.0, 1.0, 1.0, 0.2, 0.5])
    metrics = preference_metrics(EvalPrediction(scores.numpy(), labels.numpy()))
    # Right, wrong, tied score, right (the other side is preferred), tied label.
    assert metrics == {
        "accuracy": pytest.approx((1 + 0 + 0.5 + 1 + 0.5) / 5),
        "margin": pytest.approx(0.75 / 5),
        "min_score": -1.0,
        "max_score": 2.0,
    }


@pytest.mark.parametrize("shapes", [((2, 1), (2,)), ((2,), (3,)), ((0,), (0,))])
def test_wrong_predictions(shapes) -> None:
    with pytest.raises(ValueError, match="a score and a label for each"):
        preference_metrics(EvalPrediction(*(torch.zeros(shape) for shape in shapes)))


def test_predictions_of_a_model_that_keeps_its_language_model_head(tmp_path) -> None:
    """Scores alone, as of any other: what only a loss needs is not gathered."""
    model = pair_model(**HEAD)
    expected = trainer(model, tmp_path).evaluate()
    model.language_model_head = LanguageModelHead(torch.ones(80, 16))
    run = trainer(model, tmp_path)
    assert run.predict(run.eval_dataset).predictions.shape == (9,)
    found = run.evaluate()
    for name in ("eval_accuracy", "eval_margin", "eval_loss"):
        assert found[name] == pytest.approx(expected[name])


# -- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(HEAD, id="gpm"),
        pytest.param({"head": "bt"}, id="bt"),
        pytest.param(
            {"head": "hybrid", "dim": 2, "gate": "softplus", "encoder": True}, id="hybrid"
        ),
    ],
)
def test_a_model_learns_and_is_read_again(head, tmp_path) -> None:
    model = pair_model(**head)
    run = trainer(model, tmp_path, num_train_epochs=6, learning_rate=1e-2, logging_steps=4)
    before = run.evaluate()
    run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    assert losses[-1] < 0.3 * losses[0]
    after = run.evaluate()
    assert after["eval_loss"] < 0.5 * before["eval_loss"]
    assert after["eval_accuracy"] == 1.0
    assert after["eval_margin"] > max(before["eval_margin"], 0.0)

    run.save_model(str(tmp_path / "model"))
    again = GeneralPreferenceModel.from_pretrained(str(tmp_path / "model"))
    record = learnable_pairs(1, seed=2)[0]
    replies = [record["chosen"], record["rejected"]]
    expected = model.eval().preference_matrix(record["prompt"], replies)
    assert torch.equal(again.preference_matrix(record["prompt"], replies), expected)


def test_evaluation_is_of_all_pairs(tmp_path) -> None:
    model = pair_model(**HEAD)
    records = learnable_pairs(9, seed=1)
    for record, target in zip(records, [1.0, 0.1, 0.5] * 3, strict=True):
        record["target"] = target
    run = trainer(model, tmp_path, per_device_eval_batch_size=4)
    found = run.evaluate(tokenize_pairs(records, model))
    scores = [model.score(r["prompt"], r["chosen"], r["rejected"]) for r in records]
    labels = torch.tensor([r["target"] for r in records], dtype=torch.float64)
    logits = torch.tensor(scores, dtype=torch.float64) / 0.1
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
    assert found["eval_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert found["eval_margin"] == pytest.approx(sum(scores) / 9, rel=1e-4)
    sides = (logits.sign() * (labels - 0.5).sign() + 1) / 2
    assert found["eval_accuracy"] == pytest.approx(sides.mean().item())


def test_the_learned_temperature_is_trained_and_stored(tmp_path) -> None:
    model = pair_model(**HEAD)
    trainer(model, tmp_path, save_strategy="epoch", learning_rate=1e-2).train()
    tau = model.temperature().item()
    assert abs(tau - 0.1) > 1e-3
    stored = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert torch.equal(stored["temperature.raw"], model.temperature.raw.detach())


def test_resuming_gives_the_same_weights(tmp_path) -> None:
    whole = pair_model(**HEAD)
    options = {"save_strategy": "epoch", "num_train_epochs": 2}
    trainer(whole, tmp_path, **options).train()
    resumed = pair_model(seed=1, **HEAD)
    trainer(resumed, tmp_path, **options).train(str(tmp_path / "checkpoint-4"))
    expected = weights(whole)
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, expected[name]), name


def step_of(tmp_path, **options):
    """All weights after one step of gradient descent on 8 pairs."""
    model = pair_model(**HEAD)
    arguments = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1, "max_grad_norm": 0.0}
    run = trainer(model, tmp_path, count=8, **{**arguments, **options})
    loss = run.train().training_loss
    return loss, weights(model)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}, id="accumulation"
        ),
        pytest.param({"gradient_checkpointing": True}, id="gradient checkpointing"),
    ],
)
def test_ways_to_save_memory_take_the_same_step(options, tmp_path) -> None:
    start = weights(pair_model(**HEAD))
    loss, expected = step_of(tmp_path)
    other, found = step_of(tmp_path, **options)
    assert other == pytest.approx(loss, rel=1e-5)
    moved = 0.0
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
        moved = max(moved, (tensor - start[name]).abs().max().item())
    assert moved > 1e-3


def test_bfloat16(tmp_path) -> None:
    loss, _ = step_of(tmp_path)
    found, _ = step_of(tmp_path, bf16=True)
    assert found != loss
    assert found == pytest.approx(loss, rel=0.02)


def test_the_best_checkpoint_is_loaded(tmp_path) -> None:
    model = pair_model(**HEAD)
    run = trainer(
        model,
        tmp_path,
        eval_strategy="epoch",
        save_strategy="epoch",
        learning_rate=1e-2,
        load_best_model_at_end=True,
        metric_for_best_model="margin",
        greater_is_better=False,  # the first, so that it is not the last
    )
    run.train()
    best = tmp_path / "checkpoint-4"
    assert run.state.best_model_checkpoint == str(best)
    for name, tensor in load_file(best / "model.safetensors").items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert model.tokenizer is not None
    assert GeneralPreferenceModel.from_pretrained(str(best)).tokenizer is not None


def test_data_sets_lose_no_column_that_the_model_reads(tmp_path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra 'train' is not installed")
    from gpm_core.models.datasets import tokenize_dataset

    model = pair_model(**HEAD)
    records = [{**record, "margin": 0.3, "target": 0.8} for record in learnable_pairs(8)]
    rows = tokenize_dataset(datasets.Dataset.from_list(records), model)
    run = trainer(model, tmp_path)
    seen = next(iter(run.get_eval_dataloader(rows)))
    assert seen["margin"].tolist() == pytest.approx([0.3] * 8)
    assert seen["labels"].tolist() == pytest.approx([0.8] * 8)
    assert seen["prompt_lengths"].min() > 1
