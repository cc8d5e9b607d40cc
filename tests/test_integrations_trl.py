from __future__ import annotations

import importlib.util

import pytest
import torch
from pair_models import (
    learnable_pairs,
    pair_model,
    quiet,
    save_tiny_backbone,
    two_threads,  # noqa: F401 (a fixture)
)

pytest.importorskip("trl", reason="trl is not installed")
pytest.importorskip("datasets", reason="the extra 'train' is not installed")

import datasets
import trl
from transformers import HfArgumentParser

from gpm_core.integrations.trainer import preference_metrics
from gpm_core.integrations.trl import MINIMUM_TRL, PreferenceConfig, PreferenceTrainer
from gpm_core.models import GeneralPreferenceModel, load_model

HEAD = {"dim": 4, "gate": "softmax"}


@pytest.fixture(autouse=True)
def no_reports_to_trl(monkeypatch) -> None:
    monkeypatch.setenv("CI", "1")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return save_tiny_backbone(tmp_path_factory.mktemp("backbone"))


def pairs(count, seed=0, **columns):
    records = learnable_pairs(count, seed)
    for name, values in columns.items():
        for record, value in zip(records, values, strict=True):
            record[name] = value
    return datasets.Dataset.from_list(records)


def trainer(model, folder, train=None, evaluate=None, more=None, **options):
    arguments = {**quiet, "save_strategy": "no", "bf16": False, "learning_rate": 1e-2, **options}
    return PreferenceTrainer(
        model,
        PreferenceConfig(str(folder), **arguments),
        train_dataset=pairs(32) if train is None else train,
        eval_dataset=pairs(9, seed=1) if evaluate is None else evaluate,
        **(more or {}),
    )


def scores_of(model, dataset):
    """Scores (P,) of text pairs, one at a time, as the model is used."""
    model = model.eval()
    scores = [model.score(r["prompt"], r["chosen"], r["rejected"]) for r in dataset]
    return torch.tensor(scores, dtype=torch.float64)


# -- training ----------------------------------------------------------------------------------


def test_from_the_name_of_a_backbone_to_a_stored_model(backbone, tmp_path) -> None:
    run = trainer(
        backbone,
        tmp_path,
        learn_tau="one",
        num_train_epochs=4,
        logging_steps=4,
        eval_strategy="epoch",
        save_strategy="epoch",
        bf16=True,
        gradient_checkpointing=True,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        **HEAD,
    )
    run.train()
    logs = run.state.log_history
    losses = [entry["loss"] for entry in logs if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert run.model.config.gate == "softmax"
    keys = {"accuracy", "margin", "probability", "min_score", "max_score", "tau", "num_tokens"}
    assert keys <= set(logs[0])
    evaluated = next(entry for entry in logs if "eval_loss" in entry)
    assert {f"eval_{key}" for key in keys} <= set(evaluated)
    assert run.evaluate()["eval_accuracy"] == 1.0

    stored = load_model(tmp_path / "checkpoint-16")
    rows = pairs(3, seed=2)
    assert (scores_of(stored, rows) > 0).all()
    assert stored.config.id2label == GeneralPreferenceModel.config_class().id2label
    assert run.model.temperature().item() != pytest.approx(0.1, abs=1e-6)


def test_logged_numbers_by_formula(tmp_path) -> None:
    """Of all pairs alike, though the last batch is smaller than the others."""
    margins, targets = [0.02, -0.01, 0.0] * 3, [1.0, 0.1, 0.5] * 3
    evaluate = pairs(9, seed=1, margin=margins, target=targets)
    run = trainer(pair_model(**HEAD), tmp_path, None, evaluate, per_device_eval_batch_size=4)
    found = run.evaluate()
    scores = scores_of(run.model, evaluate)
    target = torch.tensor(targets, dtype=torch.float64)
    logits = (scores - torch.tensor(margins, dtype=torch.float64)) / 0.1
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    correct = (scores.sign() * (target - 0.5).sign() + 1) / 2
    assert 0 < correct.mean() < 1
    assert found["eval_loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert found["eval_accuracy"] == pytest.approx(correct.mean().item())
    assert found["eval_margin"] == pytest.approx(scores.mean().item(), rel=1e-4)
    assert found["eval_probability"] == pytest.approx(logits.sigmoid().mean().item(), rel=1e-4)
    batches = scores.split(4)
    for name in ("min", "max"):
        extremes = [getattr(batch, name)().item() for batch in batches]
        assert found[f"eval_{name}_score"] == pytest.approx(sum(extremes) / 3, rel=1e-4)


def test_targets_under_another_name(tmp_path) -> None:
    rows = pairs(8, agreement=[0.9] * 8)
    run = trainer(pair_model(), tmp_path, rows, target_column="agreement")
    assert run.train_dataset["labels"][:] == [0.9] * 8


def test_label_smoothing(tmp_path) -> None:
    evaluate = pairs(8, seed=1)
    run = trainer(pair_model(), tmp_path, None, evaluate, label_smoothing_factor=0.2)
    logits = scores_of(run.model, evaluate) / 0.1
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, torch.full_like(logits, 0.9)
    )
    assert run.evaluate()["eval_loss"] == pytest.approx(loss.item(), rel=1e-4)


@pytest.mark.parametrize("head", ["bt", "hybrid"])
def test_rewards_are_centred_where_there_are_rewards(head, tmp_path) -> None:
    evaluate = pairs(8, seed=1)
    model = pair_model(head=head, dim=2)
    with torch.no_grad():
        model.head.value_head.weight.mul_(20)
    plain = trainer(model, tmp_path, None, evaluate).evaluate()
    centred = trainer(model, tmp_path, None, evaluate, center_rewards_coefficient=0.5).evaluate()
    rewards = [
        -model.embed([row["prompt"]] * 2, [row["chosen"], row["rejected"]])[:, 1]
        for row in evaluate
    ]
    both = torch.stack(rewards)
    expected = 0.5 * both.sum(dim=1).square().mean().item()
    assert expected > 1e-3
    assert centred["eval_loss"] - plain["eval_loss"] == pytest.approx(expected, rel=1e-3)
    assert centred["eval_mean_reward"] == pytest.approx(both.mean().item(), rel=1e-3)
    assert centred["eval_min_reward"] == pytest.approx(both.min().item(), rel=1e-3)
    assert centred["eval_max_reward"] == pytest.approx(both.max().item(), rel=1e-3)


def test_accumulated_steps_are_those_of_large_batches(tmp_path) -> None:
    def step(**options):
        torch.manual_seed(0)
        arguments = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1, "max_grad_norm": 0.0}
        run = trainer(pair_model(**HEAD), tmp_path, pairs(8), **{**arguments, **options})
        run.train()
        return run.model.state_dict()

    expected = step()
    found = step(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_metrics_of_ones_own(tmp_path) -> None:
    more = {"compute_metrics": lambda p: {"worst": preference_metrics(p)["min_score"]}}
    run = trainer(pair_model(**HEAD), tmp_path, more=more)
    worst = scores_of(run.model, pairs(9, seed=1)).min().item()
    assert run.evaluate()["eval_worst"] == pytest.approx(worst, rel=1e-4)


def test_weight_decay_leaves_the_temperature_alone(tmp_path) -> None:
    run = trainer(pair_model(learn_tau="per_block", **HEAD), tmp_path, weight_decay=0.1)
    decayed = run.get_decay_parameter_names(run.model)
    assert "head.value_head.weight" in decayed
    assert "temperature.raw" not in decayed


# -- models ------------------------------------------------------------------------------------


def test_adapters(backbone, tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    more = {"peft_config": peft.LoraConfig(r=4)}
    options = {"num_train_epochs": 4, "gradient_checkpointing": True, "save_strategy": "epoch"}
    run = trainer(backbone, tmp_path, more=more, **options, **HEAD)
    head = run.model.get_base_model().head
    before = head.value_head.modules_to_save.default.weight.clone()
    run.train()
    after = head.value_head.modules_to_save.default.weight
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(head.value_head.original_module.weight, before)
    rows = pairs(3, seed=2)
    stored = load_model(tmp_path / "checkpoint-16")
    assert torch.equal(stored.head.value_head.weight, after)
    torch.testing.assert_close(
        scores_of(stored, rows), scores_of(run.model, rows), rtol=1e-4, atol=1e-6
    )

    more_training = trainer(str(tmp_path / "checkpoint-16"), tmp_path / "more", max_steps=1)
    start = scores_of(more_training.model, rows)
    torch.testing.assert_close(start, scores_of(stored, rows), rtol=1e-4, atol=1e-6)
    more_training.train()
    assert (scores_of(more_training.model, rows) - start).abs().max() > 1e-4
    with pytest.raises(ValueError, match="has an adapter already"):
        trainer(run.model, tmp_path, more=more)


def test_the_name_of_a_preference_model(tmp_path) -> None:
    model = pair_model(**HEAD)
    model.save_pretrained(tmp_path / "model")
    run = trainer(str(tmp_path / "model"), tmp_path / "run")
    rows = pairs(3)
    assert torch.equal(scores_of(run.model, rows), scores_of(model, rows))
    with pytest.raises(ValueError, match=r"dim=8 \(the model has 4\)"):
        trainer(str(tmp_path / "model"), tmp_path / "run", dim=8)


def test_standardization_is_measured_on_the_training_pairs(backbone, tmp_path) -> None:
    run = trainer(backbone, tmp_path, pairs(4), standardize=True, **HEAD)
    records = pairs(4).to_list()
    expected = GeneralPreferenceModel.from_backbone(backbone, standardize=True, **HEAD)
    expected.fit_standardization(
        [r["prompt"] for r in records for _ in range(2)],
        [reply for r in records for reply in (r["chosen"], r["rejected"])],
    )
    for name in ("feature_standardization", "prompt_standardization"):
        found = getattr(run.model, name)
        assert found.std.ne(1).any()
        torch.testing.assert_close(found.mean, getattr(expected, name).mean)
        torch.testing.assert_close(found.std, getattr(expected, name).std)


def test_standardization_that_was_measured_is_kept(tmp_path) -> None:
    model = pair_model(standardize=True, **HEAD)
    model.fit_standardization(["w1", "w2"], ["good", "bad"])
    model.save_pretrained(tmp_path / "model")
    for source in (model, str(tmp_path / "model")):
        run = trainer(source, tmp_path / "run")
        for name in ("feature_standardization", "prompt_standardization"):
            assert torch.equal(getattr(run.model, name).mean, getattr(model, name).mean)


def test_models_are_left_as_they_are_but_for_dropout(tmp_path) -> None:
    model = pair_model(encoder=True)
    labels = dict(model.config.id2label)
    trainer(model, tmp_path)
    assert model.config.id2label == labels
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0}
    kept = pair_model(encoder=True)
    trainer(kept, tmp_path, disable_dropout=False)
    assert {m.p for m in kept.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


def test_loading_options(backbone, tmp_path) -> None:
    run = trainer(backbone, tmp_path, model_init_kwargs={"dtype": "bfloat16"})
    assert run.model.dtype == torch.bfloat16
    assert run.args.model_init_kwargs == {"dtype": "bfloat16"}
    assert trainer(backbone, tmp_path).model.dtype == torch.float32


def test_a_tokenizer_of_ones_own(tmp_path) -> None:
    model = pair_model(**HEAD)
    tokenizer, model.tokenizer = model.tokenizer, None
    tokenizer.pad_token = None
    run = trainer(model, tmp_path, more={"processing_class": tokenizer})
    assert run.data_collator.pad_token_id == tokenizer.eos_token_id
    assert model.tokenizer is tokenizer
    run.evaluate()
    model.tokenizer = None
    with pytest.raises(ValueError, match="pass processing_class"):
        trainer(model, tmp_path)


@pytest.mark.parametrize(
    ("head", "options", "more", "match"),
    [
        ({}, {"center_rewards_coefficient": 0.1}, {}, "needs a head with a reward"),
        ({}, {"label_smoothing_factor": 1.0}, {}, r"label_smoothing_factor must be in \[0, 1\)"),
        ({}, {"model_init_kwargs": {"dtype": "float32"}}, {}, "this model is loaded"),
        ({}, {}, {"quantization_config": {}}, "this one is loaded"),
        ({}, {"gate": "softmax"}, {}, r"gate='softmax' \(the model has None\)"),
    ],
)
def test_options_that_do_not_fit(head, options, more, match, tmp_path) -> None:
    with pytest.raises(ValueError, match=match):
        trainer(pair_model(**head), tmp_path, more=more, **options)


def test_wrong_kinds(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"must be a GeneralPreferenceModel.*got LlamaModel"):
        trainer(pair_model().model, tmp_path)
    with pytest.raises(TypeError, match="args must be a PreferenceConfig"):
        PreferenceTrainer(pair_model(), {"output_dir": "run"}, train_dataset=pairs(2))


def test_arguments_of_trl_and_none(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = trl.RewardConfig(str(tmp_path), use_cpu=True, report_to=[])
    PreferenceTrainer(pair_model(), arguments, train_dataset=pairs(2))
    assert PreferenceTrainer(pair_model(), train_dataset=pairs(2)).args.output_dir == (
        "model-Preference"
    )


def test_arguments_from_a_command_line() -> None:
    line = ["--output_dir", "run", "--dim", "6", "--gate", "softmax", "--tau", "0.2", "--use_cpu"]
    (config,) = HfArgumentParser(PreferenceConfig).parse_args_into_dataclasses(line)
    assert (config.dim, config.gate, config.tau, config.head) == (6, "softmax", 0.2, None)


# -- data --------------------------------------------------------------------------------------


def test_long_pairs_are_left_out_or_cut(tmp_path) -> None:
    records = learnable_pairs(4)
    records[1]["chosen"] = " ".join(["good"] * 30)
    rows = datasets.Dataset.from_list(records)
    assert len(trainer(pair_model(), tmp_path, rows, max_length=20).train_dataset) == 3
    assert len(trainer(pair_model(), tmp_path, rows, max_length=None).train_dataset) == 4
    with pytest.raises(ValueError, match="no pair whose conversations are at most max_length=5"):
        trainer(pair_model(), tmp_path, rows, max_length=5)


def test_batches_of_pairs_of_like_length(tmp_path) -> None:
    records = learnable_pairs(64)
    for record in records[::2]:
        record.update(chosen="good", rejected="bad")
    rows = datasets.Dataset.from_list(records)
    options = {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": 2}
    run = trainer(pair_model(), tmp_path, rows, **options)
    widths = [batch["input_ids"].shape[-1] for batch in run.get_train_dataloader()]
    # Of 32 batches; a random order has 8 of two short pairs, give or take 3.
    assert widths.count(min(widths)) >= 13


def test_streams_several_evaluations_and_data_of_the_moment(tmp_path) -> None:
    stream = pairs(16).to_iterable_dataset()
    several = {"one": pairs(4, seed=1), "two": pairs(5, seed=2)}
    run = trainer(pair_model(**HEAD), tmp_path, stream, several, max_steps=2)
    run.train()
    found = run.evaluate()
    for name, rows in several.items():
        margin = scores_of(run.model, rows).mean().item()
        assert found[f"eval_{name}_margin"] == pytest.approx(margin, rel=1e-4)
    run.predict(run.eval_dataset["one"])
    raw = pairs(5, seed=2)
    assert run.evaluate(raw)["eval_margin"] == pytest.approx(
        scores_of(run.model, raw).mean().item(), rel=1e-4
    )


# -- versions ----------------------------------------------------------------------------------


def test_an_older_trl_is_refused(tmp_path, monkeypatch) -> None:
    metadata = tmp_path / "trl-0.24.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 0.24.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = importlib.util.find_spec("gpm_core.integrations.trl_config")
    with pytest.raises(ImportError, match=f"needs trl >= {MINIMUM_TRL}; this is 0.24.0"):
        found.loader.exec_module(importlib.util.module_from_spec(found))
