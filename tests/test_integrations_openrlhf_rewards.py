"""Group rewards for OpenRLHF: a reward function and the experience maker, as it calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openrlhf_rollouts as harness
import pytest
import torch
from openrlhf_rollouts import (
    PROMPTS,
    RESPONSES,
    SAMPLES,
    ExperienceMaker,
    judge,
    policy_tokenizer,
    query,
    rollout,
    sampled,
)
from pair_models import pair_model, two_threads  # noqa: F401 (a fixture)

from gpm_core.integrations.openrlhf import OpenRLHFRewardModel
from gpm_core.integrations.openrlhf_experience import PreferenceExperienceMixin
from gpm_core.integrations.openrlhf_rewards import GroupRewards, rendered_prompts
from gpm_core.integrations.trl_rewards import PreferenceReward


def ask(rewards: GroupRewards, samples: list[Any]) -> dict[str, list[float]]:
    found = rewards(
        [query(one) for one in samples],
        [one.prompts[0] for one in samples],
        [one.labels[0] for one in samples],
    )
    assert all(value.dtype == torch.float32 for value in found.values())
    return {name: value.tolist() for name, value in found.items()}


def formula() -> tuple[list[float], list[float]]:
    """Mean scores and win rates of the rollout in float64, from all pairs."""
    model = judge().reward.model
    scores, wins = [], []
    for prompt, responses in zip(PROMPTS, RESPONSES, strict=True):
        scores += model.score_matrix(prompt, responses).double().mean(1).tolist()
        wins += model.preference_matrix(prompt, responses).double().mean(1).tolist()
    return scores, wins


# -- the reward function -----------------------------------------------------------------------


def test_rewards_by_formula() -> None:
    scores, wins = formula()
    found = ask(judge(), rollout())
    assert found["rewards"] == pytest.approx(scores, abs=1e-6)
    assert found["scores"] == pytest.approx(wins, abs=1e-6)
    assert max(map(abs, scores)) > 0.01
    assert ask(judge("win_rate"), rollout())["rewards"] == pytest.approx(wins, abs=1e-6)
    prompts = [prompt for prompt in PROMPTS for _ in range(SAMPLES)]
    flat = [response for some in RESPONSES for response in some]
    advantages = PreferenceReward(judge().reward.model, kind="gprl")(prompts, flat)
    found = ask(judge("gprl"), rollout())
    assert found["rewards"] == pytest.approx(advantages, abs=1e-5)
    assert found["scores"] == pytest.approx(wins, abs=1e-6)


def test_groups_in_any_order() -> None:
    order = [4, 0, 8, 3, 1, 6, 5, 2, 7]
    samples = rollout()
    found = ask(judge(), [samples[i] for i in order])["rewards"]
    in_order = ask(judge(), samples)["rewards"]
    assert found == pytest.approx([in_order[i] for i in order], abs=1e-6)


def test_a_prompt_that_was_drawn_twice_is_two_groups() -> None:
    twice = [sampled("w3", response) for some in RESPONSES[:2] for response in some]
    found = ask(judge(), twice)["rewards"]
    for group in (twice[:SAMPLES], twice[SAMPLES:]):
        assert ask(judge(), group)["rewards"] == pytest.approx(found[:SAMPLES], abs=1e-6)
        found = found[SAMPLES:]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_incomplete_groups(count: int) -> None:
    """Releases from 0.9.4 on call a reward function with one sample."""
    with pytest.raises(ValueError, match=rf"3 responses together.*got {count % 3} of 'w"):
        ask(judge(), rollout()[:count])


def test_the_reward_stays_as_it_was() -> None:
    """It may be TRL's at the same time, with groups of any number."""
    reward = PreferenceReward(judge().reward.model)
    GroupRewards(reward, samples_per_prompt=2, read_prompt="text", tokenizer=policy_tokenizer())
    assert reward.num_generations is None


# -- texts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("w1 w2 good</s>", " good"),
        ("w1 w2 good</s></s><pad><pad>", " good"),
        ("<pad><pad>w1 w2 good", " good"),
        ("w1 w2 good</s>bad<pad></s>", " good</s>bad"),
        ("w1 w2</s>", ""),
        ("w1 w2 good<unk>", " good<unk>"),
    ],
)
def test_responses_of_queries(text: str, response: str) -> None:
    sample = judge().read(text, "w1 w2")
    assert sample == ("w1 w2", "w1 w2", response)


def test_a_prompt_that_decodes_otherwise() -> None:
    """The template writes what the tokenizer gives back with other blanks."""
    tokenizer = policy_tokenizer(chat=True)
    messages = [{"role": "user", "content": "w1 w2"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    one = sampled(text, "good w3")
    assert not query(one).startswith(text)
    assert judge().read(query(one), text).response.split() == ["good", "w3"]


def test_a_query_that_does_not_begin_with_its_prompt() -> None:
    with pytest.raises(ValueError, match=r"must begin with its prompt.*Prompt 'w1 w2', query 'w2"):
        judge().read("w2 good</s>", "w1 w2")
    with pytest.raises(ValueError, match="got 2 queries, 1 prompts and 2 labels"):
        judge()(["w1 w2", "w1 w2"], ["w1"])


def test_ways_to_read_a_prompt() -> None:
    """Messages by a table, by the label and by the common template: all the same."""
    tokenizer = policy_tokenizer(chat=True)
    system = [{"role": "system", "content": "w9"}, {"role": "user", "content": "w1"}]
    given = [[{"role": "user", "content": "w1 w2"}], system, "w4 w5 w6"]
    table = rendered_prompts(given, tokenizer)
    assert list(table.values()) == given
    samples = rollout(list(table), given)
    wanted = []
    for prompt, responses in zip(given, RESPONSES, strict=True):
        matrix = judge().reward.model.score_matrix(prompt, responses)
        wanted += matrix.mean(1).tolist()
    for way in (table, lambda prompt, label: label, "rendered"):
        found = ask(judge(read_prompt=way), samples)["rewards"]
        assert found == pytest.approx(wanted, abs=1e-6)
    found = ask(judge(read_prompt="text"), samples)["rewards"]
    assert found != pytest.approx(wanted, abs=1e-3), "a template within a template"
    with pytest.raises(ValueError, match="no entry for the prompt 'w7'"):
        judge(read_prompt=table).read("w7 good", "w7")


@pytest.mark.parametrize(
    ("words", "replies"), [(90, (9, 5, 1)), (90, (50, 90, 1)), (3, (90, 1, 2))]
)
def test_rendered_texts_are_cut(words: int, replies: tuple[int, ...]) -> None:
    """To the end of the prompt, the same for the whole group, and the start of a response."""
    prompt = " ".join(f"w{i % 60}" for i in range(words))
    texts = [" ".join(f"w{(7 * i + 3) % 60}" for i in range(count)) for count in replies]
    rewards = judge(read_prompt="rendered")
    tokenizer = rewards.reward.model.tokenizer
    limit, encode = 64, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
    room = max(limit - max(replies) - 1, limit // 2)
    start = encode(prompt)[-room:]
    ids = [[*encode(text)[: limit - len(start) - 1], tokenizer.eos_token_id] for text in texts]
    assert max(len(start) + len(row) for row in ids) <= limit
    wanted = rewards.reward.model.score_matrix(start, ids).mean(1).tolist()
    found = ask(rewards, [sampled(prompt, text) for text in texts])["rewards"]
    assert found == pytest.approx(wanted, abs=1e-6)


def test_wrong_options() -> None:
    reward = judge().reward
    options: dict[str, Any] = {"samples_per_prompt": 3, "read_prompt": "text", "tokenizer": None}
    with pytest.raises(TypeError, match=r"must be a PreferenceReward.*got GeneralPreferenceModel"):
        GroupRewards(reward.model, **options)
    with pytest.raises(ValueError, match="at least 2; got 1"):
        GroupRewards(reward, **{**options, "samples_per_prompt": 1})
    with pytest.raises(ValueError, match="num_generations must be samples_per_prompt=4"):
        GroupRewards(reward, **{**options, "samples_per_prompt": 4})
    with pytest.raises(ValueError, match="got 'messages'"):
        GroupRewards(reward, **{**options, "read_prompt": "messages"})
    published = PreferenceReward(pair_model(dim=4, init="paper", text_format="published"))
    with pytest.raises(ValueError, match="text_format='published'"):
        GroupRewards(published, **{**options, "read_prompt": "rendered"})


def test_rewards_that_are_not_finite() -> None:
    rewards = judge()
    with torch.no_grad():
        rewards.reward.model.head.value_head.weight.fill_(torch.nan)
    with pytest.raises(RuntimeError, match="9 of 9 rewards are not finite"):
        ask(rewards, rollout())


# -- the experience maker ----------------------------------------------------------------------


class JudgedMaker(PreferenceExperienceMixin, ExperienceMaker):
    """With a preference model that reads texts."""

    made = 0

    def make_judge(self) -> GroupRewards:
        self.made += 1
        return judge(self.kind)


class VectorMaker(PreferenceExperienceMixin, ExperienceMaker):
    """With vectors of the reward model."""


MIXED = [[4, 0], [8, 3, 1], [6], [5, 2, 7]]


def back(experiences: list[Any], name: str) -> list[float]:
    """Values of the samples in the rollout's order; advantages at the last token."""
    found: dict[int, float] = {}
    for one in experiences:
        values = one.advantages if name == "advantages" else one.info[name]
        for i, value, mask in zip(one.index, values, one.action_mask, strict=True):
            last = int(mask.nonzero()[-1])
            found[i] = float(value[last] if name == "advantages" else value)
    return [found[i] for i in sorted(found)]


def shaped(rewards: list[float], estimator: str) -> list[float]:
    rows = torch.tensor(rewards, dtype=torch.float64).view(-1, SAMPLES)
    means = rows.mean(1, keepdim=True)
    if estimator == "rloo":
        return ((rows - means) * SAMPLES / (SAMPLES - 1)).flatten().tolist()
    return ((rows - means) / rows.std(1, keepdim=True)).flatten().tolist()


@pytest.mark.parametrize("batches", [None, MIXED])
@pytest.mark.parametrize("grouped", [True, False])
def test_judged_experiences(batches: Any, grouped: bool) -> None:
    scores, wins = formula()
    for estimator in ("rloo", "group_norm"):
        maker = JudgedMaker(estimator, batches=batches, grouped=grouped)
        experiences = maker.make_experience_batch(rollout())
        assert back(experiences, "reward") == pytest.approx(scores, abs=1e-6)
        assert back(experiences, "score") == pytest.approx(wins, abs=1e-6)
        assert back(experiences, "advantages") == pytest.approx(
            shaped(scores, estimator), rel=1e-4, abs=1e-6
        )
        maker.make_experience_batch(rollout())
        assert maker.made == 1


def test_gprl_survives_an_estimator_without_spread() -> None:
    maker = JudgedMaker("dr_grpo")
    maker.kind = "gprl"
    found = back(maker.make_experience_batch(rollout()), "advantages")
    assert found == pytest.approx(ask(judge("gprl"), rollout())["rewards"], abs=1e-5)


@pytest.mark.parametrize("kind", ["mean_score", "win_rate"])
@pytest.mark.parametrize("batches", [None, MIXED])
def test_vectors_of_a_reward_model(kind: Any, batches: Any) -> None:
    """The reward model reads the policy's tokens; the judge reads the same as token ids."""
    model = pair_model(dim=4, tau=0.2)
    maker = VectorMaker("rloo", OpenRLHFRewardModel.from_model(model), batches)
    maker.kind = kind
    samples = rollout()
    experiences = maker.make_experience_batch(samples)
    tokenizer, wanted = policy_tokenizer(), []
    for prompt, responses in zip(PROMPTS, RESPONSES, strict=True):
        encode = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
        ids = [[*encode(response), tokenizer.eos_token_id] for response in responses]
        if kind == "mean_score":
            wanted += (model.score_matrix(encode(prompt), ids).mean(1) / 0.2).tolist()
        else:
            wanted += model.preference_matrix(encode(prompt), ids).mean(1).tolist()
    assert back(experiences, "reward") == pytest.approx(wanted, abs=1e-5)
    assert all(one.rewards.dim() == 1 for one in experiences)
    assert back(experiences, "advantages") == pytest.approx(shaped(wanted, "rloo"), abs=1e-5)


def test_plain_rewards_pass() -> None:
    """Of a Bradley-Terry model, or of a server: (B,), or (B, 1) from lists."""
    samples = rollout()
    for i, one in enumerate(samples):
        one.rewards = torch.tensor([[float(i)]])
    found = back(VectorMaker("none").make_experience_batch(samples), "advantages")
    assert found == [float(i) for i in range(len(samples))]
    model = OpenRLHFRewardModel.from_model(pair_model(head="bt"))
    experiences = VectorMaker("none", model).make_experience_batch(rollout())
    assert back(experiences, "advantages") == back(experiences, "reward")


@pytest.mark.parametrize("maker", [JudgedMaker, VectorMaker])
def test_rollouts_with_incomplete_groups(maker: Any) -> None:
    model = OpenRLHFRewardModel.from_model(pair_model(dim=4))
    samples = rollout()
    for wrong in (samples[:-1], [*samples[:2], *samples[3:5], samples[2], *samples[5:]]):
        with pytest.raises(ValueError, match="n_samples_per_prompt=3 responses in a row"):
            maker("rloo", model).make_experience_batch(wrong)


def test_wrong_rollouts() -> None:
    samples = rollout()
    samples[4].rewards = torch.tensor([0.0])
    with pytest.raises(ValueError, match=r"rewards already: leave out --reward\.remote_url"):
        JudgedMaker("rloo").make_experience_batch(samples)
    samples = rollout()
    samples[7].action_mask = torch.tensor([[0, 1, 0, 1, 1, 1]])[
        :, : samples[7].sequences.shape[1] - 1
    ]
    with pytest.raises(ValueError, match="several turns"):
        JudgedMaker("rloo").make_experience_batch(samples)
    maker = JudgedMaker("rloo")
    maker.strategy = SimpleNamespace(args=SimpleNamespace(n_samples_per_prompt=9))
    with pytest.raises(ValueError, match="must be n_samples_per_prompt=9; got 3"):
        maker.make_experience_batch(rollout())
    model = OpenRLHFRewardModel.from_model(pair_model(dim=4))
    for kind, message in (("gprl", "override make_judge"), ("score", "kind must be")):
        vectors = VectorMaker("rloo", model)
        vectors.kind = kind  # type: ignore[assignment]
        with pytest.raises(ValueError, match=message):
            vectors.make_experience_batch(rollout())


# -- two processes -----------------------------------------------------------------------------


def test_groups_that_straddle_processes(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, harness.__file__]
    running = [
        subprocess.Popen(
            [*command, str(rank), "2", str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for process in running:
            said, _ = process.communicate(timeout=120)
            assert process.returncode == 0, said
    finally:
        for process in running:
            process.kill()
            process.wait()
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for name, wanted in harness.straddling(0, 1).items():
        assert ranks[0][name] + ranks[1][name] == pytest.approx(wanted, rel=1e-4, abs=1e-6), name
        assert len(ranks[0][name]) == 4, "the second group is on both"
