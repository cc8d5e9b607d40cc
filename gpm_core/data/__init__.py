"""Preference data: reading pairs and groups of responses, and dividing them."""

from gpm_core.data.messages import Message, PromptLike, as_messages
from gpm_core.data.pairs import PreferencePair, ResponseGroup, parse_group, parse_pair
from gpm_core.data.reading import DataError, read_groups, read_pairs
from gpm_core.data.splitting import split_by_prompt, split_indices

__all__ = [
    "DataError",
    "Message",
    "PreferencePair",
    "PromptLike",
    "ResponseGroup",
    "as_messages",
    "parse_group",
    "parse_pair",
    "read_groups",
    "read_pairs",
    "split_by_prompt",
    "split_indices",
]
