"""Operations of general preference modelling, each in a file of its name.

Every operation is differentiable, works under ``torch.compile(fullgraph=True)``, autocast and
``torch.func``, and is computed by the backend that :func:`gpm_core.backends.resolve` picks.
"""

from gpm_core.ops.cross_probability_matrix import cross_probability_matrix
from gpm_core.ops.cross_score_matrix import cross_score_matrix
from gpm_core.ops.linear_logprob import linear_logprob
from gpm_core.ops.normalize import normalize
from gpm_core.ops.preference_embedding import preference_embedding
from gpm_core.ops.preference_loss import preference_loss
from gpm_core.ops.probability_matrix import probability_matrix
from gpm_core.ops.score import score
from gpm_core.ops.score_matrix import score_matrix

__all__ = [
    "cross_probability_matrix",
    "cross_score_matrix",
    "linear_logprob",
    "normalize",
    "preference_embedding",
    "preference_loss",
    "probability_matrix",
    "score",
    "score_matrix",
]
