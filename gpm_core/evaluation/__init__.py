"""Evaluation of preference models: intervals and calibration."""

from gpm_core.evaluation.metrics import (
    ReliabilityBin,
    calibration_error,
    mean_interval,
    reliability,
    wilson_interval,
)

__all__ = [
    "ReliabilityBin",
    "calibration_error",
    "mean_interval",
    "reliability",
    "wilson_interval",
]
