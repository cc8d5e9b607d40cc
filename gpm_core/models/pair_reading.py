"""Language models that read both responses of a pair in one text: the baseline of K^2 passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gpm_core.data.messages import as_messages
from gpm_core.heads.pair import skew_probabilities
from gpm_core.models.conversations import encode_conversations, is_ids
from gpm_core.models.group_scores import GroupScores, check_groups

_FIRST, _SECOND = "Response A:\n", "\n\nResponse B:\n"
#: By how many tokens a text may be longer among others than by itself.
_SLACK = 8
_NO_LIMIT = 10**9


def whole(first: str, second: str) -> str:
    """The reply that says both responses, the first one first."""
    return f"{_FIRST}{first}{_SECOND}{second}"


def rooms(tokenizer: Any, prompts: Sequence[Any], options: dict[str, Any]) -> list[int]:
    """How many tokens two responses may have together, after each of N prompts.

    That is what the prompt leaves of a conversation, or what it must leave: about half.

    Args:
        tokenizer: with character offsets.
        prompts: N prompts.
        options: those of :func:`gpm_core.models.encode_conversations`.
    """
    dialogues = [as_messages(prompt) for prompt in prompts]
    distinct = list(dict.fromkeys(dialogues))
    unlimited = {**options, "max_length": _NO_LIMIT}
    empty = [whole("", "")] * len(distinct)
    limit = options["max_length"]
    found = {}
    rows = encode_conversations(tokenizer, distinct, empty, **unlimited)
    for dialogue, (ids, prompt_length) in zip(distinct, rows, strict=True):
        marks = len(ids) - prompt_length
        found[dialogue] = max(limit - len(ids) - _SLACK, limit // 2 - marks - _SLACK, 2)
    return [found[dialogue] for dialogue in dialogues]


def together(tokenizer: Any, first: str, second: str, room: int) -> str:
    """The reply that says both responses, cut so that neither displaces the other.

    Each keeps at least half of the room, and what the other leaves of it: a reply that is too long
    loses its end, which must not be all of the second response.

    Args:
        tokenizer: with character offsets.
        first: a response.
        second: another one to the same prompt.
        room: most tokens of both, see :func:`rooms`.
    """
    ends = [_ends(tokenizer, text) for text in (first, second)]
    if sum(map(len, ends)) > room:
        first = _cut(first, ends[0], max(room // 2, room - len(ends[1])))
        second = _cut(second, ends[1], max(room // 2, room - len(ends[0])))
    return whole(first, second)


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
    check_groups(prompts, responses)
    if any(is_ids(response) for some in responses for response in some):
        raise ValueError(
            "this model reads both responses of a pair in one text: pass texts, not token ids"
        )
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            "texts need a tokenizer: set model.tokenizer = AutoTokenizer.from_pretrained(...)"
        )
    room_after = rooms(tokenizer, prompts, model.text_options(tokenizer))
    replies, repeated = [], []
    for prompt, some, room in zip(prompts, responses, room_after, strict=True):
        for i, j in _ordered(len(some)):
            replies.append(together(tokenizer, some[i], some[j], room))
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
