"""Training a head on a matrix of features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gpm_core.heads import MultiCriteriaHead, PreferenceHead
from gpm_core.losses import PreferenceLossOutput, Temperature
from gpm_core.training.criteria import criteria_loss, evaluate_criteria
from gpm_core.training.loop import HeldOut, History, ParameterGroup, TrainingLoop
from gpm_core.training.objective import (
    Head,
    PairIndex,
    check_pairs,
    evaluate_pairs,
    gather_prompts,
    pair_loss,
)
from gpm_core.training.settings import FitSettings


def standardization(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (H,) of features (N, H); 1 in place of a deviation of zero.

    Raises:
        ValueError: if there are no rows.
    """
    if features.dim() != 2 or not len(features):
        raise ValueError(f"features must be (N, H) with N >= 1; got {tuple(features.shape)}")
    wide = features.double()
    mean, std = wide.mean(dim=0), wide.std(dim=0, correction=0)
    # Rounding leaves a constant column a deviation of the order of its own last bits.
    constant = std <= 1e-6 * wide.abs().amax(dim=0)
    std = torch.where(constant, torch.ones_like(std), std)
    return mean.to(features.dtype), std.to(features.dtype)


def fit_head(
    head: Head,
    features: Tensor,
    chosen_index: Tensor | Sequence[int],
    rejected_index: Tensor | Sequence[int],
    prompt_features: Tensor | None = None,
    margin: Tensor | Sequence[float] | None = None,
    target: Tensor | Sequence[float] | None = None,
    settings: FitSettings | None = None,
    *,
    prompt_index: Tensor | Sequence[int] | None = None,
    heldout: PairIndex | None = None,
    temperature: Temperature | None = None,
    progress: bool = False,
) -> History:
    """Train a head, in place, on pairs of rows of a feature matrix.

    Args:
        head: a head of :mod:`gpm_core.heads`, for hidden size H. Its initial weights are its own:
            seed them before building it.
        features: (N, H), standardized (see :func:`standardization`) for the default settings to
            work. Not changed.
        chosen_index: (P,) rows of the chosen responses.
        rejected_index: (P,) rows of the rejected ones.
        prompt_features: (P, H), one row per pair, or (M, H) with ``prompt_index``; for a gate.
        margin: (P,) what each score must exceed, nan for pairs without; None for all.
        target: (P,) probabilities in [0, 1] that chosen is preferred; None for 1. Of a head of C
            criteria (P, C), nan where there is no label.
        settings: None for the defaults.
        prompt_index: (P,) rows of ``prompt_features``.
        heldout: pairs to evaluate after each epoch; they are never trained on.
        temperature: trained with the head, in place, and used in place of its tau; None: the
            head's tau, which is fixed.
        progress: show a progress bar on stderr.

    Returns:
        The :class:`History`, one record per epoch. The same arguments, torch version and number of
        threads give the same bits.

    Raises:
        ValueError: if shapes or index ranges do not fit, or the head has a gate and there are no
            prompt features.
        FloatingPointError: if the loss is not finite.

    Example:
        >>> from gpm_core.heads import PreferenceHead
        >>> features = torch.randn(100, 16)
        >>> head = PreferenceHead(16, dim=4)
        >>> history = fit_head(head, features, torch.arange(50), torch.arange(50, 100))
        >>> history.last.epoch == FitSettings().epochs
        True
    """
    settings = FitSettings() if settings is None else settings
    if prompt_index is None and prompt_features is not None:
        prompt_index = torch.arange(len(prompt_features))
    pairs = PairIndex(
        torch.as_tensor(chosen_index, dtype=torch.long),
        torch.as_tensor(rejected_index, dtype=torch.long),
        None if prompt_index is None else torch.as_tensor(prompt_index, dtype=torch.long),
        None if margin is None else torch.as_tensor(margin, dtype=torch.float32),
        None if target is None else torch.as_tensor(target, dtype=torch.float32),
    )
    check_pairs("pairs", pairs, features, prompt_features, head)
    if heldout is not None:
        check_pairs("heldout", heldout, features, prompt_features, head)
    loop = head_loop(head, features, pairs, prompt_features, heldout, settings, temperature)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return loop.run(progress=progress)


def head_loop(
    head: Head,
    features: Tensor,
    pairs: PairIndex,
    prompt_features: Tensor | None,
    heldout: PairIndex | None,
    settings: FitSettings,
    temperature: Temperature | None = None,
) -> TrainingLoop:
    """The :class:`TrainingLoop` of a head on a feature matrix, to be run, saved or restored."""

    def loss(rows: Tensor) -> PreferenceLossOutput:
        batch = pairs.take(rows)
        hidden = features[torch.cat((batch.chosen, batch.rejected))]
        gates = gather_prompts(batch, prompt_features)
        if isinstance(head, MultiCriteriaHead):
            assert batch.target is not None
            smoothing = settings.label_smoothing
            output = criteria_loss(
                head, hidden, gates, batch.target, temperature, label_smoothing=smoothing
            )
            return PreferenceLossOutput(output.loss, output.probability, output.accuracy)
        return pair_loss(
            head,
            hidden,
            gates,
            batch.margin,
            batch.target,
            settings,
            temperature,
        )

    def evaluate() -> HeldOut:
        assert heldout is not None
        if isinstance(head, MultiCriteriaHead):
            labels = evaluate_criteria(head, features, heldout, prompt_features, temperature)
            overall, _ = labels.labels()
            return overall.mean_loss, overall.accuracy, labels.figures()
        result = evaluate_pairs(head, features, heldout, prompt_features, settings, temperature)
        return result.mean_loss, result.accuracy, None

    return TrainingLoop(
        head_groups(head, len(pairs), settings, temperature),
        len(pairs),
        loss,
        None if heldout is None else evaluate,
        settings,
    )


def head_groups(
    head: Head, count: int, settings: FitSettings, temperature: Temperature | None = None
) -> list[ParameterGroup]:
    """The parameters of a head as :class:`FitSettings` says they are trained."""
    groups = []
    divisor = head.tau / _initial_gate(head)
    for name, parameter in head.named_parameters():
        if name == "prompt_head.weight" and _has_free_weights(head):
            # No features are weighed by these: as the temperature below, and nothing to hold back.
            rate = settings.learning_rate * math.sqrt(head.hidden_size)
            groups.append(ParameterGroup({f"head.{name}": parameter}, rate))
            continue
        # A gate's logits are not divided by tau, those of all other parameters are.
        tau = 1.0 if name.startswith("prompt_head.") else divisor
        is_weight = parameter.dim() >= 2
        penalty = settings.penalty * head.hidden_size / count / tau**2 if is_weight else 0.0
        groups.append(
            ParameterGroup({f"head.{name}": parameter}, settings.learning_rate * tau, penalty)
        )
    if temperature is not None:
        # A step of each of H weights moves a logit by sqrt(H) rates, in one direction or another.
        rate = settings.learning_rate * math.sqrt(head.hidden_size)
        groups.append(ParameterGroup({"temperature.raw": temperature.raw}, rate))
    return groups


def _has_free_weights(head: Head) -> bool:
    """Whether the head weighs its blocks for each criterion, whatever the prompt."""
    return isinstance(head, MultiCriteriaHead) and head.gate is None


def _initial_gate(head: Head) -> float:
    """What a new gate multiplies each block with: a logit is lambda s / tau.

    A softmax over k blocks starts at 1 / k, so that rates and penalties for s / tau would train a
    gated head k times too slowly, and hold it back k^2 times too much. A hybrid's reward has no
    gate.
    """
    if not isinstance(head, (PreferenceHead, MultiCriteriaHead)) or head.gate is None:
        return 1.0
    return 2 / head.dim if head.gate == "softmax" else math.log(2)
