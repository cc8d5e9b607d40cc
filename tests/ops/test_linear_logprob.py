"""``linear_logprob``: chunks, ignored tokens, masked entries, extreme logits."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import targets
import torch
from targets import Target
from torch import Tensor

import gpm_core
from gpm_core import ops, testing
from gpm_core.backends import _chunked_linear_logprob as chunked


@pytest.fixture(params=targets.params(targets.ALL), autouse=True)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """All tests of this file compute with every backend, on its device."""
    request.param.need("linear_logprob")
    with request.param.chosen():
        yield request.param


@pytest.fixture(params=["one chunk", "many chunks"], autouse=True)
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 2 tokens and 3 to 64 columns; the tensors of these tests fit one otherwise."""
    if request.param == "many chunks":
        for on_cpu in (True, False):
            monkeypatch.setitem(chunked._TOKENS, on_cpu, 2)
            monkeypatch.setitem(chunked._NUMBERS, on_cpu, 8)
        monkeypatch.setattr(chunked, "_COLUMNS", 1)


def naive(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies in float64, the whole logits at once."""
    logits = hidden.double() @ weight.double().mT
    if bias is not None:
        logits = logits + bias.double()
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    logs = (logits / temperature).log_softmax(-1)
    entropy = torch.special.entr(logs.exp()).sum(-1)
    return logs.gather(-1, target.clamp(min=0).unsqueeze(-1)).squeeze(-1), entropy


def tensors(count: int = 5, size: int = 4, vocabulary: int = 17) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = testing.make_tensor(count, size), testing.make_tensor(vocabulary, size, seed=1)
    return hidden, weight, torch.arange(count) * 5 % vocabulary


def test_by_hand() -> None:
    """Logits (2, 0, log 3): of the sum e^2 + 1 + 3."""
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    weight, bias = torch.tensor([[2.0, 5.0], [0.0, 1.0], [0.0, 2.0]]), [0.0, 0.0, math.log(3)]
    target = torch.tensor([0, 2, 1])
    got = ops.linear_logprob(hidden, weight, target, torch.tensor(bias))
    total = math.exp(2) + 4
    expected = [2 - math.log(total), math.log(3 / total), -math.log(5)]
    torch.testing.assert_close(got, torch.tensor(expected))
    got, entropy = ops.linear_logprob(hidden[2:], weight, target[2:], entropy=True)
    assert got.item() == pytest.approx(-math.log(3))
    assert entropy.item() == pytest.approx(math.log(3))
    # The temperature divides what softcap has bounded.
    got = ops.linear_logprob(hidden[:1], weight[:2], target[:1], softcap=3.0, temperature=0.5)
    z = 3 * math.tanh(2 / 3) / 0.5
    assert got.item() == pytest.approx(-math.log1p(math.exp(-z)))


def test_gradient_by_hand() -> None:
    """g (W[target] - P W), and g (1 - p) h and -g p h for the weight."""
    hidden = torch.tensor([[0.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[2.0, 4.0], [6.0, 8.0]])
    target = torch.tensor([1])
    (3 * ops.linear_logprob(hidden, weight, target)).backward()
    torch.testing.assert_close(hidden.grad, 3 * torch.tensor([[2.0, 2.0]]))
    one = torch.tensor([[1.0, 0.0]], requires_grad=True)
    flat = torch.zeros(2, 2, requires_grad=True)
    ops.linear_logprob(one, flat, target).backward()
    torch.testing.assert_close(flat.grad, torch.tensor([[-0.5, 0.0], [0.5, 0.0]]))
    assert one.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (1, 1)], ids=str)
def test_agrees_with_log_softmax(shape: tuple[int, ...], softcap: float | None) -> None:
    hidden, weight = testing.make_tensor(*shape, 6), testing.make_tensor(23, 6, seed=1)
    bias, token = testing.make_tensor(23, seed=2), torch.arange(math.prod(shape)).reshape(shape)
    options = {"temperature": 0.7, "softcap": softcap}
    logp, entropy = ops.linear_logprob(hidden, weight, token, bias, entropy=True, **options)
    expected = naive(hidden, weight, token, bias, **options)
    torch.testing.assert_close((logp, entropy), tuple(x.float() for x in expected))


@pytest.mark.parametrize("ignore_index", [-100, 3])
def test_ignored_tokens_are_zero_and_give_nothing(ignore_index: int) -> None:
    hidden, weight, token = tensors()
    token[1] = token[4] = ignore_index
    hidden[4] = torch.nan  # padding may be anything
    hidden.requires_grad_(), weight.requires_grad_()
    results = ops.linear_logprob(hidden, weight, token, ignore_index=ignore_index, entropy=True)
    sum(result.sum() for result in results).backward()
    kept = torch.tensor([0, 2, 3])
    for result, expected in zip(results, naive(hidden, weight, token), strict=True):
        torch.testing.assert_close(result[kept], expected[kept].float())
        assert result[1] == result[4] == 0
    assert hidden.grad[[1, 4]].eq(0).all()
    assert weight.grad.isfinite().all()


def test_all_ignored() -> None:
    hidden, weight, token = tensors()
    hidden.requires_grad_(), weight.requires_grad_()
    logp = ops.linear_logprob(hidden, weight, torch.full_like(token, -100))
    logp.sum().backward()
    assert logp.eq(0).all()
    assert hidden.grad.eq(0).all()
    assert weight.grad.eq(0).all()


def test_masked_entries_of_the_vocabulary() -> None:
    """A bias of -inf: probability zero, no gradient; as its own target -inf, never NaN."""
    hidden, weight, token = tensors(vocabulary=9)
    hidden, weight = hidden.requires_grad_(), weight.requires_grad_()
    bias = torch.zeros(9)
    bias[:4] = -torch.inf  # the first chunks have nothing else
    token = torch.tensor([5, 8, 4, 7, 6])
    logp, entropy = ops.linear_logprob(hidden, weight, token, bias, entropy=True)
    expected = naive(hidden[:, :], weight[4:], token - 4)
    torch.testing.assert_close((logp, entropy), tuple(x.float() for x in expected))
    (logp.sum() + entropy.sum()).backward()
    assert hidden.grad.isfinite().all()
    assert weight.grad[:4].eq(0).all()
    assert weight.grad[4:].ne(0).all()
    impossible = ops.linear_logprob(hidden, weight, torch.zeros(5, dtype=torch.long), bias)
    assert impossible.eq(-torch.inf).all()


def test_extreme_logits() -> None:
    """No exponential overflows, and what is almost certain keeps its digits."""
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[1e30], [-1e30], [9e29]])
    assert ops.linear_logprob(hidden, weight, torch.tensor([0])).item() == 0
    far = ops.linear_logprob(hidden, weight, torch.tensor([1]))
    assert far.item() == pytest.approx(-2e30)
    far.backward()
    assert hidden.grad.item() == pytest.approx(-2e30)


def test_log_probabilities_near_zero_keep_their_digits() -> None:
    """log(1 - 2 e^-30) is -1.9e-13, where a difference of log-sum-exp and logit has no digit."""
    if gpm_core.backends.current() == "reference":
        pytest.skip("the reference is log_softmax, which rounds it to zero")
    hidden = torch.tensor([[30.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [0.0], [0.0]])
    logp, entropy = ops.linear_logprob(hidden, weight, torch.tensor([0]), entropy=True)
    q = 2 * math.exp(-30)
    assert logp.item() == pytest.approx(-q, rel=1e-5, abs=0)
    assert entropy.item() == pytest.approx(q * (1 + 30), rel=1e-5, abs=0)
    logp.backward(retain_graph=True)
    assert hidden.grad.item() == pytest.approx(q, rel=1e-5, abs=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_shows(bad: float) -> None:
    hidden, weight, token = tensors()
    hidden[2, 1] = bad
    logp = ops.linear_logprob(hidden, weight, token)
    assert logp.isnan().tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("trained", [False, True])
def test_frozen_projection_gives_the_same_gradient(trained: bool) -> None:
    hidden, weight, token = tensors()
    options = {"softcap": 2.0, "temperature": 0.7}
    kept = torch.tensor([0, 1, 2, 4])
    leaf = hidden[kept].requires_grad_()
    naive(leaf, weight, token[kept], **options)[0].square().sum().backward()
    token[3], hidden[3] = -100, torch.nan
    hidden.requires_grad_()
    logp = ops.linear_logprob(hidden, weight.requires_grad_(trained), token, **options)
    logp.square().sum().backward()
    torch.testing.assert_close(hidden.grad[kept], leaf.grad)
    assert hidden.grad[3].eq(0).all()


def test_frozen_projection_computes_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    if gpm_core.backends.current() == "reference":
        pytest.skip("the reference has no chunks")
    hidden, weight, token = tensors()
    logp, entropy = ops.linear_logprob(hidden.requires_grad_(), weight, token, entropy=True)

    def again(*arguments: object) -> None:
        raise AssertionError("logits were computed again")

    monkeypatch.setattr(chunked, "_chunks", again)
    logp.sum().backward(retain_graph=True)
    with pytest.raises(AssertionError, match="computed again"):
        entropy.sum().backward()


def test_gradients_of_one_result_alone() -> None:
    hidden, weight, token = tensors()
    hidden.requires_grad_(), weight.requires_grad_()
    for i in (0, 1):
        results = ops.linear_logprob(hidden, weight, token, entropy=True)
        got = torch.autograd.grad(results[i].square().sum(), (hidden, weight))
        expected = naive(hidden, weight, token)[i].square().sum()
        for one, other in zip(got, torch.autograd.grad(expected, (hidden, weight)), strict=True):
            torch.testing.assert_close(one, other)


def test_bias_alone_may_need_a_gradient() -> None:
    hidden, weight, token = tensors()
    bias = torch.zeros(weight.shape[0], requires_grad=True)
    ops.linear_logprob(hidden, weight, token, bias).sum().backward()
    counts = torch.bincount(token, minlength=weight.shape[0])
    p = (hidden @ weight.mT).softmax(-1).sum(0)
    torch.testing.assert_close(bias.grad, counts - p)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_lose_nothing_but_their_own_rounding(dtype: torch.dtype) -> None:
    """Logits of some hundreds: rounded to bfloat16 they would be off by one."""
    hidden, weight = (
        testing.make_tensor(4, 64, dtype=dtype, scale=4),
        testing.make_tensor(50, 64, dtype=dtype, seed=1, scale=4),
    )
    token = torch.arange(4)
    got = ops.linear_logprob(hidden, weight, token)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, naive(hidden, weight, token)[0].float(), rtol=1e-5, atol=1e-4)


def test_targets_out_of_range(target: Target) -> None:
    if target.device != "cpu":
        pytest.skip("fails an assertion of the device, which no later test would survive")
    hidden, weight, _ = tensors(count=2)
    for bad in (17, -1):
        token = torch.tensor([3, bad])
        with pytest.raises(IndexError, match=rf"targets must lie in \[0, 17\).*got {bad}"):
            ops.linear_logprob(hidden, weight, token)
    assert ops.linear_logprob(hidden, weight, torch.tensor([3, -1]), ignore_index=-1)[1] == 0


def test_int32_targets_and_autocast(target: Target) -> None:
    hidden, weight, token = tensors()
    expected = ops.linear_logprob(hidden.bfloat16(), weight.bfloat16(), token)
    with torch.autocast(target.device, dtype=torch.bfloat16):
        got = ops.linear_logprob(hidden, weight, token.int())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


def test_compiles_with_shapes_and_numbers_that_change() -> None:
    torch._dynamo.reset()

    def step(hidden: Tensor, weight: Tensor, token: Tensor, temperature: float) -> Tensor:
        logp, entropy = ops.linear_logprob(
            hidden, weight, token, temperature=temperature, entropy=True
        )
        return logp.square().sum() + entropy.sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, temperature in ((4, 0.5), (6, 0.7)):
        hidden, weight, token = tensors(count)
        leaves = (hidden.requires_grad_(), weight.requires_grad_())
        grads = [
            torch.autograd.grad(function(*leaves, token, temperature), leaves)
            for function in (step, compiled)
        ]
        torch.testing.assert_close(*grads)


@pytest.mark.parametrize("trained", [True, False])
def test_no_allocation_comes_near_the_logits(
    trained: bool, target: Target, small_chunks: None, request: pytest.FixtureRequest
) -> None:
    if target.name != "native" or "many chunks" in request.node.name:
        pytest.skip("large; what is allocated is the same with all kernels")
    hidden, weight, token = tensors(count=1500, size=8, vocabulary=30000)
    leaves = [hidden.requires_grad_(), weight.requires_grad_(trained)][: 1 + trained]
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        logp = ops.linear_logprob(hidden, weight, token)
        torch.autograd.grad(logp.sum(), leaves)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert 0 < largest <= 1500 * 30000 * 4 / 8


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_products_of_16_bits_as_cuda_has_them(
    dtype: torch.dtype, trained: bool, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operands stay as they are, and kernels write coefficients that the next product takes.

    PyTorch has such products on CUDA alone; here they are multiplied in float32.
    """
    if target.backend == "reference":
        pytest.skip("the reference converts its operands")
    if target.device == "cpu":
        monkeypatch.setattr(chunked, "_multiplies_16_bits", lambda x: x.dtype == dtype)

        def product(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
            assert a.dtype == b.dtype == dtype
            assert out.dtype == torch.float32
            return torch.mm(a.float(), b.float(), out=out)

        monkeypatch.setattr(chunked, "_product", product)
        monkeypatch.setattr(
            chunked, "_add_product", lambda out, a, b: out.addmm_(a.float(), b.float())
        )
    hidden, weight = (
        testing.make_tensor(7, 6, dtype=dtype),
        testing.make_tensor(21, 6, dtype=dtype, seed=1),
    )
    token = torch.tensor([3, 20, -100, 0, 11, 5, 8])

    def step(hidden: Tensor, weight: Tensor) -> Tensor:
        return ops.linear_logprob(hidden, weight, token, softcap=3.0)

    arguments = (hidden, weight) if trained else (hidden,)
    function = step if trained else lambda hidden: step(hidden, weight.to(hidden.dtype))
    testing.assert_as_exact_as_reference(function, arguments, backend=target.backend)
