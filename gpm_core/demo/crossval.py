"""Cross-validation of preference heads on frozen features, over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpm_core import ops
from gpm_core.demo.cycles import PreferencePair, prompt_folds
from gpm_core.heads import BradleyTerryHead, PreferenceHead

#: The models that are compared: Bradley and Terry's, and the general one.
KINDS = ("bt", "gpm")

Head = BradleyTerryHead | PreferenceHead


@dataclass(frozen=True)
class FitSettings:
    """Settings of one fit. Optimizer, steps and rates are the same for every kind of head."""

    dim: int = 4
    tau: float = 0.2
    learning_rate: float = 0.01
    steps: int = 200


@dataclass
class Evaluation:
    """What cross-validation of one kind of head on one preference set measured."""

    #: Accuracy of each fit on the pairs that it was trained on.
    fit: list[float]
    #: (N,) float64 held-out accuracy on each prompt's pairs, mean over the repeats.
    heldout: Tensor
    #: (repeats, N, K, K) score / tau of every prompt's responses by the model that held it out.
    log_odds: Tensor
    #: Model of the first fold of the first repeat, and the prompts that it held out.
    example: Head
    example_prompts: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


def _columns(pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.tensor([(pair.prompt, pair.chosen, pair.rejected) for pair in pairs])
    prompt, chosen, rejected = table.unbind(dim=1)
    return prompt, chosen, rejected


def agreement(score: Tensor) -> Tensor:
    """1 where the chosen response scores higher, 0 where lower, 1/2 for a tie; float64."""
    return (torch.sign(score.double()) + 1) / 2


def _log_odds(head: Head, features: Tensor) -> Tensor:
    with torch.no_grad():
        return ops.score_matrix(head.embed(features)) / head.tau


def cross_validate(
    kind: str,
    features: Tensor,
    pairs: Sequence[PreferencePair],
    *,
    folds: int,
    seeds: int,
    settings: FitSettings,
    advance: Callable[[], None],
) -> Evaluation:
    """Fit a head on all folds but one, judge it on that one; every fold and seed in turn.

    Args:
        kind: one of :data:`KINDS`.
        features: (N, K, H) float32 frozen features of N prompts' K responses.
        pairs: the preferences; every prompt has at least one.
        folds: parts that the prompts are split into; a prompt's pairs are never on both sides.
        seeds: repeats, each with another split and initialisation.
        settings: of the fits.
        advance: called after each fit.

    Raises:
        ValueError: unless 2 <= folds <= N.
    """
    prompts, count = features.shape[0], features.shape[1]
    prompt, chosen, rejected = _columns(pairs)
    correct = torch.zeros(prompts, dtype=torch.float64)
    log_odds = torch.zeros(seeds, prompts, count, count)
    fit: list[float] = []
    examples: list[tuple[Head, Tensor]] = []
    for seed in range(seeds):
        for heldout in prompt_folds(prompts, folds, seed):
            outside = torch.isin(prompt, heldout)
            head = fit_pairs(
                kind,
                features[prompt[~outside], chosen[~outside]],
                features[prompt[~outside], rejected[~outside]],
                settings,
                seed,
            )
            log_odds[seed, heldout] = _log_odds(head, features[heldout])
            everywhere = agreement(_log_odds(head, features)[prompt, chosen, rejected])
            fit.append(everywhere[~outside].mean().item())
            correct.index_add_(0, prompt[outside], everywhere[outside])
            examples.append((head, heldout))
            advance()
    heldout_accuracy = correct / (seeds * torch.bincount(prompt, minlength=prompts))
    return Evaluation(fit, heldout_accuracy, log_odds, *examples[0])


def bootstrap_interval(
    values: Tensor, *, resamples: int = 4000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of ``values`` (N,) over its N prompts."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
    means = values.double()[drawn].mean(dim=1)
    tail = (1 - level) / 2
    low, high = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=means.dtype)).tolist()
    return low, high
