"""Pairs that a model was trained on, apart from new ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpm_core.data import PreferencePair
from gpm_core.data.keys import comparison_keys, prompt_key
from gpm_core.evaluation.estimates import Bootstrap, Estimate
from gpm_core.evaluation.pairwise import PairTable
from gpm_core.evaluation.reading import LabelledGroup


@dataclass(frozen=True)
class SeenPairs:
    """Accuracy on pairs that were in the training data and on others.

    What looks like an intransitive preference may be the memory of a pair. So there is a baseline
    that has nothing else: the majority of the pair's own labels in the training data. Texts count
    as the same whatever their white space.

    Attributes:
        seen: pairs of which the training data have the same prompt and the same two responses.
        seen_prompt: pairs of which they have the prompt (not empty), and not the pair.
        new: all others.
        memory: of the training data's majority label, on ``seen`` (ties half).
        with_memory: of all pairs, by that label where there is one and by the model elsewhere: the
            model with a residual for each seen pair.

    Each is None where there are no such pairs.
    """

    seen: Estimate | None
    seen_prompt: Estimate | None
    new: Estimate | None
    memory: Estimate | None
    with_memory: Estimate


def measure_seen(
    table: PairTable,
    groups: Sequence[LabelledGroup],
    train_pairs: Sequence[PreferencePair],
    bootstrap: Bootstrap,
) -> SeenPairs:
    """Accuracy on seen and on new pairs.

    Args:
        table: the pairs of ``groups``, in this order.
        groups: what was evaluated.
        train_pairs: what the model was trained on.
        bootstrap: for the intervals.
    """
    votes: dict[bytes, float] = {}
    for pair in train_pairs:
        vote = 2 * (1.0 if pair.target is None else pair.target) - 1
        for key, value in zip(comparison_keys(pair), (vote, -vote), strict=True):
            votes[key] = votes.get(key, 0.0) + value
    prompts = {prompt_key(pair) for pair in train_pairs if pair.prompt}
    kinds, memories = [], []
    for labelled in groups:
        prompt, texts = labelled.group.prompt, labelled.group.responses
        for labels in labelled.pairs:
            pair = PreferencePair(prompt, texts[labels.chosen], texts[labels.rejected])
            key, _ = comparison_keys(pair)
            kinds.append(0 if key in votes else 1 if prompt_key(pair) in prompts else 2)
            memories.append(votes.get(key, 0.0))
    kind = torch.tensor(kinds)
    label = torch.sign(table.target - 0.5)
    remembered = (torch.sign(torch.tensor(memories, dtype=torch.float64)) * label + 1) / 2

    def share(values: Tensor, members: Tensor) -> Estimate | None:
        return bootstrap.share(values[members], table.cluster[members]) if members.any() else None

    seen = kind == 0
    return SeenPairs(
        share(table.correct, seen),
        share(table.correct, kind == 1),
        share(table.correct, kind == 2),
        share(remembered, seen),
        bootstrap.share(torch.where(seen, remembered, table.correct), table.cluster),
    )
