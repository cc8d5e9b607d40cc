"""Group rewards in OpenRLHF's experience maker, which sees a whole rollout.

Nothing here imports OpenRLHF: :class:`PreferenceExperienceMixin` goes before its class. It was
written after the sources of 0.8.5, 0.8.11, 0.9.0, 0.9.4, 0.9.10, 0.10.0, 0.10.4, 0.11.0 and 0.11.2.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gpm_core.integrations._group_rewards import (
    Kind,
    check_finite,
    check_kind,
    group_rewards,
    short,
)
from gpm_core.integrations.openrlhf_rewards import GroupRewards

__all__ = ["PreferenceExperienceMixin"]


class PreferenceExperienceMixin:
    """Rewards of whole groups in OpenRLHF's ``RemoteExperienceMaker``; goes before it.

    A rollout has the ``n_samples_per_prompt`` responses of a prompt one after the other, as
    OpenRLHF's own advantage estimators take for granted; one that has not is an error. There are
    two ways to judge them, and neither wants ``--reward.remote_url``:

    - :meth:`make_judge` is overridden to return :class:`GroupRewards`: a preference model of any
      kind reads the texts, in the trainer's process;
    - it is not, and the reward model's actors hold an
      :class:`gpm_core.integrations.openrlhf.OpenRLHFRewardModel`: what they return, a vector (B, d)
      for each sample where a reward (B,) is expected, becomes rewards by :attr:`kind`.

    Either way the rewards are there before the estimators, KL penalties and length penalties.

    Attributes:
        kind: what vectors become: "mean_score" (of logits: divided by the temperature) or
            "win_rate". "gprl" needs the gate apart from the vectors: use a judge.
    """

    kind: Kind = "mean_score"
    strategy: Any
    tokenizer: Any

    def make_judge(self) -> GroupRewards | None:
        """Override: the judge of texts, made once, when the first rollout comes."""
        return None

    @functools.cached_property
    def judge(self) -> GroupRewards | None:
        """What :meth:`make_judge` has made."""
        return self.make_judge()

    def make_experience_batch(self, rollout_samples: list[Any]) -> list[Any]:
        """Experiences of a rollout, a list of single samples (1, T); a judge's rewards are set.

        Raises:
            ValueError: if groups are incomplete, or samples have rewards already or several turns.
        """
        if self.judge is not None:
            self._judge_samples(self.judge, rollout_samples)
        parent: Any = super()
        return parent.make_experience_batch(rollout_samples)

    def compute_advantages_and_returns(self, experiences: list[Any], **kwargs: Any) -> list[Any]:
        """Advantages of experiences, whose rewards may be vectors (B, d).

        Raises:
            ValueError: if groups are incomplete, or for an unknown ``kind`` or "gprl".
            RuntimeError: if a reward is not finite.
        """
        if (
            experiences
            and experiences[0].rewards.dim() == 2
            and experiences[0].rewards.shape[1] > 1
        ):
            self._reward_vectors(experiences)
        parent: Any = super()
        return parent.compute_advantages_and_returns(experiences, **kwargs)

    def _judge_samples(self, judge: GroupRewards, samples: Sequence[Any]) -> None:
        size = _samples_per_prompt(self.strategy.args)
        if judge.samples_per_prompt != size:
            raise ValueError(
                f"samples_per_prompt of the judge must be n_samples_per_prompt={size}; got "
                f"{judge.samples_per_prompt}"
            )
        if any(one.rewards is not None for one in samples):
            raise ValueError(
                "samples have rewards already: leave out --reward.remote_url, or make_judge"
            )
        _check_groups([one.prompts[0] for one in samples], size)
        read = []
        for one in samples:
            ids = one.sequences[0, 1:][_one_turn(one.action_mask)]
            text = self.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
            read.append(judge.sample(one.prompts[0], text, one.labels[0] if one.labels else None))
        for one, reward, win_rate in zip(samples, *judge.score(read), strict=True):
            one.rewards, one.scores = torch.tensor([reward]), torch.tensor([win_rate])
            one.info["reward"], one.info["score"] = one.rewards.clone(), one.scores.clone()

    def _reward_vectors(self, experiences: Sequence[Any]) -> None:
        check_kind(self.kind)
        if self.kind == "gprl":
            raise ValueError(
                "kind='gprl' needs the gate apart from the vectors: override make_judge instead"
            )
        size = _samples_per_prompt(self.strategy.args)
        lengths = [len(one.index) for one in experiences]
        # Dynamic batches mix the samples; their index says where each was in the rollout.
        order = torch.tensor([i for one in experiences for i in one.index]).argsort()
        prompts = [prompt for one in experiences for prompt in one.prompts]
        _check_groups([prompts[i] for i in order.tolist()], size)
        v = torch.cat([one.rewards for one in experiences]).float()
        gate = v.new_ones(len(v) // size, v.shape[1] // 2)
        sizes = [size] * len(gate)
        rewards = torch.empty(len(v))
        rewards[order] = group_rewards(v[order], sizes, kind=self.kind, gate=gate, tau=1.0)
        check_finite(rewards.tolist())
        for one, part in zip(experiences, rewards.split(lengths), strict=True):
            one.rewards, one.info["reward"] = part, part.clone()


def _samples_per_prompt(args: Any) -> int:
    # Later releases (0.10.4) have their options in groups, earlier ones (0.10.0) have not.
    return int(getattr(args, "rollout", args).n_samples_per_prompt)


def _one_turn(action_mask: Tensor) -> Tensor:
    """Which of the tokens from the second on are the response: (T - 1,) bool, of (1, T - 1)."""
    mask = action_mask[0].bool()
    if int((mask[1:] & ~mask[:-1]).sum()) + int(mask[:1].sum()) > 1:
        raise ValueError("a sample has several turns: only single responses can be judged")
    return mask


def _check_groups(prompts: Sequence[str], size: int) -> None:
    for start in range(0, len(prompts), size):
        group = prompts[start : start + size]
        if len(group) < size or len(set(group)) > 1:
            raise ValueError(
                f"n_samples_per_prompt={size} responses in a row must have the same prompt; of "
                f"these {len(prompts)} the {len(group)} from {start} on have {len(set(group))} "
                f"prompts, first {short(group[0])}"
            )
