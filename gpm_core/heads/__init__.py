"""Heads: modules that turn a backbone's hidden states into preferences.

The general, Bradley-Terry and hybrid heads speak one language. ``embed`` gives a preference
embedding (..., d) for any operation of :mod:`gpm_core.ops`, ``scale`` the weight of its blocks, and
``score``, ``score_matrix`` and ``probability_matrix`` put both together. A scalar reward r is the
embedding (1, -r), whose score s(a > b) = 1 * (-r_b) - (-r_a) * 1 = r_a - r_b, so Bradley-Terry and
hybrid models use the same operations as the general one.

:class:`MultiCriteriaHead` has a score for each of several criteria; their weighted sum is one
preference again, a :class:`CombinedHead`, which speaks that language too.

:class:`PairPreferenceHead` is the baseline that they are compared with: it reads both responses
of a pair at once, so it has ``score`` and the matrices, at K^2 evaluations, but no embedding.
"""

from gpm_core.heads._common import Gate, Init
from gpm_core.heads._common import _Head as _Head
from gpm_core.heads.bradley_terry import BradleyTerryHead
from gpm_core.heads.criteria import CombinedHead, MultiCriteriaHead
from gpm_core.heads.hybrid import HybridHead
from gpm_core.heads.pair import PairPreferenceHead
from gpm_core.heads.preference import PreferenceHead

__all__ = [
    "BradleyTerryHead",
    "CombinedHead",
    "Gate",
    "HybridHead",
    "Init",
    "MultiCriteriaHead",
    "PairPreferenceHead",
    "PreferenceHead",
]
