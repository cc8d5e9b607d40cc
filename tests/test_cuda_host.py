"""What the CUDA kernels promise, shown where they run on the processor in place of a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_host import backend as cuda_host
from ops.cases import CASES, Case
from targets import CUDA_HOST

import gpm_core
from gpm_core import ops, testing

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", autouse=True)
def _needs_the_kernels() -> None:
    CUDA_HOST.need()


@pytest.fixture
def host() -> Iterator[Any]:
    module: Any = cuda_host.module()
    yield module.host
    module.host.set_seed(1)


def _expected_launches(case: Case, args: list[torch.Tensor], empty: bool) -> tuple[int, int]:
    """Of the forward and of the backward pass."""
    if empty:
        return 0, 0
    if case.op == "linear_logprob":  # of one chunk; a frozen projection is done with it
        return 1, 0 if case.label.endswith("-frozen") else 1
    # The gradient of a scale crosses the tiles of a large set: a second launch adds their parts.
    scaled = "matrix" in case.op and case.label.endswith("-scale")
    large = case.function(*args).shape[-2:].numel() > 1024 if scaled else False
    return 1, 2 if large else 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_launch_forward_and_one_backward(case: Case, host: Any) -> None:
    args = case.make(torch.float32, "contiguous")
    leaves = [x.requires_grad_() for x in args if x.is_floating_point()]
    with gpm_core.backend("cuda_host"):
        start = host.launches()
        outputs = case.function(*args)
        forward = host.launches() - start
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        torch.autograd.grad(sum(x.sum() for x in outputs), leaves)
        backward = host.launches() - start - forward
    assert (forward, backward) == _expected_launches(case, args, outputs[0].numel() == 0)


@pytest.mark.parametrize("case", [c for c in CASES if "1000" not in c.label], ids=str)
def test_the_order_of_threads_does_not_matter(case: Case, host: Any) -> None:
    args = case.make(torch.float32, "contiguous")
    results = []
    for seed in (1, 2, 3):
        host.set_seed(seed)
        results.append(testing.run(case.function, args, backend="cuda_host"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


CALLS = {
    "normalize": (lambda v: ops.normalize(v), "rows 70, width 4"),
    "score": (lambda v: ops.score(v, v), "pairs 70, width 4"),
    "preference_loss": (lambda v: ops.preference_loss(v, v), "pairs 70, width 4"),
    "preference_embedding": (
        lambda v: ops.preference_embedding(v, v[:3]),
        "rows 70, length 1, size 4, width 3",
    ),
    "linear_logprob": (
        lambda v: ops.linear_logprob(v, v[:5], torch.arange(70) % 5),
        "rows 70, columns 5, first 0",
    ),
    "score_matrix": (lambda v: ops.score_matrix(v), "batch 1, rows 70, columns 70, width 4"),
    "probability_matrix": (
        lambda v: ops.probability_matrix(v),
        "batch 1, rows 70, columns 70, width 4",
    ),
    "cross_score_matrix": (
        lambda v: ops.cross_score_matrix(v, v[:5]),
        "batch 1, rows 70, columns 5, width 4",
    ),
    "cross_probability_matrix": (
        lambda v: ops.cross_probability_matrix(v, v[:5]),
        "batch 1, rows 70, columns 5, width 4",
    ),
}


def test_every_operation_is_called() -> None:
    assert sorted(CALLS) == sorted(ops.__all__)


@pytest.mark.parametrize("op", CALLS)
def test_a_launch_that_fails_is_an_exception(op: str, host: Any) -> None:
    """It names the operation, the shapes and the device; the next call is not affected."""
    call, shapes = CALLS[op]
    v = testing.make_tensor(70, 4).requires_grad_()
    message = rf"CUDA kernel of {op} could not run on device 0: .+ \(float32, {shapes}\)"
    with gpm_core.backend("cuda_host"):
        host.fail_next_launch(719)  # cudaErrorLaunchFailure
        with pytest.raises(RuntimeError, match=message):
            call(v)
        result = call(v)
        total = (result[0] if isinstance(result, tuple) else result).sum()
        host.fail_next_launch(2)  # cudaErrorMemoryAllocation
        with pytest.raises(RuntimeError, match=message.replace(op, f"{op}_backward", 1)):
            total.backward()


@pytest.mark.parametrize("value", [-1, 5, 2**40])
def test_positions_out_of_range_stop_the_kernel(value: int) -> None:
    hidden, weight = testing.make_tensor(2, 5, 7), testing.make_tensor(4, 7)
    with (
        gpm_core.backend("cuda_host"),
        pytest.raises(RuntimeError, match=r"positions must lie in \[0, length of hidden\)"),
    ):
        ops.preference_embedding(hidden, weight, torch.tensor([0, value]))


NO_DRIVER_SCRIPT = """
import torch, gpm_core
from gpm_core import _C, backends
print(backends.why_not("native", "score", "cuda", torch.float32))
try:
    _C.cuda.score(1, 3, 4, 64, 4, 64, 4, 0, 0, 64, 0, 0)
except RuntimeError as error:
    print(error)
print(gpm_core.ops.score(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])))
"""


def test_without_a_driver() -> None:
    """The module with CUDA kernels loads, says why they cannot run, and computes on the CPU."""
    import gpm_core._C as built

    if not hasattr(built, "cuda"):
        pytest.skip("gpm_core._C was built without CUDA (no nvcc at install time)")
    if built.cuda.why_not() != "no NVIDIA driver is installed":
        pytest.skip("there is an NVIDIA driver here")
    result = subprocess.run(
        [sys.executable, "-c", NO_DRIVER_SCRIPT], capture_output=True, text=True, check=True
    )
    reason, error, score = result.stdout.splitlines()
    assert reason == "its CUDA kernels cannot run here: no NVIDIA driver is installed"
    assert error.startswith("CUDA kernel of score could not run on device 0: CUDA driver version")
    assert error.endswith("(float32, pairs 3, width 4)")
    assert score == "tensor(1.)"
