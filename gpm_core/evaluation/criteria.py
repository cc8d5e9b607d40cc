"""Models of several criteria, by each of them: one pass, one report."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpm_core.data import CriteriaPair, PreferencePair, RatedGroup, labelled_pairs, load_labelled
from gpm_core.data.files import atomic_file, check_writable, write_json
from gpm_core.evaluation.estimates import Bootstrap, Estimate
from gpm_core.evaluation.pairwise import PairMetrics, PairTable, PairTableBuilder, measure_pairs
from gpm_core.evaluation.reading import LabelledGroup, group_pairs
from gpm_core.evaluation.report import _brackets, _list, _plain, _table
from gpm_core.evaluation.scoring import GroupScorer, score_criteria


@dataclass(frozen=True)
class Disputed:
    """Pairs of which one criterion prefers one response and another the other.

    Attributes:
        pairs: how many there are.
        accuracy: of the model on their labels, ties in which are left out.
        one_preference: the most that can be right of these labels for whoever has one preference
            for all criteria.
    """

    pairs: int
    accuracy: Estimate
    one_preference: float


@dataclass(frozen=True)
class CriteriaReport:
    """What a model of several criteria makes of the labels of each.

    Attributes:
        source: name of the data, or None.
        prompts, responses, pairs: how many were scored (responses once for each prompt).
        settings: seed, bootstrap_samples, confidence.
        overall: of all labels, each with the same weight; the labels of a prompt are resampled
            together, so that it does not matter for intervals that those of a pair depend on each
            other.
        criteria: of the labels of each criterion, by name.
        missing: criteria of the model that the data have no label of.
        disputed: pairs that criteria disagree on, or None without any.
    """

    source: str | None
    prompts: int
    responses: int
    pairs: int
    settings: dict[str, Any]
    overall: PairMetrics
    criteria: dict[str, PairMetrics]
    missing: tuple[str, ...]
    disputed: Disputed | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON: what is not known is None, all numbers are finite."""
        result: dict[str, Any] = _plain({"kind": "criteria", **vars(self)})
        return result

    def markdown(self) -> str:
        """The report to read."""
        return "\n\n".join(part for part in (self._head(), self._each(), self._disputed()) if part)

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write report.json, report.md and accuracy.png, each whole or not at all.

        Args:
            folder: made if needed; files of an earlier report are replaced.

        Returns:
            The files' paths.

        Raises:
            OSError: if they cannot be written.
            ModuleNotFoundError: without matplotlib.
        """
        from gpm_core.evaluation.figures import accuracy_figure

        folder = Path(folder)
        check_writable(folder)
        write_json(folder / "report.json", self.as_dict())
        with atomic_file(folder / "report.md") as partial:
            partial.write_text(self.markdown() + "\n", encoding="utf-8")
        whole = [("all labels", self.overall.accuracy)]
        parts = [(name, metrics.accuracy) for name, metrics in self.criteria.items()]
        picture = accuracy_figure(whole, parts, folder / "accuracy.png", coin=True)
        return [folder / "report.json", folder / "report.md", picture]

    def _head(self) -> str:
        lines = [
            f"# Evaluation{'' if self.source is None else f' on {self.source}'}, by criterion",
            "",
            f"**Accuracy over all labels: {self.overall.accuracy}**",
            "",
            f"{self.prompts:,} prompts, {self.responses:,} responses, {self.pairs:,} pairs with "
            f"{self.overall.accuracy.count:,} labels. {_brackets(self.settings)}",
        ]
        if self.missing:
            lines += ["", f"The data have no labels of: {_list(self.missing)}."]
        return "\n".join(lines)

    def _each(self) -> str:
        headers = ["criterion", "labels", "accuracy", "log loss", "Brier score", "ECE"]
        rows = [
            [
                name,
                f"{metrics.accuracy.count:,}",
                *map(str, (metrics.accuracy, metrics.log_loss, metrics.brier)),
                f"{metrics.calibration_error:.3f}",
            ]
            for name, metrics in {"all": self.overall, **self.criteria}.items()
        ]
        coin = ["a coin", "", "0.500", "0.693", "0.250", "0.000"]
        return _table(headers, [*rows, coin])

    def _disputed(self) -> str:
        if self.disputed is None:
            return ""
        found = self.disputed
        return (
            f"On {found.pairs:,} pairs criteria disagree. Of their {found.accuracy.count:,} labels "
            f"the model has {found.accuracy} right; one preference for all criteria has at most "
            f"{found.one_preference:.3f}."
        )


def evaluate_by_criteria(
    model: GroupScorer,
    data: str | os.PathLike[str] | Sequence[RatedGroup | CriteriaPair],
    criteria: Sequence[str] | None = None,
    *,
    source: str | None = None,
    batch_size: int = 32,
    seed: int = 0,
    bootstrap_samples: int = 1000,
    confidence: float = 0.95,
    progress: bool = False,
) -> CriteriaReport:
    """Evaluate a model of several criteria on the labels of each.

    Each response passes through the model once for its prompt, whatever the number of criteria.
    Figures and intervals are those of :func:`gpm_core.evaluation.evaluate`.

    Args:
        model: with ``criteria``, names, and ``score_groups``, whose scores have ``criteria``, as
            those of :mod:`gpm_core.models` that were trained on several.
        data: responses with ratings, of which the pairs of
            :func:`gpm_core.data.labelled_pairs` are made, or pairs with labels; or a file, folder
            or hub name of either (:func:`gpm_core.data.load_labelled`).
        criteria: those of the model's to evaluate; None: all that the data have labels of.
        source: what the report calls the data; None: the name of the file, if it is one.
        batch_size: texts per forward pass.
        seed: of the bootstrap.
        bootstrap_samples: resamplings, at least 100.
        confidence: of the intervals, in (0, 1).
        progress: show progress on stderr.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it cannot be read.
        TypeError: if ``data`` are neither.
        ValueError: if an option is out of range, the model has one preference and no criteria, for
            a criterion that it or the data do not have, without any label, or if the model's
            scores are not finite.

    Example:
        >>> from types import SimpleNamespace
        >>> class LongAndShort:
        ...     criteria = ("detailed", "brief")
        ...     def score_groups(self, groups, *, batch_size=32, progress=False):
        ...         for group in groups:
        ...             length = torch.tensor([float(len(text)) for text in group.responses])
        ...             each = {}
        ...             for name, sign in (("detailed", 1), ("brief", -1)):
        ...                 score = sign * (length[:, None] - length)
        ...                 each[name] = SimpleNamespace(score=score, probability=score.sigmoid())
        ...             yield SimpleNamespace(criteria=each)
        >>> ratings = {"detailed": (2.0, 1.0), "brief": (1.0, 2.0)}
        >>> data = [RatedGroup((), ("a long reply", "a reply"), ratings)]
        >>> report = evaluate_by_criteria(LongAndShort(), data)
        >>> report.overall.accuracy.value, report.disputed.one_preference
        (1.0, 0.5)
    """
    bootstrap = Bootstrap(bootstrap_samples, confidence, seed)
    known = tuple(getattr(model, "criteria", ()))
    if not known:
        raise ValueError(
            "this model has one preference and no criteria to evaluate it by: use evaluate(...), "
            "on the command line without --criteria"
        )
    if isinstance(data, (str, os.PathLike)):
        source = Path(data).name if source is None else source
        data = load_labelled(data)
    wanted = _wanted(data, criteria, known)
    pairs, names = _labelled(data, wanted)
    _check_there(data, names, wanted if criteria is not None else ())
    tables, groups = _tables(model, pairs, names, batch_size, progress)
    target = torch.stack([table.target for table in tables.values()], dim=1)
    each = {name: table.select(~table.target.isnan()) for name, table in tables.items()}
    return CriteriaReport(
        source=source,
        prompts=len(groups),
        responses=sum(len(labelled.group.responses) for labelled in groups),
        pairs=len(pairs),
        settings={
            "seed": seed,
            "bootstrap_samples": bootstrap_samples,
            "confidence": confidence,
        },
        overall=measure_pairs(PairTable.joined([*each.values()]), bootstrap),
        criteria={name: measure_pairs(table, bootstrap) for name, table in each.items()},
        missing=tuple(name for name in wanted if name not in names),
        disputed=_measure_disputed(tables, target, bootstrap),
    )


def _wanted(
    data: Sequence[RatedGroup | CriteriaPair],
    criteria: Sequence[str] | None,
    known: tuple[str, ...],
) -> list[str]:
    """The criteria that are asked for, all of the model's."""
    if not all(isinstance(record, (RatedGroup, CriteriaPair)) for record in data):
        raise TypeError(
            "data must be a path, responses with ratings (RatedGroup) or pairs with labels "
            "(CriteriaPair)"
        )
    unknown = [name for name in criteria or () if name not in known]
    if unknown:
        raise ValueError(f"unknown criteria {', '.join(unknown)}; the model has {', '.join(known)}")
    return list(dict.fromkeys(known if criteria is None else criteria))


def _labelled(
    data: Sequence[RatedGroup | CriteriaPair], wanted: Sequence[str]
) -> tuple[list[CriteriaPair], list[str]]:
    """The pairs that have a label by some wanted criterion, and the criteria that have one."""
    groups = [record for record in data if isinstance(record, RatedGroup)]
    pairs = [record for record in data if isinstance(record, CriteriaPair)]
    rated = {name for group in groups for name in group.ratings}
    pairs += labelled_pairs(groups, [name for name in wanted if name in rated])
    pairs = [pair for pair in pairs if not all(map(math.isnan, pair.labels(wanted)))]
    there = {
        name for pair in pairs for name, label in pair.targets.items() if not math.isnan(label)
    }
    return pairs, [name for name in wanted if name in there]


def _check_there(
    data: Sequence[RatedGroup | CriteriaPair], names: Sequence[str], needed: Sequence[str]
) -> None:
    missing = [name for name in needed if name not in names]
    if missing or not names:
        found = {
            name
            for record in data
            for name in (record.ratings if isinstance(record, RatedGroup) else record.targets)
        }
        raise ValueError(
            f"the data say of no two responses which is preferred by {', '.join(missing) or 'any'}"
            f"; they have {', '.join(sorted(found)) or 'no criteria'}"
        )


def _tables(
    model: GroupScorer,
    pairs: Sequence[CriteriaPair],
    names: Sequence[str],
    batch_size: int,
    progress: bool,
) -> tuple[dict[str, PairTable], tuple[LabelledGroup, ...]]:
    """All pairs by each criterion, in one order, with target nan where there is no label."""
    by_name = {name: group_pairs([_by(pair, name) for pair in pairs]) for name in names}
    groups = by_name[names[0]]
    builders = {name: PairTableBuilder() for name in names}
    scored = score_criteria(model, groups, names, batch_size=batch_size, progress=progress)
    for i, each in enumerate(scored):
        for name, group in each.items():
            builders[name].add(replace(group, labels=by_name[name][i]))
    return {name: builder.table() for name, builder in builders.items()}, groups


def _by(pair: CriteriaPair, name: str) -> PreferencePair:
    (label,) = pair.labels([name])
    return PreferencePair(pair.prompt, pair.chosen, pair.rejected, target=label, line=pair.line)


def _measure_disputed(
    tables: dict[str, PairTable], target: Tensor, bootstrap: Bootstrap
) -> Disputed | None:
    """``target`` (P, C) of the tables, nan where there is no label."""
    side = torch.sign(target.nan_to_num(0.5) - 0.5)
    first, second = (side > 0).sum(dim=1), (side < 0).sum(dim=1)
    disputed = (first > 0) & (second > 0)
    if not disputed.any():
        return None
    labels = disputed.unsqueeze(1) & (side != 0)
    correct = torch.stack([table.correct for table in tables.values()], dim=1)
    cluster = next(iter(tables.values())).cluster.unsqueeze(1).expand_as(labels)
    most = torch.maximum(first, second)[disputed].sum()
    return Disputed(
        int(disputed.sum()),
        bootstrap.share(correct[labels], cluster[labels]),
        float(most / labels.sum()),
    )
