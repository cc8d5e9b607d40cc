"""What the tests of the OpenRLHF adapter share: a tiny backbone and reward models on it."""

from __future__ import annotations

from typing import Any

import torch
from tiny_models import one_thread, transformers

from gpm_core.integrations.openrlhf import OpenRLHFRewardModel

__all__ = ["MARKER", "adapter", "backbone", "one_thread"]

HIDDEN = 16
MARKER = [30, 31]


def backbone() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaModel(
        transformers.LlamaConfig(
            vocab_size=40,
            hidden_size=HIDDEN,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
        )
    )


def adapter(**options: Any) -> Any:
    model = OpenRLHFRewardModel.from_backbone(backbone(), **{"dim": 4, **options})
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return model
