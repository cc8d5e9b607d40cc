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
from gpm_core.models.collation import PreferenceCollator, tokenize_pairs
from gpm_core.models.configuration import GeneralPreferenceConfig
from gpm_core.models.conversations import encode_conversations, pad_rows
from gpm_core.models.datasets import tokenize_dataset
from gpm_core.models.general_preference import GeneralPreferenceModel
from gpm_core.models.group_scores import GroupEmbeddings, GroupScores, RankedResponse
from gpm_core.models.language_model_head import LanguageModelHead
from gpm_core.models.loading import load_model
from gpm_core.models.outputs import GeneralPreferenceOutput
from gpm_core.models.preference_model import PreferenceModel
from gpm_core.models.text import Passage, Row

transformers.AutoConfig.register(GeneralPreferenceConfig.model_type, GeneralPreferenceConfig)
transformers.AutoModel.register(GeneralPreferenceConfig, GeneralPreferenceModel)

__all__ = [
    "GeneralPreferenceConfig",
    "GeneralPreferenceModel",
    "GeneralPreferenceOutput",
    "GroupEmbeddings",
    "GroupScores",
    "LanguageModelHead",
    "Passage",
    "PreferenceCollator",
    "PreferenceModel",
    "RankedResponse",
    "Row",
    "TextBackbone",
    "encode_conversations",
    "load_model",
    "pad_rows",
    "tokenize_dataset",
    "tokenize_pairs",
]

del safetensors, transformers
