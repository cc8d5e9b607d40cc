"""Bad input raises at the public boundary, and the message says what to do."""

from __future__ import annotations

import math

import pytest
import targets
import torch
from targets import Target

from gpm_core import ops
from gpm_core.testing import make_tensor

V = make_tensor(3, 4)
PAIRS = [ops.score, ops.preference_loss]
SQUARES = [ops.score_matrix, ops.probability_matrix]
CROSSES = [ops.cross_score_matrix, ops.cross_probability_matrix]


def name(function):
    return function.__name__


@pytest.mark.parametrize("function", PAIRS + CROSSES, ids=name)
def test_two_embeddings(function) -> None:
    with pytest.raises(ValueError, match=r"even width d = 2k .*got shape \(3, 5\)"):
        function(make_tensor(3, 5), make_tensor(3, 5))
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 6\)"):
        function(V, make_tensor(3, 6))
    with pytest.raises(TypeError, match=r"same dtype; got torch.float64 and torch.float32"):
        function(V, V.double())
    with pytest.raises(
        TypeError, match=r"must be float64, float32, bfloat16 or float16; got torch.int64"
    ):
        function(V.long(), V.long())
    with pytest.raises(TypeError, match=r"must be a torch.Tensor .*got list"):
        function([1.0, 0.0], V)
    with pytest.raises(RuntimeError, match=r"same device; got meta and cpu"):
        function(V, V.to("meta"))
    with pytest.raises(TypeError, match="complex64"):
        function(V.to(torch.complex64), V.to(torch.complex64))


@pytest.mark.parametrize("function", SQUARES, ids=name)
def test_one_set_of_embeddings(function) -> None:
    with pytest.raises(ValueError, match=r"v must be of shape \(\.\.\., K, d\) with an even width"):
        function(make_tensor(3, 5))
    with pytest.raises(ValueError, match=r"\(\.\.\., K, d\); got shape \(4,\)"):
        function(make_tensor(4))
    with pytest.raises(TypeError, match=r"torch\.int32"):
        function(V.int())


@pytest.mark.parametrize("function", SQUARES, ids=name)
def test_scale_of_matrices(function) -> None:
    with pytest.raises(ValueError, match=r"k = 2, half the width of v \(3, 4\); got shape \(4,\)"):
        function(V, make_tensor(4))
    with pytest.raises(ValueError, match=r"broadcast to the batch \(2,\) .*got shape \(3, 2\)"):
        function(make_tensor(2, 3, 4), make_tensor(3, 2))
    with pytest.raises(TypeError, match="scale and v must have the same dtype"):
        function(V, make_tensor(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"got shape \(\)"):
        function(V, torch.tensor(1.0))


def test_scale_of_pairs() -> None:
    with pytest.raises(ValueError, match=r"k = 2.*got shape \(3, 1\)"):
        ops.score(V, V, make_tensor(3, 1))
    with pytest.raises(ValueError, match=r"leading dimensions do not broadcast: .*scale \(2,\)"):
        ops.score(V, V, make_tensor(2, 2))
    with pytest.raises(ValueError, match=r"broadcast to the batch \(3,\)"):
        ops.preference_loss(V, V, scale=make_tensor(2, 2))
    with pytest.raises(
        ValueError, match=r"leading dimensions do not broadcast: a \(3,\), b \(2,\)"
    ):
        ops.score(V, make_tensor(2, 4))


@pytest.mark.parametrize("tau", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize("function", [ops.probability_matrix, *PAIRS[1:], *CROSSES[1:]], ids=name)
def test_tau_out_of_range(function, tau: float) -> None:
    args = (V,) if function is ops.probability_matrix else (V, V)
    with pytest.raises(ValueError, match="tau must be finite and above zero"):
        function(*args, tau=tau)


def test_numbers_that_vanish_in_float32() -> None:
    with pytest.raises(
        ValueError, match=r"tau must be a normal number in torch\.float32; got 1e-40"
    ):
        ops.probability_matrix(V, tau=1e-40)
    with pytest.raises(ValueError, match=r"eps must be a normal number in torch\.bfloat16"):
        ops.normalize(V.bfloat16(), eps=1e-40)
    assert ops.probability_matrix(V.double(), tau=1e-40).isfinite().all()


def test_tau_of_the_wrong_type() -> None:
    with pytest.raises(TypeError, match="tau must be a float; got str"):
        ops.probability_matrix(V, tau="0.1")
    with pytest.raises(TypeError, match="tau must be a float; got bool"):
        ops.probability_matrix(V, tau=True)


@pytest.mark.parametrize("argument", ["margin", "target"])
def test_margin_and_target(argument: str) -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\).*got shape \(3, 1\). It is not broadcast"):
        ops.preference_loss(V, V, **{argument: torch.zeros(3, 1)})
    with pytest.raises(TypeError, match=r"torch\.int64"):
        ops.preference_loss(V, V, **{argument: torch.zeros(3, dtype=torch.int64)})
    with pytest.raises(ValueError, match=f"{argument} must be finite; got nan"):
        ops.preference_loss(V, V, **{argument: math.nan})
    with pytest.raises(RuntimeError, match="same device"):
        ops.preference_loss(V, V, **{argument: torch.zeros(3, device="meta")})


def test_target_is_a_probability() -> None:
    with pytest.raises(ValueError, match=r"target is a probability .*got 1\.5"):
        ops.preference_loss(V, V, target=1.5)


def test_losses_need_equal_shapes() -> None:
    with pytest.raises(ValueError, match=r"same shape \(\.\.\., d\); got \(3, 4\) and \(1, 4\)"):
        ops.preference_loss(V, V[:1])


def test_normalize() -> None:
    with pytest.raises(ValueError, match=r"d >= 1; got shape \(3, 0\)"):
        ops.normalize(torch.empty(3, 0))
    with pytest.raises(ValueError, match=r"of shape \(\.\.\., d\); got shape \(\)"):
        ops.normalize(torch.tensor(1.0))
    with pytest.raises(ValueError, match="eps must be finite and above zero; got 0"):
        ops.normalize(V, eps=0)
    with pytest.raises(TypeError, match=r"torch\.int64"):
        ops.normalize(V.long())


HIDDEN, WEIGHT = make_tensor(2, 5, 7), make_tensor(4, 7)


@pytest.mark.parametrize(
    "target", targets.params((targets.NATIVE, targets.REFERENCE, targets.TRITON_INTERPRETED))
)
@pytest.mark.parametrize("value", [-1, 5, 2**40])
def test_positions_out_of_range(value: int, target: Target) -> None:
    """On a GPU they stop the kernel: tests/ops/test_gpu.py, tests/test_cuda_host.py."""
    target.need()
    with (
        target.chosen(),
        pytest.raises(IndexError, match=rf"positions must lie in \[0, 5\).*got {value}"),
    ):
        ops.preference_embedding(HIDDEN, WEIGHT, torch.tensor([0, value]))


def test_preference_embedding() -> None:
    good = torch.tensor([0, 1])
    with pytest.raises(TypeError, match=r"int64 or int32; got torch\.float32"):
        ops.preference_embedding(HIDDEN, WEIGHT, good.float())
    with pytest.raises(TypeError, match=r"an integer torch\.Tensor; got list"):
        ops.preference_embedding(HIDDEN, WEIGHT, [0, 1])
    with pytest.raises(ValueError, match=r"got positions \(3,\) and hidden \(2, 5, 7\)"):
        ops.preference_embedding(HIDDEN, WEIGHT, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"H = 7, .*got shape \(4, 6\)"):
        ops.preference_embedding(HIDDEN, make_tensor(4, 6), good)
    with pytest.raises(ValueError, match=r"bias must be of shape \(4,\); got \(5,\)"):
        ops.preference_embedding(HIDDEN, WEIGHT, good, bias=make_tensor(5))
    with pytest.raises(TypeError, match="weight and hidden must have the same dtype"):
        ops.preference_embedding(HIDDEN, WEIGHT.double(), good)


@pytest.mark.parametrize("function", SQUARES, ids=name)
def test_out(function) -> None:
    with pytest.raises(ValueError, match=r"out must have shape \(3, 3\); got \(3, 4\)"):
        function(V, out=torch.empty(3, 4))
    with pytest.raises(TypeError, match="out and v must have the same dtype"):
        function(V, out=torch.empty(3, 3, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="out= does not support gradients"):
        function(V.clone().requires_grad_(), out=torch.empty(3, 3))
    with pytest.raises(RuntimeError, match="share memory"):
        function(V, out=torch.empty(3).expand(3, 3))
    both = torch.zeros(4, 4)
    with pytest.raises(RuntimeError, match="must not share memory with the inputs"):
        function(both, out=both)


def test_not_a_number_is_passed_on_not_hidden() -> None:
    v = V.clone()
    v[1, 0] = math.nan
    for result in (ops.score_matrix(v), ops.probability_matrix(v)):
        assert result[1].isnan().all()
        assert result[:, 1].isnan().all()
        assert not result[0, 2].isnan()
    assert ops.normalize(v)[1].isnan().all()
    assert ops.preference_loss(v, V)[0].isnan().tolist() == [False, True, False]


TOKEN_STATES, PROJECTION, TOKENS = make_tensor(3, 4), make_tensor(6, 4), torch.tensor([0, 5, 2])


def test_linear_logprob_shapes() -> None:
    with pytest.raises(ValueError, match=r"weight must be of shape \(V, H\) with H = 4.*\(6, 5\)"):
        ops.linear_logprob(TOKEN_STATES, make_tensor(6, 5), TOKENS)
    with pytest.raises(ValueError, match=r"with H = 4.*got shape \(0, 4\)"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION[:0], TOKENS)
    with pytest.raises(ValueError, match=r"one token each; got target \(2,\) and hidden \(3, 4\)"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION, TOKENS[:2])
    with pytest.raises(ValueError, match=r"target \(3, 1\)"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION, TOKENS[:, None])
    with pytest.raises(ValueError, match=r"bias must be of shape \(6,\); got \(4,\)"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION, TOKENS, make_tensor(4))


def test_linear_logprob_types_and_devices() -> None:
    with pytest.raises(TypeError, match=r"target must be int64 or int32; got torch\.float32"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION, TOKENS.float())
    with pytest.raises(TypeError, match=r"target must be an integer torch\.Tensor; got list"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION, [0, 5, 2])
    with pytest.raises(TypeError, match="weight and hidden must have the same dtype"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION.double(), TOKENS)
    with pytest.raises(TypeError, match="bias and hidden must have the same dtype"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION, TOKENS, make_tensor(6, dtype=torch.float64))
    with pytest.raises(TypeError, match="ignore_index must be an int; got float"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION, TOKENS, ignore_index=-100.0)
    with pytest.raises(RuntimeError, match="target and hidden must be on the same device"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION, TOKENS.to("meta"))


@pytest.mark.parametrize("name", ["temperature", "softcap"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_linear_logprob_numbers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be finite and above zero"):
        ops.linear_logprob(TOKEN_STATES, PROJECTION, TOKENS, **{name: value})
