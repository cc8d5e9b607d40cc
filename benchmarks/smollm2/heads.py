"""Why heads differ: the same heads on the fixed hidden states of the untrained model."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.smollm2.frozen import FrozenStates
from gpm_core.data import PreferencePair
from gpm_core.data.splitting import split_indices
from gpm_core.models import pad_rows
from gpm_core.training import FitSettings, HeadOptions, evaluate_pairs, fit_head, standardization
from gpm_core.training.features import pair_index

#: Heads by name; each on standardized hidden states and on raw ones.
HEADS = {
    "Bradley-Terry": HeadOptions("bt"),
    "GPM, 2k = 8": HeadOptions("gpm", 8),
    "GPM, 2k = 8, paper's initialisation": HeadOptions("gpm", 8, init="paper"),
    "hybrid, 8": HeadOptions("hybrid", 8),
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
            for name, options in HEADS.items():
                started = time.perf_counter()
                torch.manual_seed(seed)
                head = options.build(features.shape[1])
                settings = FitSettings(seed=seed)
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
