"""Losses as modules that hold their options."""

from __future__ import annotations

from torch import Tensor, nn

from gpm_core.losses._common import PreferenceLossOutput, Reduction
from gpm_core.losses.preference import bradley_terry_loss, general_preference_loss
from gpm_core.losses.temperature import Temperature


def _describe(tau: float | Temperature, label_smoothing: float, reduction: str) -> str:
    held = f"label_smoothing={label_smoothing}, reduction={reduction!r}"
    # A learnable temperature is a module, and printed as one.
    return held if isinstance(tau, Temperature) else f"tau={tau}, {held}"


class GeneralPreferenceLoss(nn.Module):
    """:func:`general_preference_loss` with its options held: ``loss(chosen, rejected, scale)``.

    With ``tau=Temperature(...)`` it holds a parameter: give ``loss.parameters()`` to the optimizer.

    Example:
        >>> loss = GeneralPreferenceLoss(tau=1.0)
        >>> loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).loss
        tensor(0.3133)
    """

    def __init__(
        self,
        *,
        tau: float | Temperature = 0.1,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.tau, self.label_smoothing, self.reduction = tau, label_smoothing, reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        scale: Tensor | None = None,
        *,
        margin: Tensor | float | None = None,
        target: Tensor | float | None = None,
    ) -> PreferenceLossOutput:
        """Embeddings (..., d) in, see :func:`general_preference_loss`."""
        return general_preference_loss(
            chosen,
            rejected,
            scale,
            margin=margin,
            target=target,
            label_smoothing=self.label_smoothing,
            tau=self.tau,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return _describe(self.tau, self.label_smoothing, self.reduction)


class BradleyTerryLoss(nn.Module):
    """:func:`bradley_terry_loss` with its options held: ``loss(chosen, rejected)``.

    With ``tau=Temperature(...)`` it holds a parameter: give ``loss.parameters()`` to the optimizer.

    Example:
        >>> BradleyTerryLoss()(torch.tensor([1.0]), torch.tensor([0.0])).loss
        tensor(0.3133)
    """

    def __init__(
        self,
        *,
        tau: float | Temperature = 1.0,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.tau, self.label_smoothing, self.reduction = tau, label_smoothing, reduction

    def forward(
        self,
        chosen: Tensor,
        rejected: Tensor,
        *,
        margin: Tensor | float | None = None,
        target: Tensor | float | None = None,
    ) -> PreferenceLossOutput:
        """Rewards (...) in, see :func:`bradley_terry_loss`."""
        return bradley_terry_loss(
            chosen,
            rejected,
            margin=margin,
            target=target,
            label_smoothing=self.label_smoothing,
            tau=self.tau,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        return _describe(self.tau, self.label_smoothing, self.reduction)
