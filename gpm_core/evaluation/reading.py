"""What is evaluated: responses to prompts, grouped so that each is encoded once, and labels."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpm_core.data import DataError, Message, PreferencePair, ResponseGroup, as_messages, parse_pair
from gpm_core.data.pairs import check_encodable
from gpm_core.data.records import UnreadableRecord, place, records
from gpm_core.evaluation.benchmarks import section_of

Kind = Literal["auto", "pairs", "rewardbench", "rewardbench2"]

KINDS = ("auto", "pairs", "rewardbench", "rewardbench2")

#: RewardBench 2's subset of prompts with many right answers, scored by a rule of its own.
TIES = "Ties"

_TIES_IDENTIFIER = re.compile(r"(ref|tied):(\d+)")


@dataclass(frozen=True)
class LabelledPair:
    """Two responses of a group, by position, of which ``chosen`` was preferred.

    Attributes:
        chosen, rejected: positions.
        target: probability in [0, 1] that ``chosen`` is preferred.
        subset: the part of the file that it belongs to, or None.
        cluster: which pairs are resampled together: those of one prompt. Without a prompt, pairs of
            the same two responses.
    """

    chosen: int
    rejected: int
    target: float
    subset: str | None
    cluster: int


@dataclass(frozen=True)
class Choice:
    """A best-of-N question: the group's first ``correct`` responses are right, the others wrong.

    ``identifier`` is ("ref" or "tied", number) in the subset "Ties" of RewardBench 2, else None.
    """

    correct: int
    subset: str
    identifier: tuple[str, int] | None


@dataclass(frozen=True)
class LabelledGroup:
    """Responses to one prompt, and what people said of them.

    The pairs of a best-of-N question are its right answers with its wrong ones, except in "Ties".
    """

    group: ResponseGroup
    pairs: tuple[LabelledPair, ...]
    choice: Choice | None = None


@dataclass(frozen=True)
class EvaluationData:
    """What :func:`read_evaluation` found: its kind, its groups, and the file's name or None."""

    kind: Literal["pairs", "rewardbench", "rewardbench2"]
    groups: tuple[LabelledGroup, ...]
    source: str | None = None

    @property
    def subsets(self) -> list[str]:
        """Names of the subsets, in the order of the file."""
        found: dict[str, None] = {}
        for group in self.groups:
            names = [pair.subset for pair in group.pairs]
            names += [group.choice.subset] if group.choice is not None else []
            found.update((name, None) for name in names if name is not None)
        return list(found)


def read_evaluation(path: str | os.PathLike[str], kind: Kind = "auto") -> EvaluationData:
    """Read a file to evaluate a preference model on.

    Args:
        path: a .jsonl, .json (a list of objects, or JSON lines), either gzipped too, or .parquet
            file.
        kind: what the records are:

            - "pairs": as :func:`gpm_core.data.read_pairs` reads, perhaps with ``subset``;
            - "rewardbench": such pairs with ``subset``, as in allenai/reward-bench; of its prior
              sets (allenai/preference-test-sets) ``subset`` must be the set's name;
            - "rewardbench2": ``prompt``, ``chosen`` and ``rejected`` (lists of texts), ``subset``,
              perhaps ``num_correct`` and ``num_incorrect``, which must then be right, and in the
              subset "Ties" ``id`` ("ref:0", "tied:0", ...), as in allenai/reward-bench-2;
            - "auto": by the records: "rewardbench2" if the first ``chosen`` is a list of texts,
              "rewardbench" if some subset is one of that benchmark's, otherwise "pairs".

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it cannot be read as described; names the file and the line or row.
        ModuleNotFoundError: for parquet without pyarrow.
        ValueError: for an unknown kind.

    Example:
        >>> read_evaluation("reward-bench.parquet").kind  # doctest: +SKIP
        'rewardbench'
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    path = Path(path)
    numbered = _read(path)
    found = _detect([record for _, record in numbered]) if kind == "auto" else kind
    pairs: list[PreferencePair] = []
    subsets: list[str | None] = []
    choices: list[LabelledGroup] = []
    for number, record in numbered:
        try:
            if found == "rewardbench2":
                choices.append(_parse_choice(record, number, len(choices)))
            else:
                pairs.append(parse_pair(record, number))
                subsets.append(_subset(record, required=found == "rewardbench"))
        except ValueError as error:
            raise DataError(f"{path}, {place(path)} {number}: {error}") from error
    groups = tuple(choices) if found == "rewardbench2" else group_pairs(pairs, subsets)
    return EvaluationData(found, groups, path.name)


def _read(path: Path) -> list[tuple[int, dict[str, Any]]]:
    numbered = []
    for number, record in records(path):
        if isinstance(record, UnreadableRecord):
            raise record
        if not isinstance(record, dict):
            raise DataError(
                f"{path}, {place(path)} {number}: a record must be an object; got "
                f"{type(record).__name__}"
            )
        numbered.append((number, record))
    if not numbered:
        raise DataError(f"{path}: the file is empty; expected at least one record")
    return numbered


def _detect(found: list[dict[str, Any]]) -> Literal["pairs", "rewardbench", "rewardbench2"]:
    chosen = found[0].get("chosen")
    if isinstance(chosen, list) and chosen and isinstance(chosen[0], str):
        return "rewardbench2"
    names = {name for record in found if isinstance(name := record.get("subset"), str)}
    return "rewardbench" if any(section_of(name) is not None for name in names) else "pairs"


def _subset(record: dict[str, Any], *, required: bool) -> str | None:
    subset = record.get("subset")
    if not required:
        return None if subset in (None, "") else str(subset)
    if not isinstance(subset, str) or not subset:
        raise ValueError(f"field 'subset' must be a text; got {subset!r}")
    return subset


def group_pairs(
    pairs: Sequence[PreferencePair], subsets: Sequence[str | None] | None = None
) -> tuple[LabelledGroup, ...]:
    """Put pairs of one prompt together, so that each of its responses is encoded once.

    Pairs without a prompt belong together where they share a response, directly or through others,
    as matches of players do.

    Args:
        pairs: N pairs.
        subsets: N names of subsets, or None for none.
    """
    names = [None] * len(pairs) if subsets is None else list(subsets)
    roots = _connect([pair for pair in pairs if not pair.prompt])
    members: dict[Any, list[int]] = {}
    for i, pair in enumerate(pairs):
        key = pair.prompt or roots[pair.chosen]
        members.setdefault(key, []).append(i)
    clusters: dict[Any, int] = {}
    groups = []
    for rows in members.values():
        positions: dict[str, int] = {}
        labelled = []
        for i in rows:
            pair = pairs[i]
            ends = [
                positions.setdefault(text, len(positions)) for text in (pair.chosen, pair.rejected)
            ]
            cluster = clusters.setdefault(cluster_key(pair), len(clusters))
            target = 1.0 if pair.target is None else pair.target
            labelled.append(LabelledPair(ends[0], ends[1], target, names[i], cluster))
        first = pairs[rows[0]]
        group = ResponseGroup(first.prompt, tuple(positions), first.line)
        groups.append(LabelledGroup(group, tuple(labelled)))
    return tuple(groups)


def cluster_key(pair: PreferencePair) -> tuple[Message, ...] | frozenset[str]:
    """What pairs that depend on each other share: the prompt, or the two responses without one."""
    return pair.prompt or frozenset((pair.chosen, pair.rejected))


def _connect(pairs: Sequence[PreferencePair]) -> dict[str, str]:
    """A representative of each response's connected component."""
    parents: dict[str, str] = {}

    def root(text: str) -> str:
        while parents.setdefault(text, text) != text:
            parents[text] = parents[parents[text]]
            text = parents[text]
        return text

    for pair in pairs:
        parents[root(pair.rejected)] = root(pair.chosen)
    return {text: root(text) for text in list(parents)}


def _parse_choice(record: dict[str, Any], line: int, cluster: int) -> LabelledGroup:
    right, wrong = (_texts(record, field) for field in ("chosen", "rejected"))
    for field, texts in (("num_correct", right), ("num_incorrect", wrong)):
        given = record.get(field)
        if given is not None and given != len(texts):
            raise ValueError(f"field {field!r} is {given!r}, but there are {len(texts)} texts")
    subset = _subset(record, required=True)
    assert subset is not None
    subset = TIES if subset.lower() == TIES.lower() else subset
    choice = Choice(len(right), subset, _identifier(record, len(right)) if subset == TIES else None)
    try:
        prompt = as_messages(record.get("prompt"))
    except ValueError as error:
        raise ValueError(f"field 'prompt': {error}") from error
    check_encodable(*right, *wrong, *(message.content for message in prompt))
    # A prompt of "Ties" has hundreds of pairs, which would drown those of all others.
    pairs = tuple(
        LabelledPair(i, len(right) + j, 1.0, subset, cluster)
        for i in range(len(right) if subset != TIES else 0)
        for j in range(len(wrong))
    )
    return LabelledGroup(ResponseGroup(prompt, (*right, *wrong), line), pairs, choice)


def _texts(record: dict[str, Any], field: str) -> tuple[str, ...]:
    value = record.get(field)
    if not isinstance(value, list) or not value or not all(isinstance(t, str) for t in value):
        raise ValueError(f"field {field!r} must be a list of at least one text")
    return tuple(value)


def _identifier(record: dict[str, Any], correct: int) -> tuple[str, int]:
    value = record.get("id")
    match = _TIES_IDENTIFIER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(
            f"field 'id' must be 'ref:<number>' or 'tied:<number>' in the subset {TIES}; "
            f"got {value!r}"
        )
    if match.group(1) == "tied" and correct < 2:
        raise ValueError(f"a tied prompt ({value}) must have at least two right answers; got one")
    return match.group(1), int(match.group(2))
