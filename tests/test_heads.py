"""Heads: their shapes and parameters, how they start, how they load, gates and tokens."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from head_kinds import KINDS, random_head, states
from torch import Tensor, nn

from gpm_core import losses, testing
from gpm_core.heads import BradleyTerryHead, HybridHead, PreferenceHead

# -- shapes and dtypes -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", testing.DTYPES, ids=str)
@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtypes(kind: str, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    head, (_, width, blocks) = random_head(kind, dtype=dtype), KINDS[kind]
    group, prompt = states(*batch, 5, dtype=dtype), states(*batch, seed=1, dtype=dtype)
    gated = head.scale(prompt) is not None and getattr(head, "gate", None) is not None
    v, scale = head.embed(group), head.scale(prompt)
    if kind.startswith(("bradley-terry", "hybrid")):
        dtype = torch.promote_types(dtype, torch.float32)  # rewards are not rounded to 16 bits
    assert (v.shape, v.dtype) == ((*batch, 5, width), dtype)
    if blocks is None:
        assert scale is None
    else:
        assert scale.shape == ((*batch, blocks) if gated else (blocks,))
        assert scale.dtype == dtype
    s = head.score(group[..., 0, :], group[..., 1, :], prompt)
    matrix, p = head.score_matrix(group, prompt), head.probability_matrix(group, prompt)
    assert (s.shape, s.dtype) == (batch, dtype)
    assert (matrix.shape, matrix.dtype) == ((*batch, 5, 5), dtype)
    assert (p.shape, p.dtype) == ((*batch, 5, 5), dtype)
    assert torch.equal(matrix, -matrix.mT)
    assert torch.equal(p + p.mT, torch.ones_like(p))
    for result in (s, matrix, p):
        assert result.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_forward_is_what_its_docstring_says(kind: str) -> None:
    head, hidden = random_head(kind, dtype=torch.float64), states(2, 7)
    positions = torch.tensor([6, 2])
    named = head.reward if isinstance(head, BradleyTerryHead) else head.embed
    assert torch.equal(head(hidden), named(hidden))
    assert torch.equal(head(hidden, positions), named(hidden, positions))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_keeps_scores_in_float32(kind: str) -> None:
    head, group, prompt = random_head(kind), states(4).float(), states(seed=1).float()
    expected = head.score_matrix(group, prompt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matrix = head.score_matrix(group, prompt)
        p = head.probability_matrix(group, prompt)
    assert matrix.dtype == p.dtype == torch.float32
    torch.testing.assert_close(matrix, expected, atol=0.05, rtol=0.05)
    p.square().sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.float32 for x in head.parameters())


# -- parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (PreferenceHead(8, 6), {"value_head.weight": (6, 8), "value_head.bias": (6,)}),
        (PreferenceHead(8, 6, init="paper"), {"value_head.weight": (6, 8)}),
        (
            PreferenceHead(8, 6, init="paper", bias=True),
            {"value_head.weight": (6, 8), "value_head.bias": (6,)},
        ),
        (
            PreferenceHead(8, 6, "softmax", init="paper"),
            {"value_head.weight": (6, 8), "prompt_head.weight": (3, 8)},
        ),
        (
            PreferenceHead(8, 2, "softplus"),
            {"value_head.weight": (2, 8), "value_head.bias": (2,), "prompt_head.weight": (1, 8)},
        ),
        (BradleyTerryHead(8), {"value_head.weight": (1, 8)}),
        (
            BradleyTerryHead(8, bias=True),
            {"value_head.weight": (1, 8), "value_head.bias": (1,)},
        ),
        (
            HybridHead(8, 4, "softmax"),
            {"value_head.weight": (5, 8), "value_head.bias": (5,), "prompt_head.weight": (2, 8)},
        ),
        (HybridHead(8, 4, init="paper"), {"value_head.weight": (5, 8)}),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, nn.Module) else "",
)
def test_state_dict(head: nn.Module, expected: dict[str, tuple[int, ...]]) -> None:
    assert {name: tuple(x.shape) for name, x in head.state_dict().items()} == expected
    assert all(isinstance(x, nn.Parameter) for x in head.parameters())


def published_scores(state: dict[str, Tensor], hidden: Tensor, prompt: Tensor) -> Tensor:
    """s(i > j) = <D R v_i, v_j> in plain PyTorch, with the block matrix written out."""
    v = nn.functional.normalize(hidden @ state["value_head.weight"].T, dim=-1)
    gate = torch.softmax(prompt @ state["prompt_head.weight"].T, dim=-1)
    block = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=v.dtype)
    rotation = torch.block_diag(*[block] * gate.shape[-1])
    return (v * gate.repeat_interleave(2)) @ rotation.T @ v.T


def test_loads_the_published_layout() -> None:
    """value_head.weight [2k, h] and prompt_head.weight [k, h], no bias, and the published sign."""
    state = {
        "value_head.weight": testing.make_tensor(6, 8, dtype=torch.float64),
        "prompt_head.weight": testing.make_tensor(3, 8, dtype=torch.float64, seed=1),
    }
    head = PreferenceHead(8, 6, "softmax", init="paper", dtype=torch.float64)
    head.load_state_dict(state)
    hidden = testing.make_tensor(5, 8, dtype=torch.float64, seed=2)
    prompt = testing.make_tensor(8, dtype=torch.float64, seed=3)
    torch.testing.assert_close(
        head.score_matrix(hidden, prompt), published_scores(state, hidden, prompt)
    )


def test_an_anchored_head_does_not_swallow_a_checkpoint_without_bias() -> None:
    state = PreferenceHead(8, 6, init="paper").state_dict()
    with pytest.raises(RuntimeError, match=r"value_head\.bias"):
        PreferenceHead(8, 6).load_state_dict(state)


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_through_the_state_dict_computes_the_same(kind: str) -> None:
    head, hidden, prompt = random_head(kind), states(4).float(), states(seed=1).float()
    other = KINDS[kind][0]()
    assert not torch.equal(other.score_matrix(hidden, prompt), head.score_matrix(hidden, prompt))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.score_matrix(hidden, prompt), head.score_matrix(hidden, prompt))
    clone = copy.deepcopy(head)
    assert torch.equal(clone.score_matrix(hidden, prompt), head.score_matrix(hidden, prompt))


@pytest.mark.parametrize("kind", KINDS)
def test_made_without_memory_and_filled_later(kind: str) -> None:
    """As FSDP and transformers do: parameters on the meta device, then reset_parameters."""
    head = KINDS[kind][0](device="meta")
    assert all(x.is_meta for x in head.parameters())
    head.to_empty(device="cpu")
    for parameter in head.parameters():
        nn.init.constant_(parameter, math.nan)
    head.reset_parameters()
    fresh = dict(KINDS[kind][0]().named_parameters())
    for name, parameter in head.named_parameters():
        assert parameter.isfinite().all()
        if name.endswith("bias"):
            assert torch.equal(parameter, fresh[name])


# -- initialisation ----------------------------------------------------------------------------


def test_initial_biases() -> None:
    assert PreferenceHead(8, 6).value_head.bias.tolist() == [1, 0, 0, 0, 0, 0]
    assert PreferenceHead(8, 4, init="paper", bias=True).value_head.bias.tolist() == [0] * 4
    assert PreferenceHead(8, 6, init="paper").value_head.bias is None
    assert HybridHead(8, 4).value_head.bias.tolist() == [0, 1, 0, 0, 0]
    assert HybridHead(8, 4, init="paper").value_head.bias is None
    assert BradleyTerryHead(8, bias=True).value_head.bias.tolist() == [0]


@pytest.mark.parametrize("init", ["anchored", "paper"])
def test_initial_weights_have_the_reference_codes_spread(init: Any) -> None:
    torch.manual_seed(0)
    head = PreferenceHead(400, 64, "softmax", init=init)
    for weight in (head.value_head.weight, head.prompt_head.weight):
        assert weight.std().item() == pytest.approx(1 / 401, rel=0.05)
        assert abs(weight.mean().item()) < 0.1 / 401


def reward_differences(head: PreferenceHead, hidden: Tensor) -> Tensor:
    """r_a - r_b with r = -(second coordinate): the reward of the anchored head, to first order."""
    reward = -(hidden @ head.value_head.weight[1])
    return reward[:, None] - reward[None, :]


def test_anchored_head_starts_as_a_bradley_terry_model() -> None:
    torch.manual_seed(0)
    hidden = testing.make_tensor(60, 256, dtype=torch.float64)
    head = PreferenceHead(256, 8, dtype=torch.float64)
    with torch.no_grad():
        s, difference = head.score_matrix(hidden), reward_differences(head, hidden)
        upper = torch.ones(60, 60, dtype=torch.bool).triu(1)
        correlation = torch.corrcoef(torch.stack((s[upper], difference[upper])))[0, 1]
        assert correlation > 0.99
        errors = []
        for _ in range(2):
            head.value_head.weight.mul_(0.1)
            s, difference = head.score_matrix(hidden), reward_differences(head, hidden)
            errors.append((s - difference).abs().max() / difference.abs().max())
    # relative to the first order, what is left shrinks with the weights
    assert errors[0] < 0.02
    assert errors[1] == pytest.approx(errors[0].item() / 10, rel=0.5)


def test_paper_head_does_not_start_as_a_bradley_terry_model() -> None:
    """The control of the test above: without an anchor the scores are no reward differences."""
    torch.manual_seed(0)
    hidden = testing.make_tensor(60, 256, dtype=torch.float64)
    head = PreferenceHead(256, 8, init="paper", dtype=torch.float64)
    with torch.no_grad():
        s = head.score_matrix(hidden)
    rewards = s.mean(dim=1)
    transitive = (rewards[:, None] - rewards[None, :]).square().sum() / s.square().sum()
    assert transitive < 0.5


def test_anchored_head_starts_with_the_gradient_of_a_bradley_terry_model() -> None:
    torch.manual_seed(0)
    head = PreferenceHead(32, 6, dtype=torch.float64)
    with torch.no_grad():
        head.value_head.weight.mul_(1e-4)
    a = testing.make_tensor(50, 32, dtype=torch.float64)
    b = testing.make_tensor(50, 32, dtype=torch.float64, seed=1)
    losses.general_preference_loss(head.embed(a), head.embed(b), tau=0.1).loss.backward()
    # d softplus(-s / tau) / d w at s = 0, s = w (h_b - h_a)
    expected = (-0.5 / 0.1) * (b - a).mean(dim=0)
    gradient = head.value_head.weight.grad
    torch.testing.assert_close(gradient[1], expected, rtol=1e-2, atol=1e-2)
    others = torch.cat((gradient[:1], gradient[2:]))
    assert others.abs().max() < 1e-2 * expected.abs().max()


# -- gates -------------------------------------------------------------------------------------


def test_gates() -> None:
    prompt = states(3, 5)
    softmax = random_head("preference-softmax", dtype=torch.float64)
    gate = softmax.scale(prompt)
    logits = prompt @ softmax.prompt_head.weight.T
    torch.testing.assert_close(gate, torch.softmax(logits, dim=-1))
    torch.testing.assert_close(gate.sum(dim=-1), torch.ones(3, 5, dtype=torch.float64))
    softplus = random_head("preference-softplus", dtype=torch.float64)
    gate = softplus.scale(100 * prompt)
    assert (gate > 0).all()
    assert gate.max() > 1.5, "softplus is not bounded as softmax is"
    expected = torch.logaddexp(100 * prompt @ softplus.prompt_head.weight.T, torch.zeros(()))
    torch.testing.assert_close(gate, expected, atol=1e-6, rtol=1e-6)
    assert random_head("preference").scale(prompt) is None
    assert random_head("bradley-terry").scale(prompt) is None


@pytest.mark.parametrize("kind", ["preference-softmax", "preference-softplus", "hybrid-softmax"])
def test_a_gate_without_a_prompt_is_a_clear_error(kind: str) -> None:
    head, group = random_head(kind, dtype=torch.float64), states(4)
    gate = kind.split("-")[1]
    for call in (
        lambda: head.scale(),
        lambda: head.score(group, group),
        lambda: head.score_matrix(group),
        lambda: head.probability_matrix(group),
    ):
        with pytest.raises(ValueError, match=f"{gate} gate: pass prompt_hidden"):
            call()


def hand_made(gate: Any) -> PreferenceHead:
    """Hidden size 2; the blocks are (h0, h1) and (h0, 2 h1); gate logits (p0, p1)."""
    head = PreferenceHead(2, 4, gate, normalize=False, init="paper")
    with torch.no_grad():
        head.value_head.weight.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 2]]))
        if head.prompt_head is not None:
            head.prompt_head.weight.copy_(torch.eye(2))
    return head


def test_gated_score_by_hand() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    # blocks (1, 2) x (3, 5): 1*5 - 2*3 = -1, and (1, 4) x (3, 10): 1*10 - 4*3 = -2
    assert hand_made(None).score(a, b).item() == -3
    prompt = torch.tensor([math.log(3), 0.0])  # softmax (3/4, 1/4)
    assert hand_made("softmax").score(a, b, prompt).item() == pytest.approx(-0.75 - 0.5)
    # softplus (log 4, log 2)
    expected = -math.log(4) - 2 * math.log(2)
    assert hand_made("softplus").score(a, b, prompt).item() == pytest.approx(expected)
    matrix = hand_made("softmax").score_matrix(torch.stack((a, b)), prompt)
    torch.testing.assert_close(matrix, torch.tensor([[0.0, -1.25], [1.25, 0.0]]))
    p = hand_made("softmax").probability_matrix(torch.stack((a, b)), prompt, tau=0.5)
    assert p[0, 1].item() == pytest.approx(1 / (1 + math.exp(2.5)))


@pytest.mark.parametrize("kind", [k for k in KINDS if "soft" in k or k == "hybrid-paper"])
def test_one_gate_per_prompt_and_gradients_into_it(kind: str) -> None:
    head = random_head(kind, dtype=torch.float64)
    groups, prompts = states(3, 4), states(3, seed=1)
    together = head.score_matrix(groups, prompts)
    for i in range(3):
        torch.testing.assert_close(together[i], head.score_matrix(groups[i], prompts[i]))
    assert not torch.allclose(together, head.score_matrix(groups, prompts.roll(1, 0)))
    together.square().sum().backward()
    assert head.prompt_head.weight.grad.abs().sum() > 0


# -- tokens ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_positions_pick_the_token(kind: str) -> None:
    head = random_head(kind, dtype=torch.float64)
    hidden, positions = states(3, 7), torch.tensor([6, 0, 3])
    picked = hidden[torch.arange(3), positions]
    torch.testing.assert_close(head.embed(hidden, positions), head.embed(picked))
    padded = torch.full_like(hidden, math.nan)
    padded[torch.arange(3), positions] = picked
    torch.testing.assert_close(head.embed(padded, positions), head.embed(picked))
    leaf = hidden.clone().requires_grad_()
    head.embed(leaf, positions).sum().backward()
    others = torch.ones(3, 7, dtype=torch.bool)
    others[torch.arange(3), positions] = False
    assert (leaf.grad[others] == 0).all()
    assert (leaf.grad[~others] != 0).any(-1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_positions_out_of_range(kind: str) -> None:
    with pytest.raises(IndexError, match=r"positions must lie in \[0, 7\).*got 7"):
        random_head(kind).embed(states(1, 7).float(), torch.tensor([7]))
