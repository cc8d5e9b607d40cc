"""General preference models as the judge of OpenRLHF's policy training.

A preference model compares the ``n_samples_per_prompt`` responses to a prompt with each other, so
that it must see them together. Where OpenRLHF has them together depends on its release:

- up to 0.9.0 it calls a ``reward_func`` with batches: :class:`GroupRewards` is one;
- all releases ask an address, ``--reward.remote_url``, and from 0.9.4 on for one response at a
  time: :class:`gpm_core.integrations.openrlhf_server.RewardServer` waits for the group;
- its ``RemoteExperienceMaker`` sees a whole rollout: see
  :class:`gpm_core.integrations.openrlhf_experience.PreferenceExperienceMixin`.

Nothing here imports OpenRLHF. It was written after the sources of 0.8.5, 0.8.11, 0.9.0, 0.9.4,
0.9.10, 0.10.0, 0.10.4, 0.11.0 and 0.11.2.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoTokenizer

from gpm_core.integrations._group_rewards import check_finite, short
from gpm_core.integrations.trl_rewards import PreferenceReward

__all__ = ["GroupRewards", "Sample", "rendered_prompts"]

ReadPrompt = Literal["text", "rendered"] | Mapping[str, Any] | Callable[[str, Any], Any]


class Sample(NamedTuple):
    """A response as the preference model is to read it."""

    #: The prompt as OpenRLHF has it, rendered: what tells groups apart.
    name: str
    #: What the preference model takes for a prompt: a text, messages, or None.
    prompt: Any
    #: The response's text.
    response: str


def rendered_prompts(prompts: Iterable[Any], tokenizer: Any) -> dict[str, Any]:
    """Prompts by how OpenRLHF's ``--data.apply_chat_template`` renders them, for ``read_prompt``.

    Args:
        prompts: the column ``--data.input_key`` of the data: texts, or lists of messages.
        tokenizer: the policy's.

    Example:
        >>> class Tokenizer:
        ...     def apply_chat_template(self, chat, tokenize, add_generation_prompt):
        ...         return "".join(f"<{m['role']}>{m['content']}" for m in chat) + "<assistant>"
        >>> rendered_prompts(["Why?"], Tokenizer())
        {'<user>Why?<assistant>': 'Why?'}
    """
    found = {}
    for prompt in prompts:
        chat = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        found[text] = prompt
    return found


class GroupRewards:
    """Rewards of responses against the others to their prompts, as OpenRLHF asks for rewards.

    Called as its ``reward_func``, with whole groups: all ``samples_per_prompt`` responses of each
    prompt, in any order; a prompt that was drawn twice is two groups, in the order of the
    responses. ``rewards`` are what :class:`PreferenceReward` is set to, ``scores`` are win rates in
    [0, 1], whose mean over a group is 1/2 always: filtering prompts by them filters nothing.

    Args:
        reward: the preference model, and what kind of reward it gives.
        samples_per_prompt: OpenRLHF's ``n_samples_per_prompt``, at least 2.
        read_prompt: what the preference model reads for a prompt as OpenRLHF has it:

            - "text": the text, as one turn of the user: for prompts without a template;
            - "rendered": prompt and response as they are, special tokens and all, without the
              preference model's own template: where both models have the same;
            - a mapping from such a text to messages, see :func:`rendered_prompts`;
            - a function of the text and the label: ``lambda prompt, label: label`` where
              ``--data.label_key`` names the messages.
        tokenizer: the policy's, or a folder or hub name of it. Its special tokens are taken off the
            end of responses.

    Raises:
        TypeError: if ``reward`` is no :class:`PreferenceReward`.
        ValueError: for groups of less than 2, an unknown ``read_prompt``, or "rendered" for a model
            that reads messages in a form of its own; when called, for incomplete groups, a query
            that does not begin with its prompt, or a prompt that the mapping lacks.
        RuntimeError: when called, if a reward is not finite.
    """

    def __init__(
        self,
        reward: PreferenceReward,
        *,
        samples_per_prompt: int,
        read_prompt: ReadPrompt,
        tokenizer: Any,
    ) -> None:
        if not isinstance(reward, PreferenceReward):
            raise TypeError(
                f"reward must be a PreferenceReward(model, ...); got {type(reward).__name__}"
            )
        if samples_per_prompt < 2:
            raise ValueError(f"samples_per_prompt must be at least 2; got {samples_per_prompt}")
        if reward.num_generations not in (None, samples_per_prompt):
            raise ValueError(
                f"the reward's num_generations must be samples_per_prompt={samples_per_prompt}, "
                f"or None; got {reward.num_generations}"
            )
        if isinstance(read_prompt, str) and read_prompt not in ("text", "rendered"):
            raise ValueError(
                "read_prompt must be 'text', 'rendered', a mapping or a function; got "
                f"{read_prompt!r}"
            )
        if read_prompt == "rendered" and reward.model.config.text_format == "published":
            raise ValueError(
                "read_prompt='rendered' is not for a model with text_format='published', which "
                "renders messages in a way of its own: give a mapping or a function to messages"
            )
        self.reward = copy.copy(reward)
        self.reward.num_generations = samples_per_prompt
        self.samples_per_prompt, self.read_prompt = samples_per_prompt, read_prompt
        # A copy: it may be the preference model's as well, which may be at work in another thread,
        # and fast tokenizers do not stand two at a time.
        self.tokenizer = (
            AutoTokenizer.from_pretrained(tokenizer)
            if isinstance(tokenizer, str)
            else copy.deepcopy(tokenizer)
        )
        self._ends = _special_texts(self.tokenizer)

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any] | None = None
    ) -> dict[str, Tensor]:
        """Rewards of N responses, as OpenRLHF's ``reward_func`` gives them.

        Args:
            queries: N prompts with their responses, as they were rendered and sampled.
            prompts: N prompts, as they were rendered.
            labels: N labels of the data, or None.

        Returns:
            "rewards" and "scores", (N,) float32 each, on the processor.
        """
        rewards, win_rates = self.score(self.read_all(queries, prompts, labels))
        return {"rewards": torch.tensor(rewards), "scores": torch.tensor(win_rates)}

    def read_all(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any] | None = None
    ) -> list[Sample]:
        """:meth:`read` of N queries, N prompts and N labels, or none."""
        labels = labels or [None] * len(queries)
        if not len(queries) == len(prompts) == len(labels):
            raise ValueError(
                "there must be one prompt and one label per query; got "
                f"{len(queries)} queries, {len(prompts)} prompts and {len(labels)} labels"
            )
        return [self.read(*one) for one in zip(queries, prompts, labels, strict=True)]

    def read(self, query: str, prompt: str, label: Any = None) -> Sample:
        """The response of a query, and the prompt as the preference model reads it."""
        return self.sample(prompt, self._behind(query, prompt), label)

    def sample(self, prompt: str, response: str, label: Any = None) -> Sample:
        """A response that is known already, to a rendered prompt; may end in special tokens."""
        while end := next((end for end in self._ends if response.endswith(end)), None):
            response = response.removesuffix(end)
        return Sample(prompt, self._readable(prompt, label), response)

    def score(self, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
        """Rewards and win rates of N responses, in whole groups in any order."""
        groups: dict[str, list[int]] = {}
        for place, sample in enumerate(samples):
            groups.setdefault(sample.name, []).append(place)
        # In several processes a group may lie on more than one: the reward checks all together.
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if not together:
            self._check_complete(groups)
        order = [place for members in groups.values() for place in members]
        arranged = [samples[place] for place in order]
        prompts: list[Any] = [sample.prompt for sample in arranged]
        responses: list[Any] = [sample.response for sample in arranged]
        if self.read_prompt == "rendered":
            prompts, responses = self._as_ids(arranged)
        found = self.reward.rewards_and_win_rates(prompts, responses)
        rewards, win_rates = [0.0] * len(order), [0.0] * len(order)
        for place, reward, win_rate in zip(order, *found, strict=True):
            rewards[place], win_rates[place] = reward, win_rate
        check_finite(rewards)
        return rewards, win_rates

    def _behind(self, query: str, prompt: str) -> str:
        """What follows the prompt in a query."""
        padding = getattr(self.tokenizer, "pad_token", None)
        if query.startswith(prompt):
            return query[len(prompt) :]
        # A tokenizer need not give back the text that it was given, and the query is decoded.
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        again = self.tokenizer.decode(ids, skip_special_tokens=False)
        while padding and query.startswith(padding) and not query.startswith((prompt, again)):
            query = query.removeprefix(padding)
        for start in (prompt, again):
            if query.startswith(start):
                return query[len(start) :]
        raise ValueError(
            "a query must begin with its prompt. Was the prompt cut (raise --data.max_len), or is "
            f"tokenizer= not the policy's? Prompt {short(prompt)}, query {short(query)}"
        )

    def _readable(self, prompt: str, label: Any) -> Any:
        if isinstance(self.read_prompt, str):
            return prompt
        if not isinstance(self.read_prompt, Mapping):
            return self.read_prompt(prompt, label)
        if prompt not in self.read_prompt:
            raise ValueError(
                f"read_prompt has no entry for the prompt {short(prompt)}: make it from the same "
                "data, with the policy's tokenizer"
            )
        return self.read_prompt[prompt]

    def _check_complete(self, groups: Mapping[str, Sequence[int]]) -> None:
        size = self.samples_per_prompt
        for name, members in groups.items():
            if len(members) % size:
                raise ValueError(
                    f"each prompt needs {size} responses together (samples_per_prompt, OpenRLHF's "
                    f"n_samples_per_prompt); got {len(members)} of {short(name)}. OpenRLHF up to "
                    "0.9.0 hands a reward_func micro_rollout_batch_size responses: make it a "
                    f"multiple of {size}. From 0.9.4 on it hands over one at a time: use "
                    "RewardServer or PreferenceExperienceMixin"
                )

    def _as_ids(self, samples: Sequence[Sample]) -> tuple[list[list[int]], list[list[int]]]:
        """Prompts and responses as token ids of the preference model, cut to its length."""
        model: Any = self.reward.model
        tokenizer = model.tokenizer
        if tokenizer is None:
            raise ValueError("texts need a tokenizer: set the preference model's model.tokenizer")
        options = model.text_options(tokenizer)
        limit = options["max_length"]
        end = (
            [tokenizer.eos_token_id]
            if options["end"] and tokenizer.eos_token_id is not None
            else []
        )

        def encode(texts: Iterable[str]) -> dict[str, list[int]]:
            """Token ids of each text."""
            unique = list(dict.fromkeys(texts))
            ids = tokenizer(unique, add_special_tokens=False)["input_ids"]
            return dict(zip(unique, ids, strict=True))

        starts = encode(sample.name for sample in samples)
        replies = encode(sample.response for sample in samples)
        longest = dict.fromkeys(starts, 0)
        for name, _, response in samples:
            longest[name] = max(longest[name], len(replies[response]) + len(end))
        prompts, responses = [], []
        for name, _, response in samples:
            # The same part of a prompt for its whole group, which one gate must fit.
            kept = starts[name][-max(limit - longest[name], limit // 2) :]
            prompts.append(kept)
            responses.append(replies[response][: limit - len(kept) - len(end)] + end)
        return prompts, responses


def _special_texts(tokenizer: Any) -> list[str]:
    """Texts of the special tokens, the longest first."""
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    found = {str(token) for token in tokenizer.all_special_tokens}
    found |= {token.content for token in added if token.special}
    return sorted(found - {tokenizer.unk_token, ""}, key=lambda text: (-len(text), text))
