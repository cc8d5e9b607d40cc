"""Messages of a dialogue, and the plain "Human: / Assistant:" way to write one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")

_SPEAKER = {"Human": "user", "Assistant": "assistant", "System": "system"}
_NAME = {"user": "Human", "assistant": "Assistant", "system": "System", "tool": "Tool"}
_TURN = re.compile(r"\n\n(Human|Assistant|System):")


@dataclass(frozen=True)
class Message:
    """One turn of a dialogue: who speaks (one of :data:`ROLES`), and what is said."""

    role: str
    content: str


#: What a prompt may be given as: text (one user turn), messages, or nothing.
PromptLike = str | Sequence[Message | dict[str, str]] | None


def parse_message(value: Any) -> Message:
    """A message from a mapping {"role": ..., "content": ...}.

    Raises:
        ValueError: if it is anything else, says what is wrong.
    """
    if isinstance(value, Message):
        return value
    if not isinstance(value, dict):
        raise ValueError(
            f'a message must be an object {{"role", "content"}}; got {type(value).__name__}'
        )
    for key in ("role", "content"):
        if key not in value:
            raise ValueError(f"a message needs {key!r}; got {', '.join(map(repr, value)) or '{}'}")
        if not isinstance(value[key], str):
            raise ValueError(f"a message's {key} must be text; got {type(value[key]).__name__}")
    if value["role"] not in ROLES:
        raise ValueError(f"a message's role must be one of {ROLES}; got {value['role']!r}")
    return Message(value["role"], value["content"])


def as_messages(prompt: PromptLike) -> tuple[Message, ...]:
    r"""A prompt as messages: text becomes one user turn (or its turns, when it is a dialogue).

    Args:
        prompt: text, a list of messages (:class:`Message` or {"role", "content"}), or None for no
            prompt. Text that starts with "\n\nHuman:" or the like is read as a dialogue; its
            empty last "Assistant:" turn, which only asks for the reply, is dropped.

    Raises:
        ValueError: if it is neither.

    Example:
        >>> as_messages("Hi")
        (Message(role='user', content='Hi'),)
    """
    if prompt is None or isinstance(prompt, str):
        if not prompt:
            return ()
        if is_dialogue(prompt):
            turns = parse_dialogue(prompt)
            return turns[:-1] if turns[-1] == Message("assistant", "") else turns
        return (Message("user", prompt),)
    if isinstance(prompt, Iterable):
        return tuple(parse_message(message) for message in prompt)
    raise ValueError(f"prompt must be text or a list of messages; got {type(prompt).__name__}")


def is_dialogue(text: str) -> bool:
    r"""Whether ``text`` starts as dialogues of HH-RLHF do, with "\n\nHuman:" or the like."""
    return _TURN.match(text) is not None


def parse_dialogue(text: str) -> tuple[Message, ...]:
    r"""The turns of a dialogue "\n\nHuman: ...\n\nAssistant: ...", outer white space removed.

    Raises:
        ValueError: if ``text`` does not start with a speaker.

    Example:
        >>> parse_dialogue("\n\nHuman: Hi\n\nAssistant: Hello")
        (Message(role='user', content='Hi'), Message(role='assistant', content='Hello'))
    """
    if not is_dialogue(text):
        raise ValueError(
            f'a dialogue must start with "\\n\\nHuman:" or another speaker; got {text[:40]!r}'
        )
    starts = list(_TURN.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return tuple(
        Message(_SPEAKER[match.group(1)], text[match.end() : end].strip())
        for match, end in zip(starts, ends, strict=True)
    )


def render_dialogue(messages: Iterable[Message]) -> str:
    r"""Messages as "Human: ...\n\nAssistant: ...", the inverse of :func:`parse_dialogue`.

    Example:
        >>> render_dialogue([Message("user", "Hi")])
        'Human: Hi'
    """
    return "\n\n".join(f"{_NAME[message.role]}: {message.content}" for message in messages)
