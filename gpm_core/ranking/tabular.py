"""An exact test bed: softmax policies over K responses, on games whose payoffs are known.

No language model and no sampling. A policy is a vector of log-probabilities, expectations are sums,
and each step is the optimum that an objective has over all policies:

- GPO and SPPO: pi_(t+1) proportional to pi_t exp(eta s(y > pi_t)), with eta = 1 / beta of GPO,
  :func:`self_play_step`;
- Nash-MD: the same from the mixture with a reference, and against it, ``beta`` above zero.

:func:`exploitability` says how far a policy is from the equilibrium.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gpm_core.objectives._common import check_float, check_number, check_positive
from gpm_core.objectives.nash_md import mixture_logps
from gpm_core.ranking._payoff import check_payoff
from gpm_core.ranking.hodge import hodge

__all__ = [
    "average_policy",
    "expected_scores",
    "exploitability",
    "random_game",
    "self_play",
    "self_play_step",
]


def random_game(
    *shape: int,
    transitive: float = 1.0,
    cyclic: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Payoffs of random games with given sizes of their transitive and cyclic part.

    Args:
        *shape: leading dimensions, then K, at least 3.
        transitive: root mean square of the transitive part f_i - f_j, at least zero.
        cyclic: root mean square of the cyclic part; with 0 a ranking is all there is.
        generator: for numbers that can be repeated.

    Returns:
        (..., K, K) float64, skew-symmetric.

    Raises:
        TypeError: if a number is none.
        ValueError: for K below 3 (two players have no cycles), or a negative size.

    Example:
        >>> game = random_game(5, transitive=0.0, cyclic=2.0)
        >>> game.shape, round(game.square().mean().sqrt().item(), 6)
        (torch.Size([5, 5]), 2.0)
    """
    if not shape or shape[-1] < 3 or any(size < 1 for size in shape):
        raise ValueError(f"shape must end with K >= 3 players; got {shape}")
    for name, size in (("transitive", transitive), ("cyclic", cyclic)):
        check_number(name, size)
        if size < 0:
            raise ValueError(f"{name} must be at least zero; got {size}")
    normal = torch.randn(*shape, shape[-1], generator=generator, dtype=torch.float64)
    parts = hodge(normal - normal.mT)
    count = shape[-1] ** 2
    scales = [
        size * (energy / count).rsqrt()[..., None, None]
        for size, energy in (
            (transitive, parts.transitive_energy),
            (cyclic, parts.cyclic_energy),
        )
    ]
    return scales[0] * parts.transitive + scales[1] * parts.cyclic


def _check_policy(name: str, logps: Any, payoff: Tensor) -> Tensor:
    check_float(name, logps, "of shape (..., K)")
    if logps.dim() == 0 or logps.shape[-1] != payoff.shape[-1]:
        raise ValueError(
            f"{name} must be (..., K) for K = {payoff.shape[-1]} players; got {tuple(logps.shape)}"
        )
    if logps.device != payoff.device:
        raise RuntimeError(
            f"{name} and payoff must be on the same device; got {logps.device} and {payoff.device}"
        )
    return torch.log_softmax(logps.to(torch.promote_types(logps.dtype, payoff.dtype)), dim=-1)


def expected_scores(payoff: Tensor, opponent_logps: Tensor) -> Tensor:
    """Expected payoff of each response against a policy, s(y > mu).

    Args:
        payoff: (..., K, K) skew-symmetric.
        opponent_logps: (..., K) log-probabilities (or logits) of mu; leading dimensions broadcast.

    Returns:
        (..., K).

    Raises:
        TypeError, ValueError, RuntimeError: for a payoff or policy that is none.

    Example:
        >>> game = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> expected_scores(game, torch.zeros(2))
        tensor([ 0.5000, -0.5000])
    """
    payoff = check_payoff(payoff)
    opponent = _check_policy("opponent_logps", opponent_logps, payoff).exp()
    return (payoff * opponent.unsqueeze(-2)).sum(dim=-1)


def self_play_step(
    logps: Tensor,
    payoff: Tensor,
    *,
    eta: float,
    reference_logps: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """One exact step of self-play: GPO's and SPPO's, with ``beta`` Nash-MD's.

    ``pi_(t+1) proportional to mix exp(eta s(y > mix))``, mix proportional to
    ``pi_t^(1 - eta beta) pi_reference^(eta beta)`` (arXiv 2312.00886; without ``beta``
    the policy itself, arXiv 2405.00675 and 2410.02197).

    Args:
        logps: (..., K) log-probabilities (or logits) of pi_t.
        payoff: (..., K, K) skew-symmetric; of probabilities P - 1/2, whose constant cancels.
        eta: step size, above zero: 1 / beta of GPO, eta of SPPO.
        reference_logps: (..., K) the reference policy, with ``beta`` above zero.
        beta: weight of the KL term to the reference, tau in the paper; eta beta at most 1.

    Returns:
        (..., K) log-probabilities of pi_(t+1).

    Raises:
        TypeError: if a tensor is not floating-point, or a number none.
        ValueError: for shapes that do not fit, numbers out of range, or only one of
            ``reference_logps`` and ``beta``.
        RuntimeError: if devices differ.

    Example:
        >>> game = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> self_play_step(torch.zeros(2), game, eta=1.0).exp()
        tensor([0.7311, 0.2689])
    """
    payoff = check_payoff(payoff)
    logps = _check_policy("logps", logps, payoff)
    check_positive("eta", eta)
    check_number("beta", beta)
    if not 0 <= eta * beta <= 1:
        raise ValueError(f"eta * beta must be in [0, 1]; got {eta} * {beta}")
    if (reference_logps is None) != (beta == 0):
        raise ValueError(
            "reference_logps and beta above zero belong together: regularized self-play takes "
            "both, plain self-play neither"
        )
    if reference_logps is not None:
        reference = _check_policy("reference_logps", reference_logps, payoff)
        logps = mixture_logps(logps, reference.expand_as(logps), mixture_coef=eta * beta)
    return torch.log_softmax(logps + eta * expected_scores(payoff, logps), dim=-1)


def self_play(
    start_logps: Tensor,
    payoff: Tensor,
    *,
    iterations: int,
    eta: float,
    reference_logps: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Policies of ``iterations`` steps of :func:`self_play_step`, the start first.

    Without ``beta`` the policies of a cyclic game circle around its equilibrium and drift away
    from it, but their average approaches it, its exploitability falling as
    log(K) / (eta T) + eta max(payoff)^2 / 2. With ``beta`` the last policy converges, to within
    the order of eta (the opponent is the mixture and not the policy), to the equilibrium of the
    game regularized toward the reference.

    Args:
        start_logps: (..., K) log-probabilities (or logits) to start from.
        payoff: (..., K, K) skew-symmetric.
        iterations: T, at least 0.
        eta: step size, above zero.
        reference_logps: (..., K) the reference policy, with ``beta`` above zero.
        beta: weight of the KL term to the reference.

    Returns:
        (T + 1, ..., K) log-probabilities.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`self_play_step`; also for ``iterations``
            below 0.

    Example:
        >>> rock_paper_scissors = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
        >>> start = torch.tensor([1.0, 0.0, 0.0])
        >>> policies = self_play(start, rock_paper_scissors, iterations=500, eta=0.1)
        >>> bool(exploitability(average_policy(policies), rock_paper_scissors) < 0.02)
        True
    """
    payoff = check_payoff(payoff)
    if iterations < 0:
        raise ValueError(f"iterations must be at least 0; got {iterations}")
    policies = [_check_policy("start_logps", start_logps, payoff)]
    for _ in range(iterations):
        policies.append(
            self_play_step(
                policies[-1], payoff, eta=eta, reference_logps=reference_logps, beta=beta
            )
        )
    return torch.stack(policies)


def average_policy(policies: Tensor) -> Tensor:
    """Log-probabilities (..., K) of the mean of policies (T, ..., K), by probability.

    Example:
        >>> average_policy(torch.tensor([[1.0, 0.0], [0.5, 0.5]]).log()).exp()
        tensor([0.7500, 0.2500])
    """
    return torch.logsumexp(policies, dim=0) - math.log(policies.shape[0])


def exploitability(
    logps: Tensor,
    payoff: Tensor,
    *,
    reference_logps: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """What the best opponent wins against a policy; 0 exactly at an equilibrium.

    ``max_i s(y_i > pi)``. In the regularized game, where each side pays beta KL to the reference:
    ``beta log sum_i pi_reference_i exp(s(y_i > pi) / beta) + beta KL(pi || pi_reference)``.

    Args:
        logps: (..., K) log-probabilities (or logits) of the policy.
        payoff: (..., K, K) skew-symmetric.
        reference_logps: (..., K) the reference policy, with ``beta`` above zero.
        beta: weight of the KL term.

    Returns:
        (...), at least zero up to rounding.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`self_play_step`.

    Example:
        >>> rock_paper_scissors = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]])
        >>> exploitability(torch.zeros(3), rock_paper_scissors)
        tensor(0.)
        >>> exploitability(torch.tensor([0.5, 0.25, 0.25]).log(), rock_paper_scissors)
        tensor(0.2500)
    """
    payoff = check_payoff(payoff)
    logps = _check_policy("logps", logps, payoff)
    scores = expected_scores(payoff, logps)
    check_number("beta", beta)
    if (reference_logps is None) != (beta == 0) or beta < 0:
        raise ValueError(
            "reference_logps and beta above zero belong together: the regularized game has both, "
            f"the plain game neither; got beta={beta}"
        )
    if reference_logps is None:
        return scores.amax(dim=-1)
    reference = _check_policy("reference_logps", reference_logps, payoff)
    best = beta * torch.logsumexp(reference + scores / beta, dim=-1)
    divergence = (logps.exp() * (logps - reference)).sum(dim=-1)
    return best + beta * divergence
