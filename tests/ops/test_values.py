"""Values worked out by hand, and properties that hold exactly."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import targets
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from targets import Target

from gpm_core import ops, testing


@pytest.fixture(params=targets.params(targets.ALL), autouse=True)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """All tests of this file compute with every backend, on its device."""
    request.param.need()
    with request.param.chosen():
        yield request.param


def test_score_by_hand() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 6.0, 7.0, 8.0])
    # blocks: 1*6 - 2*5 = -4 and 3*8 - 4*7 = -4
    assert ops.score(a, b) == -8
    assert ops.score(a, b, torch.tensor([0.5, 2.0])) == -10


def test_score_is_the_rotation_of_the_paper() -> None:
    """s(a > b) = <R a, b> with R = blockdiag([[0, -1], [1, 0]])."""
    a, b = (
        testing.make_tensor(6, dtype=torch.float64),
        testing.make_tensor(6, dtype=torch.float64, seed=1),
    )
    rotation = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * 3).double()
    torch.testing.assert_close(ops.score(a, b), (rotation @ a) @ b)


def test_score_gradient_by_hand() -> None:
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    b = torch.tensor([3.0, 5.0], requires_grad=True)
    scale = torch.tensor([2.0], requires_grad=True)
    ops.score(a, b, scale).backward()
    assert a.grad.tolist() == [10.0, -6.0]
    assert b.grad.tolist() == [-4.0, 2.0]
    assert scale.grad.tolist() == [-1.0]


def test_normalize_by_hand() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    v = ops.normalize(x)
    torch.testing.assert_close(v, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    v.backward(torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    # (g - u <u, g>) / 5 with <u, g> = 0.6; the zero row gives g / eps, finite
    torch.testing.assert_close(x.grad[0], torch.tensor([0.128, -0.096]))
    assert x.grad[1].tolist() == [pytest.approx(1e12), 0.0]


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e18, 1e25, 3e37])
def test_normalize_huge_and_tiny_rows(size: float) -> None:
    row = torch.tensor([[3 * size, -4 * size] + [0.0] * 30])
    expected = torch.tensor([0.6, -0.8])
    torch.testing.assert_close(ops.normalize(row, eps=1e-36)[0, :2], expected)
    double = torch.tensor([[3 * size, -4 * size]], dtype=torch.float64) ** 8
    torch.testing.assert_close(ops.normalize(double, eps=1e-300).norm(), torch.tensor(1.0).double())


@pytest.mark.parametrize("width", [2, 40, 1100])
def test_normalize_of_infinite_rows(width: int) -> None:
    """As PyTorch: what is finite vanishes, the rest is undefined; other rows stay as they are."""
    x = testing.make_tensor(3, width)
    x[1, 1] = torch.inf
    expected = torch.nn.functional.normalize(x, dim=-1)
    torch.testing.assert_close(ops.normalize(x), expected, equal_nan=True)
    assert expected[1].isnan().sum() == 1


def test_normalize_agrees_with_torch() -> None:
    x = testing.make_tensor(50, 33)
    torch.testing.assert_close(ops.normalize(x), torch.nn.functional.normalize(x, dim=-1))
    half = torch.full((2, 40000), 200.0, dtype=torch.float16)
    torch.testing.assert_close(ops.normalize(half), torch.full_like(half, 40000**-0.5))


def test_preference_loss_by_hand() -> None:
    chosen, rejected = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])  # s = 1
    loss, probability = ops.preference_loss(chosen, rejected, tau=0.5)
    assert probability.item() == pytest.approx(1 / (1 + math.exp(-2)))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-2)))
    loss, probability = ops.preference_loss(chosen, rejected, margin=1.0)
    assert probability.item() == 0.5
    assert loss.item() == pytest.approx(math.log(2))
    loss, _ = ops.preference_loss(chosen, rejected, target=0.25, tau=1.0)
    p = 1 / (1 + math.exp(-1))
    assert loss.item() == pytest.approx(-0.25 * math.log(p) - 0.75 * math.log(1 - p))


def test_preference_loss_far_out() -> None:
    """Neither side overflows, and a small loss or probability keeps its digits."""
    chosen = torch.tensor([[30.0, 0.0], [-30.0, 0.0], [3e4, 0.0]], requires_grad=True)
    rejected = torch.tensor([[0.0, 1.0]]).expand(3, 2)
    loss, probability = ops.preference_loss(chosen, rejected, tau=1.0)
    assert loss.tolist() == [pytest.approx(math.exp(-30)), pytest.approx(30.0), 0.0]
    assert probability.tolist() == [1.0, pytest.approx(math.exp(-30)), 1.0]
    loss.sum().backward()
    assert chosen.grad.isfinite().all()
    assert chosen.grad[0, 0].item() == pytest.approx(-math.exp(-30))
    hard, _ = ops.preference_loss(chosen.detach(), rejected, target=torch.ones(3), tau=1.0)
    assert torch.equal(hard, loss.detach())


def test_preference_loss_is_binary_cross_entropy() -> None:
    a, b = testing.make_tensor(40, 6), testing.make_tensor(40, 6, seed=1)
    target, margin = torch.rand(40), torch.randn(40)
    loss, probability = ops.preference_loss(a, b, target=target, margin=margin, tau=0.3)
    logit = (ops.score(a, b) - margin) / 0.3
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, target, reduction="none")
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(probability, torch.sigmoid(logit))


def test_preference_embedding_by_hand() -> None:
    hidden = torch.arange(12.0).view(2, 3, 2)
    weight = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    out = ops.preference_embedding(
        hidden, weight, torch.tensor([2, 0]), bias=torch.tensor([1.0, -1.0]), normalize=False
    )
    assert out.tolist() == [[5.0, 9.0], [7.0, 13.0]]
    unit = ops.preference_embedding(
        hidden, weight, torch.tensor([2, 0]), bias=torch.tensor([1.0, -1.0])
    )
    torch.testing.assert_close(unit, torch.nn.functional.normalize(out, dim=-1))
    assert torch.equal(
        unit,
        ops.preference_embedding(
            hidden, weight, torch.tensor([2, 0]).int(), bias=torch.tensor([1.0, -1.0])
        ),
    )


def test_preference_embedding_gradient_only_where_read() -> None:
    hidden = testing.make_tensor(2, 4, 5).requires_grad_()
    ops.preference_embedding(
        hidden, testing.make_tensor(2, 5), torch.tensor([1, 3])
    ).sum().backward()
    read = torch.zeros(2, 4, dtype=torch.bool)
    read[0, 1] = read[1, 3] = True
    assert (hidden.grad.abs().sum(-1) > 0).equal(read)


def test_cycle_by_hand() -> None:
    """Rock, paper, scissors: three vectors a third of a turn apart beat each other in a circle."""
    angles = torch.tensor([0.0, 1.0, 2.0]) * 2 * math.pi / 3
    v = torch.stack((angles.cos(), angles.sin()), dim=-1)
    p = ops.probability_matrix(v)
    assert min(p[0, 1], p[1, 2], p[2, 0]) > 0.99
    torch.testing.assert_close(p[0, 1], torch.sigmoid(torch.tensor(0.75**0.5 * 10)))


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(5, 2), (16, 8), (40, 6), (20, 7, 4), (9, 16, 6), (2, 150, 4)], ids=str
)
@pytest.mark.parametrize("scaled", [False, True])
def test_exact_symmetries(
    dtype: torch.dtype, shape: tuple[int, ...], scaled: bool, target: Target
) -> None:
    v = testing.make_tensor(*shape, dtype=dtype)
    scale = (
        testing.make_tensor(*shape[:-2], shape[-1] // 2, dtype=dtype, seed=1) if scaled else None
    )
    s, p = ops.score_matrix(v, scale), ops.probability_matrix(v, scale)
    assert torch.equal(s, -s.mT)
    assert (s.diagonal(dim1=-2, dim2=-1) == 0).all()
    assert torch.equal(p + p.mT, torch.ones_like(p))
    assert (p.diagonal(dim1=-2, dim2=-1) == 0.5).all()
    w = v.flip(-2)[..., :-1, :]
    assert torch.equal(ops.cross_score_matrix(v, w, scale), -ops.cross_score_matrix(w, v, scale).mT)
    crossed = ops.cross_probability_matrix(v, w, scale)
    reverse = ops.cross_probability_matrix(w, v, scale)
    if target == targets.REFERENCE:
        torch.testing.assert_close(crossed + reverse.mT, torch.ones_like(crossed))
    else:
        assert torch.equal(crossed + reverse.mT, torch.ones_like(crossed))


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(16, 8), (40, 6), (20, 7, 4), (2, 150, 4)], ids=str)
def test_operations_agree_to_the_last_bit(
    dtype: torch.dtype, shape: tuple[int, ...], target: Target
) -> None:
    """A pair has one score, whichever operation computes it, in whatever batch."""
    if target == targets.REFERENCE:
        pytest.skip("plain PyTorch may sum blocks in another order for another shape")
    v = testing.make_tensor(*shape, dtype=dtype)
    matrix = ops.score_matrix(v)
    assert torch.equal(matrix, ops.cross_score_matrix(v, v))
    assert torch.equal(matrix, ops.score(v.unsqueeze(-2), v.unsqueeze(-3)))
    assert torch.equal(ops.probability_matrix(v), ops.cross_probability_matrix(v, v))
    if v.dim() == 3:
        assert torch.equal(matrix[0], ops.score_matrix(v[0]))
        assert torch.equal(ops.probability_matrix(v)[0], ops.probability_matrix(v[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "misaligned"])
def test_large_results_agree_with_their_parts(
    dtype: torch.dtype, offset: int, target: Target
) -> None:
    """From 16 MiB on results go past the caches if aligned; a part is small and does not."""
    if target == targets.REFERENCE:
        pytest.skip("plain PyTorch has one way to write")
    if target == targets.TRITON_INTERPRETED:
        pytest.skip("minutes of interpretation, of kernels that have one way to write")
    size = 2048
    v, w = (
        testing.make_tensor(size, 4, dtype=dtype),
        testing.make_tensor(size, 4, dtype=dtype, seed=1),
    )
    out = torch.full((size * size + offset,), torch.nan, dtype=dtype)[offset:].view(size, size)
    square = (ops.score_matrix, ops.cross_score_matrix)
    probable = (ops.probability_matrix, ops.cross_probability_matrix)
    for matrix, crossed in (square, probable):
        parts = torch.cat([crossed(rows, v) for rows in v.split(256)])
        assert torch.equal(matrix(v, out=out), parts)
        assert torch.equal(matrix(v), parts)
        parts = torch.cat([crossed(rows, w) for rows in v.split(256)])
        assert torch.equal(crossed(v, w, out=out.fill_(torch.nan)), parts)
        assert torch.equal(crossed(v, w), parts)


def test_small_probabilities_keep_their_digits(target: Target) -> None:
    """Down to subnormal numbers, where 1 - sigmoid(x) would be zero long before."""
    x = torch.linspace(0, 100, 41, dtype=torch.float64)
    a = torch.stack((-x, torch.zeros_like(x)), dim=-1).float()
    b = torch.tensor([[0.0, 1.0]])
    p = ops.cross_probability_matrix(a, b, tau=1.0)[:, 0].double()
    expected = torch.sigmoid(-x)
    normal = expected > torch.finfo(torch.float32).tiny
    assert ((p - expected).abs() / expected)[normal].max() < 4e-7
    if target in (
        targets.NATIVE,
        targets.CUDA,
        targets.TRITON,
    ):  # PyTorch's sigmoid stops at the smallest normal number
        assert ((p - expected).abs())[~normal].max() <= 2 * 2.0**-149
        assert (p > 0).all()


def test_numbers_may_be_integers() -> None:
    v, w = testing.make_tensor(5, 4), testing.make_tensor(5, 4, seed=1)
    assert torch.equal(ops.probability_matrix(v, tau=1), ops.probability_matrix(v, tau=1.0))
    assert torch.equal(ops.preference_loss(v, w, tau=2)[0], ops.preference_loss(v, w, tau=2.0)[0])
    assert torch.equal(ops.normalize(v, eps=3), ops.normalize(v, eps=3.0))


def test_extreme_scores() -> None:
    v = torch.tensor([[1e18, 0.0], [0.0, 1e18], [1.0, 0.0]])
    p = ops.probability_matrix(v)
    assert p.tolist() == [[0.5, 1.0, 0.5], [0.0, 0.5, 0.0], [0.5, 1.0, 0.5]]


reals = st.floats(-100, 100, width=32)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(reals, reals), min_size=1, max_size=20), st.floats(0.01, 10))
def test_any_embeddings_keep_the_symmetries(points: list[tuple[float, float]], tau: float) -> None:
    v = torch.tensor(points)
    s, p = ops.score_matrix(v), ops.probability_matrix(v, tau=tau)
    assert torch.equal(s, -s.mT)
    assert torch.equal(p + p.mT, torch.ones_like(p))
    assert ((p > 0.5) <= (s > 0)).all()
    assert ((p >= 0) & (p <= 1)).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), st.integers(0, 10**6), st.booleans()
)
def test_score_is_bilinear(rows: int, columns: int, blocks: int, seed: int, scaled: bool) -> None:
    def make(*shape: int, add: int) -> torch.Tensor:
        return testing.make_tensor(*shape, dtype=torch.float64, seed=seed + add)

    a, b, c = (
        make(rows, 2 * blocks, add=0),
        make(columns, 2 * blocks, add=1),
        make(rows, 2 * blocks, add=2),
    )
    scale = make(blocks, add=3) if scaled else None
    together = ops.cross_score_matrix(a + 2 * c, b, scale)
    apart = ops.cross_score_matrix(a, b, scale) + 2 * ops.cross_score_matrix(c, b, scale)
    torch.testing.assert_close(together, apart)


def _need_memory(target: Target, gigabytes: int) -> None:
    """Skip the test where there is less of it; untouched memory counts on a GPU only."""
    if target.device == "cuda":
        available = torch.cuda.mem_get_info()[0] // 2**30
    else:
        meminfo = dict(x.split(":") for x in Path("/proc/meminfo").read_text().splitlines())
        available = int(meminfo["MemAvailable"].split()[0]) // 2**20
    if available < gigabytes:
        pytest.skip(f"needs {gigabytes} GiB of free memory, there are {available}")


LARGE_SCRIPT = """
import sys, torch, gpm_core
rows, columns = 46400, 46400            # 2,152,960,000 results, above 2^31
angles = torch.rand(rows, generator=torch.Generator().manual_seed(0)) * 6.28
v = torch.stack((angles.cos(), angles.sin()), dim=-1).half().to(sys.argv[2])
with gpm_core.backend(sys.argv[1]):
    p = gpm_core.ops.probability_matrix(v)
    assert p.numel() > 2**31
    for i, j in [(0, 1), (46399, 46398), (46399, 0), (46000, 46399), (12345, 45678)]:
        assert torch.equal(p[i, j], gpm_core.ops.probability_matrix(v[[i, j]])[0, 1]), (i, j)
        assert p[i, j] + p[j, i] == 1
print("right", p.numel())
"""


def test_more_than_two_to_the_31_results(target: Target) -> None:
    """Index arithmetic in 64 bits, in a process of its own that gives its 4 GiB back."""
    if target == targets.REFERENCE:
        pytest.skip("PyTorch's own indexing is not what is tested")
    if target in (targets.CUDA_HOST, targets.TRITON_INTERPRETED):
        pytest.skip("so many would take hours there; test_huge_strides has places beyond 2^31")
    _need_memory(target, 7)
    result = subprocess.run(
        [sys.executable, "-c", LARGE_SCRIPT, target.backend, target.device],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "right" in result.stdout, result.stderr


def test_huge_strides(target: Target) -> None:
    """Rows more than 2^31 numbers apart, in memory that is never touched in between."""
    if target.device == "cuda":
        _need_memory(target, 10)
    storage = torch.empty(2**31 + 64, dtype=torch.float16)
    v = storage.as_strided((2, 4), (2**31 + 8, 1))
    v.copy_(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]))
    assert ops.score_matrix(v).tolist() == [[0.0, 1.0], [-1.0, 0.0]]
    assert ops.score(v[0], v[1]) == 1
    assert ops.normalize(v).equal(v.clone())
    out = torch.empty(2**31 + 64, dtype=torch.float16).as_strided((2, 2), (2**31 + 8, 1))
    assert ops.score_matrix(v, out=out).tolist() == [[0.0, 1.0], [-1.0, 0.0]]
    assert ops.cross_score_matrix(v, v, out=out.zero_()).tolist() == [[0.0, 1.0], [-1.0, 0.0]]
