"""The tiny model and the pairs that the processes of tests/distributed_training.py train on."""

from __future__ import annotations

import math
from typing import Any

import torch
import transformers
from torch import Tensor

from gpm_core.models import GeneralPreferenceModel

STEPS, GLOBAL_BATCH, LENGTH, PROMPT = 4, 4, 9, 3
UNEVEN = 7
#: Labels of four pairs by each of them: one process of two has two labels, the other four.
CRITERIA = ["first", "second"]
LABELS = [[1.0, math.nan], [math.nan, 0.0], [0.0, 0.7], [1.0, 1.0]]
REGULARISED = {"sft_coefficient": 0.3, "sft_per_token": True, "dpo_coefficient": 0.2}
# Momentum, not Adam: Adam's steps do not change where gradients are summed instead of averaged.
OPTIMIZER: dict[str, float] = {"lr": 0.1, "momentum": 0.9}


def build(kind: str = "llama", *, frozen: bool = False, **options: Any) -> GeneralPreferenceModel:
    """A tiny model with a gate and a learned temperature; ``frozen`` but for the last layer."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    if kind == "llama":
        backbone = transformers.LlamaModel(transformers.LlamaConfig(**sizes, pad_token_id=0))
    else:
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        backbone = transformers.BertModel(transformers.BertConfig(**sizes, **dropout))
    options = {"dim": 4, "gate": "softmax", "learn_tau": "one", "tau": 0.5, **options}
    model = GeneralPreferenceModel.from_backbone(backbone, **options)
    if frozen:
        backbone.requires_grad_(False)
        backbone.layers[-1].requires_grad_(True)
    return model


def pairs(count: int, *, criteria: bool = False) -> list[dict[str, Tensor]]:
    """Pairs of unequal lengths, with prompts, soft labels and margins, padded to LENGTH; or with
    labels of some criteria, and without margins.
    """
    draw = torch.Generator().manual_seed(1)
    records = []
    for i in range(count):
        ids = torch.randint(1, 40, (2, LENGTH), generator=draw)
        ids[1, :PROMPT] = ids[0, :PROMPT]
        mask = torch.ones_like(ids)
        mask[i % 2, LENGTH - i % 4 :] = 0
        record = {
            "input_ids": ids,
            "attention_mask": mask,
            "prompt_lengths": torch.tensor([PROMPT, PROMPT]),
        }
        if criteria:
            record["labels"] = torch.tensor(LABELS[i % 4])
        else:
            record["margin"] = torch.tensor(0.1 * (i % 3))
            record["labels"] = torch.tensor(1.0 - 0.1 * (i % 2))
        records.append(record)
    return records


def collate(records: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([r[name] for r in records]) for name in records[0]}
