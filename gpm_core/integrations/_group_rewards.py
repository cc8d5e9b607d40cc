"""Rewards of responses against the others of their groups, for trainers that sample them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from gpm_core.losses import one_temperature
from gpm_core.objectives import targets
from gpm_core.objectives.advantages import (
    DriftMonitor,
    block_mean_scores,
    group_relative_advantages,
)

Kind = Literal["mean_score", "win_rate", "gprl"]


def check_kind(kind: str) -> None:
    """Raise ValueError unless ``kind`` is one of :data:`Kind`."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be 'mean_score', 'win_rate' or 'gprl'; got {kind!r}")


@torch.no_grad()
def group_rewards(
    v: Tensor,
    sizes: Sequence[int],
    *,
    kind: Kind,
    gate: Tensor,
    tau: float | Tensor,
    monitor: DriftMonitor | None = None,
) -> Tensor:
    """Rewards (N,) of N responses, group after group.

    Args:
        v: (N, d) preference embeddings, float32.
        sizes: G sizes of groups, which sum to N.
        kind: see :class:`gpm_core.integrations.trl_rewards.PreferenceReward`.
        gate: (G, d / 2) weight of each block for each group, float32.
        tau: temperature of win rates: a number, or a tensor () or (d / 2,), which weighs the blocks
            of scores, too, as :func:`gpm_core.losses.one_temperature` says.
        monitor: is updated, and its block weights are used, for "gprl".
    """
    if isinstance(tau, Tensor) and tau.dim():
        gate, tau = one_temperature(gate, tau)
    if kind == "mean_score":
        return targets.mean_scores(v, scale=gate, group_sizes=sizes)
    if kind == "win_rate":
        return targets.mean_win_rates(v, scale=gate / tau, tau=1.0, group_sizes=sizes)
    scores = block_mean_scores(v, group_sizes=sizes)
    weights = None
    if monitor is not None:
        weights = monitor.update(scores, gate, group_sizes=sizes).block_weights
    return group_relative_advantages(
        scores, gate, block_weights=weights, group_sizes=sizes
    ).advantages


def check_finite(rewards: Sequence[float]) -> None:
    """Raise RuntimeError unless all rewards are finite."""
    wrong = sum(not math.isfinite(reward) for reward in rewards)
    if wrong:
        raise RuntimeError(
            f"{wrong} of {len(rewards)} rewards are not finite: the preference model's embeddings "
            "are not, as in float16 after an overflow; run it in bfloat16 or float32"
        )


def short(text: str) -> str:
    """A text as an error shows it."""
    return repr(text if len(text) <= 80 else f"{text[:37]} ... {text[-37:]}")
