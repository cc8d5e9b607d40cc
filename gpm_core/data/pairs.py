"""One record of a data file as a preference pair or as a group of responses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpm_core.data.messages import (
    Message,
    as_messages,
    is_dialogue,
    parse_dialogue,
    parse_message,
    render_dialogue,
)


@dataclass(frozen=True)
class PreferencePair:
    """Two replies to one prompt, of which ``chosen`` was preferred.

    Attributes:
        prompt: the messages before the reply; () where there is none.
        chosen: the preferred reply.
        rejected: the other one.
        margin: what the score must exceed, or None.
        target: probability in [0, 1] that ``chosen`` is preferred, or None for certainty.
        line: where it stood in its file, from 1 (the row of a parquet file); 0 for no file.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float | None = None
    target: float | None = None
    line: int = 0


@dataclass(frozen=True)
class ResponseGroup:
    """Responses to one prompt, to be scored against each other; ``line`` as in a pair."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    line: int = 0


def parse_pair(record: Any, line: int = 0) -> PreferencePair:
    """A preference pair from a record; see :func:`gpm_core.data.read_pairs` for its forms.

    Raises:
        ValueError: if it is none of the forms; says which field is wrong and how.
    """
    _check_record(record)
    for field in ("chosen", "rejected"):
        if record.get(field) is None:
            found = ", ".join(map(repr, record)) or "nothing"
            raise ValueError(f"field {field!r} is missing; the record has {found}")
    chosen, rejected = record["chosen"], record["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, replies = _from_texts(record.get("prompt"), chosen, rejected)
    elif isinstance(chosen, (list, tuple)) and isinstance(rejected, (list, tuple)):
        prompt, replies = _from_messages(record.get("prompt"), chosen, rejected)
    else:
        raise ValueError(
            "fields 'chosen' and 'rejected' must both be text or both be lists of messages; got "
            f"{type(chosen).__name__} and {type(rejected).__name__}"
        )
    for text in (*replies, *(message.content for message in prompt)):
        _check_encodable(text)
    return PreferencePair(
        prompt,
        *replies,
        _number(record, "margin"),
        _number(record, "target", low=0.0, high=1.0),
        line,
    )


def parse_group(record: Any, line: int = 0) -> ResponseGroup:
    """A group from {"prompt": ..., "responses": [text, ...]}, or from a preference pair.

    Raises:
        ValueError: if it is neither; says which field is wrong and how.
    """
    _check_record(record)
    if record.get("responses") is None:
        if record.get("chosen") is None and record.get("rejected") is None:
            raise ValueError(
                "field 'responses' is missing; a record to score needs 'responses' (a list of "
                "texts) and perhaps 'prompt', or is a pair with 'chosen' and 'rejected'"
            )
        pair = parse_pair(record, line)
        return ResponseGroup(pair.prompt, (pair.chosen, pair.rejected), line)
    responses = record["responses"]
    if not isinstance(responses, (list, tuple)) or not responses:
        raise ValueError("field 'responses' must be a list of at least one text")
    for i, response in enumerate(responses):
        if not isinstance(response, str):
            raise ValueError(f"responses[{i}] must be text; got {type(response).__name__}")
        _check_encodable(response)
    prompt = _parse_prompt(record.get("prompt"))
    for message in prompt:
        _check_encodable(message.content)
    return ResponseGroup(prompt, tuple(responses), line)


def _check_record(record: Any) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"a record must be a JSON object; got {type(record).__name__}")


def _check_encodable(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text holds half of a surrogate pair ({text[error.start]!r}) and is no valid Unicode"
        ) from error


def _parse_prompt(value: Any) -> tuple[Message, ...]:
    try:
        return as_messages(value)
    except ValueError as error:
        raise ValueError(f"field 'prompt': {error}") from error


def _number(
    record: dict[str, Any], field: str, low: float = -math.inf, high: float = math.inf
) -> float | None:
    value = record.get(field)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"field {field!r} must be a number; got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"field {field!r} must be finite; got {value}")
    if not low <= value <= high:
        raise ValueError(f"field {field!r} must be in [{low:g}, {high:g}]; got {value}")
    return float(value)


def _from_texts(
    prompt: Any, chosen: str, rejected: str
) -> tuple[tuple[Message, ...], tuple[str, str]]:
    for field, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise ValueError(f"field {field!r} is empty")
    if not (is_dialogue(chosen) and is_dialogue(rejected)):
        if prompt is None and is_dialogue(chosen) != is_dialogue(rejected):
            raise ValueError(
                "fields 'chosen' and 'rejected' must both be dialogues that start with "
                '"\\n\\nHuman:", or neither'
            )
        return _parse_prompt(prompt), (chosen, rejected)
    dialogues = [parse_dialogue(chosen), parse_dialogue(rejected)]
    for field, turns in zip(("chosen", "rejected"), dialogues, strict=True):
        if turns[-1].role != "assistant":
            raise ValueError(f"the dialogue in {field!r} must end with an Assistant turn")
    shared, replies = _divide(*dialogues)
    _check_given_prompt(prompt, shared)
    return shared, replies


def _divide(
    chosen: Sequence[Message], rejected: Sequence[Message]
) -> tuple[tuple[Message, ...], tuple[str, str]]:
    """The turns that two dialogues share, and what follows in each.

    Real HH-RLHF dialogues sometimes part before the last turn (a reply that goes on speaking for
    the human): what follows the shared turns is then the reply, written as a dialogue.
    """
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if not shared and max(len(chosen), len(rejected)) > 1:
        raise ValueError(
            "the dialogues in 'chosen' and 'rejected' have different prompts: their first turns "
            f"are {chosen[0].content[:40]!r} and {rejected[0].content[:40]!r}"
        )
    return tuple(chosen[:shared]), (_as_reply(chosen[shared:]), _as_reply(rejected[shared:]))


def _as_reply(turns: Sequence[Message]) -> str:
    return render_dialogue(turns).removeprefix("Assistant: ")


def _from_messages(
    prompt: Any, chosen: Sequence[Any], rejected: Sequence[Any]
) -> tuple[tuple[Message, ...], tuple[str, str]]:
    given = None if prompt is None else _parse_prompt(prompt)
    prompts, replies = [], []
    for field, value in (("chosen", chosen), ("rejected", rejected)):
        if not value:
            raise ValueError(f"field {field!r} is an empty list of messages")
        try:
            turns = tuple(parse_message(message) for message in value)
        except ValueError as error:
            raise ValueError(f"field {field!r}: {error}") from error
        if turns[-1].role != "assistant":
            raise ValueError(
                f"the last message of {field!r} must be the assistant's; got {turns[-1].role!r}"
            )
        # With a prompt of its own, a record may hold the last turn only.
        prompts.append(given if given is not None and len(turns) == 1 else turns[:-1])
        replies.append(turns[-1].content)
    if prompts[0] != prompts[1]:
        where = next(
            (i for i, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b),
            min(map(len, prompts)),
        )
        raise ValueError(
            "'chosen' and 'rejected' have different prompts: all messages but the last must be "
            f"equal, and message {where} differs"
        )
    _check_given_prompt(prompt, prompts[0])
    return prompts[0], (replies[0], replies[1])


def _check_given_prompt(prompt: Any, found: tuple[Message, ...]) -> None:
    if prompt is not None and _parse_prompt(prompt) != found:
        raise ValueError(
            "field 'prompt' differs from the turns before the last one of 'chosen': leave one of "
            "the two out"
        )
