"""The demonstration's cyclic preferences over rated responses.

The shipped prompts have four responses each, every one of which is the best on another criterion:
the strictest case of the paper's cyclic sets, see :mod:`gpm_core.data.cycles`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpm_core.data.cycles import (
    PAPER_CYCLES,
    ULTRAFEEDBACK_CRITERIA,
    best_response,
    links,
    prefers,
)
from gpm_core.data.messages import as_messages
from gpm_core.data.rated import RatedGroup, parse_rated

#: The criteria of the ratings, in the order in which all matrices here list them.
CRITERIA = ULTRAFEEDBACK_CRITERIA


@dataclass(frozen=True)
class Response:
    """A response and its rating on each of :data:`CRITERIA`; higher is better."""

    text: str
    ratings: dict[str, int]


@dataclass(frozen=True)
class RatedPrompt:
    """A prompt and its rated responses."""

    id: str
    prompt: str
    responses: tuple[Response, ...]

    @cached_property
    def group(self) -> RatedGroup:
        """The same as :mod:`gpm_core.data` has it."""
        ratings = {
            name: tuple(float(response.ratings[name]) for response in self.responses)
            for name in CRITERIA
        }
        texts = tuple(response.text for response in self.responses)
        return RatedGroup(as_messages(self.prompt), texts, ratings)

    def best(self, criterion: str) -> int:
        """Index of the response that is rated strictly best on ``criterion``.

        Raises:
            ValueError: if two responses share the best rating; names the prompt's id.
        """
        best = best_response(self.group, criterion)
        if best is None:
            ratings = [response.ratings[criterion] for response in self.responses]
            raise ValueError(
                f"prompt {self.id}: no response is strictly best on {criterion}; ratings {ratings}"
            )
        return best


@dataclass(frozen=True)
class PreferenceSet:
    """A chain of criteria c1 > c2 > ...; ``closed``: its last is preferred to its first.

    ``coin``: on each prompt a coin decides whether the chain holds or its reverse, so that there is
    nothing in common to learn. ``paper_fit``: (BT, GPM), accuracy in percent on the training set,
    from table 1 of arXiv 2410.02197 (Gemma-2B-it); None where the paper has no such set.
    """

    name: str
    criteria: tuple[str, ...]
    closed: bool = True
    coin: bool = False
    paper_fit: tuple[float, float] | None = None

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """(criterion of the chosen response, criterion of the rejected one)."""
        following = self.criteria[1:] + (self.criteria[:1] if self.closed else ())
        return tuple(zip(self.criteria, following, strict=False))


@dataclass(frozen=True)
class PreferencePair:
    """Response ``chosen`` of prompt ``prompt`` is preferred to ``rejected`` on ``criterion``.

    All three are indices, the responses' into the prompt's.
    """

    prompt: int
    chosen: int
    rejected: int
    criterion: str


#: (BT, GPM) of the paper's cycles, table 1.
_PAPER_FIT = ((62.4, 100.0), (61.6, 100.0), (50.0, 100.0), (62.9, 100.0))

#: All four criteria in a cycle; the paper has none of that length.
FOUR_CYCLE = PreferenceSet("all four", CRITERIA)

#: The paper's four cycles, the cycle of all four criteria, and two controls made of that one: cut
#: open, which a scalar reward can represent, and with directions by coin, which nobody can predict.
PREFERENCE_SETS = (
    *(
        PreferenceSet(f"No. {number}", criteria, paper_fit=fit)
        for number, (criteria, fit) in enumerate(zip(PAPER_CYCLES, _PAPER_FIT, strict=True), 1)
    ),
    FOUR_CYCLE,
    PreferenceSet("chain", CRITERIA, closed=False),
    PreferenceSet("coin", CRITERIA, coin=True),
)


def _parse(line: str, number: int) -> RatedPrompt:
    where = f"line {number}"
    try:
        row: dict[str, Any] = json.loads(line)
        where = f"prompt {row['id']}"
        group = parse_rated(row, number)
        responses = tuple(
            Response(text, {name: int(group.ratings[name][i]) for name in CRITERIA})
            for i, text in enumerate(group.responses)
        )
        return RatedPrompt(row["id"], row["prompt"], responses)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: not a rated prompt ({type(error).__name__}: {error})"
        ) from error


def load_prompts(path: Path | None = None) -> list[RatedPrompt]:
    """The rated prompts of a file of JSON lines, or those that the package ships.

    Raises:
        ValueError: for a line that is not ``{"id", "prompt", "responses": [{"text", "ratings"}]}``
            with a rating for each of :data:`CRITERIA`, and for an id that occurs twice.
    """
    source = path or resources.files("gpm_core").joinpath("data", "criteria.jsonl")
    lines = source.read_text(encoding="utf-8").splitlines()
    prompts = [_parse(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise ValueError(f"prompt {prompt.id}: the id occurs twice")
        seen.add(prompt.id)
    return prompts


def derive_pairs(
    prompts: Sequence[RatedPrompt], preference_set: PreferenceSet
) -> list[PreferencePair]:
    """The preferences of a set, one for each prompt and edge.

    For c1 > c2 the response best on c1 is preferred to the one best on c2, judged on c1. With
    ``coin`` the pairs of about half of the prompts are then reversed, always the same ones.

    Raises:
        ValueError: if a prompt's ratings do not say so; names its id.
    """
    pairs = []
    coins = torch.rand(len(prompts), generator=torch.Generator().manual_seed(0)).tolist()
    for index, prompt in enumerate(prompts):
        reverse = preference_set.coin and coins[index] < 0.5
        best = [prompt.best(criterion) for criterion in preference_set.criteria]
        chain = links(preference_set.criteria, best, closed=preference_set.closed)
        for link, (better, worse) in zip(chain, preference_set.edges, strict=True):
            if not prefers(prompt.group, link):
                raise ValueError(
                    f"prompt {prompt.id}: the response best on {worse} is as good on {better} as "
                    f"the one best on {better}, so that {better} > {worse} cannot be judged"
                )
            first, second = link.rejected, link.chosen
            if not reverse:
                first, second = second, first
            pairs.append(PreferencePair(index, first, second, better))
    return pairs


def relation_matrix(prompt: RatedPrompt, preference_set: PreferenceSet) -> Tensor:
    """The set's preferences on one prompt as probabilities (K, K), float32, K responses.

    1 where the row's response is preferred, 0 where the column's is, and 1/2 for pairs (and the
    diagonal) of which the set says nothing.
    """
    count = len(prompt.responses)
    relation = torch.full((count, count), 0.5)
    for pair in derive_pairs([prompt], preference_set):
        relation[pair.chosen, pair.rejected] = 1.0
        relation[pair.rejected, pair.chosen] = 0.0
    return relation


def scalar_bound(edges: Sequence[tuple[Any, Any]]) -> float:
    """The largest share of the preferences ``edges`` = (better, worse) that a scalar reward can
    have right on one prompt, by trying every order of the items (up to 8).

    2/3 for a complete cycle of three, 3/4 for one of four, 1 for a chain.

    Raises:
        ValueError: without edges, or for more than 8 items.
    """
    items = sorted({item for edge in edges for item in edge})
    if not items or len(items) > 8:
        raise ValueError(f"edges must be between 2 and 8 items; got {len(items)}")
    best = 0
    for order in permutations(items):
        rank = {item: position for position, item in enumerate(order)}
        best = max(best, sum(rank[better] < rank[worse] for better, worse in edges))
    return best / len(edges)


def prompt_folds(count: int, folds: int, seed: int) -> list[Tensor]:
    """Split ``count`` prompts at random into ``folds`` parts that differ by one in size at most.

    Returns:
        The held-out prompts' indices of each fold, int64: every prompt is held out exactly once,
        with all its responses and pairs.

    Raises:
        ValueError: unless 2 <= folds <= count.
    """
    if not 2 <= folds <= count:
        raise ValueError(f"folds must be between 2 and the {count} prompts; got {folds}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return [order[start::folds] for start in range(folds)]
