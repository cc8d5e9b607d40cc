"""Cross-validation of preference heads on frozen features, over prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from gpm_core import ops
from gpm_core.demo.cycles import PreferencePair, prompt_folds
from gpm_core.heads import BradleyTerryHead, PreferenceHead
from gpm_core.training import FitSettings, fit_head, standardization

#: The models that are compared: Bradley and Terry's, and the general one.
KINDS = ("bt", "gpm")

Head = BradleyTerryHead | PreferenceHead


@dataclass(frozen=True)
class ModelSettings:
    """The heads and their training, which is the same for both kinds.

    The values lie in the middle of those that gave cycles the best held-out likelihood, on other
    splits than the demonstration's; accuracy hardly changes around them. The defaults of
    :class:`gpm_core.training.FitSettings` are for transitive preferences: they pull a general head
    towards a Bradley-Terry model too strongly for it to learn cycles from this little data.
    """

    dim: int = 4
    tau: float = 0.2
    training: FitSettings = field(
        default_factory=lambda: FitSettings(epochs=20, learning_rate=0.03, penalty=0.03)
    )

    def head(self, kind: str, hidden_size: int) -> Head:
        """A new head of a kind; a reward head has Bradley and Terry's temperature of 1.

        Raises:
            ValueError: for a kind that is not in :data:`KINDS`.
        """
        if kind == "bt":
            return BradleyTerryHead(hidden_size)
        if kind == "gpm":
            return PreferenceHead(hidden_size, self.dim, tau=self.tau)
        raise ValueError(f"kind must be one of {KINDS}; got {kind!r}")


@dataclass
class CrossValidation:
    """What cross-validation of one kind of head on one preference set measured."""

    #: Accuracy of each fit on the pairs that it was trained on.
    fit: list[float]
    #: (N,) float64 held-out accuracy on each prompt's pairs, mean over the repeats.
    heldout: Tensor
    #: (repeats, N, K, K) score / tau of every prompt's responses by the model that held it out.
    log_odds: Tensor
    #: (M, K, d) embeddings of the M prompts that the first model of all held out.
    example: Tensor


def _columns(pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor, Tensor]:
    table = torch.tensor([(pair.prompt, pair.chosen, pair.rejected) for pair in pairs])
    prompt, chosen, rejected = table.unbind(dim=1)
    return prompt, chosen, rejected


def agreement(score: Tensor) -> Tensor:
    """1 where the chosen response scores higher, 0 where lower, 1/2 for a tie; float64."""
    return (torch.sign(score.double()) + 1) / 2


def _embeddings(
    kind: str,
    features: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    trained: Tensor,
    settings: ModelSettings,
    seed: int,
) -> tuple[Tensor, float]:
    """Embeddings (N, K, d) of all responses by a head fitted to pairs, and the head's tau.

    ``chosen`` and ``rejected`` are rows of the N K responses, ``trained`` (N,) bool the prompts
    that the head may know: not even the features' mean is taken from another.
    """
    mean, deviation = standardization(features[trained].flatten(0, 1))
    standardized = (features - mean) / deviation
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        head = settings.head(kind, features.shape[-1])
    training = replace(settings.training, seed=seed)
    fit_head(head, standardized.flatten(0, 1), chosen, rejected, settings=training)
    with torch.no_grad():
        return head.embed(standardized), head.tau


def cross_validate(
    kind: str,
    features: Tensor,
    pairs: Sequence[PreferencePair],
    *,
    folds: int,
    seeds: int,
    settings: ModelSettings,
    advance: Callable[[], object],
) -> CrossValidation:
    """Fit a head on all folds but one, judge it on that one; every fold and seed in turn.

    Args:
        kind: one of :data:`KINDS`.
        features: (N, K, H) float32 frozen features of N prompts' K responses.
        pairs: the preferences; every prompt has at least one.
        folds: parts that the prompts are split into; a prompt's pairs are never on both sides.
        seeds: repeats, each with another split and other initial weights.
        settings: of the heads.
        advance: called after each fit.

    Raises:
        ValueError: unless 2 <= folds <= N, and for an unknown kind.
    """
    prompts, count = features.shape[0], features.shape[1]
    prompt, chosen, rejected = _columns(pairs)
    correct = torch.zeros(prompts, dtype=torch.float64)
    log_odds = torch.zeros(seeds, prompts, count, count)
    fit: list[float] = []
    examples: list[Tensor] = []
    for seed in range(seeds):
        for heldout in prompt_folds(prompts, folds, seed):
            trained = torch.ones(prompts, dtype=torch.bool).index_fill_(0, heldout, False)
            inside = trained[prompt]
            first, second = ((prompt * count + side)[inside] for side in (chosen, rejected))
            embeddings, tau = _embeddings(kind, features, first, second, trained, settings, seed)
            scores = ops.score_matrix(embeddings) / tau
            log_odds[seed, heldout] = scores[heldout]
            agreed = agreement(scores[prompt, chosen, rejected])
            fit.append(agreed[inside].mean().item())
            correct.index_add_(0, prompt[~inside], agreed[~inside])
            examples.append(embeddings[heldout])
            advance()
    heldout_accuracy = correct / (seeds * torch.bincount(prompt, minlength=prompts))
    return CrossValidation(fit, heldout_accuracy, log_odds, examples[0])


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
