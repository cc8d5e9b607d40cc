"""Models of several criteria: what they must say, in plain PyTorch, and data to learn from."""

from __future__ import annotations

import random
from typing import Any

import torch
from tiny_backbones import expected_score, states, tiny_model
from torch import Tensor

from gpm_core.data import RatedGroup
from gpm_core.models import GeneralPreferenceModel

NAMES = ["helpful", "honest", "short"]
WEIGHTS = {"helpful": 1.0, "honest": 0.5, "short": -0.25}


def criteria_model(backbone: str = "llama", **options: Any) -> GeneralPreferenceModel:
    model = tiny_model(backbone, **{"criteria": NAMES, "tau": 0.4, **options})
    model.set_criteria_weights(WEIGHTS)
    return model


def written_out(model: Any, prompt: list[int], reply: list[int]) -> list[Tensor]:
    """The embedding (d,) of a reply by each criterion, from the formula."""
    hidden = states(model, [*prompt, *reply])
    pooled = hidden[-1] if model.config.causal else hidden.mean(dim=0)
    linear = model.head.value_head
    value = linear.weight.detach() @ pooled
    value = value if linear.bias is None else value + linear.bias.detach()
    each = value.view(-1, model.config.dim)
    if model.config.normalize:
        each = each / each.norm(dim=1, keepdim=True)
    return [each[c % len(each)] for c in range(len(NAMES))]


def written_out_scales(model: Any, prompt: list[int]) -> Tensor:
    """Weights (C, k) of the blocks for each criterion, from the formula."""
    config, blocks = model.config, model.config.dim // 2
    if config.gate is None and config.criteria_mode == "heads":
        return torch.ones(len(NAMES), blocks, dtype=model.dtype)
    linear = model.head.prompt_head
    logits = linear.weight.detach()
    if config.gate is not None:
        logits = logits @ states(model, prompt)[-1]
    logits = logits if linear.bias is None else logits + linear.bias.detach()
    logits = logits.view(len(NAMES), blocks)
    if config.gate == "softmax":
        return logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    return logits.exp().log1p()


def by_formula(model: Any, prompt: list[int], replies: list[list[int]]) -> dict[str, Tensor]:
    """Scores (K, K) by each criterion, pair by pair."""
    each = [written_out(model, prompt, reply) for reply in replies]
    scales = written_out_scales(model, prompt)
    return {
        name: torch.stack(
            [torch.stack([expected_score(a[c], b[c], scales[c]) for b in each]) for a in each]
        )
        for c, name in enumerate(NAMES)
    }


def combined(scores: dict[str, Tensor]) -> Tensor:
    return torch.stack([WEIGHTS[name] * score for name, score in scores.items()]).sum(dim=0)


def rated(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Of two replies, one says "good"; the second criterion wants the other, where it is rated."""
    draw = random.Random(seed)

    def words(n: int) -> list[str]:
        return [f"w{draw.randrange(60)}" for _ in range(n)]

    return [
        {
            "prompt": " ".join(words(3)),
            "responses": [" ".join([*words(3), word, word]) for word in ("good", "bad")],
            "ratings": {"good": [2, 1], "opposite": [1, 2] if i % 3 else [None, 2]},
        }
        for i in range(count)
    ]


def groups(count: int, seed: int = 0) -> list[RatedGroup]:
    return [
        RatedGroup(
            (),
            tuple(record["responses"]),
            {
                name: tuple(float("nan") if value is None else float(value) for value in values)
                for name, values in record["ratings"].items()
            },
        )
        for record in rated(count, seed)
    ]
