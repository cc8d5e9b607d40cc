from __future__ import annotations

import random

import datasets
import pytest
import torch
import transformers
from pair_models import two_threads, weights  # noqa: F401 (a fixture)
from test_integrations_gpo import (
    GROUPS,
    PAIRS,
    all_logps,
    elsewhere,  # noqa: F401 (a fixture)
    policy,
    tokenizer,
    trainer,
)

from gpm_core.integrations.trl_gpo import GPOConfig, GPOTrainer


def many(count: int, seed: int = 0) -> list[dict]:
    """Groups of three, of which those that begin with token 8 are better."""
    draw = random.Random(seed)
    return [
        {
            "prompt_ids": [draw.randrange(20, 70) for _ in range(3)],
            "response_ids": [[8, draw.randrange(20, 70), 3], [9, 3], [10, 11, 3]],
            "scores": [0.2, -0.1, -0.1],
        }
        for _ in range(count)
    ]


def losses(run) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_a_policy_approaches_the_optimum() -> None:
    """Log-ratios within a group approach scores / beta, centred."""
    run = trainer(
        "run",
        many(16),
        beta=0.1,
        centered=True,
        num_train_epochs=12,
        logging_steps=1,
        lr_scheduler_type="constant",
    )
    before = all_logps(policy(), many(4))
    run.train()
    assert losses(run)[0] == pytest.approx(2.0, rel=0.1), "mean of (2, -1, -1)^2"
    assert losses(run)[-1] < 0.02
    for start, end in zip(before, all_logps(run.model, many(4)), strict=True):
        ratios = (end - start) - (end - start).mean()
        assert ratios.tolist() == pytest.approx([2.0, -1.0, -1.0], abs=0.5)
    logged = run.state.log_history[-2]
    assert logged["rewards/accuracies"] == 1.0
    assert logged["rewards/margins"] == pytest.approx(0.3, abs=0.05)
    assert {"logps/chosen", "logps/rejected", "objective/kl"} <= set(logged)


def test_metrics_are_means_over_groups_whatever_the_batches() -> None:
    options = {"more": {"eval_dataset": many(5), "ref_model": policy(1)}, "centered": True}
    small = trainer("run", per_device_eval_batch_size=2, **options).evaluate()
    large = trainer("run", per_device_eval_batch_size=5, **options).evaluate()
    for name in ("loss", "rewards/margins", "rewards/chosen", "logps/chosen", "objective/kl"):
        assert small[f"eval_{name}"] == pytest.approx(large[f"eval_{name}"], rel=1e-5), name


def test_accumulated_steps_are_those_of_a_large_batch() -> None:
    ends = []
    for batch, steps in ((4, 1), (1, 4)):
        run = trainer(
            "run",
            many(8),
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            beta=0.1,
            optim="sgd",
            max_grad_norm=0.0,
            logging_steps=1,
        )
        run.train()
        ends.append((weights(run.model), losses(run)))
    (large, large_losses), (small, small_losses) = ends
    assert small_losses == pytest.approx(large_losses, rel=1e-5)
    for name, weight in large.items():
        torch.testing.assert_close(small[name], weight, rtol=1e-4, atol=1e-6)
    start = policy().state_dict()
    assert any(not torch.allclose(start[n], w, atol=1e-4) for n, w in large.items())


# -- the reference -----------------------------------------------------------------------------


def test_the_reference_is_the_policy_as_given_before_and_during_training() -> None:
    ends = []
    for precompute in (True, False):
        run = trainer(
            "run",
            GROUPS * 2,
            model=policy(attention_dropout=0.3),
            precompute_ref_log_probs=precompute,
            precompute_ref_batch_size=1,
            beta=0.5,
            num_train_epochs=3,
            per_device_train_batch_size=2,
            logging_steps=1,
        )
        assert (run.ref_model is None) == precompute
        stored = run.train_dataset[0]["reference_logps"]
        if precompute:
            assert stored == pytest.approx(all_logps(policy())[0].tolist(), rel=1e-5)
        else:
            assert stored is None
            assert not any(p.requires_grad for p in run.ref_model.parameters())
        run.train()
        ends.append(losses(run))
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)
    assert ends[0][-1] != pytest.approx(ends[0][0], rel=1e-2)


def test_log_probabilities_of_the_data_are_used_as_they_are() -> None:
    rows = [{**GROUPS[1], "reference_logps": [-1.0, -2.0]}]
    some = trainer("run", [GROUPS[0], *rows]).train_dataset
    (others,) = all_logps(policy(), GROUPS[:1])
    assert some[0]["reference_logps"] == pytest.approx(others.tolist(), rel=1e-5)
    assert some[1]["reference_logps"] == [-1.0, -2.0]
    run = trainer("run", rows, beta=0.5)
    (logps,) = all_logps(policy(), rows)
    wanted = (logps - torch.tensor([-1.0, -2.0]) - torch.tensor([0.2, -0.2]) / 0.5).square().mean()
    found = run.evaluate(run.train_dataset)
    assert found["eval_loss"] == pytest.approx(wanted.item(), rel=1e-5)


def test_new_data_after_training_need_the_reference() -> None:
    run = trainer("run", max_steps=1)
    assert run.evaluate(many(2))["eval_objective/kl"] == pytest.approx(0.0, abs=1e-5)
    run.train()
    with pytest.raises(ValueError, match="has been trained since"):
        run.evaluate(many(2))
    assert "eval_loss" in run.evaluate([{**GROUPS[1], "reference_logps": [-1.0, -2.0]}])


def test_streams_run_the_reference_in_each_step() -> None:
    stream = datasets.Dataset.from_list(GROUPS).to_iterable_dataset()
    run = trainer("run", stream, precompute_ref_log_probs=False, max_steps=2, beta=0.1)
    run.train()
    assert run.state.global_step == 2
    with pytest.raises(ValueError, match="is a stream"):
        trainer("run", stream, max_steps=2)


# -- checkpoints, adapters, precision ----------------------------------------------------------


def test_a_run_goes_on_from_its_checkpoint(tmp_path) -> None:
    def run(folder):
        return trainer(
            folder,
            many(8),
            beta=0.1,
            per_device_train_batch_size=2,
            save_strategy="steps",
            save_steps=2,
            logging_steps=1,
        )

    whole = run(tmp_path / "whole")
    whole.train()
    resumed = run(tmp_path / "resumed")
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-5)
    for name, weight in weights(whole.model).items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight)
    stored = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-12")
    torch.testing.assert_close(
        torch.stack(all_logps(stored, many(2))), torch.stack(all_logps(whole.model, many(2)))
    )


@pytest.mark.parametrize("precompute", [True, False])
def test_adapters_are_trained_against_the_model_without(precompute) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2)
    run = trainer(
        "run",
        many(8),
        beta=0.1,
        centered=True,
        precompute_ref_log_probs=precompute,
        gradient_checkpointing=True,
        num_train_epochs=16,
        learning_rate=2e-2,
        logging_steps=1,
        save_strategy="epoch",
        bf16=True,
        more={"peft_config": config},
    )
    start = {k: v for k, v in weights(run.model).items() if "lora_" not in k}
    run.train()
    assert losses(run)[0] == pytest.approx(2.0, rel=0.1)
    assert losses(run)[-1] < 0.5 * losses(run)[0]
    for name, weight in start.items():
        assert torch.equal(run.model.state_dict()[name], weight), name
    stored = peft.PeftModel.from_pretrained(policy(), "run/checkpoint-16")
    torch.testing.assert_close(
        torch.stack(all_logps(stored, many(2))), torch.stack(all_logps(run.model, many(2)))
    )
    # The reference is at hand, whatever has been trained.
    assert run.evaluate(many(2, seed=1))["eval_rewards/accuracies"] == 1.0


def test_from_names_of_models_to_logged_pairs(tmp_path) -> None:
    policy().save_pretrained(tmp_path / "policy")
    tokenizer().save_pretrained(tmp_path / "policy")
    run = GPOTrainer(
        str(tmp_path / "policy"),
        GPOConfig(
            "run",
            objective="dpo",
            use_cpu=True,
            report_to=[],
            model_init_kwargs={"dtype": "bfloat16"},
            max_steps=2,
            logging_steps=1,
        ),
        datasets.Dataset.from_list([{**row, "source": "here"} for row in PAIRS]),
        {"some": PAIRS[:1], "others": PAIRS[1:]},
    )
    assert run.model.dtype == torch.bfloat16
    assert run.train_dataset[0]["reference_logps"] is not None
    run.train()
    assert {"eval_some_loss", "eval_others_rewards/margins"} <= set(run.evaluate())


def test_what_does_not_fit_the_trainer() -> None:
    with pytest.raises(TypeError, match="args must be a GPOConfig"):
        GPOTrainer(policy(), transformers.TrainingArguments(), GROUPS)
    with pytest.raises(ValueError, match="pass processing_class"):
        GPOTrainer(policy(), GPOConfig("run", use_cpu=True), GROUPS)
    model = policy()
    with pytest.raises(ValueError, match="must not be the model that is trained"):
        trainer("run", model=model, more={"ref_model": model})
    with pytest.raises(TypeError, match="a list of rows; got str"):
        trainer("run", "rows.jsonl")
