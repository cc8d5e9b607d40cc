"""Iterated alignment of language models with preference models, over files."""

try:
    import accelerate
    import datasets
    import pyarrow
    import transformers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'gpm_core.policy needs the package {error.name}: pip install "gpm_core[train]"',
        name=error.name,
    ) from error

from gpm_core.policy.evaluation import evaluate_policies
from gpm_core.policy.options import GPOOptions, SamplingOptions
from gpm_core.policy.run import AlignmentResult, align

__all__ = ["AlignmentResult", "GPOOptions", "SamplingOptions", "align", "evaluate_policies"]

del accelerate, datasets, pyarrow, transformers
