"""The stage that judges responses: preference embeddings, and scores of all pairs of a group."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpm_core.models.group_scores import GroupEmbeddings
from gpm_core.policy.shards import load_messages, read_rows


class Judgements(NamedTuple):
    """What a judge says of G groups of K responses, float32."""

    #: (G, K, d) preference embeddings.
    embeddings: Tensor
    #: (G, d / 2) weights of the blocks, the prompt's gate; ones without.
    scale: Tensor
    #: (d / 2,) temperature of each block.
    tau: Tensor
    #: (G, K, K) scores s(i > j).
    score: Tensor
    #: (G, K, K) probabilities that i is preferred to j.
    probability: Tensor

    def group(self, number: int) -> GroupEmbeddings:
        """The embeddings of one group."""
        return GroupEmbeddings(self.embeddings[number], self.scale[number], self.tau)


def judge_shard(judge: Any, responses: Path, output: Path, batch_size: int) -> None:
    """Write the :class:`Judgements` of a file of responses as safetensors.

    Raises:
        ValueError: if the judge has no embeddings (a model that reads pairs).
    """
    rows = read_rows(responses)
    try:
        groups = list(
            judge.embed_groups(
                [load_messages(row["prompt"]) for row in rows],
                [row["responses"] for row in rows],
                batch_size=batch_size,
            )
        )
    except NotImplementedError as error:
        raise ValueError(
            f"the judge must give embeddings of responses; {type(judge).__name__} has none"
        ) from error
    scores = [group.scores() for group in groups]
    save_file(
        {
            "embeddings": torch.stack([group.embeddings for group in groups]).cpu().contiguous(),
            "scale": torch.stack([_scale(group) for group in groups]).cpu().contiguous(),
            "tau": _tau(groups[0]).cpu().contiguous(),
            "score": torch.stack([each.score for each in scores]).contiguous(),
            "probability": torch.stack([each.probability for each in scores]).contiguous(),
        },
        output,
    )


def read_judgements(path: Path) -> Judgements:
    """What :func:`judge_shard` wrote."""
    with safe_open(path, "pt") as file:
        return Judgements(*(file.get_tensor(name) for name in Judgements._fields))


def _scale(group: GroupEmbeddings) -> Tensor:
    if group.scale is not None:
        return group.scale
    return group.embeddings.new_ones(group.embeddings.shape[1] // 2)


def _tau(group: GroupEmbeddings) -> Tensor:
    blocks = group.embeddings.shape[1] // 2
    return torch.as_tensor(group.tau, dtype=torch.float32).expand(blocks)
