"""Training of several criteria: labels, batches, and what trainers log."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

pytest.importorskip("trl", reason="the extra 'train' is not installed")
pytest.importorskip("peft", reason="the extra 'train' is not installed")

import datasets
from criteria_models import groups
from pair_models import pair_model, quiet, save_tiny_backbone
from tiny_models import one_thread as one_thread
from transformers import Trainer, TrainingArguments

from gpm_core.data import (
    CriteriaPair,
    DataError,
    PreferencePair,
    RatedGroup,
    criteria_dataset,
    labelled_pairs,
    parse_criteria_pair,
)
from gpm_core.integrations.trainer import criteria_metrics
from gpm_core.integrations.trl import PreferenceConfig, PreferenceTrainer
from gpm_core.models import PreferenceCollator, load_model, tokenize_dataset, tokenize_pairs

NAN = float("nan")
NAMES = ["good", "opposite"]


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_backbone(tmp_path_factory.mktemp("causal"))


# -- labels ------------------------------------------------------------------------------------


def test_pairs_of_ratings_that_differ_somewhere() -> None:
    ratings = {"honest": (5.0, 2.0, 5.0), "brief": (1.0, 1.0, NAN), "kind": (3.0, 4.0, NAN)}
    made = labelled_pairs([RatedGroup((), ("a", "b", "c"), ratings)], ["honest", "brief", "kind"])
    # a and c are rated alike by all that rates both of them: there is nothing to learn.
    assert [(pair.chosen, pair.rejected) for pair in made] == [("a", "b"), ("c", "b")]
    assert made[0].targets == {"honest": 1.0, "brief": 0.5, "kind": 0.0}
    assert made[0].target == 0.5
    assert made[1].labels(["honest"]) == [1.0]
    assert math.isnan(made[1].labels(["kind"])[0])
    (reversed_pair,) = labelled_pairs([RatedGroup((), ("a", "b"), {"honest": (1.0, 2.0)})])
    assert (reversed_pair.chosen, reversed_pair.targets) == ("b", {"honest": 1.0})


def test_labels_of_records() -> None:
    record = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for target in ({"good": 1, "other": 0, "opposite": None}, [1.0, NAN]):
        pair = parse_criteria_pair({**record, "target": target}, NAMES)
        assert pair.labels(NAMES)[0] == 1.0
        assert math.isnan(pair.labels(NAMES)[1])
    for target, said in (
        (1.0, "a label, or null, for each criterion"),
        (None, "a label, or null, for each criterion"),
        ([1.0], "a label, or null, for each criterion"),
        ({"godo": 1.0}, "a label, or null, for each criterion"),
        ({"good": 2}, r"'target.good' must be in \[0, 1\]"),
        ({"good": "1"}, "'target.good' must be a number"),
    ):
        with pytest.raises(ValueError, match=said):
            parse_criteria_pair({**record, "target": target}, NAMES)
    with pytest.raises(ValueError, match="'margin' is of one preference"):
        parse_criteria_pair({**record, "target": [1, 0], "margin": 1.0}, NAMES)


def test_a_data_set_has_the_labels_by_name() -> None:
    made = labelled_pairs(groups(3))
    rows = criteria_dataset(made)
    assert rows["target"][:] == [
        {"good": 1.0, "opposite": None},
        {"good": 1.0, "opposite": 0.0},
        {"good": 1.0, "opposite": 0.0},
    ]
    assert rows[0]["chosen"][-1]["content"] == made[0].chosen


def test_batches_have_a_label_for_each_criterion() -> None:
    model = pair_model(criteria=NAMES)
    made = labelled_pairs(groups(3))
    rows = tokenize_pairs(made, model)
    expected = torch.tensor([[1.0, NAN], [1.0, 0.0], [1.0, 0.0]])
    batch = PreferenceCollator(0)(rows)
    assert torch.equal(batch["labels"].isnan(), expected.isnan())
    assert torch.equal(batch["labels"].nan_to_num(7.0), expected.nan_to_num(7.0))
    for source in (
        criteria_dataset(made),
        datasets.Dataset.from_list(
            [
                {
                    "chosen_ids": row["input_ids"][0],
                    "rejected_ids": row["input_ids"][1],
                    "target": pair.targets,
                }
                for row, pair in zip(rows, made, strict=True)
            ]
        ),
    ):
        again = PreferenceCollator(0)(list(tokenize_dataset(source, model)))
        assert torch.equal(again["labels"].nan_to_num(7.0), expected.nan_to_num(7.0))
        assert torch.equal(again["input_ids"], batch["input_ids"])
    model(**batch).loss.backward()


def test_rows_without_labels_of_the_criteria_are_refused() -> None:
    model = pair_model(criteria=NAMES)
    with pytest.raises(DataError, match="row 1: the model has the criteria good, opposite"):
        tokenize_pairs([PreferencePair((), "a", "b")], model)
    plain = datasets.Dataset.from_list([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(DataError, match="row 1: field 'target' must have a label, or null, for"):
        tokenize_dataset(plain, model)
    with pytest.raises(DataError, match="field 'target' must be a number"):
        tokenize_dataset(criteria_dataset(labelled_pairs(groups(2))), pair_model())
    rows = [*tokenize_pairs(labelled_pairs(groups(1)), model), {"input_ids": [[5], [6]]}]
    with pytest.raises(ValueError, match="a number in all rows, or one for each criterion"):
        PreferenceCollator(0)(rows)


def test_pairs_of_criteria_are_pairs() -> None:
    pair = CriteriaPair((), "a", "b", targets={"good": 1.0})
    assert isinstance(pair, PreferencePair)
    assert len({pair, CriteriaPair((), "a", "b", targets={"good": 0.0})}) == 2


# -- trainers ----------------------------------------------------------------------------------


def test_logs_have_loss_and_accuracy_of_each_criterion(tmp_path: Path) -> None:
    model = pair_model(criteria=NAMES, dim=4)
    made = labelled_pairs(groups(7, seed=3))
    trainer = PreferenceTrainer(
        model,
        PreferenceConfig(
            str(tmp_path), per_device_eval_batch_size=3, gradient_checkpointing=False, **quiet
        ),
        train_dataset=criteria_dataset(made),
        eval_dataset=criteria_dataset(made),
    )
    logged = trainer.evaluate()
    every, losses = [], []
    for name in NAMES:
        known = [pair for pair in made if not math.isnan(pair.labels([name])[0])]
        score = torch.tensor(
            [model.score(p.prompt, p.chosen, p.rejected, criterion=name) for p in known]
        )
        label = torch.tensor([pair.targets[name] for pair in known])
        right = ((score > 0).float() == label).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            score / model.config.tau, label, reduction="none"
        )
        assert logged[f"eval_accuracy_{name}"] == pytest.approx(right.mean().item())
        assert logged[f"eval_loss_{name}"] == pytest.approx(loss.mean().item(), abs=1e-5)
        every += right.tolist()
        losses += loss.tolist()
    assert len(every) < 2 * len(made), "some label must be missing for this to show anything"
    assert logged["eval_accuracy"] == pytest.approx(sum(every) / len(every))
    # Every label alike, though batches have more of them or fewer.
    assert logged["eval_loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert trainer.state.log_history[-1]["eval_loss"] == logged["eval_loss"]
    predicted = trainer.predict(trainer.eval_dataset, metric_key_prefix="heldout").metrics
    assert predicted["heldout_loss"] == pytest.approx(logged["eval_loss"])
    scores = [model.score(pair.prompt, pair.chosen, pair.rejected) for pair in made]
    assert logged["eval_margin"] == pytest.approx(sum(scores) / len(scores), abs=1e-5)


def test_labels_weigh_alike_whichever_micro_batch_they_are_in(tmp_path: Path) -> None:
    """A step of four pairs at once, and of two and two, of which the first two lack labels."""
    made = labelled_pairs(groups(12))
    rows = [
        CriteriaPair(
            pair.prompt,
            pair.chosen,
            pair.rejected,
            targets=pair.targets if i % 4 > 1 else {"good": 1.0},
        )
        for i, pair in enumerate(made)
    ]
    states, logs = [], []
    for size in (4, 2):
        trainer = PreferenceTrainer(
            pair_model(criteria=NAMES, dim=4),
            PreferenceConfig(
                str(tmp_path / str(size)),
                **{
                    **quiet,
                    "per_device_train_batch_size": size,
                    "gradient_accumulation_steps": 4 // size,
                    "train_sampling_strategy": "sequential",
                    "bf16": False,
                    "optim": "sgd",
                    "learning_rate": 0.1,
                    "max_grad_norm": 0.0,
                    "num_train_epochs": 1,
                    "logging_steps": 1,
                    "save_strategy": "no",
                },
            ),
            train_dataset=criteria_dataset(rows),
        )
        trainer.train()
        states.append(trainer.model.state_dict())
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(logs[0]) == 3
    assert logs[1] == pytest.approx(logs[0], rel=1e-4)
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_opposed_criteria_are_learned_and_stored(tmp_path: Path, causal: str) -> None:
    trainer = PreferenceTrainer(
        causal,
        PreferenceConfig(
            str(tmp_path),
            criteria=NAMES,
            criteria_weights={"opposite": 1.0},
            dim=4,
            learning_rate=1e-2,
            num_train_epochs=6,
            logging_steps=6,
            **quiet,
        ),
        train_dataset=criteria_dataset(labelled_pairs(groups(48))),
        eval_dataset=criteria_dataset(labelled_pairs(groups(16, seed=1))),
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy_good"] == metrics["eval_accuracy_opposite"] == 1.0
    trained = [entry for entry in trainer.state.log_history if "loss" in entry]
    for name in NAMES:
        assert trained[-1][f"accuracy_{name}"] == 1.0
        assert trained[-1][f"loss_{name}"] < trained[0][f"loss_{name}"]
    trainer.save_model(str(tmp_path / "model"))
    model = load_model(tmp_path / "model")
    replies = ["w1 good good", "w1 bad bad"]
    assert model.score("w2", *replies, criterion="good") > 0
    assert model.score("w2", *replies) < 0
    with pytest.raises(ValueError, match="do not change one that has its head"):
        PreferenceTrainer(
            str(tmp_path / "model"),
            PreferenceConfig(str(tmp_path / "again"), criteria=["good"], **quiet),
            train_dataset=criteria_dataset(labelled_pairs(groups(4))),
        )


def test_transformers_own_trainer(tmp_path: Path) -> None:
    model = pair_model(criteria=NAMES, dim=4)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            str(tmp_path), learning_rate=1e-2, num_train_epochs=6, save_strategy="no", **quiet
        ),
        train_dataset=tokenize_pairs(labelled_pairs(groups(48)), model),
        eval_dataset=tokenize_pairs(labelled_pairs(groups(9, seed=1)), model),
        data_collator=PreferenceCollator(0),
        compute_metrics=criteria_metrics(NAMES),
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == 1.0
    assert metrics["eval_accuracy_good"] == metrics["eval_accuracy_opposite"] == 1.0
    assert metrics["eval_min_score"] <= metrics["eval_margin"] <= metrics["eval_max_score"]


def test_metrics_by_hand() -> None:
    from transformers import EvalPrediction

    scores = (torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 1.0], [-3.0, 0.0]]))
    found = criteria_metrics(NAMES)(EvalPrediction(scores, torch.tensor([[1.0, NAN], [1.0, 0.0]])))
    assert found["accuracy_good"] == 0.5  # one right, one wrong
    assert found["accuracy_opposite"] == 0.5  # a tie
    assert (found["accuracy"], found["margin"]) == (0.5, -0.5)
    with pytest.raises(ValueError, match="a score and a label for each"):
        criteria_metrics(["good"])(EvalPrediction(scores, torch.ones(2, 2)))
    with pytest.raises(ValueError, match=r"the scores \(P,\) of pairs and those"):
        criteria_metrics(NAMES)(EvalPrediction(scores[0], torch.ones(2, 2)))
