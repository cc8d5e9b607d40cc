"""What an evaluation found, as Markdown, JSON and pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from gpm_core.data.files import atomic_file, check_writable, write_json
from gpm_core.evaluation.choices import TiesResult
from gpm_core.evaluation.estimates import Estimate
from gpm_core.evaluation.intransitivity import Intransitivity, ObservedTriples
from gpm_core.evaluation.length import LengthBias
from gpm_core.evaluation.pairwise import PairMetrics, PairTable
from gpm_core.evaluation.seen import SeenPairs

_SCORE = {
    "pairs": "Accuracy",
    "rewardbench": "RewardBench score",
    "rewardbench2": "RewardBench 2 score",
}


@dataclass(frozen=True)
class SubsetResult:
    """A subset's figures.

    Attributes:
        name: of the subset.
        section: RewardBench's section, or None.
        accuracy: of pairs; of best-of-N questions the share where a right answer has the highest
            mean probability of being preferred to the others; of "Ties" its score.
        beats_all: of best-of-N questions, the share where every right answer beats every wrong one.
    """

    name: str
    section: str | None
    accuracy: Estimate
    beats_all: Estimate | None = None


@dataclass(frozen=True)
class EvaluationReport:
    """All figures of an evaluation; parts that the data cannot tell are None or empty.

    Attributes:
        source: name of the file, or None.
        kind: "pairs", "rewardbench" or "rewardbench2".
        prompts, responses: how many were scored (responses once for each prompt).
        settings: seed, bootstrap_samples, confidence.
        overall: the benchmark's score; of pairs the accuracy.
        sections: the benchmark's sections.
        subsets: in the order of the data.
        missing: subsets of the benchmark that the data lack; ``overall`` and ``sections`` are then
            of the others, and not comparable with published ones.
        pairs: likelihood and calibration, each pair with the same weight.
        ties: parts of the score of RewardBench 2's "Ties".
        intransitivity: cycles, where some prompt has three responses.
        length: by unit.
        seen: seen and new pairs apart, if the training pairs were given.
        table: the pairs with their scores; not part of the written report.
    """

    source: str | None
    kind: str
    prompts: int
    responses: int
    settings: dict[str, Any]
    overall: Estimate
    sections: dict[str, Estimate]
    subsets: tuple[SubsetResult, ...]
    missing: tuple[str, ...]
    pairs: PairMetrics | None
    ties: TiesResult | None
    intransitivity: Intransitivity | None
    length: dict[str, LengthBias]
    seen: SeenPairs | None
    table: PairTable = field(repr=False, compare=False)

    def as_dict(self) -> dict[str, Any]:
        """All but the table, for JSON: what is not known is None, all numbers are finite."""
        values = {name: value for name, value in vars(self).items() if name != "table"}
        result: dict[str, Any] = _plain(values)
        return result

    def markdown(self) -> str:
        """The report to read."""
        parts = [self._head(), self._subsets(), self._pairs()]
        parts += [self._cycles(), self._lengths(), self._seen()]
        return "\n\n".join(part for part in parts if part)

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write report.json, report.md and pictures (PNG); each file whole or not at all.

        Pictures are reliability.png and length.png, if there are pairs, and accuracy.png.

        Args:
            folder: made if needed; files of an earlier report are replaced.

        Returns:
            The files' paths.

        Raises:
            OSError: if they cannot be written.
            ModuleNotFoundError: without matplotlib.
        """
        from gpm_core.evaluation.figures import write_figures

        folder = Path(folder)
        check_writable(folder)
        write_json(folder / "report.json", self.as_dict())
        with atomic_file(folder / "report.md") as partial:
            partial.write_text(self.markdown() + "\n", encoding="utf-8")
        return [folder / "report.json", folder / "report.md", *write_figures(self, folder)]

    def _head(self) -> str:
        lines = [
            f"# Evaluation{'' if self.source is None else f' on {self.source}'}",
            "",
            f"**{_SCORE[self.kind]}: {self.overall}**",
            "",
            f"{self.prompts:,} prompts, {self.responses:,} responses, {len(self.table):,} labelled "
            f"pairs. {_brackets(self.settings)}",
        ]
        if self.missing:
            lines += ["", f"Not comparable with published scores, without: {_list(self.missing)}."]
        return "\n".join(lines)

    def _subsets(self) -> str:
        if not self.subsets:
            return ""
        with_all = any(result.beats_all is not None for result in self.subsets)
        with_section = any(result.section is not None for result in self.subsets)
        headers = ["section"] * with_section + ["subset", "accuracy", "count"]
        rows = []
        for result in self.subsets:
            row = [result.section or ""] * with_section
            row += [result.name, str(result.accuracy), f"{result.accuracy.count:,}"]
            rows.append([*row, *([_cell(result.beats_all)] if with_all else [])])
        parts = ["## Subsets"]
        if self.kind == "rewardbench" and self.sections:
            sections = [[name, str(value)] for name, value in self.sections.items()]
            parts.append(_table(["section", "accuracy"], sections))
        parts.append(_table([*headers, *(["beats all wrong"] if with_all else [])], rows))
        if with_all:
            parts.append(
                "Accuracy: a right answer has the highest mean probability of being preferred to "
                "the others. Beats all wrong: every right answer is preferred to every wrong one."
            )
        if self.ties is not None:
            ties = self.ties
            parts.append(
                f"Ties {ties.score}: right answers above wrong ones {ties.tied:.3f} (tied), "
                f"{ties.ref:.3f} (ref); margin above the spread of right answers "
                f"{ties.preferred:.3f}, of both prompts {ties.preferred_hard:.3f}; closeness "
                f"{ties.closeness:.3f}."
            )
        return "\n\n".join(parts)

    def _pairs(self) -> str:
        if self.pairs is None:
            return ""
        pairs = self.pairs
        rows = [
            ["accuracy", str(pairs.accuracy), "0.500"],
            ["log loss", str(pairs.log_loss), "0.693"],
            ["Brier score", str(pairs.brier), "0.250"],
            ["expected calibration error", f"{pairs.calibration_error:.3f}", "0.000"],
        ]
        table = _table([f"{pairs.accuracy.count:,} pairs", "", "a coin"], rows)
        bins = [
            [f"{b.low:.2f} to {b.high:.2f}", f"{b.count:,}", *_digits(b.confidence, b.accuracy)]
            for b in pairs.reliability
        ]
        headers = ["probability of the likelier side", "pairs", "mean", "was preferred"]
        return "\n\n".join(["## Pairs", table, _table(headers, bins)])

    def _cycles(self) -> str:
        if self.intransitivity is None:
            return ""
        found = self.intransitivity
        coin = f"{found.coin_energy:.3f}"
        rows = [
            ["cyclic triples", str(found.cyclic), f"{found.coin_cyclic:.3f}"],
            ["prompts with a cyclic triple", str(found.cyclic_groups), ""],
            ["cyclic part of squared scores", _cell(found.cyclic_energy), coin],
        ]
        header = f"{found.triples:,} triples of {found.groups:,} prompts"
        parts = ["## Intransitivity", _table([header, "model", "chance"], rows)]
        if found.observed is not None:
            parts.append(_observed(found.observed))
        return "\n\n".join(parts)

    def _lengths(self) -> str:
        if not self.length:
            return ""
        labels = {
            "pearson": "correlation of score and length (Pearson)",
            "spearman": "the same of ranks (Spearman)",
            "prefers_longer": "model prefers the longer",
            "labels_prefer_longer": "labels prefer the longer",
            "accuracy_longer": "accuracy, preferred one longer",
            "accuracy_similar": "accuracy, similar length (10 %)",
            "accuracy_shorter": "accuracy, preferred one shorter",
            "length_controlled": "length-controlled accuracy",
        }
        units = list(self.length.values())
        rows = [[text, *(_cell(getattr(u, name)) for u in units)] for name, text in labels.items()]
        return "\n\n".join(["## Length", _table(["length in", *self.length], rows)])

    def _seen(self) -> str:
        if self.seen is None:
            return ""
        labels = {
            "seen": "pairs in the training data",
            "seen_prompt": "new pairs of prompts in it",
            "new": "new prompts",
            "memory": "baseline: its labels alone, on its pairs",
            "with_memory": "baseline: its labels on its pairs, the model elsewhere",
        }
        rows = []
        for name, text in labels.items():
            value: Estimate | None = getattr(self.seen, name)
            rows.append([text, _cell(value), "0" if value is None else f"{value.count:,}"])
        return "\n\n".join(["## Seen and new pairs", _table(["", "accuracy", "pairs"], rows)])


def _observed(found: ObservedTriples) -> str:
    bound = f"{found.scalar_bound:.3f}"
    rows = [
        ["pairs right", _cell(found.accuracy_cyclic), bound, _cell(found.accuracy_acyclic)],
        ["all three right", _cell(found.whole_cyclic), "0.000", _cell(found.whole_acyclic)],
    ]
    transitive = (found.transitive_accuracy_cyclic, found.transitive_accuracy_acyclic)
    rows.append(["pairs right, transitive part", _cell(transitive[0]), bound, _cell(transitive[1])])
    headers = ["", "cyclic", "most of a scalar", "acyclic"]
    said = (
        f"People compared all pairs of {found.triples:,} triples; the share of cycles in what they "
        f"said is {found.cyclic} (by a coin 0.250). The model on them:"
    )
    return f"{said}\n\n{_table(headers, rows)}"


def _brackets(settings: dict[str, Any]) -> str:
    """What the intervals are."""
    return (
        f"In brackets: {100 * settings['confidence']:g} % intervals, bootstrap over prompts "
        f"({settings['bootstrap_samples']:,} samples, seed {settings['seed']}), or Wilson's (of "
        "shares only) where prompts are few or all alike."
    )


def _cell(value: Estimate | float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _digits(*values: float) -> list[str]:
    return [f"{value:.3f}" for value in values]


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # A bar in a subset's name would end its cell.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(cells, headers=headers, tablefmt="pipe", disable_numparse=True)


def _plain(value: Any) -> Any:
    """Dataclasses and tuples as what JSON has."""
    if hasattr(value, "__dataclass_fields__"):
        value = asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
