"""How OpenRLHF's policy training hands over samples, in small; and a judge for them.

Shapes, types and order of calls are those of OpenRLHF 0.11.2 (the same from 0.9.4 on, but for the
grouping of options and the names that are noted):

- ``Experience``: openrlhf/trainer/ppo_utils/experience.py, the fields that rewards pass through;
- ``sampled``: utils/agent.py, SingleTurnAgentExecutor.execute, then samples_generator.py,
  SamplesGenerator._process_response_into_experience;
- ``Worker``: the part of ``execute`` that fetches rewards over HTTP, one query in a request;
- ``ExperienceMaker``: experience_maker.py, RemoteExperienceMaker.

Not a test itself; ``python openrlhf_rollouts.py RANK WORLD_SIZE FOLDER`` is a process of one.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pair_models import pair_model
from tiny_models import TEMPLATE, tiny_tokenizer
from torch import Tensor
from torch.nn.functional import pad

from gpm_core.integrations.openrlhf_rewards import GroupRewards
from gpm_core.integrations.trl_rewards import PreferenceReward

SAMPLES = 3
PROMPTS = ["w1 w2", "w3", "w4 w5 w6"]
RESPONSES = [
    ["good", "bad w7", "w8"],
    ["good good", "bad", "w9 w9"],
    ["w7 good", "w8 w8 bad", "w1"],
]


def policy_tokenizer(*, chat: bool = False) -> Any:
    tokenizer = tiny_tokenizer(causal=True)
    tokenizer.chat_template = TEMPLATE if chat else None
    return tokenizer


def judge(kind: Any = "mean_score", *, read_prompt: Any = "text", **options: Any) -> GroupRewards:
    """The same preference model each time."""
    model = pair_model(dim=6, gate="softmax", init="paper", bias=False, learn_tau="per_block")
    return GroupRewards(
        PreferenceReward(model, kind=kind, **options),
        samples_per_prompt=SAMPLES,
        read_prompt=read_prompt,
        tokenizer=policy_tokenizer(),
    )


@dataclass
class Experience:
    sequences: Tensor  # (B, T)
    attention_mask: Tensor  # (B, T)
    action_mask: Tensor  # (B, T - 1), from the second token on
    prompts: list[str]
    labels: list[Any]
    rewards: Tensor | None = None  # (B,)
    scores: Tensor | None = None  # (B,)
    advantages: Tensor | None = None  # (B, T - 1)
    index: list[int] | None = None
    info: dict[str, Tensor] = field(default_factory=dict)


def sampled(prompt: str, response: str, label: Any = "", **fields: Any) -> Experience:
    """One sample, as the rollout hands it to the experience maker."""
    tokenizer = policy_tokenizer()
    start = tokenizer(text=prompt, add_special_tokens=False, return_tensors="pt")["input_ids"][0]
    actions = tokenizer(response, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    sequences = torch.tensor([*start.tolist(), *actions])
    action_mask = torch.zeros_like(sequences)
    action_mask[len(start) :] = 1
    return Experience(
        sequences=sequences.unsqueeze(0),
        attention_mask=torch.ones_like(sequences).unsqueeze(0),
        action_mask=action_mask[1:].unsqueeze(0),
        prompts=[prompt],
        labels=[label],
        info={"response_clip_ratio": torch.tensor([False])},
        **fields,
    )


def query(one: Experience) -> str:
    """What a reward function is given for a sample."""
    return policy_tokenizer().decode(one.sequences[0].tolist(), skip_special_tokens=False)


def rollout(prompts: list[str] | None = None, labels: list[Any] | None = None) -> list[Experience]:
    """The samples of each prompt, one after the other."""
    prompts = PROMPTS if prompts is None else prompts
    labels = [""] * len(prompts) if labels is None else labels
    return [
        sampled(prompt, response, label)
        for prompt, some, label in zip(prompts, RESPONSES, labels, strict=True)
        for response in some
    ]


def post(url: str, content: Any, timeout: float = 60) -> Any:
    request = urllib.request.Request(url, json.dumps(content).encode())
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.loads(response.read())


class Worker:
    """A rollout worker, which asks for the reward of each sample as soon as it has it."""

    def __init__(self, url: str) -> None:
        self.url = url

    def execute(self, one: Experience) -> Experience:
        payload = {"query": [query(one)], "prompts": one.prompts, "labels": one.labels}
        found = post(self.url, payload)
        one.rewards, one.scores = torch.tensor([found["rewards"]]), torch.tensor([found["scores"]])
        one.info["reward"] = one.rewards
        return one

    def generate(self, samples: list[Experience], order: list[int]) -> None:
        """All at the same time, begun in this order."""
        with ThreadPoolExecutor(len(samples)) as pool:
            list(pool.map(self.execute, [samples[i] for i in order]))


def joined(samples: list[Experience], padding: int) -> Experience:
    """A micro-batch, padded on the right."""

    def stack(tensors: list[Tensor], value: int = 0) -> Tensor:
        width = max(one.shape[-1] for one in tensors)
        return torch.cat([pad(one, (0, width - one.shape[-1]), value=value) for one in tensors])

    first = samples[0].rewards
    return Experience(
        sequences=stack([one.sequences for one in samples], padding),
        attention_mask=stack([one.attention_mask for one in samples]),
        action_mask=stack([one.action_mask for one in samples]),
        prompts=[prompt for one in samples for prompt in one.prompts],
        labels=[label for one in samples for label in one.labels],
        rewards=None if first is None else stack([one.rewards for one in samples]),
        index=[i for one in samples for i in one.index],
        info={key: stack([one.info[key] for one in samples]) for key in samples[0].info},
    )


class ExperienceMaker:
    """Rewards, baselines and advantages of a rollout; no KL penalty."""

    def __init__(
        self, estimator: str, reward_model: Any = None, batches: Any = None, grouped: bool = True
    ) -> None:
        options = SimpleNamespace(n_samples_per_prompt=SAMPLES)
        # 0.10.4: args.rollout.n_samples_per_prompt; 0.10.0: args.n_samples_per_prompt.
        args = SimpleNamespace(rollout=options) if grouped else options
        self.strategy = SimpleNamespace(args=args)
        self.tokenizer = policy_tokenizer()
        self.estimator, self.reward_model, self.batches = estimator, reward_model, batches

    def make_experience_batch(self, rollout_samples: list[Experience]) -> list[Experience]:
        for i, sample in enumerate(rollout_samples):
            sample.index = [i]
        batches = self.batches or [[i] for i in range(len(rollout_samples))]
        padding = self.tokenizer.pad_token_id
        parts = [joined([rollout_samples[i] for i in batch], padding) for batch in batches]
        return self.compute_advantages_and_returns(self.make_experience(parts))

    def make_experience(self, parts: list[Experience]) -> list[Experience]:
        if parts[0].rewards is None:
            if self.reward_model is None:
                raise ValueError("reward_model_group is required when rewards are not precomputed")
            for part in parts:
                with torch.no_grad():
                    rewards = self.reward_model(
                        part.sequences,
                        part.attention_mask,
                        ring_attn_group=None,
                        pad_sequence=True,
                        packed_seq_lens=None,
                    )
                part.rewards = part.info["reward"] = rewards.to("cpu")
        return parts

    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        indices = torch.tensor([i for one in experiences for i in one.index])
        raw = torch.cat([one.rewards for one in experiences], dim=0)
        rewards = torch.empty_like(raw)
        rewards[indices] = raw
        rewards = rewards.reshape(-1, SAMPLES)
        if self.estimator == "rloo":
            rewards = rewards - (rewards.sum(-1, keepdim=True) - rewards) / (SAMPLES - 1)
        elif self.estimator == "dr_grpo":
            rewards = rewards - rewards.mean(-1, keepdim=True)
        elif self.estimator == "group_norm":
            spread = rewards.std(-1, keepdim=True) + 1e-9
            rewards = (rewards - rewards.mean(-1, keepdim=True)) / spread
        shaped = rewards.reshape(-1)[indices].split([len(one.index) for one in experiences])
        for one, reward in zip(experiences, shaped, strict=True):
            one.advantages = reward.unsqueeze(1) * one.action_mask
        return experiences


def straddling(rank: int, world: int) -> dict[str, list[float]]:
    """Rewards of nine samples, groups of three: with two processes, one lies on both."""
    samples = rollout()
    mine = samples[:4] if rank == 0 else samples[4:]
    mine = samples if world == 1 else mine
    found = {}
    for kind in ("mean_score", "win_rate", "gprl"):
        result = judge(kind)([*map(query, mine)], [one.prompts[0] for one in mine])
        found[kind], found[f"{kind} scores"] = result["rewards"].tolist(), result["scores"].tolist()
    return found


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'rendezvous'}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    (folder / f"{rank}.json").write_text(json.dumps(straddling(rank, world)), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
