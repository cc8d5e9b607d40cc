"""The tests that need a GPU, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu.settings import REPOSITORY, Settings, clean_environment

_SHOWN = 20


def run_tests(settings: Settings) -> dict[str, Any]:
    """Counts, what failed, and why tests were skipped.

    Where none passed, nothing was tested: that is a failure too.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        command = ["pytest", "-m", "gpu", "-q", *settings.tests]
        print(f"python -m {' '.join(command)}", flush=True)
        try:
            process = subprocess.run(
                [sys.executable, "-m", *command, f"--junitxml={results}"],
                cwd=REPOSITORY,
                env=clean_environment(),
                timeout=settings.timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"pytest did not end within {settings.timeout:.0f} s") from None
        if not results.is_file():
            raise RuntimeError(f"pytest ended with status {process.returncode} and no results")
        summary = parse_junit(results.read_text())
    summary = {"command": f"python -m {' '.join(command)}", "status": process.returncode, **summary}
    if process.returncode != 0:
        summary["failed step"] = f"pytest ended with status {process.returncode}"
    elif summary["passed"] == 0:
        summary["failed step"] = "no test passed, so nothing was tested"
    return summary


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
    return {
        **{name: outcomes[name] for name in ("passed", "failed", "skipped")},
        "failures": failures[:_SHOWN],
        "reasons of skips": dict(reasons.most_common(_SHOWN)),
    }
