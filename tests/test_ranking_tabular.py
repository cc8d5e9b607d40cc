"""Policies on games where everything is known: fixed points, regret, and convergence."""

from __future__ import annotations

import math

import pytest
import torch
from test_ranking import linear_program
from torch import Tensor

from gpm_core import testing
from gpm_core.objectives import gpo_loss, nash_md_loss, targets
from gpm_core.objectives.nash_md import mixture_logps
from gpm_core.ranking import hodge, nash_mixture
from gpm_core.ranking.tabular import (
    average_policy,
    expected_scores,
    exploitability,
    random_game,
    self_play,
    self_play_step,
)

K = 5


def game(seed: int = 0, **sizes: float) -> Tensor:
    return random_game(K, generator=torch.Generator().manual_seed(seed), **sizes)


def logits(seed: int, *batch: int) -> Tensor:
    return testing.make_tensor(*batch, K, dtype=torch.float64, seed=seed)


def test_random_games_have_the_sizes_that_were_asked_for() -> None:
    payoff = random_game(3, 6, transitive=0.5, cyclic=2.0)
    assert payoff.shape == (3, 6, 6)
    assert torch.equal(payoff, -payoff.mT)
    parts = hodge(payoff)
    torch.testing.assert_close(
        parts.transitive_energy / 36, torch.full((3,), 0.25, dtype=torch.float64)
    )
    torch.testing.assert_close(parts.cyclic_energy / 36, torch.full((3,), 4.0, dtype=torch.float64))
    assert torch.equal(game(seed=3), game(seed=3))
    assert not torch.equal(game(seed=3), game(seed=4))
    assert hodge(game(cyclic=0.0)).cyclic_energy < 1e-24


# -- GPO ---------------------------------------------------------------------------------------


def descend(reference: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Where gradient descent on the centred GPO loss takes a softmax policy."""
    leaf = reference.clone().requires_grad_()
    for _ in range(200):
        loss = gpo_loss(
            leaf.log_softmax(-1), reference, scores, beta=beta, centered=True, reduction="sum"
        ).loss
        (gradient,) = torch.autograd.grad(loss, leaf)
        leaf = (leaf - 0.25 * gradient).detach().requires_grad_()
    return leaf.detach().log_softmax(-1)


def test_gpo_trains_to_its_fixed_point() -> None:
    """pi proportional to pi_ref exp(s(y > mu) / beta), mu any opponent."""
    payoff, reference, opponent = game(), logits(1).log_softmax(-1), logits(2).log_softmax(-1)
    scores = expected_scores(payoff, opponent)
    torch.testing.assert_close(scores, payoff @ opponent.exp())
    torch.testing.assert_close(
        scores, targets.row_means(payoff, weights=opponent.exp()), msg="as the targets have it"
    )
    fixed_point = (reference + scores / 0.5).log_softmax(-1)
    torch.testing.assert_close(descend(reference, scores, 0.5), fixed_point)
    own = expected_scores(payoff, reference)
    torch.testing.assert_close(
        self_play_step(reference, payoff, eta=2.0), descend(reference, own, 0.5)
    )


def test_the_groups_own_mean_scores_leave_a_cycle_alone() -> None:
    """Rock, paper and scissors once each: mean scores are zero, other opponents' are not."""
    payoff = game(transitive=0.0)
    start = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1], dtype=torch.float64).log()
    stays = descend(start, targets.row_means(payoff), 0.5)
    torch.testing.assert_close(stays, start)
    moves = descend(start, expected_scores(payoff, start), 0.5)
    assert (moves.exp() - start.exp()).abs().max() > 0.05


# -- self-play ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_averages_of_self_play_approach_the_equilibrium(seed: int) -> None:
    payoff, iterations = game(seed, transitive=0.3), 4000
    eta = math.sqrt(2 * math.log(K) / iterations) / payoff.abs().max().item()
    policies = self_play(torch.zeros(K), payoff, iterations=iterations - 1, eta=eta)
    average = average_policy(policies)
    torch.testing.assert_close(average.exp(), policies.exp().mean(0))
    regret = math.log(K) / (eta * iterations) + eta * payoff.abs().max().item() ** 2 / 2
    assert exploitability(average, payoff) <= regret
    equilibrium = linear_program(payoff)
    near = (average.exp() - equilibrium).abs().max()
    far = (policies.exp() - equilibrium).abs().amax(-1)
    assert near < 0.05
    assert near < far[-1], "the policies themselves circle around it"


def test_self_play_drifts_away_from_the_equilibrium_of_a_cycle() -> None:
    """Why averages, or regularization: KL(equilibrium || policy) never falls."""
    payoff = game(transitive=0.0)
    equilibrium = nash_mixture(payoff)
    policies = self_play(logits(1), payoff, iterations=300, eta=0.05)
    distance = -(equilibrium * policies).sum(-1)
    assert (distance.diff() > -1e-12).all()
    assert distance[-1] > distance[0] + 1e-3


# -- Nash-MD -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_last_policy_of_nash_md_is_the_regularized_equilibrium(seed: int) -> None:
    payoff, reference, beta = game(seed), logits(seed + 1).log_softmax(-1), 0.4
    policies = self_play(
        torch.zeros(K), payoff, iterations=2000, eta=0.02, reference_logps=reference, beta=beta
    )
    last = policies[-1]
    gaps = exploitability(policies, payoff, reference_logps=reference, beta=beta)
    assert (gaps > -1e-12).all()
    assert gaps[0] > 0.05
    assert gaps[-1] < 1e-3
    # what is left comes of playing the mixture and not the policy, and shrinks with eta
    closer = self_play(
        last, payoff, iterations=4000, eta=0.005, reference_logps=reference, beta=beta
    )[-1]
    gap = exploitability(closer, payoff, reference_logps=reference, beta=beta)
    assert gap < gaps[-1] / 4
    # the fixed point of the regularized game: the best answer to itself
    answer = (reference + payoff @ closer.exp() / beta).softmax(-1)
    torch.testing.assert_close(closer.exp(), answer, atol=0.01, rtol=0)


def test_nash_md_gradient_steps_follow_the_exact_steps() -> None:
    """A step maximizes what is won against the mixture minus KL(pi || mixture) / eta. So does
    descending the loss, in exact expectation, with the mixture as reference and 1 / eta as weight.
    """
    payoff, reference = game(), logits(1).log_softmax(-1)
    start, eta, beta = logits(2).log_softmax(-1), 0.5, 0.4
    mixture = mixture_logps(start, reference, mixture_coef=eta * beta)
    wins = (payoff @ mixture.exp()) + 0.5
    leaf = mixture.clone().requires_grad_()
    for _ in range(3000):
        logps = leaf.log_softmax(-1)
        losses = nash_md_loss(logps, mixture, wins, beta=1 / eta, reduction="none").loss
        (gradient,) = torch.autograd.grad((logps.detach().exp() * losses).sum(), leaf)
        leaf = (leaf - 0.5 * gradient).detach().requires_grad_()
    step = self_play_step(start, payoff, eta=eta, reference_logps=reference, beta=beta)
    torch.testing.assert_close(leaf.detach().softmax(-1), step.exp(), atol=1e-6, rtol=0)


# -- exploitability ----------------------------------------------------------------------------


def test_exploitability() -> None:
    payoff, policy, reference = game(), logits(1).log_softmax(-1), logits(2).log_softmax(-1)
    assert exploitability(policy, payoff).item() == pytest.approx(
        (payoff @ policy.exp()).max().item()
    )
    assert exploitability(nash_mixture(payoff).log(), payoff) < 1e-9
    # regularized: the best of many answers, their KL paid for, does not beat it
    gap = exploitability(policy, payoff, reference_logps=reference, beta=0.3).item()
    best = -math.inf
    for seed in range(200):
        answer = (policy + 2 * logits(seed + 9)).log_softmax(-1)
        payed = [0.3 * (p.exp() * (p - reference)).sum().item() for p in (answer, policy)]
        best = max(best, (answer.exp() @ payoff @ policy.exp()).item() - payed[0] + payed[1])
    assert 0 < best <= gap
    assert best > gap - 0.3


def test_bad_input() -> None:
    payoff, policy = game(), torch.zeros(K)
    with pytest.raises(ValueError, match="K >= 3 players"):
        random_game(2)
    with pytest.raises(ValueError, match="cyclic must be at least zero; got -1"):
        random_game(3, cyclic=-1)
    with pytest.raises(ValueError, match=r"logps must be \(\.\.\., K\) for K = 5 players"):
        self_play_step(torch.zeros(4), payoff, eta=0.1)
    with pytest.raises(TypeError, match="logps must be a floating-point tensor"):
        exploitability([0.0], payoff)
    with pytest.raises(ValueError, match="eta must be finite and above zero"):
        self_play_step(policy, payoff, eta=0.0)
    with pytest.raises(ValueError, match=r"eta \* beta must be in \[0, 1\]; got 2 \* 0.6"):
        self_play_step(policy, payoff, eta=2, reference_logps=policy, beta=0.6)
    for options in ({"beta": 0.1}, {"reference_logps": policy}):
        with pytest.raises(ValueError, match="belong together"):
            self_play_step(policy, payoff, eta=0.1, **options)
        with pytest.raises(ValueError, match="belong together"):
            exploitability(policy, payoff, **options)
    with pytest.raises(ValueError, match="iterations must be at least 0"):
        self_play(policy, payoff, iterations=-1, eta=0.1)
