from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pair_models import pair_model, quiet, two_threads  # noqa: F401 (a fixture)

pytest.importorskip("trl", reason="trl is not installed")
pytest.importorskip("datasets", reason="the extra 'train' is not installed")

import datasets
import rewards_processes as processes
from rewards_processes import GENERATIONS, KINDS, PROMPTS, REPLIES, Recorded, grpo, reward
from test_integrations_gpo import policy, tokenizer

from gpm_core import ops
from gpm_core.integrations.trl_rewards import PreferenceReward
from gpm_core.objectives.advantages import DriftMonitor

SCRIPT = Path(processes.__file__)
SECONDS = 120


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CI", "1")  # no reports to TRL


def matrices(model, prompt, replies) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and probabilities (K, K) of a group in float64, as the model is used."""
    return model.score_matrix(prompt, replies).double(), model.preference_matrix(
        prompt, replies
    ).double()


def groups() -> list[tuple[str, list[str]]]:
    return [("w1 w2", REPLIES[:3]), ("w3", REPLIES[3:5]), ("w4 w5", REPLIES[5:])]


@pytest.mark.parametrize("head", ["gpm", "hybrid", "bt"])
@pytest.mark.parametrize("tau", ["one", "per_block", None])
def test_rewards_by_formula(head, tau) -> None:
    gate = None if head == "bt" else "softmax"
    model = pair_model(head=head, dim=4, gate=gate, init="paper", learn_tau=tau)
    asked = [(prompt, reply) for prompt, replies in groups() for reply in replies]
    prompts, replies = map(list, zip(*asked, strict=True))
    scores, wins = zip(*(matrices(model, *group) for group in groups()), strict=True)
    found = PreferenceReward(model)(prompts=prompts, completions=replies)
    assert found == pytest.approx(torch.cat([s.mean(1) for s in scores]).tolist(), abs=1e-6)
    assert found[5] == 0.0, "alone with its prompt"
    found = PreferenceReward(model, kind="win_rate", batch_size=1)(prompts, replies)
    assert found == pytest.approx(torch.cat([p.mean(1) for p in wins]).tolist(), abs=1e-6)
    assert found[5] == 0.5


def test_advantages_block_by_block() -> None:
    """GPRL's formula, in float64, from the model's own embeddings and gate."""
    model = pair_model(dim=4, gate="softmax", init="paper")
    prompt, replies = groups()[0]
    v = model.embed([prompt] * 3, replies).double()
    scale = model.forward(*_tensors(model, prompt, replies)).scale[0].double()
    blocks = torch.stack([ops.score_matrix(v[:, i : i + 2]).mean(1) for i in (0, 2)], dim=1)
    wanted = ((blocks - blocks.mean(0)) / (blocks.std(0) + 1e-4) * scale).sum(1)
    found = PreferenceReward(model, kind="gprl")([prompt] * 3, replies)
    assert found == pytest.approx(wanted.tolist(), rel=1e-4)

    monitor = DriftMonitor(2, threshold=1e-6, smoothing=0.0)
    watched = PreferenceReward(model, kind="gprl", monitor=monitor)
    assert watched([prompt] * 3, replies) == pytest.approx(wanted.tolist(), rel=1e-4)
    watched(["w9"] * 2, ["good", "w7 w8"])
    weights = monitor.report().block_weights.double()
    assert weights.tolist() != [1.0, 1.0], "another share"
    parts = (blocks - blocks.mean(0)) / (blocks.std(0) + 1e-4) * scale
    monitor.smoothing = 1.0 - 1e-9  # the share stays what it is
    assert watched([prompt] * 3, replies) == pytest.approx((parts @ weights).tolist(), rel=1e-3)


def test_a_model_that_reads_pairs_has_no_rewards() -> None:
    with pytest.raises(TypeError, match="head='pair' reads two in one text"):
        PreferenceReward(pair_model(head="pair"))


def _tensors(model, prompt, replies):
    from gpm_core.models import pad_rows

    return pad_rows(model.rows([prompt] * len(replies), replies), 0)


def test_equal_prompts_are_a_group_in_any_order() -> None:
    """In a row, as GRPO has them; in two halves, as online DPO."""
    function = reward()
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    row = function(prompts, REPLIES)
    halves = function(PROMPTS * 2, REPLIES[::2] + REPLIES[1::2])
    assert halves == pytest.approx(row[::2] + row[1::2], abs=1e-6)
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    messages = [[{"role": "assistant", "content": reply}] for reply in REPLIES]
    assert function(conversations, messages, completion_ids=None) == pytest.approx(row, abs=1e-6)


def test_groups_of_a_given_size() -> None:
    twice = ["w1"] * 4
    replies = ["good", "bad", "w2", "w3"]
    first = reward()(twice[:2], replies[:2])
    assert reward(num_generations=2)(twice, replies)[:2] == pytest.approx(first, abs=1e-6)
    assert reward()(twice, replies)[:2] != pytest.approx(first, abs=1e-6), "one group of four"
    for prompts in (["w1", "w2"] * 2, ["w1"] * 3):
        with pytest.raises(ValueError, match="num_generations=2 responses in a row"):
            reward(num_generations=2)(prompts, replies[: len(prompts)])


def test_wrong_input() -> None:
    with pytest.raises(ValueError, match="kind must be"):
        reward("score")
    with pytest.raises(ValueError, match="monitor is for kind='gprl'"):
        reward("win_rate", monitor=DriftMonitor(3))
    with pytest.raises(TypeError, match="must be a GeneralPreferenceModel"):
        PreferenceReward(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="one prompt per completion"):
        reward()(["w1"], ["w1", "w2"])
    with pytest.raises(ValueError, match="at least one completion"):
        reward()([], [])
    turns = [{"role": "assistant", "content": "w1"}, {"role": "tool", "content": "w2"}]
    with pytest.raises(ValueError, match="one message with a text; got 2 messages"):
        reward()(["w1"], [turns])


# -- TRL's trainers ----------------------------------------------------------------------------


def test_grpo_on_conversations() -> None:
    prompts = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    function = reward("gprl", num_generations=GENERATIONS)
    run = grpo(Path("run"), function, prompts, per_device_train_batch_size=6, scale_rewards="none")
    logged = run.state.log_history[0]
    assert logged["rewards/preference_gprl/mean"] == pytest.approx(0.0, abs=1e-5)
    assert logged["rewards/preference_gprl/std"] > 0.1
    assert logged["grad_norm"] > 0


def test_online_dpo() -> None:
    try:
        from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
    except ImportError as error:
        pytest.skip(f"this TRL has no experimental online DPO: {error}")
    recorded = Recorded(reward())
    run = OnlineDPOTrainer(
        policy(),
        reward_funcs=recorded,
        args=OnlineDPOConfig(
            "run",
            **{**quiet, "per_device_train_batch_size": 3},
            max_new_tokens=4,
            max_steps=1,
            logging_steps=1,
            save_strategy="no",
            bf16=False,
            max_length=32,
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS]),
        processing_class=tokenizer(),
    )
    run.train()
    (call,) = recorded.calls
    assert call["prompts"][:3] == call["prompts"][3:]
    first, second = call["rewards"][:3], call["rewards"][3:]
    assert first == pytest.approx([-value for value in second], abs=1e-6)
    for prompt, *pair, value in zip(
        call["prompts"][:3], call["completions"][:3], call["completions"][3:], first, strict=True
    ):
        score = recorded.function.model.score(prompt, *pair)
        assert value == pytest.approx(score / 2, abs=1e-6)


# -- two processes -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two processes saw."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CI": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(rank), "2", str(folder)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for process in running:
            said, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, said
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_groups_that_straddle_processes(ranks) -> None:
    """Three completions each, groups of two: the second group lies on both."""
    one = processes.direct(0, 1)
    assert len(one) == 2 * len(KINDS)
    for name, rewards in one.items():
        both = ranks[0]["direct"][name] + ranks[1]["direct"][name]
        assert both == pytest.approx(rewards, rel=1e-4, abs=1e-7), name
        assert abs(both[2]) > 1e-3, "not alone"


def test_grpo_in_two_processes(ranks) -> None:
    calls = zip(*(rank["calls"] for rank in ranks), strict=True)
    for here, there in calls:
        prompts = here["prompts"] + there["prompts"]
        assert prompts[2] == prompts[3], "a group straddles the processes"
        wanted = reward()(prompts, here["completions"] + there["completions"])
        assert here["rewards"] + there["rewards"] == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert len(ranks[0]["calls"]) == 2
    assert ranks[0]["grpo"][0]["rewards/recorded/std"] > 0


def test_gpo_trainer_in_two_processes(ranks, tmp_path) -> None:
    one = processes.gpo(tmp_path / "one", 1)
    for rank in ranks:
        assert rank["gpo"]["losses"] == pytest.approx(one["losses"], rel=1e-4)
        for found, wanted in zip(rank["gpo"]["reference"], one["reference"], strict=True):
            assert found == pytest.approx(wanted, rel=1e-5)
        for name in ("rewards/margins", "rewards/chosen", "logps/rejected", "objective/kl"):
            found, wanted = (some["metrics"][f"eval_{name}"] for some in (rank["gpo"], one))
            # kl is a mean over the responses of a batch: ragged groups weigh by their batch.
            assert found == pytest.approx(wanted, rel=0.2 if name == "objective/kl" else 1e-3), name
