"""Preference models over transformers backbones: text in, preferences out."""

try:
    import safetensors
    import transformers
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f'gpm_core.models needs the package {error.name}: pip install "gpm_core[train]"',
        name=error.name,
    ) from error

from gpm_core.models.backbone import TextBackbone
from gpm_core.models.preference_model import GroupScores, PreferenceModel, RankedResponse
from gpm_core.models.text import Passage

__all__ = ["GroupScores", "Passage", "PreferenceModel", "RankedResponse", "TextBackbone"]

del safetensors, transformers
