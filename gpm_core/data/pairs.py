"""One record of a data file as a preference pair or as a group of responses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gpm_core.data.errors import RecordError
from gpm_core.data.labels import parse_margin, parse_number
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


def parse_pair(record: Any, line: int = 0, *, score_margin: bool = False) -> PreferencePair:
    """A preference pair from a record; see :func:`gpm_core.data.read_pairs` for its forms.

    Raises:
        ValueError: if it is none of the forms; says which field is wrong and how.
    """
    check_record(record)
    if "chosen" not in record and "better_response_id" in record:
        record = _from_numbered(record)
    for field in ("chosen", "rejected"):
        if record.get(field) is None:
            found = ", ".join(map(repr, record)) or "nothing"
            raise RecordError(
                "missing-field", f"field {field!r} is missing; the record has {found}"
            )
    chosen, rejected = record["chosen"], record["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        prompt, replies = _from_texts(record.get("prompt"), chosen, rejected)
    elif isinstance(chosen, (list, tuple)) and isinstance(rejected, (list, tuple)):
        prompt, replies = _from_messages(record.get("prompt"), chosen, rejected)
    else:
        raise RecordError(
            "wrong-type",
            "fields 'chosen' and 'rejected' must both be text or both be lists of messages; got "
            f"{type(chosen).__name__} and {type(rejected).__name__}",
        )
    check_encodable(*replies, *(message.content for message in prompt))
    margin = parse_margin(record, score_margin=score_margin)
    return PreferencePair(
        prompt, *replies, margin, parse_number(record, "target", low=0.0, high=1.0), line
    )


def parse_group(record: Any, line: int = 0) -> ResponseGroup:
    """A group from {"prompt": ..., "responses": [text, ...]}, or from a preference pair.

    Raises:
        ValueError: if it is neither; says which field is wrong and how.
    """
    check_record(record)
    if record.get("responses") is None:
        if record.get("chosen") is None and record.get("rejected") is None:
            raise RecordError(
                "missing-field",
                "field 'responses' is missing; a record to score needs 'responses' (a list of "
                "texts) and perhaps 'prompt', or is a pair with 'chosen' and 'rejected'",
            )
        pair = parse_pair(record, line)
        return ResponseGroup(pair.prompt, (pair.chosen, pair.rejected), line)
    responses = record["responses"]
    if not isinstance(responses, (list, tuple)) or not responses:
        raise RecordError("wrong-type", "field 'responses' must be a list of at least one text")
    texts = parse_texts(responses, "responses")
    prompt = parse_prompt(record.get("prompt"))
    check_encodable(*(message.content for message in prompt))
    return ResponseGroup(prompt, texts, line)


def check_record(record: Any) -> None:
    """Refuse what is no JSON object."""
    if not isinstance(record, dict):
        raise RecordError(
            "wrong-type", f"a record must be a JSON object; got {type(record).__name__}"
        )


def check_encodable(*texts: str) -> None:
    """Refuse text that cannot be written as UTF-8, for it holds half of a surrogate pair."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RecordError(
                "bad-unicode",
                f"a text holds half of a surrogate pair ({text[error.start]!r}) and is no valid "
                "Unicode",
            ) from error


def parse_texts(values: Sequence[Any], field: str) -> tuple[str, ...]:
    """Texts that can be encoded; an error names the field and the position."""
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise RecordError(
                "wrong-type", f"{field}[{i}] must be text; got {type(value).__name__}"
            )
        check_encodable(value)
    return tuple(values)


def parse_prompt(value: Any, field: str = "prompt") -> tuple[Message, ...]:
    """:func:`~gpm_core.data.as_messages`, whose errors name the field."""
    try:
        return as_messages(value)
    except RecordError as error:
        raise RecordError(error.kind, f"field {field!r}: {error}") from error


def _from_numbered(record: dict[str, Any]) -> dict[str, Any]:
    """PKU-SafeRLHF's form: two numbered responses and the number of the better one."""
    better = record["better_response_id"]
    if isinstance(better, bool) or better not in (0, 1):
        raise RecordError(
            "out-of-range", f"field 'better_response_id' must be 0 or 1; got {better!r:.60}"
        )
    texts = []
    for field in (f"response_{better}", f"response_{1 - better}"):
        if not isinstance(record.get(field), str):
            raise RecordError(
                "missing-field", f"field {field!r} must be text, beside 'better_response_id'"
            )
        texts.append(record[field])
    return {**record, "chosen": texts[0], "rejected": texts[1]}


def _from_texts(
    prompt: Any, chosen: str, rejected: str
) -> tuple[tuple[Message, ...], tuple[str, str]]:
    for field, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise RecordError("empty-field", f"field {field!r} is empty")
    if not (is_dialogue(chosen) and is_dialogue(rejected)):
        if prompt is None and is_dialogue(chosen) != is_dialogue(rejected):
            raise RecordError(
                "not-a-dialogue",
                "fields 'chosen' and 'rejected' must both be dialogues that start with "
                '"\\n\\nHuman:", or neither',
            )
        return parse_prompt(prompt), (chosen, rejected)
    dialogues = [parse_dialogue(chosen), parse_dialogue(rejected)]
    for field, turns in zip(("chosen", "rejected"), dialogues, strict=True):
        if turns[-1].role != "assistant":
            raise RecordError(
                "last-turn", f"the dialogue in {field!r} must end with an Assistant turn"
            )
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
        raise RecordError(
            "prompts-differ",
            "the dialogues in 'chosen' and 'rejected' have different prompts: their first turns "
            f"are {chosen[0].content[:40]!r} and {rejected[0].content[:40]!r}",
        )
    return tuple(chosen[:shared]), (_as_reply(chosen[shared:]), _as_reply(rejected[shared:]))


def _as_reply(turns: Sequence[Message]) -> str:
    return render_dialogue(turns).removeprefix("Assistant: ")


def _from_messages(
    prompt: Any, chosen: Sequence[Any], rejected: Sequence[Any]
) -> tuple[tuple[Message, ...], tuple[str, str]]:
    given = None if prompt is None else parse_prompt(prompt)
    prompts, replies = [], []
    for field, value in (("chosen", chosen), ("rejected", rejected)):
        turns = _conversation(field, value)
        # Beside a prompt, a record may hold only what follows it: the reply, or calls of tools,
        # their answers and the reply. That starts with the assistant; a conversation does not.
        if given is not None and turns[0].role == "assistant" and turns[: len(given)] != given:
            turns = given + turns
        prompts.append(turns[:-1])
        replies.append(turns[-1].content)
    if prompts[0] != prompts[1]:
        where = next(
            (i for i, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b),
            min(map(len, prompts)),
        )
        raise RecordError(
            "prompts-differ",
            "'chosen' and 'rejected' have different prompts: all messages but the last must be "
            f"equal, and message {where} differs",
        )
    if not (given is not None and prompts[0][: len(given)] == given):
        _check_given_prompt(prompt, prompts[0])
    return prompts[0], (replies[0], replies[1])


def _conversation(field: str, value: Sequence[Any]) -> tuple[Message, ...]:
    if not value:
        raise RecordError("missing-field", f"field {field!r} is an empty list of messages")
    try:
        turns = tuple(parse_message(message) for message in value)
    except RecordError as error:
        raise RecordError(error.kind, f"field {field!r}: {error}") from error
    if turns[-1].role != "assistant":
        raise RecordError(
            "last-turn",
            f"the last message of {field!r} must be the assistant's; got {turns[-1].role!r}",
        )
    return turns


def _check_given_prompt(prompt: Any, found: tuple[Message, ...]) -> None:
    """Refuse a prompt that says something else than the turns before the last.

    A prompt in plain text may repeat a user's turn alone: data sets keep it beside conversations.
    """
    if prompt is None or parse_prompt(prompt) == found:
        return
    if isinstance(prompt, str) and Message("user", prompt) in found:
        return
    raise RecordError(
        "prompts-differ",
        "field 'prompt' differs from the turns before the last one of 'chosen': leave one of the "
        "two out",
    )
