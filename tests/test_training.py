"""Training: what is learnt, that it is deterministic, and that it survives being killed."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_models import (
    HH_FILE,
    needs_hh,
    one_thread,
)

from gpm_core.evaluation import (
    calibration_error,
    mean_interval,
    reliability,
    wilson_interval,
)
from gpm_core.heads import BradleyTerryHead, HybridHead, PreferenceHead
from gpm_core.training import (
    FitSettings,
    PairIndex,
    evaluate_pairs,
    fit_head,
    standardization,
)

__all__ = ["one_thread"]


def transitive(count: int, size: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (2 count, size), and which of each consecutive two a hidden reward prefers."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2 * count, size, generator=generator)
    reward = features @ torch.linspace(-1, 1, size)
    first = torch.arange(count) * 2
    chosen = torch.where(reward[first] > reward[first + 1], first, first + 1)
    return features, chosen


def cyclic(count: int, size: int, seed: int = 0) -> torch.Tensor:
    """Features of ``count`` chosen, then rejected, of three kinds that beat each other in turn."""
    kinds = 3 * torch.randn(3, size, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(3, (count,), generator=generator)
    noise = torch.randn(2 * count, size, generator=generator)
    return noise + torch.cat((kinds[kind], kinds[(kind + 1) % 3]))


HEADS = {
    "bt": lambda size: BradleyTerryHead(size),
    "gpm": lambda size: PreferenceHead(size, 8),
    "hybrid": lambda size: HybridHead(size, 8),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_head_learns_a_reward(name: str) -> None:
    features, chosen = transitive(1200, 32)
    torch.manual_seed(0)
    head = HEADS[name](32)
    settings = FitSettings(learning_rate=1e-2, epochs=20)
    fit_head(head, features, chosen[:1000], chosen[:1000] ^ 1, settings=settings)
    heldout = evaluate_pairs(head, features, PairIndex(chosen[1000:], chosen[1000:] ^ 1))
    assert heldout.accuracy > 0.93


def test_only_general_heads_learn_a_cycle() -> None:
    train_features, test_features = cyclic(600, 48), cyclic(300, 48, seed=1)
    mean, std = standardization(train_features)
    test_pairs = PairIndex(torch.arange(300), torch.arange(300, 600))
    accuracy = {}
    for name, build in HEADS.items():
        torch.manual_seed(0)
        head = build(48)
        fit_head(
            head,
            (train_features - mean) / std,
            torch.arange(600),
            torch.arange(600, 1200),
            settings=FitSettings(epochs=30),
        )
        accuracy[name] = evaluate_pairs(head, (test_features - mean) / std, test_pairs).accuracy
    assert accuracy["gpm"] > 0.95
    assert accuracy["hybrid"] > 0.95
    assert accuracy["bt"] < 0.7


def test_fit_is_deterministic_and_leaves_the_random_numbers_alone() -> None:
    features, chosen = transitive(100, 8)
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        head = PreferenceHead(8, 4)
        before = torch.get_rng_state()
        history = fit_head(head, features, chosen, chosen ^ 1, settings=FitSettings(epochs=3))
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(head.value_head.weight.detach().clone())
    assert torch.equal(*weights)
    assert [record.epoch for record in history.epochs] == [1, 2, 3]
    assert history.last.heldout_loss is None


def test_a_gate_learns_which_block_a_prompt_calls_for() -> None:
    """The prompt says which of two rewards counts: only a head that reads it can be right."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randn(1200, 4, generator=generator).sign()
    features = torch.randn(2400, 4, generator=generator)
    first = torch.arange(1200) * 2
    counted = torch.where(prompts[:, 0] > 0, 0, 1)
    ahead = features[first, counted] > features[first + 1, counted]
    chosen = torch.where(ahead, first, first + 1)
    rows, heldout = torch.arange(1000), torch.arange(1000, 1200)
    test_pairs = PairIndex(chosen[heldout], chosen[heldout] ^ 1, heldout)
    settings = FitSettings(epochs=40, learning_rate=2e-2)
    accuracy = []
    for gate in (None, "softmax"):
        torch.manual_seed(0)
        head = PreferenceHead(4, 8, gate)
        pairs = (chosen[rows], chosen[rows] ^ 1)
        fit_head(head, features, *pairs, prompts, settings=settings, prompt_index=rows)
        accuracy.append(evaluate_pairs(head, features, test_pairs, prompts).accuracy)
    assert accuracy[0] < 0.8
    assert accuracy[1] > 0.85


@pytest.mark.parametrize(("gate", "start"), [("softmax", 0.25), ("softplus", math.log(2))])
def test_a_gate_does_not_slow_its_head_down(gate: str, start: float) -> None:
    """A gate that stays where it starts is a temperature, and is trained as that temperature."""
    features, chosen = transitive(40, 6)
    rejected = chosen ^ 1
    trained = []
    for tau, kind in ((0.1, gate), (0.1 / start, None)):
        head = PreferenceHead(6, 8, kind, tau=tau)  # type: ignore[arg-type]
        torch.manual_seed(0)
        torch.nn.init.normal_(head.value_head.weight, std=0.1)
        # Prompts of zeros leave a gate's logits, and their gradient, at zero.
        prompts = None if kind is None else torch.zeros(40, 6)
        fit_head(head, features, chosen, rejected, prompts, settings=FitSettings(epochs=3))
        trained.append(head.value_head.weight.detach())
    torch.testing.assert_close(*trained, atol=1e-5, rtol=1e-4)


def test_a_soft_target_of_zero_turns_a_pair_round() -> None:
    features, chosen = transitive(200, 6)
    turned, plain = BradleyTerryHead(6), BradleyTerryHead(6)
    plain.load_state_dict(turned.state_dict())
    fit_head(plain, features, chosen ^ 1, chosen)
    fit_head(turned, features, chosen, chosen ^ 1, target=torch.zeros(200))
    torch.testing.assert_close(plain.value_head.weight, turned.value_head.weight)


def test_margins_widen_the_scores() -> None:
    features, chosen = transitive(300, 8)
    spread = []
    for margin in (None, torch.full((300,), 3.0)):
        torch.manual_seed(0)
        head = BradleyTerryHead(8)
        fit_head(
            head,
            features,
            chosen,
            chosen ^ 1,
            margin=margin,
            settings=FitSettings(epochs=40, learning_rate=3e-2, penalty=5.0),
        )
        spread.append(evaluate_pairs(head, features, PairIndex(chosen, chosen ^ 1)).score.mean())
    assert spread[1] > 1.2 * spread[0]


def test_the_penalty_is_the_stated_one() -> None:
    """At the optimum of the penalized loss its gradient vanishes, for any temperature."""
    features, chosen = transitive(64, 4)
    for tau in (1.0, 0.1):
        head = BradleyTerryHead(4, tau=tau).double()
        settings = FitSettings(epochs=3000, batch_size=64, learning_rate=2e-2, penalty=2.0)
        fit_head(head, features.double(), chosen, chosen ^ 1, settings=settings)
        weight = head.value_head.weight.detach().clone().requires_grad_()
        score = (features.double()[chosen] - features.double()[chosen ^ 1]) @ weight[0]
        loss = -torch.nn.functional.logsigmoid(score / tau).mean()
        penalty = 2.0 * 4 / (2 * 64) * (weight / tau).square().sum()
        (gradient,) = torch.autograd.grad(loss + penalty, weight)
        assert (gradient * tau).abs().max() < 1e-4


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"chosen_index": [0, 9]}, "chosen must be rows in"),
        ({"rejected_index": [0]}, r"rejected must be \(2,\)"),
        ({"features": torch.zeros(4, 3)}, r"features must be \(N, 2\)"),
        ({"features": torch.full((4, 2), math.nan)}, "features must be finite; row 0"),
        ({"target": [0.5, 2.0]}, r"target must be in \[0, 1\]"),
        ({"margin": [math.inf, 0.0]}, "margin must be finite"),
        ({"margin": [0.0]}, "one number per pair"),
    ],
)
def test_fit_head_says_what_is_wrong(change: dict, expected: str) -> None:
    arguments = {
        "features": torch.zeros(4, 2),
        "chosen_index": [0, 2],
        "rejected_index": [1, 3],
        **change,
    }
    with pytest.raises(ValueError, match=expected):
        fit_head(BradleyTerryHead(2), **arguments)


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"penalty": -1.0},
        {"warmup": 1.0},
        {"label_smoothing": 1.0},
        {"gradient_clip": 0.0},
        {"seed": -1},
    ],
)
def test_settings_name_what_is_out_of_range(bad: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        FitSettings(**bad)


def test_the_rate_warms_up_and_decays() -> None:
    settings = FitSettings(warmup=0.2)
    rates = [settings.rate_factor(step, 50) for step in range(50)]
    assert rates[10] == max(rates) == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_constant_features_are_not_blown_up() -> None:
    features = torch.full((50, 2), 0.1)
    features[:, 1] = torch.randn(50)
    mean, std = standardization(features)
    assert std[0] == 1
    torch.testing.assert_close(((features - mean) / std)[:, 1].std(correction=0), torch.tensor(1.0))


def test_wilson_interval_against_known_values() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    with pytest.raises(ValueError, match="correct must be in"):
        wilson_interval(3, 2)


def test_mean_interval_against_the_table_of_t() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3
    # t(0.975, 4) = 2.7764, standard error sqrt(2.5 / 5).
    assert high - mean == pytest.approx(2.7764 * math.sqrt(0.5), abs=1e-3)
    assert mean - low == pytest.approx(high - mean)


def test_calibration_does_not_depend_on_who_is_called_chosen() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(20000, generator=generator)
    outcome = (torch.rand(20000, generator=generator) < probability).float()
    assert calibration_error(probability, outcome) < 0.02
    swapped = calibration_error(1 - probability, 1 - outcome)
    assert swapped == pytest.approx(calibration_error(probability, outcome), abs=1e-6)
    assert calibration_error(torch.full((10,), 0.9), torch.full((10,), 0.6)) == pytest.approx(0.3)
    assert sum(group.count for group in reliability(probability)) == 20000


@needs_hh
def test_a_general_head_does_not_lose_to_bradley_terry_on_real_pairs() -> None:
    """On dialogues' plainest features, word counts, so that this takes seconds."""
    from gpm_core.data import read_pairs

    pairs = read_pairs(HH_FILE)
    replies = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    words = {}
    for reply in replies:
        for word in set(reply.lower().split()):
            words[word] = words.get(word, 0) + 1
    common = sorted(words, key=lambda word: -words[word])[:300]
    place = {word: i for i, word in enumerate(common)}
    features = torch.zeros(len(replies), 300)
    for row, reply in enumerate(replies):
        for word in reply.lower().split():
            if word in place:
                features[row, place[word]] += 1
    features = features.log1p()
    features = (features - features.mean(dim=0)) / features.std(dim=0)
    accuracy: dict[str, list[float]] = {name: [] for name in HEADS}
    for seed in range(3):
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))
        heldout, rows = order[:462], order[462:]
        for name, build in HEADS.items():
            torch.manual_seed(seed)
            head = build(300)
            fit_head(head, features, 2 * rows, 2 * rows + 1, settings=FitSettings(seed=seed))
            test = evaluate_pairs(head, features, PairIndex(2 * heldout, 2 * heldout + 1))
            accuracy[name].append(test.accuracy)
    mean = {name: sum(values) / 3 for name, values in accuracy.items()}
    assert mean["bt"] > 0.53
    assert mean["gpm"] > mean["bt"] - 0.02
    assert mean["hybrid"] > mean["bt"] - 0.02
