"""Language models that read both responses of a pair in one text: the baseline of K^2 passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gpm_core.heads.pair import skew_probabilities
from gpm_core.models.conversations import is_ids
from gpm_core.models.group_scores import GroupScores

_FIRST, _SECOND = "Response A:\n", "\n\nResponse B:\n"
#: Tokens that these marks, and what a chat template writes around a reply, are left.
_MARKS = 24


def together(tokenizer: Any, first: str, second: str, max_length: int) -> str:
    """The reply that says both responses, the first one first.

    Each keeps at least a quarter of the tokens of a conversation, and what the other leaves of
    half: a reply that is too long loses its end, which must not be all of the second response.

    Args:
        tokenizer: with character offsets.
        first: a response.
        second: another one to the same prompt.
        max_length: most tokens of a conversation, as the model reads it.
    """
    room = max(max_length // 2 - _MARKS, 2)
    ends = [_ends(tokenizer, text) for text in (first, second)]
    if sum(map(len, ends)) > room:
        first = _cut(first, ends[0], max(room // 2, room - len(ends[1])))
        second = _cut(second, ends[1], max(room // 2, room - len(ends[0])))
    return f"{_FIRST}{first}{_SECOND}{second}"


def _ends(tokenizer: Any, text: str) -> list[int]:
    """Where in a text each of its tokens ends."""
    encoded = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
    )
    return [end for _, end in encoded["offset_mapping"]]


def _cut(text: str, ends: list[int], count: int) -> str:
    return text if len(ends) <= count else text[: ends[count - 1]]


@torch.no_grad()
def pair_scores(
    model: Any,
    prompts: Sequence[Any],
    responses: Sequence[Sequence[str]],
    *,
    batch_size: int,
    progress: bool,
) -> Iterator[GroupScores]:
    """All pairs within each of N groups, of a model that reads pairs: K (K - 1) backbone passes.

    s(a > b) = f(a, b) - f(b, a), f the reward of the reply that :func:`together` makes of both.

    Args:
        model: a ``GeneralPreferenceModel`` with ``head="pair"``.
        prompts: N prompts.
        responses: N groups of texts.
        batch_size: conversations per backbone pass.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: for a group without a response, a number of prompts other than N, token ids, or
            without a tokenizer.
    """
    if len(prompts) != len(responses):
        raise ValueError(
            f"there must be one prompt per group; got {len(prompts)} prompts and "
            f"{len(responses)} groups"
        )
    if not all(len(some) for some in responses):
        raise ValueError("each prompt needs at least one response; got a group without any")
    if any(is_ids(response) for some in responses for response in some):
        raise ValueError(
            "this model reads both responses of a pair in one text: pass texts, not token ids"
        )
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            "texts need a tokenizer: set model.tokenizer = AutoTokenizer.from_pretrained(...)"
        )
    limit = model.text_options(tokenizer)["max_length"]
    replies, repeated = [], []
    for prompt, some in zip(prompts, responses, strict=True):
        for i, j in _ordered(len(some)):
            replies.append(together(tokenizer, some[i], some[j], limit))
            repeated.append(prompt)
    rewards = torch.empty(0)
    if replies:
        rewards = -model._encode(model.rows(repeated, replies), batch_size, progress)[0][:, 1]
    learned = model._learned_tau()
    tau = float(model.config.tau if learned is None else learned)
    start = 0
    for some in responses:
        places = _ordered(len(some))
        yield _group(rewards[start : start + len(places)].float().cpu(), places, len(some), tau)
        start += len(places)


def _ordered(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(count) if i != j]


def _group(
    rewards: Tensor, places: Sequence[tuple[int, int]], count: int, tau: float
) -> GroupScores:
    raw = torch.zeros(count, count)
    for place, reward in zip(places, rewards, strict=True):
        raw[place] = reward
    score = raw - raw.T
    return GroupScores(score, skew_probabilities(score / tau))
