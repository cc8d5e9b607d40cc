"""Conversations as rows of token ids: the one place that says how a model reads a reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def resolve_max_length(max_length: int | None, config: Any, tokenizer: Any) -> int:
    """Most tokens of a row: ``max_length``, or 2048, or the model's own limit if that is less."""
    limits = [
        limit
        for limit in (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
        if limit is not None and 0 < limit < _NO_LIMIT
    ]
    return int(min([DEFAULT_MAX_LENGTH if max_length is None else max_length, *limits]))


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
        ValueError: if there is not one prompt per response, or the chat template refuses a prompt.
    """
    if len(prompts) != len(responses):
        raise ValueError(
            f"there must be one prompt per response; got {len(prompts)} prompts and "
            f"{len(responses)} responses"
        )
    dialogues = [as_messages(prompt) for prompt in prompts]
    if text_format == "published":
        return _published_rows(tokenizer, dialogues, responses, max_length)
    passages = [
        dialogue_passage(dialogue, reply, tokenizer, chat_template=text_format == "chat")
        for dialogue, reply in zip(dialogues, responses, strict=True)
    ]
    eos = tokenizer.eos_token_id if end else None
    if eos is None:
        return tokenize_rows(tokenizer, passages, max_length)
    rows = tokenize_rows(tokenizer, passages, max_length - 1)
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
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    ids = tokenizer(text, add_special_tokens=True, truncation=True, max_length=max_length)
    return list(ids["input_ids"])


def rows_of_ids(prompts: Sequence[Any], responses: Sequence[Any]) -> list[Row]:
    """Rows from N prompts and N responses that are token ids already: tensors (T,) or lists.

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


def _id_list(name: str, value: Any) -> list[int]:
    if isinstance(value, Tensor):
        if value.dim() != 1 or value.is_floating_point():
            raise TypeError(
                f"{name} as a tensor must be token ids (T,) of an integer dtype; got "
                f"{tuple(value.shape)} {value.dtype}"
            )
        return [int(i) for i in value.tolist()]
    if isinstance(value, Sequence) and all(type(item) is int for item in value):
        return list(value)
    raise TypeError(f"{name} must be token ids, as the responses are; got {type(value).__name__}")


def is_ids(value: Any) -> bool:
    """Whether ``value`` is token ids rather than text."""
    return isinstance(value, Tensor) or (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(type(item) is int for item in value)
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
