"""From dialogues to token ids: rendering, and what is cut when a text is too long."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from gpm_core.data.messages import Message, render_dialogue


class Passage(NamedTuple):
    """A text whose two parts are cut at different ends when it is too long.

    ``context`` (what was said before) loses its beginning, ``reply`` its end. ``templated`` says
    that a chat template has written the special tokens into the text already.
    """

    context: str
    reply: str
    templated: bool = False


def last_user_turn(prompt: Sequence[Message]) -> str:
    """What the user said last, or "" where the user said nothing."""
    return next((m.content for m in reversed(prompt) if m.role == "user"), "")


def dialogue_passage(
    prompt: Sequence[Message], reply: str | None, tokenizer: Any, *, chat_template: bool
) -> Passage:
    """A prompt and a reply to it (or with None the prompt alone) as the passage to encode.

    Args:
        prompt: the messages so far; where there are none, the passage is the bare reply.
        reply: the assistant's reply, or None for what precedes any reply.
        tokenizer: whose chat template is used.
        chat_template: use it; otherwise the plain "Human: ... Assistant: ..." form.

    Raises:
        ValueError: if the chat template rejects the dialogue.
    """
    if not prompt:
        return Passage("", reply or "")
    if not chat_template:
        context = render_dialogue(prompt)
        if reply is None:
            return Passage(context, "")
        return Passage(f"{context}\n\nAssistant:", f" {reply}")
    context = _apply_template(tokenizer, prompt, open_ended=True)
    if reply is None:
        return Passage(context.rstrip(), "", True)
    whole = _apply_template(tokenizer, (*prompt, Message("assistant", reply)), open_ended=False)
    # Templates may write past turns otherwise than the last one, so the border is where both agree.
    border = _shared_length(context, whole)
    return Passage(whole[:border], whole[border:].rstrip(), True)


def _shared_length(a: str, b: str) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _apply_template(tokenizer: Any, messages: Sequence[Message], *, open_ended: bool) -> str:
    turns: list[dict[str, str]] = []
    for message in messages:
        # Real dialogues hold two turns of one speaker in a row, which many templates refuse.
        if turns and turns[-1]["role"] == message.role:
            turns[-1]["content"] += f"\n\n{message.content}"
        else:
            turns.append({"role": message.role, "content": message.content})
    try:
        return str(
            tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=open_ended)
        )
    except Exception as error:
        raise ValueError(
            f"the tokenizer's chat template rejects a dialogue with the roles "
            f"{[turn['role'] for turn in turns]}: {error}. Use chat_template=False"
        ) from error


class Row(NamedTuple):
    """Token ids of a conversation, of which the first ``prompt_length`` are the prompt's."""

    ids: list[int]
    prompt_length: int


def tokenize(tokenizer: Any, passages: Sequence[Passage], max_length: int) -> list[list[int]]:
    """Token ids of each passage, as :func:`tokenize_rows`."""
    return [row.ids for row in tokenize_rows(tokenizer, passages, max_length)]


def tokenize_rows(tokenizer: Any, passages: Sequence[Passage], max_length: int) -> list[Row]:
    """Token ids of each passage, at most ``max_length`` and at least one.

    A passage that is too long keeps its special tokens at both ends, the end of the context and the
    start of the reply. The reply gets at least half of the room, and all that the context leaves.
    """
    result: list[Row] = [Row([], 0) for _ in passages]
    for templated in (False, True):
        where = [i for i, passage in enumerate(passages) if passage.templated == templated]
        if not where:
            continue
        encoded = tokenizer(
            [passages[i].context + passages[i].reply for i in where],
            add_special_tokens=not templated,
            return_offsets_mapping=True,
            padding=False,
            truncation=False,
            verbose=False,
        )
        for i, ids, offsets in zip(
            where, encoded["input_ids"], encoded["offset_mapping"], strict=True
        ):
            result[i] = _shorten(tokenizer, passages[i], list(ids), offsets, max_length)
    return result


def _shorten(
    tokenizer: Any,
    passage: Passage,
    ids: list[int],
    offsets: Sequence[tuple[int, int]],
    max_length: int,
) -> Row:
    if not ids:
        return Row([_filler(tokenizer)], 0)
    special = set(tokenizer.all_special_ids)
    head, tail = 0, len(ids)
    while head < len(ids) and ids[head] in special:
        head += 1
    while tail > head and ids[tail - 1] in special:
        tail -= 1
    border = next((i for i in range(head, tail) if offsets[i][0] >= len(passage.context)), tail)
    if len(ids) <= max_length:
        return Row(ids, border)
    room = max(max_length - head - (len(ids) - tail), 0)
    reply = min(tail - border, max(room - (border - head), (room + 1) // 2))
    context = room - reply
    kept = ids[:head] + ids[border - context : border] + ids[border : border + reply] + ids[tail:]
    return Row(kept[:max_length], min(head + context, max_length))


def _filler(tokenizer: Any) -> int:
    """The token of an empty text: there must be one to have a hidden state."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        if token is not None:
            return int(token)
    return 0
