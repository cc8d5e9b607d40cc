"""Training of preference heads and models: deterministic, resumable, with defaults that work."""

try:
    import safetensors
    import tqdm
    import transformers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'gpm_core.training needs the package {error.name}: pip install "gpm_core[train]"',
        name=error.name,
    ) from error

from gpm_core.training.comparing import Comparison, HeadResult, compare
from gpm_core.training.criteria import CriteriaEvaluation, evaluate_criteria
from gpm_core.training.fit import fit_head, standardization
from gpm_core.training.loop import EpochRecord, History
from gpm_core.training.objective import Evaluation, PairIndex, evaluate_pairs
from gpm_core.training.options import BackboneOptions, HeadOptions, RunOptions
from gpm_core.training.run import RunResult, train
from gpm_core.training.settings import FitSettings
from gpm_core.training.sources import DataOptions
from gpm_core.training.tuning import TuneOptions, TuneResult, tune

__all__ = [
    "BackboneOptions",
    "Comparison",
    "CriteriaEvaluation",
    "DataOptions",
    "EpochRecord",
    "Evaluation",
    "FitSettings",
    "HeadOptions",
    "HeadResult",
    "History",
    "PairIndex",
    "RunOptions",
    "RunResult",
    "TuneOptions",
    "TuneResult",
    "compare",
    "evaluate_criteria",
    "evaluate_pairs",
    "fit_head",
    "standardization",
    "train",
    "tune",
]

del safetensors, tqdm, transformers
