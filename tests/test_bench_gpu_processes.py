"""What the command for a machine with a GPU runs beside itself: tests and sanitizers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks are not installed, and pytest may be called bare

from benchmarks.gpu import __main__ as command  # noqa: E402
from benchmarks.gpu import (  # noqa: E402
    checks,
    processes,
    sanitizer,
    work,
)
from benchmarks.gpu.exercise import exercise  # noqa: E402
from benchmarks.gpu.settings import Settings  # noqa: E402
from gpm_core import ops  # noqa: E402

CPU = Settings(device="cpu", quick=True, backends=("reference",), compiler="eager")
WORKS = {x.op: x for x in work.WORKS}


@pytest.fixture(autouse=True)
def one_thread(two_threads: None) -> None:
    """Nothing here is about threads, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


def run(folder: Path, *steps: str, settings: Settings = CPU) -> tuple[list[str], Any, str]:
    """What failed, the JSON and the Markdown."""
    failed = command.run(settings, steps, folder, "python -m benchmarks.gpu --quick")
    assert sorted(x.name for x in folder.iterdir()) == ["gpu.json", "gpu.md"]
    return failed, json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


# -- processes ---------------------------------------------------------------------------------


def test_a_process_is_told_of_and_sees_no_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = ["TRITON_INTERPRET", "GPM_CORE_BACKEND", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"]
    for name in dropped:
        monkeypatch.setenv(name, "1")
    program = f"import os; print({set(dropped)} & set(os.environ), os.environ['ADDED']); exit(3)"
    ended = processes.run_process([sys.executable, "-c", program], 60, keep=True, ADDED="4")
    assert (ended.status, ended.output) == (3, "set() 4\n")


def test_nothing_is_left_of_a_process_that_takes_too_long() -> None:
    # A shell's children in the background do not hear of an interrupt.
    program = "trap 'echo last words; exit' INT; sleep 60 & echo $!; wait"
    ended = processes.run_process(["sh", "-c", program], 1.0, keep=True)
    assert ended.status is None
    assert ended.seconds < 30
    child, words = ended.output.splitlines()
    assert words == "last words"
    state = Path("/proc", child, "stat")
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if state.read_text().rpartition(")")[2].split()[0] not in "ZX":
                time.sleep(0.05)
                continue
        return
    pytest.fail("its child is still there")


def test_an_interrupt_takes_the_process_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Interrupted(processes.subprocess.Popen):  # type: ignore[type-arg]
        def wait(self, timeout: float | None = None) -> int:
            started.append(self)
            if timeout == 60:
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(processes.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        processes.run_process(["sleep", "60"], 60)
    assert started[0].returncode == -signal.SIGKILL


# -- tests in a process ------------------------------------------------------------------------

INNER_TESTS = """
import os
import pytest

@pytest.mark.gpu
def test_right():
    assert not {"TRITON_INTERPRET", "GPM_CORE_BACKEND"} & set(os.environ)

@pytest.mark.gpu
@pytest.mark.parametrize("name", ["cuda", "tri::ton"])
def test_no_kernels(name):
    pytest.skip("has no kernels")

def test_of_the_processor():
    assert False, "not asked for"
"""
SKIPPED = INNER_TESTS.replace("def test_right", "def do_nothing")


@pytest.fixture
def inner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run the tests step on files with these contents."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("GPM_CORE_BACKEND", "reference")
    monkeypatch.setenv("PYTEST_ADDOPTS", "--no-such-option")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # they take a second to import
    folder = tmp_path / "inner"
    (folder / "some").mkdir(parents=True)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    settings = dataclasses.replace(CPU, root=folder, tests=("some",))

    def run_inner(**files: str) -> dict[str, Any]:
        for name, text in files.items():
            (folder / "some" / f"test_{name}.py").write_text(text)
        return checks.run_tests(settings)

    return run_inner


def test_gpu_tests_are_counted_by_file(
    inner: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = inner(
        a=INNER_TESTS,
        b=INNER_TESTS.replace("assert not {", "assert {"),
        c="import os\n" + INNER_TESTS.replace("assert not {", "os._exit(7)\n    assert {"),
        d="import nothing_of_this_name",
        e="def test_of_the_processor(): assert False",
        f=SKIPPED,
    )
    files = summary["files"]
    assert {name: x["verdict"] for name, x in files.items()} == {
        "some/test_a.py": "passed",
        "some/test_b.py": "pytest ended with status 1",
        "some/test_c.py": "pytest ended with status 7 and no results",
        "some/test_f.py": "all skipped",
    }
    counts = [tuple(x[name] for name in ("passed", "failed", "skipped")) for x in files.values()]
    assert counts == [(1, 0, 2), (0, 1, 2), (0, 0, 0), (0, 0, 2)]
    assert (summary["passed"], summary["failed"], summary["skipped"]) == (1, 1, 6)
    assert list(summary["reasons of skips"].values()) == [6]
    (failure,) = summary["failures"]
    assert "test_b::test_right" in failure
    assert summary["failed step"] == (
        "not collected: ERROR some/test_d.py; some/test_b.py: pytest ended with status 1; "
        "some/test_c.py: pytest ended with status 7 and no results"
    )
    monkeypatch.setitem(command.STEPS, "tests", lambda settings: summary)
    _, _, text = run(tmp_path / "out", "tests")
    assert "`python -m pytest -m gpu -q FILE`, file by file: 1 passed, 1 failed, 6 skipped." in text
    assert "| some/test_b.py | pytest ended with status 1 | 0 | 1 | 2 | " in text


def test_where_no_gpu_test_passes_nothing_was_tested(
    inner: Callable[..., dict[str, Any]],
) -> None:
    assert inner(a=SKIPPED)["failed step"] == "no test passed, so nothing was tested"
    with pytest.raises(RuntimeError, match="pytest collected no tests for a GPU"):
        inner(a="def test_of_the_processor(): assert False")


JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite><testcase classname="x" name="y"/></testsuite></testsuites>"""


def test_tests_that_hang_cost_only_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pytest wrote when it was interrupted is counted; what it did not write whole is not."""
    texts = {"slow.py": JUNIT, "hung.py": "", "torn.py": JUNIT[:-20], "good.py": JUNIT}
    for name in texts:
        (tmp_path / name).touch()
    limits = []

    def fake(command: list[str], timeout: float, **others: Any) -> processes.Ended:
        limits.append(timeout)
        if "--collect-only" in command:
            return processes.Ended(0, "\n".join(f"{name}::test" for name in texts))
        name, results = command[-2], command[-1].removeprefix("--junitxml=")
        if texts[name]:
            Path(results).write_text(texts[name])
        return processes.Ended(0 if name == "good.py" else None)

    monkeypatch.setattr(checks, "run_process", fake)
    summary = checks.run_tests(dataclasses.replace(CPU, root=tmp_path, test_timeout=9))
    assert limits == [9] * 5
    assert summary["passed"] == 2
    verdicts = [(x["verdict"], x["passed"]) for x in summary["files"].values()]
    late = "did not end within 9 s"
    assert verdicts == [(late, 1), (late, 0), (late, 0), ("passed", 1)]
    assert summary["failed step"] == f"slow.py: {late}; hung.py: {late}; torn.py: {late}"


# -- sanitizers --------------------------------------------------------------------------------

CLEAN = """========= COMPUTE-SANITIZER
exercise: 64 calls
========= ERROR SUMMARY: 0 errors
"""

OUT_OF_BOUNDS = """========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void gpm::cuda::score_kernel<float>(Args)+0x2f0
=========     by thread (5,0,0) in block (0,0,0)
=========     Address 0x7f5e00000214 is out of bounds
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cudaLaunchKernel [0x1c2a5]
=========
a line of the program's own
========= Invalid __global__ write of size 4 bytes
=========     at void gpm::cuda::score_kernel<float>(Args)+0x2f0
=========     by thread (6,0,0) in block (0,0,0)
=========     Address 0x7f5e00000218 is out of bounds
=========
========= Invalid __shared__ read of size 16 bytes
=========     at _matrix_kernel+0x40
=========
exercise: 64 calls
========= ERROR SUMMARY: 3 errors
"""

RACES = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at kernel(float *)+0x90
=========     and Read access at kernel(float *)+0x120 [512 hazards]
=========
========= Warning: Race reported between Write access at kernel(float *)+0x30
=========     and Write access at kernel(float *)+0x30 [8 hazards]
=========
exercise: 64 calls
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""


def test_sanitizer_s_errors() -> None:
    findings = sanitizer.parse(OUT_OF_BOUNDS)
    assert findings.errors == 3
    assert findings.reports == {
        "Invalid __global__ write of size 4 bytes "
        "at void gpm::cuda::score_kernel<float>(Args)+0x2f0": 2,
        "Invalid __shared__ read of size 16 bytes at _matrix_kernel+0x40": 1,
    }


def test_sanitizer_s_races() -> None:
    findings = sanitizer.parse(RACES)
    assert (findings.errors, findings.warnings) == (1, 1)
    assert len(findings.reports) == 2
    assert all("hazards]" in text for text in findings.reports)
    clean = sanitizer.parse(
        "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    )
    assert (clean.errors, clean.warnings, len(clean.reports)) == (0, 0, 0)


def test_sanitizer_of_several_processes() -> None:
    assert sanitizer.parse(OUT_OF_BOUNDS + CLEAN).errors == 3


@pytest.mark.parametrize(
    ("status", "output", "verdict"),
    [
        (0, CLEAN, "clean"),
        (86, OUT_OF_BOUNDS, "3 errors"),
        (86, RACES, "1 errors"),
        (0, "exercise: 64 calls\n", "the tool printed no summary"),
        (0, CLEAN.replace("64", "0"), "the program made no calls, or did not come to its end"),
        (1, "========= ERROR SUMMARY: 0 errors\n", "the program made no calls"),
        (1, CLEAN, "ended with status 1"),
        (
            0,
            "========= Error: Device not supported\n=========\n" + CLEAN,
            "the tool could not do its work",
        ),
    ],
)
def test_only_a_clean_run_is_called_clean(status: int, output: str, verdict: str) -> None:
    summary = sanitizer.judge(status, output)
    assert summary["verdict"].startswith(verdict)
    assert ("last lines" in summary) == (verdict != "clean")


# Stands in for compute-sanitizer: checks how it is called, then runs the program itself.
STAND_IN = """
import os, subprocess, sys
start = sys.argv.index(sys.executable)
options, program = sys.argv[1:start], sys.argv[start:]
assert options[:2] == ["--tool", "memcheck"], options
assert options[options.index("--launch-timeout") + 1] == "0", options
assert os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"
print("========= COMPUTE-SANITIZER", flush=True)
status = subprocess.run(program).returncode
print("========= ERROR SUMMARY: 0 errors")
sys.exit(status)
"""


def test_sanitizers_watch_the_exercise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(sanitizer, "TOOLS", {"memcheck": sanitizer.TOOLS["memcheck"]})
    settings = dataclasses.replace(
        CPU, only="normalize", sanitizer=(sys.executable, str(script)), sanitizer_timeout=60
    )
    failed, written, text = run(tmp_path / "out", "sanitizer", settings=settings)
    assert failed == []
    tool = written["sanitizer"]["tools"]["memcheck"]
    assert tool["verdict"] == "clean", tool
    assert tool["calls"] == 4 * len(WORKS["normalize"].nasty)
    assert f"| memcheck | clean | 0 | 0 | {tool['calls']} |" in text
    assert list(written["sanitizer"]["tools"]) == ["none", "memcheck"]
    assert f"| none | clean | - | - | {tool['calls']} |" in text


def test_the_exercise_runs_before_the_sanitizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same way, so that what Triton and the driver compile is in their caches."""
    asked = []
    answers = iter(
        [
            processes.Ended(1, "Traceback\nRuntimeError: no"),
            processes.Ended(None, OUT_OF_BOUNDS[: OUT_OF_BOUNDS.index("exercise")]),
            processes.Ended(0, CLEAN),
        ]
    )

    def fake(command: list[str], timeout: float, **others: Any) -> processes.Ended:
        asked.append((command, timeout, others))
        return next(answers)

    monkeypatch.setattr(sanitizer, "run_process", fake)
    monkeypatch.setattr(sanitizer, "TOOLS", {"memcheck": (), "synccheck": ()})
    settings = dataclasses.replace(CPU, sanitizer=("the-sanitizer",), sanitizer_timeout=5)
    summary = sanitizer.run_sanitizers(settings)
    assert [program[0] for program, _, _ in asked] == [sys.executable, *["the-sanitizer"] * 2]
    alone = asked[0]
    for program, timeout, others in asked[1:]:
        assert program[program.index(sys.executable) :] == alone[0]
        assert (timeout, others) == alone[1:]
    none, late, clean = summary["tools"].values()
    assert none["verdict"] == "ended with status 1"
    assert none["last lines"][-1] == "RuntimeError: no"
    assert late["verdict"] == "did not end within 5 s"
    assert len(late["reports"]) == 2, "what was found until then"
    assert clean["verdict"] == "clean"
    assert summary["failed step"] == "not clean: none, memcheck"


def test_without_a_sanitizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sanitizer, "DEFAULT_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    assert sanitizer.run_sanitizers(CPU) == {"installed": False}
    tool = tmp_path / "bin" / "compute-sanitizer"
    tool.parent.mkdir()
    tool.touch(mode=0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitizer.find() == (str(tool),)
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setattr(sanitizer, "DEFAULT_HOME", str(tmp_path))
    assert sanitizer.find() == (str(tool),)


@pytest.mark.parametrize("op", ops.__all__)
def test_the_exercise_covers_every_operation(op: str) -> None:
    """With and without what is optional, in four dtypes."""
    variants = 1 if op == "normalize" else 2
    assert exercise(WORKS[op], "reference", "cpu") == 4 * variants * len(WORKS[op].nasty)
