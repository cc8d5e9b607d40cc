"""Why heads differ: the same heads on the fixed hidden states of the untrained model."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.smollm2.frozen import FrozenStates
from gpm_core.data import PreferencePair
from gpm_core.data.splitting import split_indices
from gpm_core.models import pad_rows
from gpm_core.training import FitSettings, HeadOptions, evaluate_pairs, fit_head, standardization
from gpm_core.training.features import pair_index


class Variant(NamedTuple):
    """A head, and how it is trained."""

    options: HeadOptions
    #: Settings beside the defaults.
    settings: Mapping[str, Any] = MappingProxyType({})
    normalize: bool = True

    def build(self, hidden_size: int) -> Any:
        """A new head, from torch's random numbers."""
        head: Any = self.options.build(hidden_size)
        if not self.normalize:
            # An attribute, which changes nothing at the start but the length of embeddings.
            head.normalize = False
        return head


#: Heads by name; each on standardized hidden states and on raw ones.
HEADS = {
    "Bradley-Terry": Variant(HeadOptions("bt")),
    "Bradley-Terry, no penalty": Variant(HeadOptions("bt"), {"penalty": 0.0}),
    "GPM, 2k = 8": Variant(HeadOptions("gpm", 8)),
    "GPM, 2k = 8, no penalty": Variant(HeadOptions("gpm", 8), {"penalty": 0.0}),
    "GPM, 2k = 8, not normalized": Variant(HeadOptions("gpm", 8), normalize=False),
    "GPM, 2k = 8, neither": Variant(HeadOptions("gpm", 8), {"penalty": 0.0}, normalize=False),
    "GPM, 2k = 8, tau = 1": Variant(HeadOptions("gpm", 8, tau=1.0)),
    "GPM, 2k = 8, paper's initialisation": Variant(HeadOptions("gpm", 8, init="paper")),
    "GPM, 2k = 8, paper's, no penalty": Variant(
        HeadOptions("gpm", 8, init="paper"), {"penalty": 0.0}
    ),
    "hybrid, 8": Variant(HeadOptions("hybrid", 8)),
}


@torch.no_grad()
def last_states(upper: Any, frozen: FrozenStates, batch_size: int = 32) -> Tensor:
    """Hidden states (N, H) at the last token of each conversation, before any training."""
    upper.eval()
    rows = frozen.rows
    states = torch.empty(len(rows), upper.config.hidden_size)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i].ids))
    for start in tqdm(range(0, len(order), batch_size), desc="hidden states", unit="batch"):
        batch = order[start : start + batch_size]
        ids, mask, _ = pad_rows([frozen.row(i) for i in batch], 0)
        hidden = upper(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        states[batch] = hidden[torch.arange(len(batch)), mask.sum(1) - 1].float()
    return states


def study(states: Tensor, pairs: list[PreferencePair], seeds: int) -> list[dict[str, Any]]:
    """Each head on raw and on standardized states: one record for each seed."""
    records = []
    for seed in range(seeds):
        train, heldout = (pair_index(pairs, i) for i in split_indices(pairs, 0.2, seed))
        measured = standardization(states[torch.cat((train.chosen, train.rejected))])
        for scaled in (True, False):
            features = (states - measured[0]) / measured[1] if scaled else states
            for name, variant in HEADS.items():
                started = time.perf_counter()
                torch.manual_seed(seed)
                head = variant.build(features.shape[1])
                settings = FitSettings(seed=seed, **variant.settings)
                fit_head(head, features, train.chosen, train.rejected, settings=settings)
                records.append(
                    {
                        "head": name,
                        "standardized": scaled,
                        "seed": seed,
                        "heldout_accuracy": evaluate_pairs(head, features, heldout).accuracy,
                        "train_accuracy": evaluate_pairs(head, features, train).accuracy,
                        "seconds": time.perf_counter() - started,
                    }
                )
    return records


def constant_part(states: Tensor) -> dict[str, float]:
    """How much of the hidden states is the same for all conversations."""
    mean = states.mean(0)
    return {
        "mean_norm": float(states.norm(dim=1).mean()),
        "norm_of_mean": float(mean.norm()),
        "share_of_energy": float(mean.square().sum() / states.square().sum(1).mean()),
        "mean_standard_deviation": float(states.std(0).square().mean().sqrt()),
        "root_hidden_size": math.sqrt(states.shape[1]),
    }
