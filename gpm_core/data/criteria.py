"""Pairs with a label for each of several criteria."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpm_core.data.errors import RecordError
from gpm_core.data.hub import _datasets, load_records, to_dataset
from gpm_core.data.labels import parse_number
from gpm_core.data.pairs import PreferencePair, check_record, parse_pair
from gpm_core.data.preferences import criteria_pairs
from gpm_core.data.rated import RatedGroup, parse_rated

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class CriteriaPair(PreferencePair):
    """Two replies to one prompt, and which of them each criterion prefers.

    Attributes:
        prompt: the messages before the reply; () where there is none.
        chosen: the reply that the labels are about.
        rejected: the other one.
        margin: None: a margin is of one preference.
        target: the mean of the labels, or None.
        line: where it stood in its file, from 1; 0 for no file.
        targets: by criterion, the probability in [0, 1] that ``chosen`` is preferred: 0.5 says tie,
            nan that there is no label, as does a criterion that is not there.
    """

    targets: Mapping[str, float] = field(default_factory=dict, hash=False)

    def labels(self, criteria: Sequence[str]) -> list[float]:
        """The labels by these criteria, in their order, nan where there is none."""
        return [self.targets.get(name, math.nan) for name in criteria]


def labelled_pairs(
    groups: Sequence[RatedGroup], criteria: Sequence[str] | None = None
) -> list[CriteriaPair]:
    """All pairs of responses to one prompt whose ratings differ on some criterion, with labels.

    As :func:`criteria_pairs`, in another form, and without the pairs on which all that rates them
    is a tie: chosen is the response that more criteria prefer.

    Args:
        groups: rated responses.
        criteria: which to use; None for all.

    Raises:
        ValueError: for a criterion that no group has or that is given twice.

    Example:
        >>> group = RatedGroup((), ("a", "b"), {"honesty": (5.0, 2.0), "brevity": (1.0, 1.0)})
        >>> [(pair.chosen, pair.targets) for pair in labelled_pairs([group])]
        [('a', {'honesty': 1.0, 'brevity': 0.5})]
    """
    made = criteria_pairs(groups, criteria)
    return [
        CriteriaPair(
            pair.prompt,
            pair.chosen,
            pair.rejected,
            target=pair.target,
            line=pair.line,
            targets=dict(zip(made.criteria, labels, strict=True)),
        )
        for pair, labels in zip(made.pairs, made.targets.tolist(), strict=True)
        if any(label in (0.0, 1.0) for label in labels)
    ]


def parse_criteria_pair(record: Any, criteria: Sequence[str], line: int = 0) -> CriteriaPair:
    """A pair from a record whose ``target`` has a label for each criterion.

    Args:
        record: of any form of :func:`gpm_core.data.read_pairs`, with ``target`` a mapping by
            criterion or a list in the order of ``criteria``, of probabilities, and None or nan
            where there is no label.
        criteria: those that are looked for; a mapping may have others.
        line: where it stands.

    Raises:
        ValueError: if it is none of the forms, has labels of none of the criteria, or a margin.

    Example:
        >>> record = {"chosen": "a", "rejected": "b", "target": {"brief": 1, "honest": None}}
        >>> parse_criteria_pair(record, ["honest", "brief"]).labels(["honest", "brief"])
        [nan, 1.0]
    """
    check_record(record)
    targets = parse_targets(record.get("target"), criteria)
    pair = parse_pair({name: value for name, value in record.items() if name != "target"}, line)
    if pair.margin is not None:
        raise RecordError(
            "wrong-type", "field 'margin' is of one preference: leave it out with several criteria"
        )
    return CriteriaPair(pair.prompt, pair.chosen, pair.rejected, line=line, targets=targets)


def parse_targets(value: Any, criteria: Sequence[str]) -> dict[str, float]:
    """Labels by criterion, nan where there is none; see :func:`parse_criteria_pair`.

    Raises:
        ValueError: if it is neither form, or a label is no probability.
    """
    if isinstance(value, (list, tuple)) and len(value) == len(criteria):
        value = dict(zip(criteria, value, strict=True))
    if not isinstance(value, Mapping) or not any(name in value for name in criteria):
        raise RecordError(
            "wrong-type",
            "field 'target' must have a label, or null, for each criterion, as "
            f"{dict.fromkeys(criteria, 1.0)}; got {value!r:.80}",
        )
    return {name: _label(value, name) for name in criteria}


def _label(targets: Mapping[str, Any], name: str) -> float:
    value = targets.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return math.nan
    number = parse_number({f"target.{name}": value}, f"target.{name}", low=0.0, high=1.0)
    assert number is not None
    return number


def load_labelled(
    source: str | os.PathLike[str], split: str | None = None
) -> list[RatedGroup | CriteriaPair]:
    """Responses with ratings, or pairs with a label for each criterion, whichever they are.

    Args:
        source: a file, a folder or a hub name, as :func:`gpm_core.data.load_pairs` takes them.
            Records with "chosen" and "rejected" are pairs, whose ``target`` maps criteria to
            labels; others are those of :func:`gpm_core.data.read_rated`.
        split: see :func:`gpm_core.data.load_pairs`.

    Raises:
        FileNotFoundError: if there is no such file, folder or data set.
        DataError: if a record is neither; names its line or row.

    Example:
        >>> load_labelled("heldout.jsonl")  # doctest: +SKIP
        [RatedGroup(...), ...]
    """
    return load_records(source, _parse_labelled, split)


def _parse_labelled(record: Any, line: int) -> RatedGroup | CriteriaPair:
    if not isinstance(record, Mapping) or "chosen" not in record:
        return parse_rated(record, line)
    target = record.get("target")
    if not isinstance(target, Mapping):
        raise RecordError(
            "wrong-type",
            "field 'target' of a pair must have a label, or null, by the name of each criterion; "
            f"got {target!r:.80}",
        )
    return parse_criteria_pair(record, [str(name) for name in target], line)


def criteria_dataset(pairs: Sequence[CriteriaPair]) -> datasets.Dataset:
    """Pairs as a data set: the columns of :func:`to_dataset`, and ``target`` by criterion.

    Args:
        pairs: at least one; a label that a pair lacks is None.

    Raises:
        ValueError: without pairs.
        ModuleNotFoundError: without the package ``datasets``.
    """
    made = to_dataset(pairs)
    library = _datasets()
    names = list(dict.fromkeys(name for pair in pairs for name in pair.targets))
    number = library.Value("float64")
    features = library.Features({"target": {name: number for name in names}})
    rows = [
        {name: None if math.isnan(label) else label for name, label in labels.items()}
        for labels in (dict(zip(names, pair.labels(names), strict=True)) for pair in pairs)
    ]
    targets = library.Dataset.from_list([{"target": row} for row in rows], features=features)
    texts = made.remove_columns(["target"]) if "target" in made.column_names else made
    return library.concatenate_datasets([texts, targets], axis=1)
