"""Preference models whose opinions are written down, for arithmetic that can be done by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import torch

from gpm_core.data import Message, PreferencePair, ResponseGroup


class TableModel:
    """s(a > b) by text: differences of ``rewards``, unless ``scores`` has (a, b) or (b, a)."""

    def __init__(
        self,
        rewards: dict[str, float] | None = None,
        scores: dict[tuple[str, str], float] | None = None,
    ) -> None:
        self.rewards, self.scores = rewards or {}, scores or {}
        self.groups: list[ResponseGroup] = []
        self.calls: list[int] = []

    def score(self, a: str, b: str) -> float:
        if (a, b) in self.scores:
            return self.scores[a, b]
        if (b, a) in self.scores:
            return -self.scores[b, a]
        return self.rewards.get(a, 0.0) - self.rewards.get(b, 0.0)

    def score_groups(
        self, groups: Sequence[ResponseGroup], *, batch_size: int = 32, progress: bool = False
    ) -> Iterator[SimpleNamespace]:
        self.calls.append(sum(len(group.responses) for group in groups))
        for group in groups:
            self.groups.append(group)
            rows = [[self.score(a, b) for b in group.responses] for a in group.responses]
            matrix = torch.tensor(rows, dtype=torch.float64)
            yield SimpleNamespace(score=matrix.float(), probability=matrix.sigmoid().float())


def pair(prompt: str, chosen: str, rejected: str, target: float | None = None) -> PreferencePair:
    messages = (Message("user", prompt),) if prompt else ()
    return PreferencePair(messages, chosen, rejected, target=target)
