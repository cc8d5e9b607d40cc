"""From a model and a file to a report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gpm_core.data import PreferencePair
from gpm_core.evaluation.benchmarks import compose, section_of
from gpm_core.evaluation.choices import ChoiceTable, TiesResult, measure_ties
from gpm_core.evaluation.estimates import Array, Bootstrap, Estimate, ratio
from gpm_core.evaluation.intransitivity import TripleTable
from gpm_core.evaluation.length import Unit, measure_length_bias
from gpm_core.evaluation.pairwise import PairTable, PairTableBuilder, measure_pairs
from gpm_core.evaluation.reading import (
    TIES,
    EvaluationData,
    Kind,
    group_pairs,
    read_evaluation,
)
from gpm_core.evaluation.report import EvaluationReport, SubsetResult
from gpm_core.evaluation.scoring import GroupScorer, score_data
from gpm_core.evaluation.seen import measure_seen


@dataclass(frozen=True, eq=False)
class _Part:
    """A figure with its draws, to make up others of."""

    estimate: Estimate
    draws: Array


def evaluate(
    model: GroupScorer,
    data: str | os.PathLike[str] | Sequence[PreferencePair] | EvaluationData,
    *,
    kind: Kind = "auto",
    train_pairs: Sequence[PreferencePair] | None = None,
    batch_size: int = 32,
    seed: int = 0,
    bootstrap_samples: int = 1000,
    confidence: float = 0.95,
    progress: bool = False,
) -> EvaluationReport:
    """Evaluate a preference model on labelled pairs or on a benchmark.

    Each response passes through the model once for its prompt, however many pairs it is in. Of the
    matrices of scores only a few numbers for each labelled pair are kept.

    - Accuracy: share of pairs whose score has the label's side, ties half. A benchmark's score is
      composed of its subsets' as published (:mod:`gpm_core.evaluation.benchmarks`).
    - Best-of-N: a question is right if a right answer has the highest mean probability of being
      preferred to the others (which for scalar rewards is the highest reward); beside it stands
      whether every right answer beats every wrong one.
    - Intervals: bootstrap over prompts (:class:`Bootstrap`); of a composed score, over the prompts
      of each subset, to which a subset that is all right or all wrong adds no width.

    Args:
        model: with ``score_groups``, as all of :mod:`gpm_core.models`.
        data: a file (:func:`read_evaluation`), pairs, or what was read already.
        kind: of the file; pairs and what was read have theirs.
        train_pairs: what the model was trained on, to report seen and new pairs apart.
        batch_size: texts per forward pass.
        seed: of the bootstrap.
        bootstrap_samples: resamplings, at least 100.
        confidence: of the intervals, in (0, 1).
        progress: show progress on stderr.

    Raises:
        FileNotFoundError: if there is no such file.
        DataError: if it cannot be read.
        TypeError: if the model cannot score groups.
        ValueError: if an option is out of range, ``data`` is empty, or the model's scores are not
            finite.

    Example:
        >>> from types import SimpleNamespace
        >>> class LongerIsBetter:
        ...     def score_groups(self, groups, *, batch_size=32, progress=False):
        ...         for group in groups:
        ...             length = torch.tensor([float(len(text)) for text in group.responses])
        ...             score = length[:, None] - length[None, :]
        ...             yield SimpleNamespace(score=score, probability=score.sigmoid())
        >>> pairs = [PreferencePair((), "a long reply", "a reply"), PreferencePair((), "no", "yes")]
        >>> evaluate(LongerIsBetter(), pairs).overall.value
        0.5
    """
    bootstrap = Bootstrap(bootstrap_samples, confidence, seed)
    data = _as_data(data, kind)
    pairs, choices, triples = PairTableBuilder(), ChoiceTable(), TripleTable()
    for scored in score_data(model, data.groups, batch_size=batch_size, progress=progress):
        pairs.add(scored)
        choices.add(scored)
        triples.add(scored)
    table = pairs.table()
    ties, parts = _subset_parts(data, table, choices, bootstrap)
    metrics = measure_pairs(table, bootstrap) if len(table) else None
    overall, sections, missing = _composed(data, parts, bootstrap)
    if overall is None:
        overall = metrics.accuracy if metrics is not None else _pooled(choices, bootstrap)
    units: tuple[Unit, ...] = ("words", "characters") if len(table) else ()
    return EvaluationReport(
        source=data.source,
        kind=data.kind,
        prompts=len(data.groups),
        responses=sum(len(labelled.group.responses) for labelled in data.groups),
        settings={
            "seed": seed,
            "bootstrap_samples": bootstrap_samples,
            "confidence": confidence,
        },
        overall=overall,
        sections=sections,
        subsets=tuple(_subset_results(data, parts, choices, bootstrap)),
        missing=missing,
        pairs=metrics,
        ties=ties,
        intransitivity=triples.measure(bootstrap),
        length={unit: measure_length_bias(table, bootstrap, unit) for unit in units},
        seen=None
        if train_pairs is None or not len(table)
        else measure_seen(table, data.groups, train_pairs, bootstrap),
        table=table,
    )


def _as_data(
    data: str | os.PathLike[str] | Sequence[PreferencePair] | EvaluationData, kind: Kind
) -> EvaluationData:
    if isinstance(data, (str, os.PathLike)):
        return read_evaluation(data, kind)
    if isinstance(data, EvaluationData):
        if not data.groups:
            raise ValueError("data must hold at least one group; got none")
        return data
    pairs: list[Any] = list(data) if isinstance(data, Sequence) else [data]
    if not all(isinstance(pair, PreferencePair) for pair in pairs):
        raise TypeError("data must be a path, pairs (PreferencePair), or what read_evaluation gave")
    if not pairs:
        raise ValueError("data must hold at least one pair; got none")
    return EvaluationData("pairs", group_pairs(pairs))


def _subset_parts(
    data: EvaluationData, table: PairTable, choices: ChoiceTable, bootstrap: Bootstrap
) -> tuple[TiesResult | None, dict[str, _Part]]:
    """The accuracy of each subset."""
    ties: TiesResult | None = None
    parts = {}
    for name in data.subsets:
        if name == TIES and name in choices.outcomes:
            if choices.has_ties:
                ties, draws = measure_ties(choices, bootstrap)
                parts[name] = _Part(ties.score, draws)
            continue
        if name in choices.outcomes:
            columns, clusters = choices.columns(name, "best")
        else:
            members = torch.tensor([subset == name for subset in table.subsets])
            correct, clusters = table.correct[members], table.cluster[members]
            columns = torch.stack([correct, torch.ones_like(correct)], dim=1)
        draws, value = bootstrap.replicates(columns, clusters, ratio)
        prompts = len(torch.unique(clusters))
        estimate = bootstrap.summarize(value, draws, len(columns), prompts, is_share=True)
        parts[name] = _Part(estimate, draws)
    return ties, parts


def _composed(
    data: EvaluationData, parts: dict[str, _Part], bootstrap: Bootstrap
) -> tuple[Estimate | None, dict[str, Estimate], tuple[str, ...]]:
    """The benchmark's score, its sections, and the subsets that it lacks."""
    composition = compose(data.kind, list(parts))
    if composition is None:
        return None, {}, ()
    sections = {
        name: _weighted({parts[subset]: weight for subset, weight in weights.items()}, bootstrap)
        for name, weights in composition.sections.items()
    }
    whole = _weighted({sections[name]: w for name, w in composition.weights.items()}, bootstrap)
    estimates = {name: part.estimate for name, part in sections.items()}
    return whole.estimate, estimates, composition.missing


def _weighted(weights: dict[_Part, float], bootstrap: Bootstrap) -> _Part:
    """A weighted mean; of one part, that part."""
    if len(weights) == 1:
        return next(iter(weights))
    total = sum(weights.values())
    value = sum(weight * part.estimate.value for part, weight in weights.items()) / total
    shares = np.array(list(weights.values())) / total
    draws: Array = shares @ np.stack([part.draws for part in weights])
    count = sum(part.estimate.count for part in weights)
    prompts = sum(part.estimate.prompts for part in weights)
    return _Part(bootstrap.summarize(value, draws, count, prompts, is_share=False), draws)


def _pooled(choices: ChoiceTable, bootstrap: Bootstrap) -> Estimate:
    """All best-of-N questions together."""
    columns = torch.cat([choices.columns(name, "best")[0] for name in choices.outcomes])
    clusters = torch.arange(len(columns))
    return bootstrap.estimate(columns, clusters, ratio, is_share=True)


def _subset_results(
    data: EvaluationData, parts: dict[str, _Part], choices: ChoiceTable, bootstrap: Bootstrap
) -> list[SubsetResult]:
    results = []
    for name, part in parts.items():
        beats_all = None
        if name in choices.outcomes and name != TIES:
            columns, clusters = choices.columns(name, "beats_all")
            beats_all = bootstrap.estimate(columns, clusters, ratio, is_share=True)
        section = section_of(name) if data.kind == "rewardbench" else None
        results.append(SubsetResult(name, section, part.estimate, beats_all))
    return results
