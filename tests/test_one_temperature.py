"""A temperature for each block: scores that have the sign which probabilities have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers", reason="the extra 'train' is not installed")

from criteria_models import NAMES, WEIGHTS, criteria_model
from tiny_backbones import (
    close,
    expected_embedding,
    expected_scale,
    one_thread,  # noqa: F401 (a fixture)
    padded,
    tiny_model,
)

from gpm_core.data import ResponseGroup
from gpm_core.heads import HybridHead, MultiCriteriaHead, PreferenceHead
from gpm_core.integrations.trl_rewards import PreferenceReward
from gpm_core.losses import Temperature, general_preference_loss, one_temperature
from gpm_core.models import GroupEmbeddings
from gpm_core.ops import score
from gpm_core.training import PairIndex, evaluate_pairs
from gpm_core.training.criteria import evaluate_criteria

PROMPT = [5, 6]
REPLIES = [[7, 8], [9], [10, 11, 12], [13, 14], [15], [16, 17]]


def blocks(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0::2] * b[..., 1::2] - a[..., 1::2] * b[..., 0::2]


def set_apart(temperature: Temperature) -> Tensor:
    """Temperatures of blocks that differ so much that signs of plain sums are another's."""
    with torch.no_grad():
        temperature.raw.copy_(torch.linspace(-5.0, 3.0, len(temperature.raw)))
    return temperature().detach().double()


def other_signs(plain: Tensor, logit: Tensor) -> int:
    return int((plain.sign() != logit.sign()).sum())


# -- the function ------------------------------------------------------------------------------


def test_by_hand() -> None:
    scale, tau = one_temperature(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 3.0]))
    # Of 1 and 1/3 the mean is 2/3: weights 3/2 and 1/2, and 3/2 for the temperature.
    torch.testing.assert_close(scale, torch.tensor([3.0, 1.5]))
    torch.testing.assert_close(tau, torch.tensor(1.5))


@pytest.mark.parametrize("gated", [True, False])
def test_says_what_a_temperature_for_each_block_says(gated: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 50, 6, generator=draw, dtype=torch.float64)
    gate = torch.rand(50, 3, generator=draw, dtype=torch.float64) if gated else None
    tau = torch.tensor([0.02, 1.0, 7.0], dtype=torch.float64)
    margin = torch.linspace(-1, 1, 50, dtype=torch.float64)
    scale, single = one_temperature(gate, tau)
    logit = (blocks(a, b) * (1 if gate is None else gate) / tau).sum(-1)
    torch.testing.assert_close(score(a, b, scale) / single, logit)
    for given in (None, margin):
        loss = general_preference_loss(a, b, gate, margin=given, tau=tau, reduction="none").loss
        same = general_preference_loss(
            a, b, scale, margin=given, tau=single.item(), reduction="none"
        ).loss
        torch.testing.assert_close(same, loss)


@pytest.mark.parametrize("value", [0.1, 0.3, 1.7])
def test_equal_temperatures_change_no_bit(value: float) -> None:
    gate = torch.rand(4, 3, generator=torch.Generator().manual_seed(1))
    tau = torch.full((3,), value)
    scale, single = one_temperature(gate, tau)
    assert torch.equal(scale, gate)
    assert single == tau[0]


def test_gradients_and_precision() -> None:
    tau = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: one_temperature(None, t), tau)
    scale, single = one_temperature(torch.ones(2).bfloat16(), tau.detach().bfloat16())
    assert scale.dtype == single.dtype == torch.float32


@pytest.mark.parametrize(("scale", "tau"), [(None, ()), ((3,), (2,)), ((), (1,))])
def test_shapes_that_do_not_fit(scale: Any, tau: Any) -> None:
    with pytest.raises(ValueError, match=r"tau must be \(k,\) and scale \(\.\.\., k\)"):
        one_temperature(None if scale is None else torch.ones(scale), torch.ones(tau))


@pytest.mark.parametrize("wrong", [0.1, torch.tensor([1, 2]), Temperature(0.1, 2)])
def test_what_is_no_tensor_of_temperatures(wrong: Any) -> None:
    with pytest.raises(TypeError, match="tau must be a floating-point tensor"):
        one_temperature(None, wrong)


# -- models ------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"gate": "softmax"}, {"head": "hybrid"}], ids=str)
def test_scores_of_a_model_have_the_sign_of_its_probabilities(options: Any) -> None:
    model = tiny_model(dim=8, learn_tau="per_block", init="paper", **options)
    tau = set_apart(model.temperature)
    v = torch.stack([expected_embedding(model, PROMPT, reply) for reply in REPLIES])
    scale = expected_scale(model, PROMPT)
    plain = (scale * blocks(v[:, None], v)).sum(-1)
    logit = (scale / tau * blocks(v[:, None], v)).sum(-1)
    assert other_signs(plain, logit) > 3, "or this shows nothing"
    expected = logit / (1 / tau).mean()
    (group,) = model.score_groups([ResponseGroup(PROMPT, REPLIES)])
    torch.testing.assert_close(group.score, expected.float(), atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(group.probability, logit.sigmoid().float(), atol=1e-5, rtol=1e-4)
    assert torch.equal(group.score.sign(), (group.probability - 0.5).sign())
    # A winner and cycles are of the probabilities, too.
    wins = (logit > 1e-9).double()
    assert group.cyclic_triples() == round(float(((wins @ wins) * wins.T).sum()) / 3)
    winner = [i for i in range(len(REPLIES)) if wins[i].sum() == len(REPLIES) - 1]
    assert group.condorcet_winner() == (winner[0] if winner else None)
    rewards = PreferenceReward(model)([PROMPT] * len(REPLIES), REPLIES)
    assert rewards == pytest.approx(expected.mean(dim=1).tolist(), abs=1e-5)
    for i in range(5):
        ids, mask = padded([[*PROMPT, *reply] for reply in REPLIES[i : i + 2]])
        output = model(ids.view(1, 2, -1), mask.view(1, 2, -1), torch.tensor([len(PROMPT)]))
        close(output.score, expected[i, i + 1].view(1))


def test_advantages_weigh_the_blocks_as_probabilities_do() -> None:
    model = tiny_model(dim=4, gate="softmax", learn_tau="per_block", init="paper")
    tau = set_apart(model.temperature)
    v = torch.stack([expected_embedding(model, PROMPT, reply) for reply in REPLIES])
    each = blocks(v[:, None], v).mean(dim=1)
    weights = expected_scale(model, PROMPT) / tau / (1 / tau).mean()
    parts = weights * (each - each.mean(0)) / (each.std(0) + 1e-4)
    found = PreferenceReward(model, kind="gprl")([PROMPT] * len(REPLIES), REPLIES)
    assert found == pytest.approx(parts.sum(1).tolist(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("mode", ["heads", "gates"])
def test_several_criteria(mode: str) -> None:
    model = criteria_model(criteria_mode=mode, learn_tau="per_block", init="paper", dim=6)
    set_apart(model.temperature)
    (group,) = model.score_groups([ResponseGroup(PROMPT, REPLIES)])
    for part in (group, *group.criteria.values()):
        assert torch.equal(part.score.sign(), (part.probability - 0.5).sign())
    torch.testing.assert_close(
        group.score,
        sum(WEIGHTS[name] * group.criteria[name].score for name in NAMES),
        atol=1e-6,
        rtol=1e-5,
    )
    ids, mask = padded([[*PROMPT, *reply] for reply in REPLIES[:2]])
    output = model(ids.view(1, 2, -1), mask.view(1, 2, -1), torch.tensor([len(PROMPT)]))
    torch.testing.assert_close(output.score.float(), group.score[0, 1].view(1))
    each = torch.stack([group.criteria[name].score[0, 1] for name in NAMES])
    torch.testing.assert_close(output.criteria_score[0].float(), each)
    assert torch.equal(output.criteria_score.sign(), (output.criteria_probability - 0.5).sign())


def test_stored_judgements_say_the_same() -> None:
    """Embeddings with one temperature for all, and with a copy of it for each block."""
    draw = torch.Generator().manual_seed(2)
    v, gate = torch.randn(5, 6, generator=draw), torch.rand(3, generator=draw)
    said = GroupEmbeddings(v, gate, 0.3)
    stored = GroupEmbeddings(v, gate, torch.full((3,), 0.3))
    assert torch.equal(said.scores().score, stored.scores().score)
    torch.testing.assert_close(said.scores().probability, stored.scores().probability)
    apart = GroupEmbeddings(v, gate, torch.tensor([0.02, 1.0, 5.0]))
    square, rectangle = apart.scores(), apart.against(v)
    assert torch.equal(square.score, rectangle.score)
    assert torch.equal(square.score.sign(), (square.probability - 0.5).sign())
    assert other_signs(said.scores().score, square.score) > 0


# -- heads on fixed features -------------------------------------------------------------------

FEATURES = torch.randn(60, 8, generator=torch.Generator().manual_seed(3))
PAIRS = PairIndex(torch.arange(30), torch.arange(30, 60))


@pytest.mark.parametrize("kind", ["gpm", "hybrid"])
def test_accuracy_on_features_goes_by_the_probability(kind: str) -> None:
    torch.manual_seed(0)
    head = PreferenceHead(8, 6, init="paper") if kind == "gpm" else HybridHead(8, 4, init="paper")
    temperature = Temperature(0.1, 3)
    tau = set_apart(temperature)
    v = head.embed(FEATURES).detach().double()
    logit = (blocks(v[:30], v[30:]) / tau).sum(-1)
    assert other_signs(head.score(FEATURES[:30], FEATURES[30:]), logit) > 3
    found = evaluate_pairs(head, FEATURES, PAIRS, temperature=temperature)
    assert found.correct.tolist() == (logit > 0).float().tolist()
    torch.testing.assert_close(found.probability.double(), logit.sigmoid(), atol=1e-5, rtol=1e-4)
    expected = logit / (1 / tau).mean()
    torch.testing.assert_close(found.score.double(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("mode", ["heads", "gates"])
def test_accuracy_of_criteria_on_features(mode: Any) -> None:
    torch.manual_seed(0)
    head = MultiCriteriaHead(8, 6, ["good", "brief"], mode, init="paper")
    temperature = Temperature(0.1, 3)
    set_apart(temperature)
    pairs = PairIndex(PAIRS.chosen, PAIRS.rejected, target=torch.ones(30, 2))
    found = evaluate_criteria(head, FEATURES, pairs, temperature=temperature)
    assert torch.equal(found.score.sign(), (found.probability - 0.5).sign())
    assert other_signs(head.score(FEATURES[:30], FEATURES[30:]), found.score) > 3
    torch.testing.assert_close(found.loss, -found.probability.log(), atol=1e-5, rtol=1e-4)
