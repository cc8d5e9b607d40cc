"""Iterates on held-out prompts: their log-probabilities, lengths, and win rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpm_core import ops
from gpm_core.integrations.trl_gpo_data import GroupCollator
from gpm_core.integrations.trl_gpo_logps import responses as rows_of
from gpm_core.integrations.trl_gpo_logps import sequence_logps
from gpm_core.models._batches import evaluating
from gpm_core.models.group_scores import GroupEmbeddings
from gpm_core.policy.judging import Judgements, read_judgements
from gpm_core.policy.shards import all_rows, read_rows


@torch.no_grad()
def logps_shard(model: Any, tokenizer: Any, responses: Path, output: Path, batch_size: int) -> None:
    """Write log pi(y | x) of a file of responses, (G, M) float32, as safetensors.

    Args:
        model: the policy pi, on its device.
        tokenizer: of the policy.
        responses: file of :func:`gpm_core.policy.sampling.sample_shard`.
        output: the file to write.
        batch_size: responses per pass.
    """
    rows = read_rows(responses)
    padding = tokenizer.pad_token_id
    collate = GroupCollator(tokenizer.eos_token_id if padding is None else padding)
    size = max(1, batch_size // len(rows[0]["response_ids"]))
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["prompt_ids"]))
    found: dict[int, Tensor] = {}
    with evaluating(model):
        for start in range(0, len(order), size):
            members = order[start : start + size]
            batch = collate([rows[i] for i in members])
            batch = {name: values.to(model.device) for name, values in batch.items()}
            logps = sequence_logps(model, *rows_of(batch)).view(len(members), -1).float().cpu()
            found.update(zip(members, logps, strict=True))
    save_file({"logps": torch.stack([found[i] for i in range(len(rows))])}, output)


def read_logps(paths: Sequence[Path]) -> Tensor:
    """(P, M) float32: what :func:`logps_shard` wrote."""
    found = []
    for path in paths:
        with safe_open(path, "pt") as file:
            found.append(file.get_tensor("logps"))
    return torch.cat(found)


def mean_lengths(paths: Sequence[Path]) -> Tensor:
    """(P,) float64, mean number of tokens of the responses to each prompt."""
    lengths = [[float(len(ids)) for ids in row["response_ids"]] for row in all_rows(paths)]
    return torch.tensor(lengths, dtype=torch.float64).mean(dim=1)


def win_rates(judgements: Sequence[Sequence[Path]]) -> Tensor:
    """Win rates (P, I, I) float64 of I iterates on P prompts, one file of each in memory at a time.

    Entry (p, i, j) is the mean probability that a response of iterate i to prompt p is preferred to
    one of iterate j, over all M x M of them; it and (p, j, i) sum to one.

    Args:
        judgements: files of each of the I iterates, by the same judge, on the same prompts.
    """
    found = []
    for files in zip(*judgements, strict=True):
        judged = [read_judgements(file) for file in files]
        found += [_prompt_win_rates(judged, number) for number in range(len(judged[0].score))]
    return torch.stack(found)


def _prompt_win_rates(judged: Sequence[Judgements], number: int) -> Tensor:
    together = GroupEmbeddings(
        torch.cat([each.embeddings[number] for each in judged]),
        judged[0].scale[number],
        judged[0].tau,
    )
    scale, tau = together.logit_scale()
    matrix = ops.probability_matrix(together.embeddings, scale, tau=tau).double()
    iterates = len(judged)
    blocks = matrix.view(iterates, len(matrix) // iterates, iterates, -1).mean(dim=(1, 3))
    return (blocks - blocks.mT) / 2 + 0.5
