"""A general preference model as the reward function of TRL's online trainers.

A preference model says nothing of a single response: the reward of a response is how it does
against the others that were sampled for its prompt. :class:`PreferenceReward` finds these groups,
also where they straddle processes. Nothing here imports TRL.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from gpm_core.integrations._group_rewards import Kind, check_kind, group_rewards
from gpm_core.models.general_preference import GeneralPreferenceModel
from gpm_core.objectives.advantages import DriftMonitor

__all__ = ["PreferenceReward"]


class _Encoded(NamedTuple):
    """N responses, of this process or of all."""

    #: (N, 2) int64: a number for the prompt, the same wherever it is, and its length in tokens.
    prompts: Tensor
    #: (N, d) preference embeddings, float32.
    embeddings: Tensor
    #: (N, d / 2) weights of the blocks, float32.
    scale: Tensor


class PreferenceReward:
    """Rewards of responses against the others to the same prompt, for ``GRPOTrainer`` and its kin.

    Called as TRL calls reward functions. K responses to a prompt cost K passes of the model. A
    group is all responses to equal prompts, in whatever order: TRL's GRPO and RLOO trainers have
    them one after the other, its online DPO trainer in two halves. In several processes a group
    may lie on more than one of them (2 processes, 3 completions each, groups of 2), so embeddings
    are gathered from all: each of the processes must call the function equally often.

    With i's responses j = 1..K, itself among them (a tie):

    - "mean_score": ``mean_j s(y_i > y_j)``, GPO's target;
    - "win_rate": ``mean_j sigmoid(s(y_i > y_j) / tau)``, SPPO's;
    - "gprl": the group-relative advantages of arXiv 2605.18721, block by block, see
      :func:`gpm_core.objectives.advantages.group_relative_advantages`. They are normalized already:
      set ``GRPOConfig(scale_rewards="none")``.

    A response alone with its prompt has 0, 1/2 and 0. GRPO's own normalization takes out what all
    of a group have in common, and the scale of mean scores.

    Args:
        model: the preference model, with adapters or without, on the device that it is to run on;
            or a folder or hub name of one.
        kind: what the reward is.
        num_generations: G, to check that each prompt has G responses in a row, in all processes
            together, and to take prompts that are sampled twice as two groups. None: any number,
            which evaluation with another G and online DPO need.
        batch_size: conversations per pass.
        monitor: a drift monitor, for "gprl": it is updated by each call, the same in all
            processes, and its block weights are used.

    Raises:
        TypeError: if ``model`` is no preference model with embeddings.
        ValueError: for an unknown ``kind``, numbers below 1 (G below 2), or a monitor of another
            kind's; when called, without completions, where there is not one prompt for each, a
            completion is no text or single message, or groups are not of G.

    Example:
        >>> from transformers import LlamaConfig, LlamaModel
        >>> from gpm_core.models import GeneralPreferenceModel
        >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=32)
        >>> backbone = LlamaModel(LlamaConfig(**sizes, num_hidden_layers=1, num_attention_heads=2))
        >>> reward = PreferenceReward(GeneralPreferenceModel.from_backbone(backbone, dim=4))
        >>> a, b = reward(prompts=[[1, 5], [1, 5]], completions=[[7, 2], [8, 9, 2]])
        >>> abs(a) > 0 and abs(a + b) < 1e-6
        True
    """

    def __init__(
        self,
        model: GeneralPreferenceModel | str,
        *,
        kind: Kind = "mean_score",
        num_generations: int | None = None,
        batch_size: int = 32,
        monitor: DriftMonitor | None = None,
    ) -> None:
        check_kind(kind)
        if num_generations is not None and num_generations < 2:
            raise ValueError(f"num_generations must be at least 2, or None; got {num_generations}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if monitor is not None and kind != "gprl":
            raise ValueError(f"monitor is for kind='gprl'; got kind={kind!r}")
        if isinstance(model, str):
            model = GeneralPreferenceModel.from_pretrained(model)
        inner: Any = model
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        if not isinstance(inner, GeneralPreferenceModel):
            raise TypeError(
                f"model must be a GeneralPreferenceModel, or a name; got {type(inner).__name__}"
            )
        if inner.config.head == "pair":
            raise TypeError(
                "model must embed responses one by one, and one with head='pair' reads two in one "
                "text: train it with another head"
            )
        self.model = inner
        self.kind, self.num_generations, self.batch_size = kind, num_generations, batch_size
        self.monitor = monitor
        #: What TRL logs the rewards as.
        self.__name__ = f"preference_{kind}"

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Any = None,
        **kwargs: Any,
    ) -> list[float]:
        """Rewards of N completions, as TRL asks for them.

        Args:
            prompts: N prompts, texts or lists of messages.
            completions: N completions: texts, or lists of one message; with token ids for prompts,
                token ids of the preference model.
            completion_ids: not looked at: these are tokens of the policy.
            **kwargs: not looked at: columns of the data, the trainer's state.
        """
        return self._of_kinds(prompts, completions, [self.kind])[0]

    def rewards_and_win_rates(
        self, prompts: Sequence[Any], completions: Sequence[Any]
    ) -> tuple[list[float], list[float]]:
        """Rewards of N completions, and their mean win probabilities, from the same passes.

        Args:
            prompts: N prompts, as when it is called.
            completions: N completions.
        """
        rewards, win_rates = self._of_kinds(prompts, completions, [self.kind, "win_rate"])
        return rewards, win_rates

    def _of_kinds(
        self, prompts: Sequence[Any], completions: Sequence[Any], kinds: Sequence[Kind]
    ) -> list[list[float]]:
        if len(prompts) != len(completions):
            raise ValueError(
                f"there must be one prompt per completion; got {len(prompts)} prompts and "
                f"{len(completions)} completions"
            )
        mine = self._encode(prompts, [_reply(completion) for completion in completions])
        everything, first = _gather(mine)
        own = slice(first, first + len(prompts))
        return [self._rewards(everything, kind)[own].tolist() for kind in kinds]

    def _encode(self, prompts: Sequence[Any], replies: Sequence[Any]) -> _Encoded:
        model: Any = self.model
        rows = model.rows(prompts, replies)
        if not rows:
            raise ValueError("a reward function needs at least one completion; got none")
        embeddings, scale = model._encode(rows, self.batch_size, False)
        if scale is None:
            scale = embeddings.new_ones(embeddings.shape[1] // 2)
        scale = scale.expand(len(rows), -1)
        described = [[_number(p), row.prompt_length] for p, row in zip(prompts, rows, strict=True)]
        return _Encoded(torch.tensor(described), embeddings.float(), scale.float())

    @torch.no_grad()
    def _rewards(self, encoded: _Encoded, kind: Kind) -> Tensor:
        """Rewards (N,) of all responses, on the processor."""
        order, sizes = self._groups(encoded.prompts)
        v = encoded.embeddings[order]
        # One gate for a group: that of the prompt which the least was cut of.
        lengths = encoded.prompts[order, 1]
        gates, start = [], 0
        for size in sizes:
            best = start + int(lengths[start : start + size].argmax())
            gates.append(encoded.scale[order[best]])
            start += size
        learned = self.model._learned_tau()
        rewards = group_rewards(
            v,
            sizes,
            kind=kind,
            gate=torch.stack(gates),
            tau=self.model.config.tau if learned is None else learned.to(v.device),
            monitor=self.monitor,
        )
        back = torch.empty_like(rewards)
        back[order] = rewards
        return back.cpu()

    def _groups(self, prompts: Tensor) -> tuple[list[int], list[int]]:
        """Places of N responses, group after group, and the sizes of the groups."""
        numbers = prompts[:, 0].tolist()
        size = self.num_generations
        if size is None:
            members: dict[int, list[int]] = {}
            for place, number in enumerate(numbers):
                members.setdefault(number, []).append(place)
            return [i for some in members.values() for i in some], [*map(len, members.values())]
        starts = range(0, len(numbers), size)
        if any(len({*numbers[start : start + size]}) > 1 for start in starts) or (
            len(numbers) % size
        ):
            raise ValueError(
                f"num_generations={size} responses in a row must have the same prompt, in all "
                f"processes together; of these {len(numbers)} some have not. Leave it out to take "
                "all responses to equal prompts as a group"
            )
        return list(range(len(numbers))), [size] * len(starts)


def _reply(completion: Any) -> Any:
    """A completion's text; or the token ids that it is."""
    if not isinstance(completion, (list, tuple)) or not any(
        isinstance(part, dict) for part in completion
    ):
        return completion
    if len(completion) != 1 or not isinstance(completion[0].get("content"), str):
        raise ValueError(
            "a completion must be a text, or one message with a text; got "
            f"{len(completion)} messages. Of several (calls of tools), score the last yourself"
        )
    return completion[0]["content"]


def _number(prompt: Any) -> int:
    """64 bits that tell prompts apart, the same in every process."""
    text = json.dumps(prompt, sort_keys=True, default=lambda ids: ids.tolist())
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _gather(mine: _Encoded) -> tuple[_Encoded, int]:
    """What all processes have, in the order of their ranks, and where this one's begins."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return mine, 0
    # NCCL speaks of tensors on GPUs alone, gloo of any.
    where, accelerator = torch.device("cpu"), torch.accelerator.current_accelerator()
    if dist.get_backend() != "gloo" and accelerator is not None:
        where = torch.device(accelerator.type, torch.accelerator.current_device_index())
    world, rank = dist.get_world_size(), dist.get_rank()
    counts = [torch.zeros(1, dtype=torch.int64, device=where) for _ in range(world)]
    dist.all_gather(counts, torch.tensor([len(mine.prompts)], device=where))
    sizes = [int(count) for count in counts]
    gathered = []
    for part in mine:
        padded = part.new_zeros((max(sizes), *part.shape[1:]), device=where)
        padded[: len(part)] = part
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        kept = [some[:size] for some, size in zip(parts, sizes, strict=True)]
        gathered.append(torch.cat(kept).to(part.device))
    return _Encoded(*gathered), sum(sizes[:rank])
