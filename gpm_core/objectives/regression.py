"""Objectives that regress log-ratios on targets: GPO, SPPO and DSPPO."""

from __future__ import annotations

from torch import Tensor

from gpm_core.objectives import targets as _targets
from gpm_core.objectives._common import (
    ObjectiveOutput,
    Reduction,
    check_group,
    check_limits,
    check_positive,
    clamp_magnitude,
    group_metrics,
    reduce,
    wide,
)
from gpm_core.objectives.groups import GroupSizes, center, lay_out


def _regress(
    logps: Tensor,
    reference_logps: Tensor,
    targets: Tensor,
    *,
    beta: float,
    centered: bool,
    max_target: float | None,
    max_log_ratio: float | None,
    group_sizes: GroupSizes | None,
    reduction: str,
) -> ObjectiveOutput:
    """Squares of log-ratio minus target; centred: both sides minus their group mean."""
    check_limits(max_target=max_target, max_log_ratio=max_log_ratio)
    logps = wide(logps)
    if group_sizes is not None:
        group_sizes = lay_out(group_sizes, logps.device, logps.shape[0])
    log_ratios = logps - reference_logps.detach().to(logps.dtype)
    targets = clamp_magnitude(targets.detach().to(logps.dtype), max_target)
    residuals = clamp_magnitude(log_ratios, max_log_ratio) - targets
    if centered:
        residuals = center(residuals, group_sizes)
    losses = residuals.square()
    metrics = group_metrics(targets, log_ratios, logps, beta=beta, group_sizes=group_sizes)
    return ObjectiveOutput(
        reduce(losses, reduction), losses.detach(), log_ratios.detach(), targets, metrics
    )


def gpo_loss(
    logps: Tensor,
    reference_logps: Tensor,
    scores: Tensor,
    *,
    beta: float = 1e-3,
    centered: bool = False,
    max_target: float | None = None,
    max_log_ratio: float | None = None,
    group_sizes: GroupSizes | None = None,
    reduction: Reduction = "mean",
) -> ObjectiveOutput:
    """General Preference Optimization (arXiv 2410.02197, section 5).

    ``loss = mean_i (log pi(y_i|x) - log pi_t(y_i|x) - s_hat_i / beta)^2``. Its optimum over all
    policies is pi proportional to pi_t exp(s(y > pi_t | x) / beta), the maximizer of
    E[s(y > pi_t | x)] - beta KL(pi || pi_t). The log-normalizer is dropped, as in the paper: the
    s_hat of a group scored against itself sum to zero. Scored against other opponents they do not,
    and then ``centered=True`` is what has this optimum.

    Args:
        logps: (..., K) log-probabilities of the responses under the policy, summed over tokens;
            (N,) with ``group_sizes``.
        reference_logps: (..., K) the same under pi_t, the policy that sampled them. No gradient.
        scores: (..., K) mean scores s_hat_i = mean over j of s(y_i > y_j), see
            :mod:`gpm_core.objectives.targets`. No gradient.
        beta: weight of the KL term, above zero; 1e-3 in the paper's runs.
        centered: subtract the group's mean from both sides. Then a constant added to all
            log-probabilities of a group does not matter, and nothing is asked of responses that
            were not sampled.
        max_target: clamp the targets s_hat / beta to this magnitude first, or None.
        max_log_ratio: clamp the log-ratios to this magnitude, or None. A response beyond it has
            no gradient.
        group_sizes: sizes of ragged groups, or None for even ones.
        reduction: "mean", "sum" or "none", over responses.

    Raises:
        TypeError: if a tensor is not floating-point, a number none, or sizes are no integers.
        ValueError: if shapes differ, there is no response, ``beta`` or a limit is not finite and
            above zero, sizes do not add up, or for an unknown ``reduction``.
        RuntimeError: if devices differ.

    Example:
        >>> logps = torch.tensor([[-1.0, -2.0]])
        >>> gpo_loss(logps, logps, torch.tensor([[0.1, -0.1]]), beta=0.1).loss
        tensor(1.)
    """
    check_group(logps=logps, reference_logps=reference_logps, scores=scores)
    check_positive("beta", beta)
    return _regress(
        logps,
        reference_logps,
        wide(scores) / beta,
        beta=beta,
        centered=centered,
        max_target=max_target,
        max_log_ratio=max_log_ratio,
        group_sizes=group_sizes,
        reduction=reduction,
    )


def sppo_loss(
    logps: Tensor,
    reference_logps: Tensor,
    probabilities: Tensor,
    *,
    eta: float = 1e3,
    centered: bool = False,
    max_target: float | None = None,
    max_log_ratio: float | None = None,
    group_sizes: GroupSizes | None = None,
    reduction: Reduction = "mean",
) -> ObjectiveOutput:
    """Self-Play Preference Optimization with soft probabilities (arXiv 2405.00675, section 4).

    ``loss = mean_i (log pi(y_i|x) - log pi_t(y_i|x) - eta (P_hat_i - 1/2))^2``. TRL's
    ``loss_type="sppo_hard"`` is the pair whose winner has P_hat = 1 and whose loser 0, with
    eta = 1 / beta, summed over the two where this is their mean.

    Args:
        logps: (..., K) log-probabilities of the responses under the policy, summed over tokens;
            (N,) with ``group_sizes``.
        reference_logps: (..., K) the same under pi_t, the policy that sampled them. No gradient.
        probabilities: (..., K) mean probability P_hat_i in [0, 1] that y_i is preferred to a
            response of the group, or of other opponents, see :mod:`gpm_core.objectives.targets`.
        eta: step size of the multiplicative-weights update, above zero; 1e3 in the paper's runs.
        centered: subtract the group's mean from both sides.
        max_target: clamp the targets to this magnitude first, or None.
        max_log_ratio: clamp the log-ratios to this magnitude, or None. A response beyond it has
            no gradient.
        group_sizes: sizes of ragged groups, or None for even ones.
        reduction: "mean", "sum" or "none", over responses.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`gpo_loss`, with ``eta`` for ``beta``.

    Example:
        >>> logps = torch.tensor([[-1.0, -2.0]])
        >>> sppo_loss(logps, logps, torch.tensor([[0.6, 0.4]]), eta=10.0).loss
        tensor(1.0000)
    """
    check_group(logps=logps, reference_logps=reference_logps, probabilities=probabilities)
    check_positive("eta", eta)
    return _regress(
        logps,
        reference_logps,
        eta * (wide(probabilities) - 0.5),
        beta=1 / eta,
        centered=centered,
        max_target=max_target,
        max_log_ratio=max_log_ratio,
        group_sizes=group_sizes,
        reduction=reduction,
    )


def dsppo_loss(
    logps: Tensor,
    reference_logps: Tensor,
    transitive_scores: Tensor,
    cyclic_scores: Tensor,
    *,
    iteration: int,
    curriculum: float = 1.0,
    tau: float = 1.0,
    weights: Tensor | None = None,
    eta: float = 1e3,
    centered: bool = False,
    max_target: float | None = None,
    max_log_ratio: float | None = None,
    group_sizes: GroupSizes | None = None,
    reduction: Reduction = "mean",
) -> ObjectiveOutput:
    """Dynamic Self-Play Preference Optimization (arXiv 2605.17342): SPPO on a changing game.

    In iteration t the win probabilities are sigmoid(s_t / tau), with
    ``s_t = (1 + curriculum / sqrt(t)) s_T + (1 - curriculum / sqrt(t)) s_C``: the transitive part
    first, the cyclic part as training goes on. The rest is :func:`sppo_loss`. (The paper's
    schedule is known from public notes on it; its value of ``curriculum``, there lambda, is not.
    With 1 the first iteration sees the transitive part alone.)

    Args:
        logps: (..., K) log-probabilities of the responses under the policy, summed over tokens;
            (N,) with ``group_sizes``.
        reference_logps: (..., K) the same under pi_t, the policy that sampled them. No gradient.
        transitive_scores: (..., K, M) s_T of each response against each opponent: of a hybrid
            head C1 (r_i - r_j), of any matrix its transitive part
            (:func:`gpm_core.ranking.hodge`). Ragged groups: (G, K_max, M).
        cyclic_scores: (..., K, M) s_C, the rest of the score. No gradient.
        iteration: t, from 1.
        curriculum: lambda; negative for the cyclic part first.
        tau: temperature of the probabilities, above zero; 1 in the paper.
        weights: (..., M) weights of the opponents that sum to one, or None for equal ones, see
            :func:`gpm_core.objectives.targets.row_means`.
        eta: step size, above zero.
        centered: subtract the group's mean from both sides.
        max_target: clamp the targets to this magnitude first, or None.
        max_log_ratio: clamp the log-ratios to this magnitude, or None.
        group_sizes: sizes of ragged groups, or None for even ones.
        reduction: "mean", "sum" or "none", over responses.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`sppo_loss`; also for an ``iteration`` below
            1, or matrices that do not fit.

    Example:
        >>> logps, skew = torch.zeros(3), torch.tensor([[0.0, 1.0, -1.0], [-1.0, 0.0, 1.0]])
        >>> skew = torch.cat((skew, torch.tensor([[1.0, -1.0, 0.0]])))
        >>> dsppo_loss(logps, logps, torch.zeros(3, 3), skew, iteration=1, eta=1.0).loss
        tensor(0.)
    """
    check_positive("tau", tau)
    scores = _targets.dynamic_scores(
        transitive_scores, cyclic_scores, iteration=iteration, curriculum=curriculum
    )
    probabilities = _targets.row_means(
        (scores / tau).sigmoid(), weights=weights, group_sizes=group_sizes
    )
    return sppo_loss(
        logps,
        reference_logps,
        probabilities,
        eta=eta,
        centered=centered,
        max_target=max_target,
        max_log_ratio=max_log_ratio,
        group_sizes=group_sizes,
        reduction=reduction,
    )
