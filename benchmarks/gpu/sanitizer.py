"""compute-sanitizer, where it is installed, over every operation."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.exercise import LAST_LINE
from benchmarks.gpu.processes import Ended, run_process
from benchmarks.gpu.settings import Settings

#: Tools, with options of their own. Padding: what is written past the end of a tensor would
#: otherwise land in its neighbour, and be allowed.
TOOLS = {
    "memcheck": ("--padding", "4096"),
    "racecheck": (),
    "initcheck": (),
    "synccheck": (),
}
#: The program by itself, before the tools: what is compiled at a first call, by Triton and from PTX
#: by the driver, is in their caches then, and not compiled under each of the tools.
ALONE = "none"

#: Where CUDA is when no variable says so.
DEFAULT_HOME = "/usr/local/cuda"

NO_CALLS = "the program made no calls, or did not come to its end"

_ERROR_STATUS = 86
_SHOWN = 10

_PREFIX = re.compile(r"^=========\s?(.*)$")
_ERRORS = re.compile(r"ERROR SUMMARY: (\d+) errors?")
_HAZARDS = re.compile(
    r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, (\d+) warnings?\)"
)
_CALLS = re.compile(LAST_LINE.format(r"(\d+)"))


@dataclass
class Findings:
    """What a tool printed."""

    #: None where there is no summary, so that the tool did not come to its end
    errors: int | None = None
    warnings: int = 0
    #: first lines of reports, with how often they came
    reports: Counter[str] = field(default_factory=Counter)


def find() -> tuple[str, ...] | None:
    """How compute-sanitizer is called here, or None."""
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    folders = [str(Path(home) / "bin") for home in (*homes, DEFAULT_HOME) if home]
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])
    found = shutil.which("compute-sanitizer", path=path)
    return None if found is None else (found,)


def parse(output: str) -> Findings:
    """Read a tool's lines among those of the program.

    A report is a run of lines after ``=========``, ended by an empty one. Its first line says what
    happened; the second where, which for a kernel begins with "at".
    """
    findings = Findings()
    report: list[str] = []
    for line in [*output.splitlines(), "========="]:
        match = _PREFIX.match(line)
        if match is None:
            continue
        text = match[1].strip()
        if summary := _ERRORS.search(text):
            findings.errors = (findings.errors or 0) + int(summary[1])
        elif summary := _HAZARDS.search(text):
            findings.errors = (findings.errors or 0) + int(summary[1])
            findings.warnings += int(summary[2])
        elif text == "COMPUTE-SANITIZER":
            continue
        elif text:
            report.append(text)
            continue
        if report:
            findings.reports[" ".join(report[:2])] += 1
        report = []
    return findings


def run_sanitizers(settings: Settings) -> dict[str, Any]:
    """Each tool's findings, or that there are no tools."""
    sanitizer = settings.sanitizer or find()
    if sanitizer is None:
        return {"installed": False}
    tools = {ALONE: _run_alone(settings)}
    tools |= {name: _run_tool(sanitizer, name, settings) for name in TOOLS}
    summary: dict[str, Any] = {"installed": True, "tools": tools}
    unclean = [name for name, tool in tools.items() if tool["verdict"] != "clean"]
    if unclean:
        summary["failed step"] = f"not clean: {', '.join(unclean)}"
    return summary


def _run_program(prefix: list[str], settings: Settings) -> Ended:
    """The exercise, in the same environment with a tool and without."""
    program = ["-m", "benchmarks.gpu.exercise", "--device", settings.device]
    program += ["--only", settings.only, "--backends", *settings.backends]
    return run_process(
        [*prefix, sys.executable, *program],
        settings.sanitizer_timeout,
        keep=True,
        # Where PyTorch keeps memory to give it out again, only the first owner's bounds count.
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",
    )


def _run_alone(settings: Settings) -> dict[str, Any]:
    print("the exercise without a tool", flush=True)
    ended = _run_program([], settings)
    if ended.status is None:
        verdict = f"did not end within {settings.sanitizer_timeout:.0f} s"
    elif ended.status != 0:
        verdict = f"ended with status {ended.status}"
    else:
        verdict = "clean" if _calls(ended.output) else NO_CALLS
    return _summary(verdict, ended.output, calls=_calls(ended.output), seconds=ended.seconds)


def _run_tool(sanitizer: tuple[str, ...], name: str, settings: Settings) -> dict[str, Any]:
    # PyTorch and Triton ask the driver for what it may not have, and expect to be refused. What a
    # launch of ours is refused is an exception in Python. No limit to the seconds until the first
    # call of CUDA: importing PyTorch may take longer than the tool waits by itself.
    options = ["--tool", name, *TOOLS[name], "--report-api-errors", "no", "--launch-timeout", "0"]
    options += ["--error-exitcode", str(_ERROR_STATUS), "--target-processes", "application-only"]
    print(f"compute-sanitizer --tool {name}", flush=True)
    ended = _run_program([*sanitizer, *options], settings)
    summary = judge(ended.status, ended.output)
    if ended.status is None:
        # What it found until then is told nevertheless.
        summary["verdict"] = f"did not end within {settings.sanitizer_timeout:.0f} s"
    return {**summary, "seconds": ended.seconds}


def _calls(output: str) -> int:
    calls = _CALLS.search(output)
    return int(calls[1]) if calls else 0


def judge(status: int | None, output: str) -> dict[str, Any]:
    """What a tool's output and exit status amount to."""
    findings = parse(output)
    count = _calls(output)
    if findings.errors is None:
        verdict = "the tool printed no summary"
    elif findings.errors:
        verdict = f"{findings.errors} errors"
    elif count == 0:
        verdict = NO_CALLS
    elif status != 0:
        verdict = f"ended with status {status}"
    elif any(report.startswith(("Error", "Internal")) for report in findings.reports):
        verdict = "the tool could not do its work"
    else:
        verdict = "clean"
    return _summary(
        verdict,
        output,
        errors=findings.errors,
        warnings=findings.warnings,
        calls=count,
        reports=dict(findings.reports.most_common(_SHOWN)),
    )


def _summary(verdict: str, output: str, **others: Any) -> dict[str, Any]:
    summary = {"verdict": verdict, **others}
    if verdict != "clean":
        summary["last lines"] = output.splitlines()[-_SHOWN:]
    return summary
