"""Messages of a dialogue, and the plain "Human: / Assistant:" way to write one."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpm_core.data.errors import RecordError

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

    Content is text, or a list of {"type": "text", "text": ...} blocks, which are joined. Calls of
    tools (``tool_calls``) follow the content as JSON, {"name": ..., "arguments": ...}, a line each;
    a message that only calls tools may have None for its content. Other keys are ignored.

    Raises:
        ValueError: if it is anything else, says what is wrong.
    """
    if isinstance(value, Message):
        return value
    if not isinstance(value, dict):
        raise RecordError(
            "wrong-type",
            f'a message must be an object {{"role", "content"}}; got {type(value).__name__}',
        )
    calls = value.get("tool_calls") or ()
    for key in ("role", "content"):
        if key not in value and not (key == "content" and calls):
            found = ", ".join(map(repr, value)) or "{}"
            raise RecordError("missing-field", f"a message needs {key!r}; got {found}")
    role = value["role"]
    if not isinstance(role, str):
        raise RecordError("wrong-type", f"a message's role must be text; got {type(role).__name__}")
    if role not in ROLES:
        raise RecordError("unknown-role", f"a message's role must be one of {ROLES}; got {role!r}")
    content = value.get("content")
    said = "" if calls and content is None else _content(content)
    return Message(role, "\n".join(filter(None, (said, *map(_call, calls)))) if calls else said)


def _content(value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, (list, tuple)):
        raise RecordError(
            "wrong-type", f"a message's content must be text; got {type(value).__name__}"
        )
    blocks = []
    for block in value:
        text = (
            block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None
        )
        if not isinstance(text, str):
            kind = block.get("type") if isinstance(block, dict) else type(block).__name__
            raise RecordError(
                "wrong-type",
                f'a block of a message\'s content must be {{"type": "text", "text": ...}}; '
                f"got {kind!r}",
            )
        blocks.append(text)
    return "".join(blocks)


def _call(value: Any) -> str:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RecordError(
            "wrong-type",
            'a message\'s tool_calls must be a list of {"function": {"name", "arguments"}}; '
            f"got {type(value).__name__} {value!r:.60}",
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        # OpenAI's form: arguments are JSON within a text.
        with contextlib.suppress(ValueError):
            arguments = json.loads(arguments)
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)


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
    raise RecordError(
        "wrong-type", f"prompt must be text or a list of messages; got {type(prompt).__name__}"
    )


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
        raise RecordError(
            "not-a-dialogue",
            f'a dialogue must start with "\\n\\nHuman:" or another speaker; got {text[:40]!r}',
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


def turn_problem(messages: Sequence[Message]) -> str | None:
    """What is unusual about the order of a conversation's roles, or None.

    Usual is: a system message first if anywhere, then the user and the assistant by turns, the user
    first; a tool's messages follow the assistant's.
    """
    previous = "system"
    for i, role in enumerate(message.role for message in messages):
        if role == "system" and i:
            return f"message {i} is a system message; it must be the first"
        if role == "tool" and previous not in ("assistant", "tool"):
            return f"message {i} is a tool's, and does not follow the assistant's"
        if role == "assistant" and previous == "system":
            return f"message {i} is the assistant's, and nobody has asked anything"
        if role in ("user", "assistant") and role == previous:
            return f"messages {i - 1} and {i} are both the {role}'s"
        if role == "user" and previous == "tool":
            return f"message {i} is the user's, and the assistant has not replied to the tool"
        previous = role
    return None
