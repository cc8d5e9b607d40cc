"""GPO on a policy small enough to see through: a softmax over the responses of each prompt.

The policy has one logit for each response and no features. Nothing carries over from prompt to
prompt, so whatever it does right on a prompt comes from the preference model's scores there.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gpm_core.objectives import gpo_loss

Opponent = Literal["start", "self"]

#: The centred loss is a quadratic in tabular logits: at this rate plain gradient descent halves the
#: distance to its optimum every step.
_LEARNING_RATE = 0.25


def gpo_step(logps: Tensor, scores: Tensor, *, beta: float, gradient_steps: int = 16) -> Tensor:
    """One iteration of GPO by gradient descent on :func:`gpm_core.objectives.gpo_loss`.

    The optimum that it approaches is pi proportional to pi_t exp(scores / beta)
    (arXiv 2410.02197, section 5).

    Args:
        logps: (..., K) log-probabilities of the policy pi_t, which the step starts from.
        scores: (..., K) expected scores of the responses against the opponent.
        beta: weight of the KL term, above zero.
        gradient_steps: steps of gradient descent; 16 leave 2^-16 of the distance.

    Returns:
        (..., K) log-probabilities of pi_(t+1), detached.
    """
    reference = logps.detach()
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=_LEARNING_RATE)
    for _ in range(gradient_steps):
        optimizer.zero_grad()
        policy_logps = torch.log_softmax(logits, dim=-1)
        # Centred: a prompt's log-normalizer is not zero here, because the scores are expectations
        # under the opponent and not a group scored against itself.
        gpo_loss(
            policy_logps, reference, scores, beta=beta, centered=True, reduction="sum"
        ).loss.backward()
        optimizer.step()
    return torch.log_softmax(logits.detach(), dim=-1)


def iterate_gpo(
    score_matrix: Tensor,
    start: Tensor,
    *,
    opponent: Opponent,
    iterations: int,
    beta: float,
    gradient_steps: int = 16,
) -> Tensor:
    """Iterations of GPO from ``start`` with exact expected scores.

    Args:
        score_matrix: (N, K, K) scores s(y_i > y_j) of N prompts' responses.
        start: (N, K) probabilities of the start policy, above zero.
        opponent: "start": every iteration is scored against the start policy; "self": against the
            policy of that iteration, the paper's self-play.
        iterations: T.
        beta: weight of the KL term to the policy of the iteration, above zero.
        gradient_steps: of each iteration.

    Returns:
        (T + 1, N, K) probabilities, ``start`` first.

    Raises:
        ValueError: for an unknown ``opponent`` or shapes that do not belong together.
    """
    if opponent not in ("start", "self"):
        raise ValueError(f"opponent must be 'start' or 'self'; got {opponent!r}")
    if score_matrix.shape != (*start.shape, start.shape[-1]):
        raise ValueError(
            "score_matrix must be (N, K, K) for a start policy (N, K); got "
            f"{tuple(score_matrix.shape)} and {tuple(start.shape)}"
        )
    logps = start.log()
    policies = [start]
    for _ in range(iterations):
        played = start if opponent == "start" else logps.exp()
        scores = torch.einsum("nij,nj->ni", score_matrix, played)
        logps = gpo_step(logps, scores, beta=beta, gradient_steps=gradient_steps)
        policies.append(logps.exp())
    return torch.stack(policies)


def win_rate(policy: Tensor, opponent: Tensor, probability: Tensor) -> Tensor:
    """P(policy > opponent) = sum_ij pi_i P_ij mu_j, exactly.

    Args:
        policy: (..., N, K) probabilities pi.
        opponent: (..., N, K) probabilities mu.
        probability: (N, K, K) probabilities P_ij that response i is preferred to j.

    Returns:
        (..., N), each in [0, 1].
    """
    return torch.einsum("...ni,nij,...nj->...n", policy, probability, opponent)


def best_response_win_rate(policy: Tensor, probability: Tensor) -> Tensor:
    """Win rate of the response that does best against ``policy``; 1/2 where nothing beats it.

    Args:
        policy: (..., N, K) probabilities.
        probability: (N, K, K) preference probabilities.

    Returns:
        (..., N) in [0.5, 1].
    """
    return torch.einsum("nij,...nj->...ni", probability, policy).amax(dim=-1)


def kl_divergence(policy: Tensor, reference: Tensor) -> Tensor:
    """KL(policy || reference) (..., N) >= 0 in nats, of probabilities (..., N, K)."""
    return (torch.xlogy(policy, policy) - torch.xlogy(policy, reference)).sum(-1)


def running_average(policies: Tensor) -> Tensor:
    """Mean of the policies (T, N, K) up to each iteration, (T, N, K). In self-play with small steps
    it nears the Nash equilibrium, while the policies themselves circle around it.
    """
    counts = torch.arange(1, len(policies) + 1, dtype=policies.dtype, device=policies.device)
    return policies.cumsum(dim=0) / counts[:, None, None]
