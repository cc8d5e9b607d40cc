"""One JSON file with everything, one Markdown file to read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.sanitizer import ALONE, DEFAULT_HOME
from benchmarks.gpu.speed import verdict

Report = dict[str, Any]

STEPS = ("environment", "tests", "sanitizer", "speed")
REHEARSAL = (
    "A rehearsal on the processor: no GPU was used, and every time and bandwidth is the "
    "processor's."
)


def failures(report: Report) -> list[str]:
    """What failed, step by step."""
    steps = ((name, report.get(name, {})) for name in STEPS)
    return [f"{name}: {step['failed step']}" for name, step in steps if "failed step" in step]


def write(report: Report, folder: Path) -> None:
    """Both files, each put in its place when it is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "gpu.json": json.dumps(report, indent=1, allow_nan=False) + "\n",
        "gpu.md": "\n".join(markdown(report)) + "\n",
    }
    for name, text in texts.items():
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, folder / name)


# -- Markdown ----------------------------------------------------------------------------------


def markdown(report: Report) -> Iterator[str]:
    """The lines of the file to read."""
    yield "# gpm_core on a GPU"
    yield ""
    if report["rehearsal"]:
        yield f"**{REHEARSAL}**"
        yield ""
    yield f"`{report['command']}`, {report['date']}, {report['seconds']:,.0f} s."
    if not report["finished"]:
        yield "**Not finished**: steps that are missing below have not run."
    yield ""
    failed = failures(report)
    yield f"{len(failed)} steps failed:" if failed else "No step failed."
    yield from ["", *(f"- {_cell(text)}" for text in failed)] if failed else []
    sections = {"environment": _machine, "tests": _tests, "sanitizer": _sanitizer, "speed": _speed}
    for step, section in sections.items():
        yield from ("", f"## {step.capitalize()}", "")
        if step not in report:
            yield "Not run."
        elif set(report[step]) == {"failed step"}:
            yield f"Failed: {report[step]['failed step']}"
        else:
            yield from section(report[step])


def _cell(value: Any) -> str:
    """Text that neither ends a cell nor a line."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _table(header: list[str], lines: list[list[Any]], numbers_from: int = 99) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + "|".join("---:" if i >= numbers_from else "---" for i in range(len(header))) + "|"
    for line in lines:
        yield f"| {' | '.join(map(_cell, line))} |"


def _machine(environment: Report) -> Iterator[str]:
    lines: list[list[Any]] = [[name, value] for name, value in environment["device"].items()]
    lines.append(["nvidia-smi", _answers(environment["nvidia-smi"])])
    for name, value in environment["versions"].items():
        lines.append(
            [name, ", ".join(value) if isinstance(value, (list, tuple)) else value or "none"]
        )
    for name, reason in environment["backends"].items():
        lines.append([f"backend {name}", "computes everything" if reason is None else reason])
    yield from _table(["", ""], lines)


def _answers(asked: dict[str, str] | str) -> str:
    if isinstance(asked, str):
        return asked
    return ", ".join(f"{name} {value}" for name, value in asked.items())


def _tests(tests: Report) -> Iterator[str]:
    names = ("passed", "failed", "skipped")
    counts = ", ".join(f"{tests[name]} {name}" for name in names)
    yield f"`{tests['command']}`, file by file: {counts}."
    yield ""
    yield from _table(
        ["file", "verdict", *names, "seconds"],
        [
            [file, result["verdict"], *(result[x] for x in names), f"{result['seconds']:,.0f}"]
            for file, result in tests["files"].items()
        ],
        2,
    )
    if tests["failures"]:
        yield from ("", "Failed:", "", *(f"- {_cell(text)}" for text in tests["failures"]))
    if tests["reasons of skips"]:
        yield from ("", "Skipped:", "")
        for reason, count in tests["reasons of skips"].items():
            yield f"- {count}: {_cell(reason)}"


def _sanitizer(sanitizer: Report) -> Iterator[str]:
    if not sanitizer["installed"]:
        yield (
            "compute-sanitizer is not installed: neither on PATH nor in CUDA_HOME/bin nor in "
            f"{DEFAULT_HOME}/bin."
        )
        return
    yield (
        "Every operation forward and backward, in all dtypes, over shapes that hurt: by itself "
        f"({ALONE}), then under each tool."
    )
    yield ""
    tools = sanitizer["tools"]
    yield from _table(
        ["tool", "verdict", "errors", "warnings", "calls", "seconds"],
        [
            [
                name,
                tool["verdict"],
                *(tool.get(x, "-") for x in ("errors", "warnings", "calls")),
                f"{tool['seconds']:,.0f}",
            ]
            for name, tool in tools.items()
        ],
        2,
    )
    reports = [
        f"- {name}, {count} times: {_cell(text)}"
        for name, tool in tools.items()
        for text, count in tool.get("reports", {}).items()
    ]
    yield from ["", *reports] if reports else []


def _speed(speed: Report) -> Iterator[str]:
    rates = speed["bytes per second"]
    yield (
        f"Limit of the memory, measured on the spot: {rates['limit'] / 1e9:,.0f} GB/s, the larger "
        f"of a copy ({rates['copy'] / 1e9:,.0f}) and a fill ({rates['fill'] / 1e9:,.0f})."
    )
    yield f"Clock: {speed['clock']}."
    if "nvidia-smi" in speed:
        yield f"At the end: {_answers(speed['nvidia-smi'])}."
    yield "All results were compared with plain PyTorch in float32 before anything was timed."
    rows = [row for row in speed["rows"] if "failed" not in row]
    for size, section in (("large", _large), ("small", _small)):
        chosen = [row for row in rows if row["size"] == size]
        if chosen:
            yield from ("", f"### {size.capitalize()}", "")
            yield from section(chosen, speed["aim"])
    failed = [row for row in speed["rows"] if "failed" in row]
    if failed:
        yield from ("", "### Failed", "")
        yield from (f"- {_cell(row['row'])}: {_cell(row['failed'])}" for row in failed)


def _label(row: Report) -> str:
    passes = "forward + backward" if row["backward"] else "forward"
    ((names, sizes),) = row["sizes"].items()
    return f"{row['operation']} {names} = {tuple(sizes)}, {row['dtype']}, {passes}"


def _names(rows: list[Report]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row["contenders"]))


def _large(rows: list[Report], aim: float) -> Iterator[str]:
    yield f"Microseconds, and the fraction of the limit (aim: {aim}); bytes are the fewest needed."
    yield ""
    names = _names(rows)
    lines = []
    for row in rows:
        cells = [_large_cell(name, row["contenders"][name]) for name in names]
        lines.append([_label(row), f"{row['bytes'] / 2**20:,.1f}", *cells])
    yield from _table(["work", "MiB", *names], lines, 1)


def _large_cell(name: str, entry: Report) -> str:
    if "seconds" not in entry:
        return "absent" if "absent" in entry else "failed"
    cell = f"{entry['seconds']['median'] * 1e6:,.0f} ({entry['of the limit']:.2f}"
    # The aim is ours, not the peers'.
    return (
        f"{cell})"
        if name in ("eager", "torch.compile")
        else (f"{cell}, {verdict(entry['of the limit'])})")
    )


def _small(rows: list[Report], aim: float) -> Iterator[str]:
    yield "Microseconds of a call from Python / of the same work in a CUDA graph."
    yield ""
    names = _names(rows)
    lines = [
        [_label(row), *(_small_cell(row["contenders"][name]) for name in names)] for row in rows
    ]
    yield from _table(["work", *names], lines, 1)


def _small_cell(entry: Report) -> str:
    if "seconds" not in entry:
        return "absent" if "absent" in entry else "failed"
    graph = entry.get("seconds in a graph")
    inside = "-" if graph is None else f"{graph['median'] * 1e6:,.1f}"
    return f"{entry['seconds']['median'] * 1e6:,.1f} / {inside}"
