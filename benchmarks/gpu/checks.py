"""The tests that need a GPU, each file in a process of its own."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.processes import run_process
from benchmarks.gpu.settings import Settings

ALL_SKIPPED = "all skipped"

_PYTEST = ("-m", "pytest", "-m", "gpu", "-q")
_COUNTS = ("passed", "failed", "skipped")
_SHOWN = 20


def run_tests(settings: Settings) -> dict[str, Any]:
    """Counts, what failed, and why tests were skipped: of each file, and of all.

    A file whose tests hang or take the process down costs its own results only. Where no test
    passed at all, nothing was tested: that is a failure too.
    """
    files, problems = find_files(settings)
    results = {}
    failures = []
    reasons: Counter[str] = Counter()
    for file in files:
        print(f"python {' '.join(_PYTEST)} {file}", flush=True)
        result = _run_file(file, settings)
        failures += result.pop("failures")
        reasons.update(result.pop("reasons"))
        results[file] = result
        if result["verdict"] not in ("passed", ALL_SKIPPED):
            problems.append(f"{file}: {result['verdict']}")
    summary: dict[str, Any] = {
        "command": f"python {' '.join(_PYTEST)} FILE",
        **{name: sum(result[name] for result in results.values()) for name in _COUNTS},
        "files": results,
        "failures": failures[:_SHOWN],
        "reasons of skips": dict(reasons.most_common(_SHOWN)),
    }
    if problems:
        summary["failed step"] = "; ".join(problems)
    elif summary["passed"] == 0:
        summary["failed step"] = "no test passed, so nothing was tested"
    return summary


def find_files(settings: Settings) -> tuple[list[str], list[str]]:
    """Files with tests that need a GPU, and what could not be collected."""
    # A file that cannot be imported here does not keep the others from being run.
    options = ("--collect-only", "--continue-on-collection-errors")
    command = [sys.executable, *_PYTEST, *options, *settings.tests]
    ended = run_process(command, settings.test_timeout, keep=True, folder=settings.root)
    lines = ended.output.splitlines()
    files = dict.fromkeys(line.split("::")[0] for line in lines if "::" in line)
    found = [file for file in files if (settings.root / file).is_file()]
    if not found:
        last = lines[-1] if lines else "it printed nothing"
        raise RuntimeError(f"pytest collected no tests for a GPU (status {ended.status}): {last}")
    problems = [f"not collected: {line}" for line in lines if line.startswith("ERROR ")]
    if ended.status != 0 and not problems:
        problems = [f"collecting tests ended with status {ended.status}"]
    return found, problems


def _run_file(file: str, settings: Settings) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = [sys.executable, *_PYTEST, file, f"--junitxml={results}"]
        ended = run_process(command, settings.test_timeout, folder=settings.root)
        # Written at the end, also where pytest is interrupted.
        text = results.read_text(encoding="utf-8") if results.is_file() else ""
    try:
        counted = parse_junit(text)
    except ElementTree.ParseError:  # none, or half of it
        counted = None
    if ended.status is None:
        verdict = f"did not end within {settings.test_timeout:.0f} s"
    elif counted is None:
        verdict = f"pytest ended with status {ended.status} and no results"
    elif ended.status != 0:
        verdict = f"pytest ended with status {ended.status}"
    else:
        verdict = "passed" if counted["passed"] else ALL_SKIPPED
    nothing = {**dict.fromkeys(_COUNTS, 0), "failures": [], "reasons": {}}
    return {"verdict": verdict, "seconds": ended.seconds, **(counted or nothing)}


def parse_junit(text: str) -> dict[str, Any]:
    """What JUnit's XML, as pytest writes it, says."""
    outcomes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    failures = []
    for case in ElementTree.fromstring(text).iter("testcase"):
        failure = next((x for x in case if x.tag in ("failure", "error")), None)
        skipped = case.find("skipped")
        if failure is not None:
            outcomes["failed"] += 1
            message = failure.get("message", "").splitlines() or [""]
            failures.append(f"{case.get('classname')}::{case.get('name')}: {message[0]}")
        elif skipped is not None:
            outcomes["skipped"] += 1
            reasons[skipped.get("message", "")] += 1
        else:
            outcomes["passed"] += 1
    counts = {name: outcomes[name] for name in _COUNTS}
    return {**counts, "failures": failures, "reasons": dict(reasons)}
