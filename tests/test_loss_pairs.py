"""The pair-preference baseline: its formula, its exact symmetries, and what it can learn."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gpm_core import testing
from gpm_core.heads import BradleyTerryHead, PairPreferenceHead
from gpm_core.losses import score_loss

HIDDEN, WIDTH = 6, 5


def random_head(dtype: torch.dtype = torch.float64, **options: Any) -> PairPreferenceHead:
    head = PairPreferenceHead(HIDDEN, WIDTH, dtype=dtype, **options)
    for i, parameter in enumerate(head.parameters()):
        with torch.no_grad():
            parameter.copy_(testing.make_tensor(*parameter.shape, seed=20 + i, scale=0.7))
    return head


def states(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return testing.make_tensor(*shape, HIDDEN, dtype=torch.float64, seed=seed).to(dtype)


def plain(head: PairPreferenceHead, a: Tensor, b: Tensor) -> Tensor:
    """f of the concatenated pair, with PyTorch's own layers."""
    between = nn.functional.gelu(head.pair_head(torch.cat((a, b), dim=-1)))
    return head.value_head(between).squeeze(-1)


def test_score_and_its_gradients() -> None:
    """0.5 * (f(a, b) - f(b, a)), with gradients to every parameter and both responses."""
    head = random_head()
    results = []
    for function in (
        head.score,
        lambda a, b: 0.5 * (plain(head, a, b) - plain(head, b, a)),
    ):
        a, b = states(4, 3).requires_grad_(), states(4, 3, seed=1).requires_grad_()
        score = function(a, b)
        assert score.shape == (4, 3)
        grads = torch.autograd.grad(score.sigmoid().sum(), [a, b, *head.parameters()])
        assert all((x != 0).any() for x in grads)
        results.append([score.detach(), *grads])
    torch.testing.assert_close(results[0], results[1])
    assert torch.equal(head(a, b), head.score(a, b))
    assert torch.equal(head.score(a, b, states(1)), head.score(a, b))


def test_score_by_hand() -> None:
    """H = 1, f = gelu(2 h_a + h_b): gelu(2) for (1, 0), gelu(1) for (0, 1)."""
    head = PairPreferenceHead(1, 1)
    with torch.no_grad():
        head.pair_head.weight.copy_(torch.tensor([[2.0, 1.0]]))
        head.pair_head.bias.zero_()
        head.value_head.weight.fill_(1.0)
    gelu = [x * 0.5 * (1 + math.erf(x / math.sqrt(2))) for x in (2.0, 1.0)]
    score = head.score(torch.ones(1), torch.zeros(1)).item()
    assert score == pytest.approx(0.5 * (gelu[0] - gelu[1]))


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)], ids=str)
def test_matrices_are_the_scores_of_all_pairs(batch: tuple[int, ...], dtype: torch.dtype) -> None:
    head, hidden = random_head(dtype), states(*batch, 5, dtype=dtype)
    matrix, p = head.score_matrix(hidden), head.probability_matrix(hidden)
    assert (matrix.shape, matrix.dtype) == ((*batch, 5, 5), dtype)
    assert (p.shape, p.dtype) == ((*batch, 5, 5), dtype)
    assert torch.equal(matrix, -matrix.mT)
    assert torch.equal(p + p.mT, torch.ones_like(p))
    assert (p.diagonal(dim1=-2, dim2=-1) == 0.5).all()
    a = hidden[..., :, None, :].expand(*batch, 5, 5, HIDDEN)
    b = hidden[..., None, :, :].expand(*batch, 5, 5, HIDDEN)
    score = head.score(a, b)
    assert score.dtype == dtype
    assert torch.equal(score, -head.score(b, a))
    wide = copy.deepcopy(head).double()
    expected = 0.5 * (plain(wide, a.double(), b.double()) - plain(wide, b.double(), a.double()))
    # Both projections are rounded to dtype, half precision once (eps / 2 each), others in each of
    # the H + 1 sums; gelu is no steeper than 1.13, and the rest is as exact as float32. Then the
    # result is rounded.
    eps = torch.finfo(dtype).eps
    halves = torch.cat([x.abs().flatten() for x in wide._halves(hidden.double())])
    largest = halves.max().item() if halves.numel() else 0.0
    roundings = 1 if dtype.itemsize == 2 else HIDDEN + 2
    error = roundings * eps * largest * 1.13 * wide.value_head.weight.abs().sum().item()
    for got in (score, matrix):
        torch.testing.assert_close(got.double(), expected, rtol=eps, atol=error)
    torch.testing.assert_close(p.double(), expected.sigmoid(), rtol=0, atol=error / 4 + eps)


def test_temperature_and_small_probabilities() -> None:
    head, hidden = random_head(torch.float32, tau=0.5), states(7).float()
    s = head.score_matrix(hidden).double()
    torch.testing.assert_close(head.probability_matrix(hidden).double(), torch.sigmoid(s / 0.5))
    p = head.probability_matrix(hidden, tau=0.01)
    assert 0 < p[p > 0].min() < 1e-9
    expected = torch.sigmoid(s / 0.01)
    # A float32 logit of size x has an error of x eps; so has, relatively, a small probability.
    few = (expected < 0.5) & (expected > 1e-30)
    torch.testing.assert_close(p[few].double(), expected[few], rtol=3e-5, atol=0)
    torch.testing.assert_close(PairPreferenceHead(4).tau, 1.0)


def test_probabilities_have_the_right_gradients() -> None:
    head = random_head()
    hidden = states(4).requires_grad_()
    weights = testing.make_tensor(4, 4, dtype=torch.float64, seed=8)
    got = torch.autograd.grad((head.probability_matrix(hidden) * weights).sum(), hidden)
    s = head.score_matrix(hidden)
    expected = torch.autograd.grad((torch.sigmoid(s) * weights).sum(), hidden)
    torch.testing.assert_close(got, expected)


def test_a_bradley_terry_head_symmetrizes_a_backbone_that_reads_pairs() -> None:
    head = BradleyTerryHead(HIDDEN, dtype=torch.float64)
    forth, back = states(4), states(4, seed=1)
    torch.testing.assert_close(head.score(forth, back), head.reward(forth) - head.reward(back))


def test_learns_a_cycle() -> None:
    """Which a reward cannot: rock, scissors, paper."""
    torch.manual_seed(0)
    head, hidden = PairPreferenceHead(3, 8), torch.eye(3)
    chosen, rejected = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        output = score_loss(head.score(hidden[chosen], hidden[rejected]))
        output.loss.backward()
        optimizer.step()
    assert output.accuracy == 1
    assert output.loss < 0.05
    p = head.probability_matrix(hidden)
    assert (p[chosen, rejected] > 0.9).all()


def test_parameters() -> None:
    head = PairPreferenceHead(8, 3)
    shapes = {name: tuple(x.shape) for name, x in head.named_parameters()}
    assert shapes == {
        "pair_head.weight": (3, 16),
        "pair_head.bias": (3,),
        "value_head.weight": (1, 3),
    }
    assert PairPreferenceHead(8).width == 8
    assert head.scale(torch.zeros(8)) is None
    assert "hidden_size=8, width=3, tau=1.0" in repr(head)
    before = [x.clone() for x in head.parameters()]
    head.reset_parameters()
    assert all(not torch.equal(x, y) for x, y in zip(before, head.parameters(), strict=True))
    assert head.value_head.weight.abs().max() < 2


def test_autocast_keeps_scores_in_float32() -> None:
    head, hidden = random_head(torch.float32), states(4).float()
    expected = head.score_matrix(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for given in (hidden, hidden.bfloat16()):
            matrix, p = head.score_matrix(given), head.probability_matrix(given)
            assert matrix.dtype == p.dtype == given.dtype
            assert torch.equal(matrix, -matrix.mT)
            torch.testing.assert_close(matrix.float(), expected, atol=0.05, rtol=0.05)
    p.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in head.parameters())


def test_compile_fullgraph() -> None:
    torch._dynamo.reset()
    head, hidden = random_head(torch.float32), states(2, 4).float()

    def step(hidden: Tensor) -> Tensor:
        loss = score_loss(head.score(hidden[:, 0], hidden[:, 1])).loss
        return loss + head.probability_matrix(hidden).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        head.zero_grad()
        value = function(hidden)
        value.backward()
        results.append([value.detach(), *(x.grad.clone() for x in head.parameters())])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_size": 0}, "hidden_size must be at least 1; got 0"),
        ({"hidden_size": 4, "width": 0}, "width must be at least 1; got 0"),
        ({"hidden_size": 4, "tau": 0.0}, "tau must be finite and above zero; got 0.0"),
    ],
)
def test_bad_options(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PairPreferenceHead(**arguments)


def test_bad_input() -> None:
    head, a = random_head(torch.float32), torch.zeros(3, HIDDEN)
    with pytest.raises(NotImplementedError, match=r"PairPreferenceHead .*use score, score_matrix"):
        head.embed(a)
    with pytest.raises(
        ValueError, match=r"rejected must be \(\.\.\., H\) with H = 6; got \(3, 7\)"
    ):
        head.score(a, torch.zeros(3, 7))
    with pytest.raises(ValueError, match=r"same shape \(\.\.\., H\); got \(3, 6\) and \(1, 6\)"):
        head.score(a, a[:1])
    with pytest.raises(ValueError, match=r"hidden must be \(\.\.\., K, H\) with H = 6; got \(6,\)"):
        head.score_matrix(a[0])
    with pytest.raises(TypeError, match=r"chosen must be floating-point .*got list"):
        head.score([0.0], a)
    with pytest.raises(TypeError, match=r"chosen must be floating-point .*got torch.int64"):
        head.score(a.long(), a)
    with pytest.raises(TypeError, match=r"same dtype; got torch.float64 and torch.float32"):
        head.probability_matrix(a.double())
    with pytest.raises(RuntimeError, match=r"same device; got meta and cpu"):
        head.score(a.to("meta"), a)
    for tau in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"tau must be finite and above zero"):
            head.probability_matrix(a, tau=tau)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_the_projections_and_the_result_only(dtype: torch.dtype) -> None:
    head, a, b = random_head(dtype), states(50, dtype=dtype), states(50, seed=1, dtype=dtype)
    first, second = head.pair_head.weight.chunk(2, dim=1)

    def exact(a: Tensor, b: Tensor) -> Tensor:
        as_a = nn.functional.linear(a, first, head.pair_head.bias).double()
        as_b = nn.functional.linear(b, second).double()
        return nn.functional.gelu(as_a + as_b) @ head.value_head.weight[0].double()

    expected = (exact(a, b) - exact(b, a)) / 2
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(head.score(a, b).double(), expected, rtol=eps / 2, atol=1e-5)
