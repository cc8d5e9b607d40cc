"""Objectives of policy optimization on general preferences, for any trainer.

They take sequence log-probabilities, sums over the response's tokens, so they know nothing of
models, and return an :class:`ObjectiveOutput`: the loss to differentiate, its terms, and metrics
with TRL's names.

=====================================  ==========================================================
groups of K responses, mean scores     :func:`gpo_loss`
... mean win probabilities             :func:`sppo_loss`, :func:`dsppo_loss`
... probabilities of all pairs         :func:`online_ipo_loss`
... against the mixture policy         :func:`nash_md_loss`
chosen and rejected                    :func:`dpo_loss` (also cDPO, rDPO), :func:`ipo_loss`
... without a reference policy         :func:`simpo_loss`
=====================================  ==========================================================

Beside them: :mod:`~gpm_core.objectives.targets` (what log-ratios are regressed on, and against
whom), :mod:`~gpm_core.objectives.groups` (even and ragged groups, best and worst),
:mod:`~gpm_core.objectives.nash_md` (the mixture policy), and
:mod:`~gpm_core.objectives.advantages` (GPRL's group-relative advantages and drift monitor).
"""

from gpm_core.objectives import advantages, groups, nash_md, targets
from gpm_core.objectives._common import ObjectiveOutput, Reduction
from gpm_core.objectives.modules import (
    DPOLoss,
    DSPPOLoss,
    GPOLoss,
    IPOLoss,
    NashMDLoss,
    OnlineIPOLoss,
    SimPOLoss,
    SPPOLoss,
)
from gpm_core.objectives.nash_md import nash_md_loss
from gpm_core.objectives.pairs import dpo_loss, ipo_loss, online_ipo_loss, simpo_loss
from gpm_core.objectives.regression import dsppo_loss, gpo_loss, sppo_loss

__all__ = [
    "DPOLoss",
    "DSPPOLoss",
    "GPOLoss",
    "IPOLoss",
    "NashMDLoss",
    "ObjectiveOutput",
    "OnlineIPOLoss",
    "Reduction",
    "SPPOLoss",
    "SimPOLoss",
    "advantages",
    "dpo_loss",
    "dsppo_loss",
    "gpo_loss",
    "groups",
    "ipo_loss",
    "nash_md",
    "nash_md_loss",
    "online_ipo_loss",
    "simpo_loss",
    "sppo_loss",
    "targets",
]
