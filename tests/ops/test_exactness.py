"""Every operation on every backend against the float64 reference, forward and backward."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import targets
import torch
from cases import CASES, OPS, Case
from targets import NATIVE, Target

import gpm_core
from gpm_core import testing

on_every_target = pytest.mark.parametrize("target", targets.params(targets.COMPUTING))


@on_every_target
@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_exact_as_reference(
    case: Case, dtype: torch.dtype, target: Target, nan_filled: None
) -> None:
    target.need(case.op, dtype)
    args = case.make(dtype, "contiguous", target.device)
    testing.assert_as_exact_as_reference(case.function, args, backend=target.backend)


@on_every_target
@pytest.mark.parametrize("layout", [x for x in testing.LAYOUTS if x != "contiguous"])
@pytest.mark.parametrize("case", [c for c in CASES if "(1000" not in c.label], ids=str)
def test_layout_does_not_matter(case: Case, layout: str, target: Target, nan_filled: None) -> None:
    target.need(case.op)
    args = case.make(torch.float32, layout, target.device)
    dense = [x.contiguous() if isinstance(x, torch.Tensor) else x for x in args]
    results = testing.run(case.function, args, backend=target.backend)
    for got, expected in zip(
        results, testing.run(case.function, dense, backend=target.backend), strict=True
    ):
        assert torch.equal(got, expected)


# Its matrix products are the BLAS library's, whose sums may depend on the number of threads; what
# the kernels make of them does not (tests/cpp/test_linear_logprob.cpp).
OURS_ALONE = [case for case in CASES if case.op != "linear_logprob"]


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("case", OURS_ALONE, ids=str)
def test_thread_count_does_not_matter(case: Case, dtype: torch.dtype) -> None:
    NATIVE.need(case.op, dtype)
    args = case.make(dtype, "contiguous")
    two = testing.run(case.function, args, backend="native")
    torch.set_num_threads(1)
    one = testing.run(case.function, args, backend="native")
    torch.set_num_threads(5)
    five = testing.run(case.function, args, backend="native")
    for a, b, c in zip(one, two, five, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_results_are_the_same_where_work_is_cut_differently() -> None:
    """A matrix of many units, in which threads really take turns."""
    v = testing.make_tensor(700, 8)
    results = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        results.append(testing.run(gpm_core.ops.probability_matrix, [v], backend="native"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


SIMD_SCRIPT = """
import sys; sys.path.insert(0, sys.argv[1])
import torch, gpm_core
from cases import CASES
from gpm_core import testing
from gpm_core.backends import native
assert native.build_info()["simd"] == sys.argv[2], native.build_info()
torch.set_num_threads(2)
for case in CASES:
    for dtype in testing.DTYPES:
        testing.assert_as_exact_as_reference(
            case.function, case.make(dtype, "contiguous"), backend="native")
for dtype in testing.DTYPES:
    v = testing.make_tensor(2, 37, 6, dtype=dtype)
    s, p = gpm_core.ops.score_matrix(v), gpm_core.ops.probability_matrix(v)
    assert torch.equal(s, -s.mT) and torch.equal(p + p.mT, torch.ones_like(p))
print("as exact as the reference")
"""


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(level: str, request: pytest.FixtureRequest) -> None:
    """The kernels of older processors are the same source compiled again: run them too."""
    NATIVE.need()
    result = subprocess.run(
        [sys.executable, "-c", SIMD_SCRIPT, str(request.path.parent), level],
        env={**os.environ, "GPM_CORE_SIMD": level},
        capture_output=True,
        text=True,
        check=False,
    )
    if "this processor does not have it" in result.stderr:
        pytest.skip(f"this processor has no {level}")
    assert result.returncode == 0, result.stderr
    assert "as exact as the reference" in result.stdout


def test_table_covers_every_operation() -> None:
    assert sorted(gpm_core.ops.__all__) == OPS
