"""What log-ratios are regressed on: mean scores and win probabilities of responses.

Against whom decides what they see. Write S = T + C for the scores within a group, T_ij = f_i - f_j
with f_i the mean score of i, and C the cyclic rest, whose rows sum to zero. The mean of row i of S
is f_i: against the group itself, with equal weights, a mean score sees the transitive part alone,
and of rock, paper and scissors nothing. What sees cycles is another population of opponents
(samples of the reference policy or of a past iterate) or other weights on the group's own (the
policy's probabilities, the Nash mixture of :func:`gpm_core.ranking.nash_mixture`).

Scores may come as embeddings (:func:`mean_scores`, no K x K matrix), as a matrix
(:func:`row_means`), or as any pairwise judge's probabilities (:func:`symmetrize`, then
:func:`row_means`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gpm_core import ops
from gpm_core.objectives._common import check_float, check_number, check_positive, wide
from gpm_core.objectives.groups import (
    GroupSizes,
    group_mean,
    lay_out,
    pad,
    unpad,
)

__all__ = [
    "dynamic_scores",
    "mean_scores",
    "mean_win_rates",
    "reference_code_probabilities",
    "reference_code_scores",
    "row_means",
    "symmetrize",
]


def _check_weights(weights: Any, shape: tuple[int, ...], of: str) -> None:
    if weights is None:
        return
    check_float("weights", weights, f"of shape {shape}, one number for each {of}")
    if weights.shape != shape:
        raise ValueError(
            f"weights must be {shape}, one number for each {of}; got {tuple(weights.shape)}"
        )


def _check_embeddings(name: str, v: Any, form: str, dims: int) -> None:
    check_float(name, v, form)
    if v.dim() < dims or v.shape[-2] == 0:
        raise ValueError(
            f"{name} must be a tensor {form}, with at least one response; got {tuple(v.shape)}"
        )


def _weighted(v: Tensor, weights: Tensor | None) -> Tensor:
    """Mean embedding (..., d) of a population (..., M, d)."""
    if weights is None:
        return v.mean(dim=-2)
    return (weights.to(v.dtype).unsqueeze(-1) * v).sum(dim=-2)


def mean_scores(
    v: Tensor,
    population: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    scale: Tensor | None = None,
    group_sizes: GroupSizes | None = None,
) -> Tensor:
    """Mean score of each response against a population, without the K x M matrix.

    ``s_hat_i = sum_j w_j s(v_i > u_j) = s(v_i > sum_j w_j u_j)``: the score is linear in each
    argument, so its mean is the score against the mean, in O((K + M) d).

    Args:
        v: (..., K, d) preference embeddings of the responses; (N, d) with ``group_sizes``.
        population: (..., M, d) embeddings of the opponents, of ragged groups (G, M, d); None for
            the group itself. Leading dimensions as those of ``v``.
        weights: (..., M) weights of the opponents that sum to one, or None for equal ones; for a
            ragged group as its own population (N,).
        scale: (..., k) the prompt's gate, of ragged groups (G, k), or None.
        group_sizes: sizes of ragged groups, or None for even ones.

    Returns:
        (..., K), or (N,), float32 at least.

    Raises:
        TypeError: if a tensor is not floating-point, or sizes are no integers.
        ValueError: if shapes do not fit, or sizes do not add up.
        RuntimeError: if devices differ.

    Example:
        >>> mean_scores(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([ 0.5000, -0.5000])
    """
    form = "(..., K, d)" if group_sizes is None else "(N, d)"
    _check_embeddings("v", v, form, 2)
    v = wide(v)
    scale = None if scale is None else scale.to(v.dtype)
    if population is not None:
        _check_embeddings("population", population, "(..., M, d)", 2)
        population = wide(population).to(v.dtype)
        _check_weights(weights, tuple(population.shape[:-1]), "opponent")
    else:
        _check_weights(weights, tuple(v.shape[:-1]), "response")
    if group_sizes is None:
        mean = _weighted(v if population is None else population, weights)
        scale = None if scale is None else scale.unsqueeze(-2)
        return ops.score(v, mean.unsqueeze(-2), scale)
    layout = lay_out(group_sizes, v.device, v.shape[0])
    if scale is not None:
        scale = scale[layout.own]
    if population is not None:
        count = len(layout.sizes)
        if population.dim() != 3 or population.shape[0] != count:
            raise ValueError(
                f"population of {count} ragged groups must be ({count}, M, d); got "
                f"{tuple(population.shape)}"
            )
        mean = _weighted(population, weights)[layout.own]
    elif weights is None:
        mean = group_mean(v, layout, dim=0)
    else:
        mean = pad(weights.to(v.dtype).unsqueeze(-1) * v, layout).sum(dim=1)[layout.own]
    return ops.score(v, mean, scale)


def mean_win_rates(
    v: Tensor,
    population: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    scale: Tensor | None = None,
    tau: float = 0.1,
    group_sizes: GroupSizes | None = None,
) -> Tensor:
    """Mean probability that each response is preferred to one of a population.

    ``P_hat_i = sum_j w_j sigmoid(s(v_i > u_j) / tau)``, where a response counts as a tie with
    itself. The sigmoid is not linear: this takes O(K M d), and memory for K M probabilities.

    Args:
        v: (..., K, d) preference embeddings of the responses; (N, d) with ``group_sizes``.
        population: (..., M, d) embeddings of the opponents, of ragged groups (G, M, d); None for
            the group itself. Leading dimensions as those of ``v``.
        weights: (..., M) weights of the opponents that sum to one, or None for equal ones; for a
            ragged group as its own population (N,).
        scale: (..., k) the prompt's gate, of ragged groups (G, k), or None.
        tau: temperature, above zero.
        group_sizes: sizes of ragged groups, or None for even ones.

    Returns:
        (..., K), or (N,), in [0, 1], float32 at least.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`mean_scores`.

    Example:
        >>> mean_win_rates(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), tau=1.0)
        tensor([0.6155, 0.3845])
    """
    form = "(..., K, d)" if group_sizes is None else "(N, d)"
    _check_embeddings("v", v, form, 2)
    v = wide(v)
    scale = None if scale is None else scale.to(v.dtype)
    if group_sizes is not None:
        group_sizes = lay_out(group_sizes, v.device, v.shape[0])
        if population is None and weights is not None:
            _check_weights(weights, tuple(v.shape[:-1]), "response")
            weights = pad(weights, group_sizes)
        v = pad(v, group_sizes)
    if population is None:
        matrix = ops.probability_matrix(v, scale, tau=tau)
    else:
        _check_embeddings("population", population, "(..., M, d)", 2)
        population = wide(population).to(v.dtype)
        matrix = ops.cross_probability_matrix(v, population, scale, tau=tau)
        if weights is None:
            weights = matrix.new_full((), 1 / matrix.shape[-1]).expand(population.shape[:-1])
    return row_means(matrix, weights=weights, group_sizes=group_sizes)


def row_means(
    matrix: Tensor, *, weights: Tensor | None = None, group_sizes: GroupSizes | None = None
) -> Tensor:
    """Means of the rows of a matrix of scores or probabilities, in float32 at least.

    Args:
        matrix: (..., K, M) of each response against each opponent, from any model or judge. Of
            ragged groups (G, K_max, M), padded with anything.
        weights: (..., M) weights of the opponents that sum to one. None for equal ones; with
            ``group_sizes`` the opponents then are the group itself, (G, K_max, K_max).
        group_sizes: sizes of ragged groups, or None for even ones.

    Returns:
        (..., K), or (N,).

    Raises:
        TypeError: if a tensor is not floating-point, or sizes are no integers.
        ValueError: if shapes do not fit.

    Example:
        >>> row_means(torch.tensor([[0.5, 0.9], [0.1, 0.5]]))
        tensor([0.7000, 0.3000])
    """
    check_float("matrix", matrix, "of shape (..., K, M)")
    if matrix.dim() < 2 or matrix.shape[-1] == 0:
        raise ValueError(
            f"matrix must be (..., K, M), with at least one opponent; got {tuple(matrix.shape)}"
        )
    _check_weights(weights, (*matrix.shape[:-2], matrix.shape[-1]), "column of each matrix")
    matrix = wide(matrix)
    if weights is not None:
        # Not a matrix product, which autocast would do in half precision.
        means = (matrix * weights.to(matrix.dtype).unsqueeze(-2)).sum(dim=-1)
        return means if group_sizes is None else unpad(means, group_sizes)
    if group_sizes is None:
        return matrix.mean(dim=-1)
    layout = lay_out(group_sizes, matrix.device)
    square = (*layout.mask.shape, layout.mask.shape[1])
    if matrix.shape != square:
        raise ValueError(
            f"matrix of these ragged groups against themselves must be {square}; got "
            f"{tuple(matrix.shape)}. Opponents from elsewhere need weights="
        )
    sums = torch.where(layout.mask[:, None, :], matrix, 0.0).sum(dim=-1)
    return unpad(sums / layout.counts.to(matrix.dtype)[:, None], layout)


def symmetrize(probabilities: Tensor) -> Tensor:
    """A judge's probabilities freed of its preference for a position: (P + 1 - P.T) / 2.

    A judge that reads (y_i, y_j) and (y_j, y_i) need not give probabilities that sum to one; these
    do, and the diagonal is 1/2.

    Args:
        probabilities: (..., K, K), P_ij that i is preferred to j when it is shown first.

    Returns:
        (..., K, K), float32 at least.

    Raises:
        TypeError: if ``probabilities`` is not floating-point.
        ValueError: if it is not square.

    Example:
        >>> symmetrize(torch.tensor([[0.7, 0.9], [0.3, 0.6]]))
        tensor([[0.5000, 0.8000],
                [0.2000, 0.5000]])
    """
    check_float("probabilities", probabilities, "of shape (..., K, K)")
    if probabilities.dim() < 2 or probabilities.shape[-1] != probabilities.shape[-2]:
        raise ValueError(f"probabilities must be (..., K, K); got {tuple(probabilities.shape)}")
    probabilities = wide(probabilities)
    return (probabilities - probabilities.mT) / 2 + 0.5


def dynamic_scores(
    transitive: Tensor, cyclic: Tensor, *, iteration: int, curriculum: float = 1.0
) -> Tensor:
    """Scores of DSPPO's changing game (arXiv 2605.17342).

    ``s_t = (1 + curriculum / sqrt(t)) s_T + (1 - curriculum / sqrt(t)) s_C``.

    Args:
        transitive: (..., K, M) transitive part s_T.
        cyclic: (..., K, M) cyclic part s_C.
        iteration: t, from 1.
        curriculum: lambda of the paper, whose value is not public.

    Returns:
        (..., K, M), float32 at least.

    Raises:
        TypeError: if a tensor is not floating-point, or a number none.
        ValueError: if shapes differ, or ``iteration`` is below 1.

    Example:
        >>> part = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> dynamic_scores(part, -part, iteration=4)
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    for name, part in (("transitive", transitive), ("cyclic", cyclic)):
        check_float(name, part, "of shape (..., K, M)")
    if transitive.shape != cyclic.shape:
        raise ValueError(
            f"transitive and cyclic must have the same shape (..., K, M); got "
            f"{tuple(transitive.shape)} and {tuple(cyclic.shape)}"
        )
    if isinstance(iteration, bool) or not isinstance(iteration, (int, torch.SymInt)):
        raise TypeError(f"iteration must be an int; got {type(iteration).__name__}")
    if iteration < 1:
        raise ValueError(f"iteration must be at least 1; got {iteration}")
    check_number("curriculum", curriculum)
    shift = curriculum / iteration**0.5
    return (1 + shift) * wide(transitive) + (1 - shift) * wide(cyclic)


def reference_code_scores(scores: Tensor, tau: float = 0.1) -> Tensor:
    """Scores as the reference code of arXiv 2410.02197 hands them to GPO: 2 s / tau.

    Its tables hold T_ij = s_ij / tau, and its script forms W_ij = T_ij - T_ji = 2 s_ij / tau
    before averaging. The paper's formulas do not have the factor. For compatibility with its
    runs; the same as dividing ``beta`` by 2 / tau.

    Args:
        scores: (...) scores, or means of them.
        tau: temperature of the preference model, above zero.

    Returns:
        (...), float32 at least.

    Raises:
        TypeError: if ``scores`` is not floating-point, or ``tau`` no number.
        ValueError: if ``tau`` is not finite and above zero.

    Example:
        >>> reference_code_scores(torch.tensor([0.1]), tau=0.1)
        tensor([2.])
    """
    check_float("scores", scores, "of shape (...)")
    check_positive("tau", tau)
    return 2 * wide(scores) / tau


def reference_code_probabilities(scores: Tensor, tau: float = 0.1) -> Tensor:
    """Win probabilities of the same script for SPPO: sigmoid(2 s / tau), of scores of pairs.

    Args:
        scores: (..., K, M) scores of pairs.
        tau: temperature of the preference model, above zero.

    Returns:
        (..., K, M), float32 at least; their :func:`row_means` are the script's targets.

    Raises:
        TypeError, ValueError: as :func:`reference_code_scores`.

    Example:
        >>> reference_code_probabilities(torch.tensor([0.1, 0.0]), tau=0.1)
        tensor([0.8808, 0.5000])
    """
    return reference_code_scores(scores, tau).sigmoid()
