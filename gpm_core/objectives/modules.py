"""Objectives as modules that hold their options.

The options are attributes: ``loss.beta = 0.05`` between steps is a schedule.
"""

from __future__ import annotations

from torch import Tensor, nn

from gpm_core.objectives._common import ObjectiveOutput, Reduction
from gpm_core.objectives.groups import GroupSizes
from gpm_core.objectives.nash_md import nash_md_loss
from gpm_core.objectives.pairs import dpo_loss, ipo_loss, online_ipo_loss, simpo_loss
from gpm_core.objectives.regression import dsppo_loss, gpo_loss, sppo_loss


class _Objective(nn.Module):
    """Prints what it holds."""

    def extra_repr(self) -> str:
        """Options, for ``repr``."""
        held = (name for name in vars(self) if name != "training" and not name.startswith("_"))
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in held)


class GPOLoss(_Objective):
    """:func:`gpo_loss` with its options held: ``loss(logps, reference_logps, scores)``.

    Example:
        >>> logps = torch.tensor([[-1.0, -2.0]])
        >>> GPOLoss(beta=0.1)(logps, logps, torch.tensor([[0.1, -0.1]])).loss
        tensor(1.)
    """

    def __init__(
        self,
        *,
        beta: float = 1e-3,
        centered: bool = False,
        max_target: float | None = None,
        max_log_ratio: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.beta, self.centered, self.max_target = beta, centered, max_target
        self.max_log_ratio, self.reduction = max_log_ratio, reduction

    def forward(
        self,
        logps: Tensor,
        reference_logps: Tensor,
        scores: Tensor,
        *,
        group_sizes: GroupSizes | None = None,
    ) -> ObjectiveOutput:
        """(..., K) each, or (N,) with ``group_sizes``, see :func:`gpo_loss`."""
        return gpo_loss(
            logps,
            reference_logps,
            scores,
            beta=self.beta,
            centered=self.centered,
            max_target=self.max_target,
            max_log_ratio=self.max_log_ratio,
            group_sizes=group_sizes,
            reduction=self.reduction,
        )


class SPPOLoss(_Objective):
    """:func:`sppo_loss` with its options held: ``loss(logps, reference_logps, probabilities)``.

    Example:
        >>> logps = torch.tensor([[-1.0, -2.0]])
        >>> SPPOLoss(eta=10.0)(logps, logps, torch.tensor([[0.6, 0.4]])).loss
        tensor(1.0000)
    """

    def __init__(
        self,
        *,
        eta: float = 1e3,
        centered: bool = False,
        max_target: float | None = None,
        max_log_ratio: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.eta, self.centered, self.max_target = eta, centered, max_target
        self.max_log_ratio, self.reduction = max_log_ratio, reduction

    def forward(
        self,
        logps: Tensor,
        reference_logps: Tensor,
        probabilities: Tensor,
        *,
        group_sizes: GroupSizes | None = None,
    ) -> ObjectiveOutput:
        """(..., K) each, or (N,) with ``group_sizes``, see :func:`sppo_loss`."""
        return sppo_loss(
            logps,
            reference_logps,
            probabilities,
            eta=self.eta,
            centered=self.centered,
            max_target=self.max_target,
            max_log_ratio=self.max_log_ratio,
            group_sizes=group_sizes,
            reduction=self.reduction,
        )


class DSPPOLoss(_Objective):
    """:func:`dsppo_loss` with its options held; the iteration is an argument of the call.

    Example:
        >>> logps, part = torch.zeros(2), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> DSPPOLoss(eta=1.0)(logps, logps, 0 * part, part, iteration=1).loss
        tensor(0.)
    """

    def __init__(
        self,
        *,
        curriculum: float = 1.0,
        tau: float = 1.0,
        eta: float = 1e3,
        centered: bool = False,
        max_target: float | None = None,
        max_log_ratio: float | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.curriculum, self.tau, self.eta, self.centered = curriculum, tau, eta, centered
        self.max_target, self.max_log_ratio, self.reduction = max_target, max_log_ratio, reduction

    def forward(
        self,
        logps: Tensor,
        reference_logps: Tensor,
        transitive_scores: Tensor,
        cyclic_scores: Tensor,
        *,
        iteration: int,
        weights: Tensor | None = None,
        group_sizes: GroupSizes | None = None,
    ) -> ObjectiveOutput:
        """(..., K) log-probabilities and (..., K, M) scores, see :func:`dsppo_loss`."""
        return dsppo_loss(
            logps,
            reference_logps,
            transitive_scores,
            cyclic_scores,
            iteration=iteration,
            curriculum=self.curriculum,
            tau=self.tau,
            weights=weights,
            eta=self.eta,
            centered=self.centered,
            max_target=self.max_target,
            max_log_ratio=self.max_log_ratio,
            group_sizes=group_sizes,
            reduction=self.reduction,
        )


class DPOLoss(_Objective):
    """:func:`dpo_loss` with its options held: four log-probabilities in.

    Example:
        >>> chosen, rejected = torch.tensor([-10.0]), torch.tensor([-20.0])
        >>> DPOLoss(beta=0.1)(chosen, rejected, rejected, rejected).loss
        tensor(0.3133)
    """

    def __init__(
        self,
        *,
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        robust: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.beta, self.label_smoothing = beta, label_smoothing
        self.robust, self.reduction = robust, reduction

    def forward(
        self,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        *,
        label_smoothing: Tensor | None = None,
    ) -> ObjectiveOutput:
        """(...) each, see :func:`dpo_loss`; ``label_smoothing`` per pair replaces the held one."""
        return dpo_loss(
            chosen_logps,
            rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            beta=self.beta,
            label_smoothing=self.label_smoothing if label_smoothing is None else label_smoothing,
            robust=self.robust,
            reduction=self.reduction,
        )


class IPOLoss(_Objective):
    """:func:`ipo_loss` with its options held: four log-probabilities and lengths, if any, in.

    Example:
        >>> chosen, rejected = torch.tensor([-10.0]), torch.tensor([-20.0])
        >>> IPOLoss(beta=0.1)(chosen, rejected, rejected, rejected).loss
        tensor(25.)
    """

    def __init__(self, *, beta: float = 0.1, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.beta, self.reduction = beta, reduction

    def forward(
        self,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        reference_chosen_logps: Tensor,
        reference_rejected_logps: Tensor,
        chosen_lengths: Tensor | None = None,
        rejected_lengths: Tensor | None = None,
    ) -> ObjectiveOutput:
        """(...) each, see :func:`ipo_loss`."""
        return ipo_loss(
            chosen_logps,
            rejected_logps,
            reference_chosen_logps,
            reference_rejected_logps,
            chosen_lengths,
            rejected_lengths,
            beta=self.beta,
            reduction=self.reduction,
        )


class SimPOLoss(_Objective):
    """:func:`simpo_loss` with its options held: log-probabilities and lengths in.

    Example:
        >>> chosen, rejected, tokens = (torch.tensor([n]) for n in (-10.0, -20.0, 10.0))
        >>> SimPOLoss()(chosen, rejected, tokens, tokens).loss
        tensor(0.3133)
    """

    def __init__(
        self,
        *,
        beta: float = 2.0,
        gamma: float = 1.0,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        self.beta, self.gamma = beta, gamma
        self.label_smoothing, self.reduction = label_smoothing, reduction

    def forward(
        self,
        chosen_logps: Tensor,
        rejected_logps: Tensor,
        chosen_lengths: Tensor,
        rejected_lengths: Tensor,
    ) -> ObjectiveOutput:
        """(...) each, see :func:`simpo_loss`."""
        return simpo_loss(
            chosen_logps,
            rejected_logps,
            chosen_lengths,
            rejected_lengths,
            beta=self.beta,
            gamma=self.gamma,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
        )


class OnlineIPOLoss(_Objective):
    """:func:`online_ipo_loss` with its options held.

    Example:
        >>> logps, certain = torch.zeros(2), torch.tensor([[0.5, 1.0], [0.0, 0.5]])
        >>> OnlineIPOLoss(beta=0.1)(logps, logps, certain).loss
        tensor(25.)
    """

    def __init__(self, *, beta: float = 0.1, reduction: Reduction = "mean") -> None:
        super().__init__()
        self.beta, self.reduction = beta, reduction

    def forward(
        self,
        logps: Tensor,
        reference_logps: Tensor,
        probabilities: Tensor,
        *,
        group_sizes: GroupSizes | None = None,
    ) -> ObjectiveOutput:
        """(..., K) log-probabilities, (..., K, K) probabilities, see :func:`online_ipo_loss`."""
        return online_ipo_loss(
            logps,
            reference_logps,
            probabilities,
            beta=self.beta,
            group_sizes=group_sizes,
            reduction=self.reduction,
        )


class NashMDLoss(_Objective):
    """:func:`nash_md_loss` with its options held.

    Example:
        >>> logps = torch.tensor([-2.0])
        >>> NashMDLoss()(logps, logps, torch.tensor([0.75])).loss
        tensor(0.5000)
    """

    def __init__(
        self, *, beta: float = 0.1, centered: bool = False, reduction: Reduction = "mean"
    ) -> None:
        super().__init__()
        self.beta, self.centered, self.reduction = beta, centered, reduction

    def forward(
        self,
        logps: Tensor,
        reference_logps: Tensor,
        probabilities: Tensor,
        *,
        group_sizes: GroupSizes | None = None,
    ) -> ObjectiveOutput:
        """(..., K) each, or (N,) with ``group_sizes``, see :func:`nash_md_loss`."""
        return nash_md_loss(
            logps,
            reference_logps,
            probabilities,
            beta=self.beta,
            centered=self.centered,
            group_sizes=group_sizes,
            reduction=self.reduction,
        )
