"""What a GPU adds: streams, graphs, devices, and that nothing waits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest
import targets
import torch
from cases import CASES, SMALL, Case
from targets import Target

import gpm_core
from gpm_core import backends, ops, testing

pytestmark = pytest.mark.gpu

# One case of every operation that is not empty, and the larger ones, where blocks take turns.
ONE_EACH = list({case.op: case for case in SMALL}.values())
LARGE = [c for c in CASES if "x300x" in c.label or "1030" in c.label or "(300, 33)" in c.label]


@pytest.fixture(params=targets.params((targets.CUDA, targets.TRITON)), autouse=True)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    request.param.need()
    with gpm_core.backend(request.param.backend):
        yield request.param


def test_the_kernels_come_first() -> None:
    with gpm_core.backend(None):
        for op in ops.__all__:
            first = next(
                name
                for name in ("native", "triton")
                if backends.why_not(name, op, "cuda", torch.float32) is None
            )
            assert backends.chosen(op, "cuda", torch.float32) == first
            assert backends.chosen(f"{op}_backward", "cuda", torch.float32) == first


@pytest.mark.parametrize("case", ONE_EACH + LARGE, ids=str)
def test_same_bits_again(case: Case, target: Target) -> None:
    args = case.make(torch.float32, "contiguous", "cuda")
    first = testing.run(case.function, args, backend=target.backend)
    for _ in range(5):
        again = testing.run(case.function, args, backend=target.backend)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_nothing_waits(case: Case, target: Target) -> None:
    args = case.make(torch.float32, "contiguous", "cuda")
    testing.run(case.function, args, backend=target.backend)
    leaves = [x.requires_grad_() for x in args if x.is_floating_point()]
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = case.function(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad([x.sum() for x in outputs], leaves)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _step(case: Case, args: list[torch.Tensor]) -> Callable[[], tuple[torch.Tensor, ...]]:
    """A call of the operation and its gradients, on the leaves that it is given."""
    leaves = [x.detach().requires_grad_(x.is_floating_point()) for x in args]
    differentiable = [x for x in leaves if x.requires_grad]

    def step() -> tuple[torch.Tensor, ...]:
        outputs = case.function(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return (*outputs, *torch.autograd.grad([x.sum() for x in outputs], differentiable))

    return step


def _same(results: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("case", ONE_EACH, ids=str)
def test_on_the_current_stream(case: Case) -> None:
    """Inputs are written late on the same stream: a kernel on another one would read too early."""
    args = case.make(torch.float32, "contiguous", "cuda")
    expected = _step(case, args)()
    late = [torch.zeros_like(x) for x in args]
    step = _step(case, late)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for empty, full in zip(late, args, strict=True):
            empty.copy_(full)
        results = step()
    stream.synchronize()
    assert _same(results, expected)


@pytest.mark.parametrize("case", ONE_EACH + LARGE, ids=str)
def test_in_a_cuda_graph(case: Case) -> None:
    """Captured once, forward and backward, and replayed on other numbers."""
    args = case.make(torch.float32, "contiguous", "cuda")
    step = _step(case, args)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # Triton compiles at the first call of each kind
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for x in args:
        if x.is_floating_point():
            x.mul_(-0.5)
    graph.replay()
    torch.cuda.synchronize()
    assert _same(captured, step())


COLD_CAPTURE_SCRIPT = """
import torch, gpm_core
a, b = (torch.randn(40, 8, device="cuda") for _ in range(2))
graph = torch.cuda.CUDAGraph()
with gpm_core.backend("native"):
    with torch.cuda.graph(graph):
        s = gpm_core.ops.score(a, b)
    graph.replay()
    assert torch.equal(s, gpm_core.ops.score(a, b))
print("captured")
"""


def test_a_first_call_can_be_captured(target: Target) -> None:
    """Loading a kernel's code is not refused in a capture: nothing needs to be warmed up."""
    if target == targets.TRITON:
        pytest.skip("Triton compiles and loads at the first call, which a capture refuses")
    result = subprocess.run(
        [sys.executable, "-c", COLD_CAPTURE_SCRIPT], capture_output=True, text=True, check=False
    )
    assert "captured" in result.stdout, result.stderr


def test_on_another_device_than_the_current_one(target: Target) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    v = testing.make_tensor(100, 8, device="cuda:1")
    expected = testing.run(ops.probability_matrix, [v.cpu()], backend="native")
    with torch.cuda.device(0):
        results = testing.run(ops.probability_matrix, [v], backend=target.backend)
        assert torch.cuda.current_device() == 0
    for got, right in zip(results, expected, strict=True):
        assert got.device == v.device
        torch.testing.assert_close(got.cpu(), right, rtol=1e-5, atol=1e-4)


COMPILE_SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
import torch
from cases import SMALL
from gpm_core import testing
for case in {case.op: case for case in SMALL}.values():
    torch._dynamo.reset()
    args = case.make(torch.float32, "contiguous", "cuda")
    compiled = torch.compile(case.function, fullgraph=True)
    for got, expected in zip(
        testing.run(compiled, args, backend=sys.argv[2]),
        testing.run(case.function, args, backend=sys.argv[2]),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)
print("compiled")
"""


def test_compiled_by_inductor(target: Target, request: pytest.FixtureRequest) -> None:
    """The backward pass of a compiled graph runs in a thread of its own, where only the environment
    says which backend is asked for."""
    result = subprocess.run(
        [sys.executable, "-c", COMPILE_SCRIPT, str(request.path.parent), target.backend],
        env={**os.environ, "GPM_CORE_BACKEND": target.backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "compiled" in result.stdout, result.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    hidden = testing.make_tensor(4, 7, 16, device="cuda")
    weight = testing.make_tensor(6, 16, seed=1, device="cuda")
    with torch.autocast("cuda", dtype=dtype):
        v = ops.preference_embedding(hidden, weight, torch.tensor([0, 1, 2, 6], device="cuda"))
        assert v.dtype == dtype, "projects like a linear layer"
        assert ops.score_matrix(v).dtype == torch.float32, "scores are not rounded"


POSITION_SCRIPT = """
import sys, torch, gpm_core
with gpm_core.backend(sys.argv[1]):
    hidden, weight = torch.randn(2, 5, 7, device="cuda"), torch.randn(4, 7, device="cuda")
    try:
        gpm_core.ops.preference_embedding(hidden, weight, torch.tensor([0, 5], device="cuda"))
        torch.cuda.synchronize()
    except RuntimeError as error:
        print("stopped:", error)
"""


def test_positions_out_of_range_stop_the_kernel(target: Target) -> None:
    """In a process of its own: after a failed assertion of a kernel its GPU context is lost."""
    result = subprocess.run(
        [sys.executable, "-c", POSITION_SCRIPT, target.backend],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "stopped:" in result.stdout, result.stderr
    assert "ssert" in result.stdout
