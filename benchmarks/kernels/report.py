"""The tables, as Markdown."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from benchmarks.kernels.compiled import Specialization
from benchmarks.kernels.cubin import Usage
from benchmarks.kernels.cuda import Kernel
from benchmarks.kernels.occupancy import MULTIPROCESSORS, occupancy
from benchmarks.kernels.text import INTRODUCTION, MORE_THAN_LEAST, VERSIONS
from benchmarks.kernels.traffic import Launch, Traffic

SHARED, REGISTERS, OFF_CHIP = "shared, bytes", "registers", "off-chip, bytes"
OCCUPANCY = "occupancy, %"
CAPABILITIES = tuple(MULTIPROCESSORS)
#: Columns that the compiler decides.
BY_COMPILER = (SHARED, REGISTERS, OFF_CHIP, OCCUPANCY)


@dataclass(frozen=True)
class Row:
    """A kernel as it is launched.

    Attributes:
        labels: Operation or call, kernel, dtype.
        threads: Of a block.
        usages: By compute capability, shared memory asked for at the launch included.
    """

    labels: tuple[str, str, str]
    threads: int
    usages: dict[int, Usage]

    def occupancy(self, capability: int) -> float:
        """Resident warps over the most there can be."""
        used = self.usages[capability]
        return occupancy(capability, self.threads, used.registers, used.shared)


def cuda_rows(
    usages: Mapping[Kernel, Mapping[int, Usage]], launches: Mapping[Kernel, Iterable[Launch]]
) -> list[Row]:
    """A row for each way in which a kernel is launched."""
    rows = []
    for kernel, found in usages.items():
        labels = (kernel.operation, kernel.name, kernel.dtype)
        for launch in sorted(launches[kernel]):
            with_launch = {
                capability: dataclasses.replace(usage, shared=usage.shared + launch.shared)
                for capability, usage in sorted(found.items())
            }
            rows.append(Row(labels, launch.threads, with_launch))
    return rows


def triton_rows(usages: Mapping[Specialization, dict[int, Usage]]) -> list[Row]:
    return [Row((s.call, s.kernel, s.dtype), s.threads, found) for s, found in usages.items()]


def off_chip(rows: Iterable[Row]) -> list[str]:
    """Kernels that keep numbers of a thread in memory, in words."""
    return [
        f"{' '.join(row.labels)} on sm_{capability}: {usage.stack} bytes of stack, "
        f"{usage.local} of local memory"
        for row in rows
        for capability, usage in row.usages.items()
        if usage.off_chip
    ]


def _table(headers: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    # Text stays text: numbers were formatted already.
    return tabulate(list(rows), list(headers), tablefmt="github", disable_numparse=True)


def _each(values: Iterable[Any]) -> str:
    """One value for each architecture, or the one that all have."""
    texts = [f"{value:,}" for value in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def resources(rows: Iterable[Row]) -> str:
    headers = ("operation", "kernel", "dtype", "threads", SHARED, REGISTERS, OFF_CHIP, OCCUPANCY)
    return _table(
        headers,
        (
            (
                *row.labels,
                row.threads,
                _each(usage.shared for usage in row.usages.values()),
                _each(usage.registers for usage in row.usages.values()),
                _each(usage.off_chip for usage in row.usages.values()),
                _each(round(100 * row.occupancy(capability)) for capability in row.usages),
            )
            for row in rows
        ),
    )


def traffic(found: Iterable[Traffic]) -> str:
    headers = ["operation", "size", "dtype", "least, bytes", "memory", "L2"]
    rows = []
    warps = False
    for one in found:
        row = [one.operation, one.size, one.dtype, f"{one.least:,}"]
        row += [f"{one.distinct / one.least:.2f}", f"{one.moved / one.least:.2f}"]
        if one.requests:
            warps = True
            row += [f"{one.sectors_per_request:.1f}", f"{one.spread:.2f}"]
        rows.append(row)
    return _table([*headers, "sectors a request", "spread"] if warps else headers, rows)


def summary(sets: Mapping[str, list[Row]]) -> str:
    """The worst of all, by compiler and architecture."""
    headers = ("kernels", "architecture", "how many", REGISTERS, OFF_CHIP, OCCUPANCY, "of")
    lines = []
    for name, rows in sets.items():
        for capability in CAPABILITIES:
            here = [row for row in rows if capability in row.usages]
            if not here:
                continue
            used = [row.usages[capability] for row in here]
            least = min(here, key=lambda row: row.occupancy(capability))
            lines.append(
                (
                    name,
                    f"sm_{capability}",
                    len(here),
                    f"at most {max(usage.registers for usage in used)}",
                    max(usage.off_chip for usage in used),
                    f"at least {100 * least.occupancy(capability):.0f}",
                    " ".join(least.labels),
                )
            )
    return _table(headers, lines)


def document(
    versions: str,
    sets: Mapping[str, list[Row]],
    traffics: Mapping[str, list[Traffic]],
) -> str:
    """All tables. ``sets`` and ``traffics`` are by the name of the compiler: CUDA, Triton."""
    parts = [INTRODUCTION, VERSIONS + versions + ".", summary(sets)]
    for name, rows in sets.items():
        parts += [f"## {name}: resources", resources(rows)]
    for name, found in traffics.items():
        parts += [f"## {name}: traffic", traffic(found)]
        if name == "CUDA":
            parts.append(MORE_THAN_LEAST)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(text: str) -> Iterator[list[dict[str, str]]]:
    """The tables of a Markdown text, each row by the names of its columns."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        header, _, *lines = block.splitlines()
        yield [dict(zip(_cells(header), _cells(line), strict=True)) for line in lines]


def _lasting(text: str) -> list[Any]:
    """What a text says that does not depend on the version of a compiler."""
    rows = [row for table in tables(text) for row in table if "architecture" not in row]
    return [{key: row[key] for key in row if key not in BY_COMPILER} for row in rows]


def is_stale(kept: str, new: str) -> bool:
    """Whether a kept document differs from a new one by more than its compilers explain."""
    line = re.compile(f"^{VERSIONS}.*", re.MULTILINE)
    if line.findall(kept) == line.findall(new):
        return kept != new
    return _lasting(kept) != _lasting(new)
