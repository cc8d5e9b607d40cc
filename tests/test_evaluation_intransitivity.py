"""Cycles in scores and in labels, against counting by hand."""

from __future__ import annotations

import itertools

import pytest
import torch

pytest.importorskip("scipy", reason="the extra 'train' is not installed")

from evaluation_models import TableModel, pair

from gpm_core.evaluation import count_cycles, evaluate, transitive_part

#: a > b > c > a, all of them over d.
CYCLE = {("a", "b"): 2.0, ("b", "c"): 2.0, ("c", "a"): 2.0}
OVER = {(x, "d"): 1.0 for x in "abc"}


def skew(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    upper = torch.randn(count, count, generator=generator, dtype=torch.float64).triu(1)
    return upper - upper.T


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 9])
def test_cycles_are_those_that_enumeration_finds(count: int) -> None:
    score = skew(count)
    if count > 4:
        score[0, 1] = score[1, 0] = 0  # a tie makes no cycle
    cycles = 0
    for i, j, k in itertools.combinations(range(count), 3):
        forward = score[i, j] > 0 and score[j, k] > 0 and score[k, i] > 0
        backward = score[i, j] < 0 and score[j, k] < 0 and score[k, i] < 0
        cycles += bool(forward or backward)
    triples = len(list(itertools.combinations(range(count), 3)))
    assert count_cycles(score) == (cycles, triples)


def test_coins_make_a_quarter_of_triples_cyclic() -> None:
    cycles, triples = count_cycles(skew(200))
    # Triples of a random tournament are pairwise independent: a standard deviation of 0.0004.
    assert cycles / triples == pytest.approx(0.25, abs=0.002)


def test_the_transitive_part_is_the_projection() -> None:
    score = skew(6)
    transitive = transitive_part(score)
    cyclic = score - transitive
    assert torch.allclose(cyclic.sum(dim=1), torch.zeros(6, dtype=torch.float64), atol=1e-12)
    reward = torch.randn(6, dtype=torch.float64)
    other = reward[:, None] - reward[None, :]
    assert float((cyclic * other).sum()) == pytest.approx(0, abs=1e-12)
    assert torch.allclose(transitive_part(other), other)
    for bad in (torch.zeros(3), torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"\(K, K\)"):
            transitive_part(bad)


def test_cycles_of_a_model() -> None:
    """One prompt with a cycle of four responses, one transitive, one with two responses."""
    model = TableModel({"x": 3.0, "y": 2.0, "z": 0.0}, {**CYCLE, **OVER})
    pairs = [
        pair("cycle", "a", "b"),
        pair("cycle", "c", "d"),
        pair("reward", "x", "y"),
        pair("reward", "x", "z"),
        pair("two", "a", "b"),
    ]
    found = evaluate(model, pairs).intransitivity
    assert found.groups == 2
    assert found.triples == 4 + 1
    assert found.cyclic.value == pytest.approx(1 / 5)
    assert found.cyclic_groups.value == 0.5
    # Squares above the diagonal. Cycle: 3 * 4 cyclic, 3 * 1 transitive. Reward: 1 + 4 + 9.
    assert found.cyclic_energy.value == pytest.approx(12 / (12 + 3 + 14), rel=1e-6)
    # 1 - 2/4 of six pairs, 1 - 2/3 of three.
    assert found.coin_energy == pytest.approx((0.5 * 6 + 3 / 3) / 9)
    assert found.observed is None


def test_independent_scores_have_the_energy_of_chance() -> None:
    names = [f"r{i}" for i in range(5)]
    generator = torch.Generator().manual_seed(0)
    scores, pairs = {}, []
    for group in range(400):
        texts = [f"{name} {group}" for name in names]
        for a, b in itertools.combinations(texts, 2):
            scores[a, b] = float(torch.randn((), generator=generator))
            pairs.append(pair(f"p{group}", a, b))
    report = evaluate(TableModel(scores=scores), pairs)
    found = report.intransitivity
    assert found.coin_energy == pytest.approx(0.6)
    assert found.cyclic_energy.low <= 0.6 <= found.cyclic_energy.high
    assert found.cyclic.low <= 0.25 <= found.cyclic.high
    # Labels are all transitive (in the order of the names), the model's opinion is a coin's.
    assert found.observed.triples == 4000
    assert found.observed.cyclic.value == 0
    assert found.observed.accuracy_cyclic is None
    assert found.observed.accuracy_acyclic.value == pytest.approx(0.5, abs=0.03)


def test_observed_triples() -> None:
    """Labels with one cycle and one acyclic triple; a general model and its scalar part."""
    model = TableModel({"x": 3.0, "y": 2.0, "z": 0.0}, CYCLE)
    pairs = [
        pair("cycle", "a", "b"),
        pair("cycle", "b", "c"),
        pair("cycle", "a", "c", target=0.2),  # c is preferred
        pair("cycle", "c", "a"),
        pair("cycle", "a", "d"),  # d was compared with one other only: no triple
        pair("acyclic", "x", "y"),
        pair("acyclic", "z", "y"),  # the model says y
        pair("acyclic", "x", "z"),
        pair("undecided", "a", "b"),
        pair("undecided", "b", "a"),  # the labels cancel: no triple
        pair("undecided", "b", "c"),
        pair("undecided", "a", "c"),
    ]
    observed = evaluate(model, pairs).intransitivity.observed
    assert observed.triples == 2
    assert observed.cyclic.value == 0.5
    assert (observed.accuracy_cyclic.value, observed.whole_cyclic.value) == (1, 1)
    assert observed.accuracy_acyclic.value == pytest.approx(2 / 3)
    assert observed.whole_acyclic.value == 0
    # The fourth response ties with all, so the transitive part of the cycle is 0: ties.
    assert observed.transitive_accuracy_cyclic.value == 0.5
    assert observed.transitive_accuracy_acyclic.value == pytest.approx(2 / 3)
    assert observed.scalar_bound == pytest.approx(2 / 3)


def test_no_scalar_beats_its_bound() -> None:
    pairs = [pair("p", "a", "b"), pair("p", "b", "c"), pair("p", "c", "a")]
    for rewards in itertools.permutations([0.0, 1.0, 2.0]):
        model = TableModel(dict(zip("abc", rewards, strict=True)))
        observed = evaluate(model, pairs).intransitivity.observed
        assert observed.cyclic.value == 1
        assert observed.accuracy_cyclic.value <= observed.scalar_bound
        assert observed.whole_cyclic.value == 0


def test_a_model_without_an_opinion_has_no_energy() -> None:
    pairs = [pair("p", "a", "b"), pair("p", "b", "c")]
    found = evaluate(TableModel(), pairs).intransitivity
    assert found.cyclic_energy is None
    assert found.cyclic.value == 0
    report = evaluate(TableModel(), [pair("p", "a", "b")])
    assert report.intransitivity is None
    assert report.length["words"].pearson is None
    assert report.length["words"].spearman is None
