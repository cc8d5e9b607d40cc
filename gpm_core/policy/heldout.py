"""Iterates on held-out prompts: their log-probabilities, lengths, and win rates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
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
from gpm_core.policy.judging import read_judgements
from gpm_core.policy.shards import all_rows, read_rows

#: Tokens of responses whose logits are held at once.
_LOGITS_AT_ONCE = 4096


@torch.no_grad()
def logps_shard(model: Any, tokenizer: Any, responses: Path, output: Path, batch_size: int) -> None:
    """Write log pi(y | x) of a file of responses, (G, M) float32, as safetensors.

    Args:
        model: the policy pi, on its device.
        tokenizer: of the policy.
        responses: file of :func:`gpm_core.policy.sampling.sample_shard`.
        output: the file to write.
        batch_size: most responses per pass; fewer where they are long.
    """
    rows = read_rows(responses)
    padding = tokenizer.pad_token_id
    collate = GroupCollator(tokenizer.eos_token_id if padding is None else padding)
    single = [
        {"prompt_ids": row["prompt_ids"], "response_ids": [ids]}
        for row in rows
        for ids in row["response_ids"]
    ]
    # Logits are of all tokens behind the shortest prompt of a batch: equal lengths go together.
    order = sorted(
        range(len(single)),
        key=lambda i: (-len(single[i]["prompt_ids"]), -len(single[i]["response_ids"][0])),
    )
    longest = max(len(row["response_ids"][0]) for row in single)
    size = max(1, min(batch_size, _LOGITS_AT_ONCE // longest))
    found = torch.empty(len(single))
    with evaluating(model):
        for start in range(0, len(order), size):
            members = order[start : start + size]
            batch = collate([single[i] for i in members])
            batch = {name: values.to(model.device) for name, values in batch.items()}
            found[members] = sequence_logps(model, *rows_of(batch)).float().cpu()
    save_file({"logps": found.view(len(rows), -1)}, output)


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
    one of iterate j, over all pairs of them; it and (p, j, i) sum to one.

    Args:
        judgements: files of each of the I iterates, by the same judge, on the same prompts.

    Raises:
        ValueError: if the numbers of prompts differ.
    """
    prompts = zip(*(_groups(files) for files in judgements), strict=True)
    return torch.stack([_prompt_win_rates(groups) for groups in prompts])


def _groups(files: Sequence[Path]) -> Iterator[GroupEmbeddings]:
    for file in files:
        judged = read_judgements(file)
        yield from (judged.group(number) for number in range(len(judged.score)))


def _prompt_win_rates(groups: Sequence[GroupEmbeddings]) -> Tensor:
    together = replace(groups[0], embeddings=torch.cat([group.embeddings for group in groups]))
    scale, tau = together.logit_scale()
    matrix = ops.probability_matrix(together.embeddings, scale, tau=tau).double()
    counts = [len(group.embeddings) for group in groups]
    rows = torch.stack([part.mean(dim=0) for part in matrix.split(counts)])
    means = torch.stack([part.mean(dim=1) for part in rows.split(counts, dim=1)], dim=1)
    return (means - means.mT) / 2 + 0.5
