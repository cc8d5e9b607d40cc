"""Evaluation of preference models: benchmarks, calibration, cycles, length, policies."""

try:
    import numpy
    import scipy
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'gpm_core.evaluation needs the package {error.name}: pip install "gpm_core[train]"',
        name=error.name,
    ) from error

from gpm_core.evaluation.choices import TiesResult
from gpm_core.evaluation.criteria import CriteriaReport, Disputed, evaluate_by_criteria
from gpm_core.evaluation.estimates import Bootstrap, Estimate
from gpm_core.evaluation.intransitivity import (
    Intransitivity,
    ObservedTriples,
    count_cycles,
    transitive_part,
)
from gpm_core.evaluation.iterates import IterateComparison, compare_iterates
from gpm_core.evaluation.iterates_report import iterates_markdown, write_iterates_report
from gpm_core.evaluation.length import LengthBias, measure_length_bias
from gpm_core.evaluation.metrics import (
    ReliabilityBin,
    calibration_error,
    mean_interval,
    reliability,
    wilson_interval,
)
from gpm_core.evaluation.pairwise import PairMetrics, PairTable, measure_pairs
from gpm_core.evaluation.policies import idealized_ranking_accuracy, ranking_accuracy
from gpm_core.evaluation.reading import EvaluationData, LabelledGroup, LabelledPair, read_evaluation
from gpm_core.evaluation.report import EvaluationReport, SubsetResult
from gpm_core.evaluation.run import evaluate
from gpm_core.evaluation.scoring import GroupScorer, PairScores
from gpm_core.evaluation.seen import SeenPairs

__all__ = [
    "Bootstrap",
    "CriteriaReport",
    "Disputed",
    "Estimate",
    "EvaluationData",
    "EvaluationReport",
    "GroupScorer",
    "Intransitivity",
    "IterateComparison",
    "LabelledGroup",
    "LabelledPair",
    "LengthBias",
    "ObservedTriples",
    "PairMetrics",
    "PairScores",
    "PairTable",
    "ReliabilityBin",
    "SeenPairs",
    "SubsetResult",
    "TiesResult",
    "calibration_error",
    "compare_iterates",
    "count_cycles",
    "evaluate",
    "evaluate_by_criteria",
    "idealized_ranking_accuracy",
    "iterates_markdown",
    "mean_interval",
    "measure_length_bias",
    "measure_pairs",
    "ranking_accuracy",
    "read_evaluation",
    "reliability",
    "transitive_part",
    "wilson_interval",
    "write_iterates_report",
]

del numpy, scipy
