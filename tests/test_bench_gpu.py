"""The command for a machine with a GPU, rehearsed without one: what it measures and writes."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))  # benchmarks are not installed, and pytest may be called bare

from benchmarks.gpu import __main__ as command  # noqa: E402
from benchmarks.gpu import (  # noqa: E402
    checks,
    environment,
    processes,
    report,
    sanitizer,
    speed,
    timing,
    work,
)
from benchmarks.gpu.exercise import exercise  # noqa: E402
from benchmarks.gpu.settings import Settings  # noqa: E402
from gpm_core import ops  # noqa: E402

CPU = Settings(device="cpu", quick=True, backends=("reference",), compiler="eager")
WORKS = {x.op: x for x in work.WORKS}


class FakeTimer:
    """Every call takes a second, and every graph holds half of the time."""

    description = "an hourglass"

    def __init__(self, refuse: Callable[[], bool] = lambda: False) -> None:
        self._refuse = refuse

    def once(self, call: timing.Call) -> float:
        call()
        return 1.0

    def repeated(self, call: timing.Call, repeats: int) -> float:
        return self.once(call)

    def capture(self, call: timing.Call, repeats: int) -> Callable[[], float] | None:
        if self._refuse():
            try:
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            finally:
                raise RuntimeError("and then it could not be ended")
        return lambda: 0.5


@pytest.fixture(autouse=True)
def one_thread(two_threads: None) -> None:
    """Nothing here is about threads, and on a busy machine they wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every operation in two rows that together take every path, at small sizes."""
    works = [dataclasses.replace(x, less=x.nasty[1], small=x.nasty[0]) for x in work.WORKS]
    monkeypatch.setattr(speed, "WORKS", works)
    everything = speed.rows
    monkeypatch.setattr(
        speed,
        "rows",
        lambda settings: [
            row
            for row in everything(settings)
            if (row.size == "large") == row.backward == (row.dtype == torch.bfloat16)
        ],
    )
    monkeypatch.setattr(speed, "LIMIT_BYTES", {"cpu": 2**16})
    monkeypatch.setattr(speed, "new_timer", lambda settings: timing.ProcessorTimer(2**10))


def run(folder: Path, *steps: str, settings: Settings = CPU) -> tuple[list[str], Any, str]:
    """What failed, the JSON and the Markdown."""
    failed = command.run(settings, steps, folder, "python -m benchmarks.gpu --quick")
    assert sorted(x.name for x in folder.iterdir()) == ["gpu.json", "gpu.md"]
    return failed, json.loads((folder / "gpu.json").read_text()), (folder / "gpu.md").read_text()


# -- the command -------------------------------------------------------------------------------


def test_without_a_gpu_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert command.main(["--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "bench-gpu needs a GPU: PyTorch" in message
    assert "is not a CUDA build" in message
    assert not (tmp_path / "out").exists()


def test_limits_of_time_are_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(command, "run", lambda settings, *others: seen.append(settings) or [])
    arguments = ["--device", "cpu", "--output", str(tmp_path)]
    assert command.main(arguments) == 0
    assert command.main([*arguments, "--test-timeout", "7", "--sanitizer-timeout", "8.5"]) == 0
    assert [(x.test_timeout, x.sanitizer_timeout) for x in seen] == [(1800, 1800), (7, 8.5)]


def test_a_failed_step_is_told_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--device", "cpu", "--steps", "speed", "--only", "soup", "--output", str(tmp_path)]
    assert command.main(arguments) == 1
    expected = "speed: ValueError: no operation's name contains 'soup'"
    assert f"failed: {expected}" in capsys.readouterr().err
    text = (tmp_path / "gpu.md").read_text()
    assert f"- {expected}" in text
    assert report.REHEARSAL in text
    written = json.loads((tmp_path / "gpu.json").read_text())
    assert written["rehearsal"] is True
    assert written["finished"] is True
    assert written["command"].startswith("python -m benchmarks.gpu --device cpu")
    assert f"speed: {written['speed']['failed step']}" == expected
    assert written["environment"]["versions"]["torch"] == torch.__version__


def test_a_step_that_fails_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was done before the process was killed is in the files, as unfinished."""
    seen = []

    def broken(settings: Settings) -> dict[str, Any]:
        raise RuntimeError("out of | luck\nand more")

    def peek(settings: Settings) -> dict[str, Any]:
        seen.append((tmp_path / "gpu.md").read_text())
        return {"installed": False}

    monkeypatch.setitem(command.STEPS, "tests", broken)
    monkeypatch.setitem(command.STEPS, "sanitizer", peek)
    failed, written, text = run(tmp_path, "tests", "sanitizer")
    assert failed == ["tests: RuntimeError: out of | luck"]
    assert "**Not finished**" in seen[0]
    assert "Not finished" not in text
    assert "compute-sanitizer is not installed" in text
    assert written["tests"] == {"failed step": "RuntimeError: out of | luck"}


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "gpu.json").write_text("old")
    with pytest.raises(ValueError, match="Out of range"):
        report.write({"speed": float("nan")}, tmp_path)
    assert (tmp_path / "gpu.json").read_text() == "old"


def test_all_operations_from_inputs_to_files(small: None, tmp_path: Path) -> None:
    failed, written, text = run(tmp_path, "environment", "speed")
    assert failed == []
    rows = written["speed"]["rows"]
    assert {row["operation"] for row in rows} == set(ops.__all__)
    assert len(rows) == 2 * len(ops.__all__)
    for row in rows:
        assert set(row["contenders"]) == {"reference", "eager", "torch.compile"}
        for entry in row["contenders"].values():
            assert entry["seconds"]["low"] <= entry["seconds"]["median"] <= entry["seconds"]["high"]
            if row["size"] == "large":
                rate = row["bytes"] / entry["seconds"]["median"]
                limit = written["speed"]["bytes per second"]["limit"]
                assert entry["bytes per second"] == pytest.approx(rate)
                assert entry["of the limit"] == pytest.approx(rate / limit)
    assert "| score (B, d) = (17, 6), bfloat16, forward + backward |" in text
    assert "| score (B, d) = (1, 2), float32, forward |" in text
    assert ("met)" in text) or ("missed)" in text)


# -- results before speeds ---------------------------------------------------------------------


def contest(monkeypatch: pytest.MonkeyPatch, timer: Any = None, **changes: Any) -> Any:
    """The row of ``score`` with some of its parts exchanged, and what failed in it."""
    changed = dataclasses.replace(WORKS["score"], small=(3, 4), **changes)
    row = speed.Row(changed, "small", torch.float32, backward=True)
    monkeypatch.setattr(speed, "rows", lambda settings: [row])
    monkeypatch.setattr(speed, "LIMIT_BYTES", {"cpu": 2**10})
    monkeypatch.setattr(speed, "new_timer", lambda settings: timer or FakeTimer())
    summary = speed.measure(CPU)
    return summary["rows"][0]["contenders"], summary.get("failed step", "")


def test_a_wrong_result_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    entries, failed = contest(monkeypatch, peer=lambda a, b: work.eager_score(a, b) * 1.001)
    assert "seconds" in entries["eager"]
    assert entries["reference"]["failed"].startswith("wrong result: ")
    assert set(entries["reference"]) == {"failed"}
    assert "score, small, float32, forward + backward, reference: wrong result" in failed


def test_a_wrong_gradient_or_nan_is_a_wrong_result() -> None:
    right = [torch.tensor([1.0, -4.0]), torch.tensor([0.5])]
    assert speed.difference([right[0] + 0.5, right[1]], right) == 0.125
    assert speed.difference([right[0], right[1] * 2], right) == 1.0
    assert speed.difference([right[0], right[1] * float("nan")], right) != 0.0
    assert not speed.difference([right[0], right[1] * float("nan")], right) <= 0.05
    with pytest.raises(ValueError, match="zip"):
        speed.difference(right[:1], right)
    with pytest.raises(ValueError, match="shape"):
        speed.difference([right[0][:1], right[1]], right)


def test_a_contender_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def peer(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 3:  # the expected result, its gradient, and the dtype of eager's
            raise RuntimeError("no more")
        return work.eager_score(a, b)

    entries, failed = contest(monkeypatch, peer=peer)
    assert entries["eager"] == {"failed": "RuntimeError: no more"}
    assert "seconds" in entries["reference"]
    assert "score, small, float32, forward + backward, eager: RuntimeError: no more" in failed


def test_launches_and_kernels_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    entries, failed = contest(monkeypatch)
    assert failed == ""
    for entry in entries.values():
        assert entry["seconds"]["median"] == 1.0
        assert entry["seconds in a graph"]["median"] == 0.5


def test_what_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a peer it is said, of ours it is a fault."""
    entries, failed = contest(monkeypatch, FakeTimer(lambda: True))
    reason = "RuntimeError: operation not permitted when stream is capturing"
    assert all(entry["not captured"] == reason for entry in entries.values())
    assert failed == f"score, small, float32, forward + backward, reference: not captured: {reason}"


def test_float32_means_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 in what results are compared with would make right ones wrong."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        contest(monkeypatch)
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


def test_without_a_backend_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed.backends, "why_not", lambda *asked: "has no kernels")
    entries, failed = contest(monkeypatch)
    assert entries["reference"] == {"absent": "has no kernels"}
    assert failed.endswith("no backend of gpm_core computes it here")


def test_rounds_take_turns() -> None:
    order = []
    times = {"a": iter(range(100)), "b": iter(range(100, 200))}

    def sample(name: str) -> float:
        order.append(name)
        return float(next(times[name]))

    timings = timing.interleaved({x: lambda x=x: sample(x) for x in times}, rounds=5)
    assert order == ["a", "b"] * (timing.WARM_UP_ROUNDS + 5)
    assert timings["a"] == timing.Timing(5.0, 4.0, 6.0), "of 3, 4, 5, 6, 7"
    assert timings["b"] == timing.Timing(105.0, 104.0, 106.0)


def test_the_processor_s_clock() -> None:
    calls = []
    timer = timing.ProcessorTimer(2**10)
    assert timer.repeated(lambda: calls.append(1), 7) > 0
    assert len(calls) == 7
    assert timer.once(lambda: calls.append(1)) > 0
    assert len(calls) == 8
    assert timer.capture(lambda: None, 3) is None


class FakeGpu:
    """What ``EventTimer`` asks of torch, and in which order. Streams have numbers; 0 is current."""

    float32 = torch.float32

    def __init__(self, broken: bool = False) -> None:
        self.log: list[str] = []
        self.cuda = self
        self.stream_now = "stream 0"
        self._streams = 0
        self._broken = broken

    def empty(self, *shape: int, dtype: torch.dtype, device: str) -> Any:
        return SimpleNamespace(zero_=lambda: self.log.append("fill"))

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def _sleep(self, cycles: int) -> None:
        assert cycles >= 1_000_000
        self.log.append("sleep")

    def Event(self, enable_timing: bool) -> Any:
        return SimpleNamespace(
            record=lambda: self.log.append("event"),
            synchronize=lambda: self.log.append("wait"),
            elapsed_time=lambda other: 500.0,
        )

    def Stream(self) -> Any:
        self._streams += 1
        return SimpleNamespace(name=f"stream {self._streams}", wait_stream=lambda other: None)

    def current_stream(self) -> Any:
        return SimpleNamespace(name=self.stream_now, wait_stream=lambda other: None)

    def set_stream(self, stream: Any) -> None:
        self.stream_now = stream.name

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream.name
        yield
        self.stream_now = before

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextlib.contextmanager
    def graph(self, graph: Any, stream: Any) -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream.name
        self.log.append("begin")
        yield
        self.log.append("end")
        if self._broken:  # as torch.cuda.graph, which goes back to no stream then
            raise RuntimeError("operation failed due to a previous error during capture")
        self.stream_now = before

    def call(self) -> None:
        self.log.append(self.stream_now)


def test_launches_are_hidden_behind_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    monkeypatch.setattr(timing, "torch", gpu)
    timer = timing.EventTimer()
    assert timer.once(gpu.call) == 0.5
    assert gpu.log == ["synchronize", "fill", "sleep", "event", "stream 0", "event", "wait"]
    gpu.log.clear()
    assert timer.repeated(gpu.call, 2) == 0.25
    assert gpu.log == ["synchronize", "event", "stream 0", "stream 0", "event", "wait"]


def test_what_is_captured_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same call, at least twice, on the stream that captures: Triton has compiled all."""
    gpu = FakeGpu()
    monkeypatch.setattr(timing, "torch", gpu)
    sample = timing.EventTimer().capture(gpu.call, 2)
    assert gpu.log == [*["stream 1"] * 3, "begin", "stream 1", "stream 1", "end"]
    assert gpu.stream_now == "stream 0"
    gpu.log.clear()
    assert sample is not None
    assert sample() == 0.25
    assert gpu.log == ["synchronize", "sleep", "event", "replay", "event", "wait"]


def test_a_broken_capture_leaves_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(broken=True)
    monkeypatch.setattr(timing, "torch", gpu)
    timer = timing.EventTimer()
    for stream in ("stream 1", "stream 2"):
        gpu.log.clear()
        with pytest.raises(RuntimeError, match="previous error"):
            timer.capture(gpu.call, 1)
        assert gpu.stream_now == "stream 0"
        assert gpu.log[0] == stream, "not the one of the broken capture"


# -- bandwidth ---------------------------------------------------------------------------------


def least_bytes(op: str, sizes: tuple[int, ...], dtype: torch.dtype, backward: bool) -> int:
    inputs = work.cast(WORKS[op].make(sizes, "cpu"), dtype)
    inputs = [x.requires_grad_(x.is_floating_point()) for x in inputs]
    outputs = WORKS[op].ours(*inputs)
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    return work.minimum_bytes(WORKS[op], inputs, outputs, backward)


@pytest.mark.parametrize(
    ("op", "sizes", "dtype", "forward", "backward"),
    [
        # two of 3 x 4 read, 3 written; 3 read, again both, both gradients written
        ("score", (3, 4), torch.float32, 96 + 12, 12 + 96 + 96),
        # results are float32: 3 losses and 3 probabilities; only the loss has a gradient
        ("preference_loss", (3, 4), torch.bfloat16, 48 + 24, 12 + 48 + 48),
        ("normalize", (5, 3), torch.float32, 60 + 60, 60 + 60 + 60),
        ("score_matrix", (5, 4), torch.bfloat16, 40 + 50, 50 + 40 + 40),
        ("cross_score_matrix", (5, 3, 2), torch.float32, 64 + 60, 60 + 64 + 64),
        # of 2 x 7 x 10 only 2 x 10 read, weight 6 x 10, two positions of 8 bytes; 2 x 6 written;
        # the gradient of all 2 x 7 x 10 is written
        (
            "preference_embedding",
            (2, 7, 10, 6),
            torch.float32,
            80 + 240 + 16 + 48,
            48 + 80 + 240 + 16 + 560 + 240,
        ),
    ],
)
def test_least_bytes_by_hand(
    op: str, sizes: tuple[int, ...], dtype: torch.dtype, forward: int, backward: int
) -> None:
    assert least_bytes(op, sizes, dtype, backward=False) == forward
    assert least_bytes(op, sizes, dtype, backward=True) == forward + backward


def test_bandwidth_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    assert speed.bandwidth(3_000, 1.5) == 2_000
    monkeypatch.setattr(speed, "LIMIT_BYTES", {"cpu": 4_000})
    limits = speed.measure_limits(CPU, FakeTimer())
    assert limits == {"copy": 8_000, "fill": 4_000, "limit": 8_000}, "a copy reads and writes"
    assert speed.verdict(0.8) == "met"
    assert speed.verdict(0.79) == "missed"


# -- the machine -------------------------------------------------------------------------------


def test_nvidia_smi() -> None:
    answer = "NVIDIA H100 80GB HBM3, 570.133.20, 1980, 2619, 1980, 2619, 700.00, 34\n"
    asked = environment.parse_nvidia_smi(answer)
    assert asked["name"] == "NVIDIA H100 80GB HBM3"
    assert asked["driver_version"] == "570.133.20"
    assert asked["temperature.gpu"] == "34"
    with pytest.raises(ValueError, match="zip"):
        environment.parse_nvidia_smi("No devices were found\n")


def test_a_lost_gpu_loses_no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fault in a kernel every question to CUDA is an error."""

    def lost() -> int:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(environment.shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.cuda, "current_device", lost)
    assert "illegal memory access" in environment.nvidia_smi()


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
