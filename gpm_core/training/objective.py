"""The loss of one batch of pairs, for any head, and what a whole set of pairs scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gpm_core import ops
from gpm_core.heads import (
    BradleyTerryHead,
    HybridHead,
    MultiCriteriaHead,
    PairPreferenceHead,
    PreferenceHead,
)
from gpm_core.losses import (
    PreferenceLossOutput,
    Reduction,
    Temperature,
    one_temperature,
)
from gpm_core.models.pair_loss import LossSettings, configured_loss
from gpm_core.training.settings import FitSettings

Head = PreferenceHead | BradleyTerryHead | HybridHead | MultiCriteriaHead | PairPreferenceHead


@dataclass(frozen=True)
class PairIndex:
    """Pairs as rows of a feature matrix.

    Attributes:
        chosen: (P,) int64 rows of the chosen responses.
        rejected: (P,) int64 rows of the rejected ones.
        prompt: (P,) int64 rows of the prompt features, or None.
        margin: (P,) float32, what the score must exceed, nan for pairs without; or None.
        target: (P,) float32 in [0, 1], probability that chosen is preferred, or None; of C criteria
            (P, C), nan where there is no label.
    """

    chosen: Tensor
    rejected: Tensor
    prompt: Tensor | None = None
    margin: Tensor | None = None
    target: Tensor | None = None

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, rows: Tensor) -> PairIndex:
        """The pairs ``rows`` (B,), in that order."""

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        return PairIndex(
            self.chosen[rows],
            self.rejected[rows],
            pick(self.prompt),
            pick(self.margin),
            pick(self.target),
        )

    def to(self, device: torch.device) -> PairIndex:
        """The same pairs, with their tensors on ``device``."""

        def move(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.to(device)

        return PairIndex(
            self.chosen.to(device),
            self.rejected.to(device),
            move(self.prompt),
            move(self.margin),
            move(self.target),
        )


@dataclass(frozen=True)
class Evaluation:
    """What a head makes of P pairs: per pair, on the CPU.

    Attributes:
        score: (P,) s(chosen > rejected), of a temperature for each block the one whose blocks it
            weighs, see :func:`gpm_core.losses.one_temperature`.
        probability: (P,) sigmoid(score / tau), without margins.
        loss: (P,) training loss, with margins and soft targets.
        correct: (P,) 1 where the score has the target's side, 0 where not, 1/2 for ties.
    """

    score: Tensor
    probability: Tensor
    loss: Tensor
    correct: Tensor

    @property
    def accuracy(self) -> float:
        """Share of pairs on the right side, ties counted half."""
        return float(self.correct.double().mean())

    @property
    def mean_loss(self) -> float:
        """Mean training loss."""
        return float(self.loss.double().mean())


def pair_loss(
    head: Head,
    hidden: Tensor,
    prompt_hidden: Tensor | None,
    margin: Tensor | None,
    target: Tensor | None,
    settings: LossSettings,
    temperature: Temperature | None = None,
    *,
    reduction: Reduction = "mean",
) -> PreferenceLossOutput:
    """Loss of a batch of pairs under a head's own model.

    Args:
        head: any head of :mod:`gpm_core.heads`.
        hidden: (2B, H): the B chosen responses, then the B rejected ones.
        prompt_hidden: (B, H) of the prompts, for a gate.
        margin: (B,), nan for pairs without, or None.
        target: (B,) in [0, 1] or None.
        settings: which loss; :class:`FitSettings`.
        temperature: a learned one; None for the head's own, which is fixed.
        reduction: "mean", "sum" or "none".
    """
    tau = head.tau if temperature is None else temperature()
    sides = _sides(head, hidden, prompt_hidden)
    return configured_loss(settings, tau, sides, margin, target, reduction)


def _sides(
    head: Head, hidden: Tensor, prompt_hidden: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Embeddings (B, d) of chosen and rejected, whose score is the head's, and their scale."""
    if isinstance(head, PairPreferenceHead):
        return sides_of_scores(head.score(*hidden.chunk(2)))
    # One pass of the head over both sides costs half the calls of two.
    chosen, rejected = head.embed(hidden).chunk(2)
    return chosen, rejected, head.scale(prompt_hidden)


def sides_of_scores(score: Tensor) -> tuple[Tensor, Tensor, None]:
    """Embeddings (..., 2) whose scores are ``score`` (...), of rewards of so much and of 0, and no
    scale.
    """
    one, nothing = torch.ones_like(score), torch.zeros_like(score)
    return torch.stack((one, -score), dim=-1), torch.stack((one, nothing), dim=-1), None


@torch.no_grad()
def evaluate_pairs(
    head: Head,
    features: Tensor,
    pairs: PairIndex,
    prompt_features: Tensor | None = None,
    settings: FitSettings | None = None,
    temperature: Temperature | None = None,
) -> Evaluation:
    """Scores, probabilities and losses of all ``pairs`` under ``head``.

    Args:
        head: the head; left as it is.
        features: (N, H) standardized features.
        pairs: P pairs of rows of ``features``.
        prompt_features: (M, H) features that ``pairs.prompt`` names rows of, for a gate.
        settings: which loss, without its label smoothing; None: the defaults.
        temperature: a learned one; None for the head's own.

    Raises:
        TypeError: for a head of several criteria, see :func:`evaluate_criteria`.
    """
    if isinstance(head, MultiCriteriaHead):
        raise TypeError("a head of several criteria is evaluated by evaluate_criteria")
    was_training = head.training
    nn.Module.eval(head)
    hidden = torch.cat((features[pairs.chosen], features[pairs.rejected]))
    chosen, rejected, scale = _sides(head, hidden, gather_prompts(pairs, prompt_features))
    head.train(was_training)
    tau: float | Tensor = head.tau if temperature is None else temperature()
    if isinstance(tau, Tensor) and tau.dim():
        scale, tau = one_temperature(scale, tau)
    wide = torch.promote_types(chosen.dtype, torch.float32)
    scale = None if scale is None else scale.to(wide)
    score = ops.score(chosen.to(wide), rejected.to(wide), scale)
    return evaluate_scores(score, float(tau), pairs.margin, pairs.target, settings)


def evaluate_scores(
    score: Tensor,
    tau: float,
    margin: Tensor | None = None,
    target: Tensor | None = None,
    settings: FitSettings | None = None,
) -> Evaluation:
    """Probabilities and losses of P pairs from their scores, of whatever model.

    Args:
        score: (P,) s(chosen > rejected), float32 or float64.
        tau: temperature that scores are divided by.
        margin: (P,), nan for pairs without, or None.
        target: (P,) in [0, 1] or None.
        settings: which loss, without its label smoothing; None: the defaults.
    """
    settings = replace(settings or FitSettings(), label_smoothing=0.0)
    score = score.detach().cpu()
    margin = None if margin is None else margin.cpu()
    target = None if target is None else target.cpu()
    loss = configured_loss(settings, tau, sides_of_scores(score), margin, target, "none").loss
    side = torch.sign(score)
    if target is not None:
        side = side * torch.sign(target - 0.5)
    probability = torch.sigmoid(score / tau).float()
    return Evaluation(score.float(), probability, loss, (side + 1) / 2)


def gather_prompts(pairs: PairIndex, prompt_features: Tensor | None) -> Tensor | None:
    """Prompt features (P, H) of each pair, or None where there are none."""
    if prompt_features is None:
        return None
    if pairs.prompt is None:
        raise ValueError("pairs need prompt, the rows of prompt_features, to be used with it")
    return prompt_features[pairs.prompt]


def check_pairs(
    name: str, pairs: PairIndex, features: Tensor, prompt_features: Tensor | None, head: Head
) -> None:
    """Raise ValueError, saying what is wrong, unless ``pairs`` fit the features and the head."""
    _check_features("features", features, head)
    if not len(pairs):
        raise ValueError(f"{name} must hold at least one pair; got none")
    _check_rows(f"{name}: chosen", pairs.chosen, len(pairs), len(features))
    _check_rows(f"{name}: rejected", pairs.rejected, len(pairs), len(features))
    if getattr(head, "gate", None) is not None and prompt_features is None:
        raise ValueError(f"the head has a {head.gate} gate: pass prompt_features")
    if prompt_features is not None:
        _check_features("prompt_features", prompt_features, head)
        if pairs.prompt is None:
            raise ValueError(f"{name}: prompt, the rows of prompt_features, is missing")
        _check_rows(f"{name}: prompt", pairs.prompt, len(pairs), len(prompt_features))
    if isinstance(head, MultiCriteriaHead):
        _check_labels(name, pairs, head.criteria)
        return
    for field, values in (("margin", pairs.margin), ("target", pairs.target)):
        if values is None:
            continue
        if values.shape != pairs.chosen.shape:
            raise ValueError(
                f"{name}: {field} must have one number per pair, ({len(pairs)},); "
                f"got {tuple(values.shape)}"
            )
    if pairs.margin is not None and pairs.margin.isinf().any():
        raise ValueError(f"{name}: margin must be finite, or nan for pairs without")
    if pairs.target is not None and not ((pairs.target >= 0) & (pairs.target <= 1)).all():
        raise ValueError(f"{name}: target must be in [0, 1]")


def _check_labels(name: str, pairs: PairIndex, criteria: tuple[str, ...]) -> None:
    if pairs.margin is not None:
        raise ValueError(f"{name}: a margin is of one preference; the head has several criteria")
    target, shape = pairs.target, (len(pairs), len(criteria))
    if target is None or target.shape != shape:
        raise ValueError(
            f"{name}: target must be {shape}, a label for each pair and each of "
            f"{', '.join(criteria)}, nan where there is none; got "
            f"{None if target is None else tuple(target.shape)}"
        )
    if not (((target >= 0) & (target <= 1)) | target.isnan()).all():
        raise ValueError(f"{name}: target must be in [0, 1], or nan where there is no label")


def _check_features(name: str, features: Tensor, head: Head) -> None:
    if features.dim() != 2 or features.shape[1] != head.hidden_size:
        raise ValueError(
            f"{name} must be (N, {head.hidden_size}), as wide as the head expects; "
            f"got {tuple(features.shape)}"
        )
    if not torch.isfinite(features).all():
        raise ValueError(f"{name} must be finite; row {_first_bad(features)} is not")


def _first_bad(features: Tensor) -> int:
    return int((~torch.isfinite(features)).any(dim=1).int().argmax())


def _check_rows(name: str, rows: Tensor, count: int, size: int) -> None:
    if rows.shape != (count,):
        raise ValueError(f"{name} must be ({count},), one row per pair; got {tuple(rows.shape)}")
    if rows.min() < 0 or rows.max() >= size:
        raise ValueError(
            f"{name} must be rows in [0, {size}); got {int(rows.min())} to {int(rows.max())}"
        )
