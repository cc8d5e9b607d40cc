"""The stage that makes rows to train on: responses with what log-ratios are regressed on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from gpm_core import ops
from gpm_core.objectives.targets import row_means
from gpm_core.policy.judging import Judgements, read_judgements
from gpm_core.policy.options import Opponents
from gpm_core.policy.shards import read_rows, write_rows
from gpm_core.ranking import nash_mixture


def target_shard(
    responses: Path,
    judgements: Path,
    output: Path,
    *,
    opponents: Opponents = "group",
    others: Path | None = None,
    tau: float | None = None,
) -> None:
    """Write the rows that ``GPOTrainer`` takes, of a file of responses and one of judgements.

    Args:
        responses: file of :func:`gpm_core.policy.sampling.sample_shard`.
        judgements: file of :func:`gpm_core.policy.judging.judge_shard`.
        output: the file to write.
        opponents: whom responses are scored against, see :class:`GPOOptions`.
        others: judgements of another policy's responses to the same prompts; None for opponents
            that are within the group.
        tau: give scores of the group for which sigmoid(s / tau) are the judge's probabilities,
            whatever its own temperature is, or temperatures are. None: its scores as they are.
    """
    judged = read_judgements(judgements)
    against = None if others is None else read_judgements(others)
    rows = []
    for number, row in enumerate(read_rows(responses)):
        values: dict[str, Any] = {
            "prompt_ids": row["prompt_ids"],
            "response_ids": row["response_ids"],
        }
        if against is not None:
            values.update(_against(judged, against, number))
        elif opponents == "nash":
            values.update(_against_nash(judged, number))
        else:
            score = judged.score[number] if tau is None else _scores_at(judged, number, tau)
            values["score_matrix"] = score.tolist()
            values["probability_matrix"] = judged.probability[number].tolist()
        rows.append(values)
    write_rows(output, rows)


def _scores_at(judged: Judgements, number: int, tau: float) -> Tensor:
    """Logits (K, K) of the judge's probabilities, times ``tau``."""
    scale, temperature = judged.group(number).logit_scale()
    return ops.score_matrix(judged.embeddings[number], scale) * (tau / temperature)


def _against(judged: Judgements, others: Judgements, number: int) -> dict[str, Any]:
    found = judged.group(number).against(others.embeddings[number])
    return _means(found.score, found.probability)


def _against_nash(judged: Judgements, number: int) -> dict[str, Any]:
    """Means against the equilibrium of each game: of scores, and of probabilities."""
    score, probability = judged.score[number].double(), judged.probability[number].double()
    return _means(
        score, probability, nash_mixture(score), nash_mixture((probability - probability.mT) / 2)
    )


def _means(
    score: Tensor,
    probability: Tensor,
    score_weights: Tensor | None = None,
    probability_weights: Tensor | None = None,
) -> dict[str, Any]:
    return {
        "scores": row_means(score, weights=score_weights).tolist(),
        "win_rates": row_means(probability, weights=probability_weights).clamp(0, 1).tolist(),
    }


def judgement_summary(paths: list[Path]) -> dict[str, float]:
    """What judges say of a stage's groups: how far responses are apart, and how cyclic.

    Returns:
        ``score_std``: the deviation of mean scores within groups; ``cyclic_share``: the share of
        the squared scores that no ranking explains, 0 where all scores are 0.
    """
    spread = squares = cyclic = 0.0
    groups = 0
    for path in paths:
        score = read_judgements(path).score.double()
        means = score.mean(dim=2)
        rest = score - (means.unsqueeze(2) - means.unsqueeze(1))
        spread += float(means.std(dim=1).sum())
        squares += float(score.square().sum())
        cyclic += float(rest.square().sum())
        groups += len(score)
    return {
        "score_std": spread / max(groups, 1),
        "cyclic_share": cyclic / squares if squares else 0.0,
    }
