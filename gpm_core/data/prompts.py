"""Prompts alone, to sample responses for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from gpm_core.data.errors import RecordError
from gpm_core.data.hub import load_records
from gpm_core.data.keys import prompt_key
from gpm_core.data.messages import Message
from gpm_core.data.pairs import (
    PreferencePair,
    check_encodable,
    check_record,
    parse_pair,
    parse_prompt,
)

_FIELDS = ("prompt", "instruction")


def parse_prompt_record(record: Any, line: int = 0) -> tuple[Message, ...]:
    """The prompt of a record that may hold anything else beside it.

    Args:
        record: with ``prompt`` or ``instruction`` (text or a list of messages); or a preference
            pair whose dialogues begin with the prompt.
        line: not looked at; as other parsers have it.

    Returns:
        The messages before the reply, at least one.

    Raises:
        ValueError: if there is none; says which field is wrong and how.

    Example:
        >>> parse_prompt_record({"prompt": "Why?", "source": "a list"})
        (Message(role='user', content='Why?'),)
    """
    check_record(record)
    field = next((name for name in _FIELDS if record.get(name) is not None), None)
    if field is not None:
        prompt = parse_prompt(record[field], field)
        check_encodable(*(message.content for message in prompt))
    elif record.get("chosen") is not None:
        prompt = parse_pair(record, line).prompt
    else:
        found = ", ".join(map(repr, record)) or "nothing"
        raise RecordError(
            "missing-field",
            "a record needs 'prompt' (text or messages), 'instruction', or a pair's 'chosen' and "
            f"'rejected'; it has {found}",
        )
    if not prompt:
        raise RecordError("missing-field", "the prompt is empty: there is nothing to reply to")
    return prompt


def load_prompts(
    source: str | os.PathLike[str],
    split: str | None = None,
    *,
    name: str | None = None,
    revision: str | None = None,
) -> list[tuple[Message, ...]]:
    """Distinct prompts from a file, a folder, or a data set of the Hugging Face hub.

    Arguments and errors are those of :func:`~gpm_core.data.load_pairs`; records have a prompt in
    one of the forms of :func:`parse_prompt_record`, so files of pairs and of rated responses will
    do. Prompts that differ only in white space and Unicode form are the same, and the first is
    kept.

    Example:
        >>> load_prompts("trl-lib/ultrafeedback-prompt", "train")  # doctest: +SKIP
        [(Message(role='user', content=...),), ...]
    """
    return distinct_prompts(
        load_records(source, parse_prompt_record, split, name=name, revision=revision)
    )


def distinct_prompts(prompts: Iterable[tuple[Message, ...]]) -> list[tuple[Message, ...]]:
    """The first of equal prompts, in their order."""
    kept: dict[bytes, tuple[Message, ...]] = {}
    for prompt in prompts:
        kept.setdefault(prompt_key(PreferencePair(prompt, "", "")), prompt)
    return list(kept.values())
