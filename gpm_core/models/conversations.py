"""Conversations as rows of token ids: the one place that says how a model reads a reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpm_core.data.messages import Message, as_messages
from gpm_core.models.text import Row, dialogue_passage, tokenize_rows

DEFAULT_MAX_LENGTH = 2048
#: Tokenizers without a limit say so by a huge number.
_NO_LIMIT = 10**6


def resolve_text_format(text_format: str | None, causal: bool, tokenizer: Any) -> str:
    """The format that None stands for, or ``text_format`` itself.

    Raises:
        ValueError: for a format that needs a chat template where the tokenizer has none.
    """
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if text_format is None:
        return "chat" if causal and has_template else "plain"
    if text_format in ("chat", "published") and not has_template:
        raise ValueError(
            f"text_format={text_format!r} needs a chat template and the tokenizer has none: set "
            "tokenizer.chat_template, or use text_format='plain'"
        )
    return text_format


def position_limit(backbone: Any) -> int | None:
    """Most tokens that a backbone has positions for, or None where it does not say."""
    limit = getattr(backbone.config.get_text_config(), "max_position_embeddings", None)
    table = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    first = getattr(table, "padding_idx", None)
    # RoBERTa and its kin count positions from behind that of padding.
    return limit if limit is None or first is None else limit - first - 1


def resolve_max_length(max_length: int | None, positions: int | None, tokenizer: Any) -> int:
    """Most tokens of a row: ``max_length``, or 2048, or the model's own limit if that is less.

    Args:
        max_length: what is asked for, or None.
        positions: what :func:`position_limit` says of the backbone.
        tokenizer: may have a limit, too.

    Raises:
        ValueError: if more is asked for than the model has.
    """
    limits = [
        limit
        for limit in (positions, tokenizer.model_max_length)
        if limit is not None and 0 < limit < _NO_LIMIT
    ]
    if max_length is None:
        return int(min([DEFAULT_MAX_LENGTH, *limits]))
    if limits and max_length > min(limits):
        raise ValueError(
            f"max_sequence_length must be at most {min(limits)}, the limit of the model or its "
            f"tokenizer; got {max_length}"
        )
    return max_length


def encode_conversations(
    tokenizer: Any,
    prompts: Sequence[Any],
    responses: Sequence[str],
    *,
    text_format: str,
    max_length: int,
    end: bool,
) -> list[Row]:
    """Token ids of N replies, each after its prompt.

    Args:
        tokenizer: a fast tokenizer (one that gives character offsets).
        prompts: N prompts: text, messages, or None.
        responses: N replies.
        text_format: "chat", "plain" or "published", see :class:`GeneralPreferenceConfig`.
        max_length: most tokens of a row. What is cut is the beginning of a long prompt and the end
            of a long reply ("published": the end of the whole).
        end: close each row with the tokenizer's EOS token if it does not end so, as what a causal
            model's last token is read at.

    Raises:
        ValueError: if there is not one prompt per response, the chat template refuses a prompt, or
            the tokenizer gives no character offsets or ("published") has no EOS token.
    """
    if len(prompts) != len(responses):
        raise ValueError(
            f"there must be one prompt per response; got {len(prompts)} prompts and "
            f"{len(responses)} responses"
        )
    dialogues = [as_messages(prompt) for prompt in prompts]
    if text_format == "published":
        if tokenizer.eos_token_id is None:
            raise ValueError(
                "text_format='published' reads a reply at an EOS token and the tokenizer has none: "
                "set tokenizer.eos_token"
            )
        return _published_rows(tokenizer, dialogues, responses, max_length)
    if not tokenizer.is_fast:
        raise ValueError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets, which tell a "
            "prompt from its reply: a fast tokenizer (tokenizer.json) is needed, or token ids"
        )
    passages = [
        dialogue_passage(dialogue, reply, tokenizer, chat_template=text_format == "chat")
        for dialogue, reply in zip(dialogues, responses, strict=True)
    ]
    rows = tokenize_rows(tokenizer, passages, max_length)
    eos = tokenizer.eos_token_id if end else None
    if eos is None:
        return rows
    full = [i for i, row in enumerate(rows) if row.ids[-1] != eos and len(row.ids) == max_length]
    shorter = tokenize_rows(tokenizer, [passages[i] for i in full], max_length - 1)
    for i, row in zip(full, shorter, strict=True):
        rows[i] = row
    return [row if row.ids[-1] == eos else Row([*row.ids, eos], row.prompt_length) for row in rows]


def _published_rows(
    tokenizer: Any,
    dialogues: Sequence[tuple[Message, ...]],
    responses: Sequence[str],
    max_length: int,
) -> list[Row]:
    """As the GPM paper's inference code reads its checkpoints.

    The chat template writes special tokens, and the tokenizer adds its own again (two BOS where it
    has one); the last token is overwritten with EOS; the prompt is the first message alone.
    """
    rows = []
    for dialogue, reply in zip(dialogues, responses, strict=True):
        if not dialogue:
            raise ValueError(
                "text_format='published' needs a prompt: these checkpoints read their gate at the "
                "end of the first message"
            )
        turns = [{"role": m.role, "content": m.content} for m in dialogue]
        whole = [*turns, {"role": "assistant", "content": reply}]
        ids = _templated_ids(tokenizer, whole, max_length)
        prompt = _templated_ids(tokenizer, turns[:1], max_length)
        ids[-1] = tokenizer.eos_token_id
        rows.append(Row(ids, min(len(prompt), len(ids))))
    return rows


def _templated_ids(tokenizer: Any, messages: list[dict[str, str]], max_length: int) -> list[int]:
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    except Exception as error:
        roles = [message["role"] for message in messages]
        raise ValueError(
            f"the tokenizer's chat template rejects a dialogue with the roles {roles}: {error}"
        ) from error
    ids = tokenizer(text, add_special_tokens=True, truncation=True, max_length=max_length)
    return list(ids["input_ids"])


def rows_of_ids(prompts: Sequence[Any], responses: Sequence[Any]) -> list[Row]:
    """Rows from N prompts and N responses that are token ids already: lists, or (T,) arrays.

    Raises:
        TypeError: if one is neither.
        ValueError: if a row is empty.
    """
    rows = []
    for prompt, response in zip(prompts, responses, strict=True):
        start = [] if prompt is None else _id_list("prompt", prompt)
        ids = start + _id_list("response", response)
        if not ids:
            raise ValueError("prompt and response hold no token: at least one is needed")
        rows.append(Row(ids, len(start)))
    return rows


def check_vocabulary(rows: Sequence[Row], size: int) -> None:
    """Raise ValueError unless all token ids are in [0, ``size``)."""
    for ids, _ in rows:
        if min(ids) < 0 or max(ids) >= size:
            raise ValueError(
                f"token ids must be in [0, {size}), the backbone's vocabulary; got {min(ids)} to "
                f"{max(ids)}. Where a tokenizer has got more: model.resize_token_embeddings(...)"
            )


def _id_list(name: str, value: Any) -> list[int]:
    if isinstance(value, (Tensor, np.ndarray)):
        ids = value.tolist()
        if value.ndim != 1 or not _are_ids(ids):
            raise TypeError(
                f"{name} as an array must be token ids (T,) of an integer dtype; got "
                f"{tuple(value.shape)} {value.dtype}"
            )
        return ids
    if isinstance(value, Sequence) and _are_ids(value):
        return [int(item) for item in value]
    raise TypeError(f"{name} must be token ids, as the responses are; got {type(value).__name__}")


def _are_ids(values: Sequence[Any]) -> bool:
    return all(type(item) is int or isinstance(item, np.integer) for item in values)


def is_ids(value: Any) -> bool:
    """Whether ``value`` is token ids rather than text."""
    return isinstance(value, (Tensor, np.ndarray)) or (
        isinstance(value, Sequence) and not isinstance(value, str) and _are_ids(value)
    )


def pad_rows(rows: Sequence[Row], padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """``input_ids`` and ``attention_mask`` (N, T), padded on the right, ``prompt_lengths`` (N,)."""
    width = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), width), padding, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask[i, : len(row.ids)] = 1
    return ids, mask, torch.tensor([row.prompt_length for row in rows])
