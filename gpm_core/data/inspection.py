"""What is odd about one record, and about how it goes with those before it."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from gpm_core.data.deduplication import oriented
from gpm_core.data.keys import comparison_keys, group_key
from gpm_core.data.messages import Message, is_dialogue, turn_problem
from gpm_core.data.pairs import PreferencePair, ResponseGroup, parse_group, parse_pair
from gpm_core.data.rated import RatedGroup, parse_rated

#: Characters of prompt and reply, above which a text is called long: some 12,000 tokens.
LONG_TEXT = 50_000
#: A reply this many times as long as the other, and of so many characters, tells by length alone.
LENGTH_RATIO = 20
LENGTH_RATIO_FROM = 500

#: UTF-8 that was decoded as Latin-1 or Windows-1252, and the mark of what could not be decoded.
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac[\u0080-\u00bf\u02dc\u2122\u0153\u201c-\u201d\u00a6]|\ufffd"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_SPEAKER = re.compile(r"\n\n(Human|Assistant|System):")


class Finding(NamedTuple):
    """A kind of problem, see :data:`gpm_core.data.checking.KINDS`, and its description."""

    kind: str
    message: str


def form(record: Any) -> str:
    """Which of the forms a record has, by the fields that are there."""
    if not isinstance(record, dict):
        return "no record"
    chosen = record.get("chosen")
    if isinstance(chosen, (list, tuple)):
        return "message lists"
    if isinstance(chosen, str):
        return "dialogues" if is_dialogue(chosen) else "texts"
    if "better_response_id" in record:
        return "numbered pairs"
    if record.get("completions") is not None or record.get("ratings") is not None:
        return "rated responses"
    responses = record.get("responses", record.get("generations"))
    if not isinstance(responses, (list, tuple)):
        return "unknown"
    objects = bool(responses) and isinstance(responses[0], dict)
    return "rated responses" if objects else "responses"


class Inspector:
    """Inspects the records of one file in order; ``forms`` counts the forms met."""

    def __init__(self, place: str) -> None:
        self.forms: Counter[str] = Counter()
        self._place = place
        self._seen: dict[bytes, int] = {}

    def inspect(self, record: Any, line: int) -> list[Finding]:
        """What is odd about a record.

        Raises:
            RecordError: if it is refused.
        """
        kind = form(record)
        found = list(self._form(kind))
        if kind == "rated responses":
            rated = parse_rated(record, line)
            return [*found, *self._group(rated, line), *_ratings(rated)]
        if kind == "responses":
            return [*found, *self._group(parse_group(record, line), line)]
        pair = parse_pair(record, line)
        found += _prompt(pair.prompt)
        found += _texts(pair.prompt, {"chosen": pair.chosen, "rejected": pair.rejected})
        found += _labels(pair)
        found += self._pair(pair, line)
        return found

    def _form(self, kind: str) -> Iterator[Finding]:
        first = next(iter(self.forms), kind)
        self.forms[kind] += 1
        if kind not in (first, "unknown", "no record") and self.forms[kind] == 1:
            yield Finding("mixed-forms", f"this record holds {kind}, the first one {first}")

    def _pair(self, pair: PreferencePair, line: int) -> Iterator[Finding]:
        key, reverse = comparison_keys(oriented(pair))
        if key == reverse:
            yield Finding("identical-replies", "'chosen' and 'rejected' are the same text")
            return
        # A tie contradicts nothing, in whatever order its replies are.
        tie = min(key, reverse) + b"tie"
        same, other, tied = (self._seen.get(one) for one in (key, reverse, tie))
        if pair.target == 0.5:
            key, same, other = tie, other if same is None else same, None
        if same is None and other is None:
            same = tied
        if same is not None:
            yield Finding("duplicate", f"the same comparison as on {self._place} {same}")
        elif other is not None:
            yield Finding("contradiction", f"{self._place} {other} prefers the other reply")
        self._seen.setdefault(key, line)

    def _group(self, group: RatedGroup | ResponseGroup, line: int) -> Iterator[Finding]:
        yield from _prompt(group.prompt)
        replies = {f"responses[{i}]": text for i, text in enumerate(group.responses)}
        yield from _texts(group.prompt, replies, ratio=False)
        if len(group.responses) < 2:
            count = len(group.responses)
            yield Finding("few-responses", f"{count} responses; it takes two to compare")
        if len(set(group.responses)) < len(group.responses):
            yield Finding("identical-replies", "some responses are the same text")
        key = group_key(group.prompt, group.responses)
        if key in self._seen:
            message = f"the same responses as on {self._place} {self._seen[key]}"
            yield Finding("duplicate", message)
        self._seen.setdefault(key, line)


def _prompt(prompt: Sequence[Message]) -> Iterator[Finding]:
    for i, message in enumerate(prompt):
        if not message.content.strip():
            yield Finding(
                "empty-turn", f"message {i} of the prompt, the {message.role}'s, is empty"
            )
    if prompt:
        problem = turn_problem((*prompt, Message("assistant", "")))
        if problem is not None:
            yield Finding("role-order", problem)


def _texts(
    prompt: Sequence[Message], replies: dict[str, str], *, ratio: bool = True
) -> Iterator[Finding]:
    before = sum(len(message.content) for message in prompt)
    for name, text in replies.items():
        if not text.strip():
            yield Finding("empty-reply", f"{name!r} is an empty reply")
        if _SPEAKER.search(text):
            yield Finding("other-speaker", f"{name!r} goes on to speak for the other side")
        if before + len(text) > LONG_TEXT:
            yield Finding("long-text", f"prompt and {name!r} have {before + len(text)} characters")
    lengths = sorted(map(len, replies.values()))
    if ratio and lengths[0] and lengths[-1] >= max(LENGTH_RATIO * lengths[0], LENGTH_RATIO_FROM):
        yield Finding("length-ratio", f"the replies have {lengths[0]} and {lengths[-1]} characters")
    named = {f"message {i} of the prompt": turn.content for i, turn in enumerate(prompt)}
    for name, text in {**named, **{repr(key): text for key, text in replies.items()}}.items():
        damaged, control = _MOJIBAKE.search(text), _CONTROL.search(text)
        if damaged:
            start = max(damaged.start() - 10, 0)
            context = text[start : damaged.end() + 10]
            yield Finding("mojibake", f"{name} has wrongly decoded text: {context!r}")
        if control:
            yield Finding("control-character", f"{name} holds the character {control.group()!r}")


def _labels(pair: PreferencePair) -> Iterator[Finding]:
    if pair.target is not None and pair.target < 0.5:
        yield Finding("low-target", f"target {pair.target:g} says that 'rejected' is preferred")
    if pair.margin is not None and pair.margin < 0:
        yield Finding("negative-margin", f"margin {pair.margin:g} is below 0")


def _ratings(group: RatedGroup) -> Iterator[Finding]:
    ratings = [rating for column in group.ratings.values() for rating in column]
    missing = sum(map(math.isnan, ratings))
    if missing or not ratings:
        yield Finding("missing-rating", f"{missing} of {len(ratings)} ratings are missing")
