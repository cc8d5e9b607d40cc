"""Preference data: reading, checking, building, cleaning and dividing them."""

from gpm_core.data.checking import DataReport, Problem, check_file
from gpm_core.data.criteria import (
    CriteriaPair,
    criteria_dataset,
    labelled_pairs,
    load_labelled,
    parse_criteria_pair,
)
from gpm_core.data.cycles import (
    PAPER_CYCLES,
    ULTRAFEEDBACK_CRITERIA,
    Cycle,
    CyclicPreferences,
    cyclic_pairs,
)
from gpm_core.data.deduplication import DeduplicationReport, deduplicate
from gpm_core.data.errors import DataError
from gpm_core.data.hub import from_dataset, load_pairs, load_rated, to_dataset
from gpm_core.data.messages import Message, PromptLike, as_messages
from gpm_core.data.pairs import PreferencePair, ResponseGroup, parse_group, parse_pair
from gpm_core.data.preferences import CriteriaPairs, criteria_pairs, pairs_from_ratings
from gpm_core.data.prompts import load_prompts, parse_prompt_record
from gpm_core.data.rated import RatedGroup, parse_rated
from gpm_core.data.reading import read_groups, read_pairs, read_rated
from gpm_core.data.splitting import (
    DatasetSplit,
    SharedPrompt,
    check_disjoint,
    shared_prompts,
    split_by_prompt,
    split_dataset,
    split_indices,
)

__all__ = [
    "PAPER_CYCLES",
    "ULTRAFEEDBACK_CRITERIA",
    "CriteriaPair",
    "CriteriaPairs",
    "Cycle",
    "CyclicPreferences",
    "DataError",
    "DataReport",
    "DatasetSplit",
    "DeduplicationReport",
    "Message",
    "PreferencePair",
    "Problem",
    "PromptLike",
    "RatedGroup",
    "ResponseGroup",
    "SharedPrompt",
    "as_messages",
    "check_disjoint",
    "check_file",
    "criteria_dataset",
    "criteria_pairs",
    "cyclic_pairs",
    "deduplicate",
    "from_dataset",
    "labelled_pairs",
    "load_labelled",
    "load_pairs",
    "load_prompts",
    "load_rated",
    "pairs_from_ratings",
    "parse_criteria_pair",
    "parse_group",
    "parse_pair",
    "parse_prompt_record",
    "parse_rated",
    "read_groups",
    "read_pairs",
    "read_rated",
    "shared_prompts",
    "split_by_prompt",
    "split_dataset",
    "split_indices",
    "to_dataset",
]
