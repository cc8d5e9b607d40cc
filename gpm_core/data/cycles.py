"""Cyclic preference sets from ratings on several criteria, as in the GPM paper.

Whoever judges different pairs of responses on different criteria may prefer in a circle: A to B for
its honesty, B to C for its truthfulness, C to A for its helpfulness. No scalar reward represents
that. The paper derived its cyclic sets from UltraFeedback in this way (arXiv 2410.02197, section 6
and appendix E).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from gpm_core.data.pairs import PreferencePair
from gpm_core.data.rated import RatedGroup

#: The criteria of UltraFeedback.
ULTRAFEEDBACK_CRITERIA = ("instruction_following", "honesty", "truthfulness", "helpfulness")

#: The paper's four sets, "Cyclic No. 1" to "No. 4" of its table 1: all criteria but one.
PAPER_CYCLES = (
    ("honesty", "truthfulness", "helpfulness"),
    ("instruction_following", "truthfulness", "helpfulness"),
    ("instruction_following", "honesty", "helpfulness"),
    ("instruction_following", "honesty", "truthfulness"),
)

Comparison = Callable[[float, float], bool]

#: Why a group gave no cycle.
SKIPPED = ("few_responses", "missing_ratings", "ties", "no_cycle")


class Link(NamedTuple):
    """Response ``chosen`` is preferred to ``rejected`` on ``criterion``; indices into a group."""

    chosen: int
    rejected: int
    criterion: str


def links(criteria: Sequence[str], responses: Sequence[int], *, closed: bool = True) -> list[Link]:
    """The preferences of a chain: each response to the next, judged on its own criterion.

    ``closed``: the last is preferred to the first, which makes the chain a cycle.

    Example:
        >>> links(["honesty", "brevity", "humour"], [2, 0, 1])[-1]
        Link(chosen=1, rejected=2, criterion='humour')
    """
    following = [*responses[1:], *(responses[:1] if closed else ())]
    return [Link(*link) for link in zip(responses, following, criteria, strict=False)]


def prefers(group: RatedGroup, link: Link) -> bool:
    """Whether the ratings say so: strictly higher on the link's criterion. Missing ones do not."""
    ratings = group.scores(link.criterion)
    return ratings[link.chosen] > ratings[link.rejected]


def best_response(group: RatedGroup, criterion: str) -> int | None:
    """The response rated strictly best on a criterion; None if several are or one is not rated."""
    best = _best(group.scores(criterion), operator.gt)
    return best[0] if best else None


@dataclass(frozen=True)
class Cycle:
    """Responses of a group that are preferred in a circle, each to the next on its criterion.

    Attributes:
        group: the position of the group.
        line: its line.
        responses: indices into the group's responses; the last is preferred to the first.
        criteria: as many, what each response is preferred to the next on.
        gap: the smallest difference of ratings in the circle.
    """

    group: int
    line: int
    responses: tuple[int, ...]
    criteria: tuple[str, ...]
    gap: float


@dataclass(frozen=True)
class CyclicPreferences:
    """What :func:`cyclic_pairs` built, and of what.

    Attributes:
        pairs: of each cycle one pair for each link, without repetitions within a group.
        cycles: in the order of the groups.
        groups: how many groups there were.
        cyclic_groups: how many have a cycle.
        skipped: how many have none, by reason (one of :data:`SKIPPED`): "few_responses" for a
            cycle, "missing_ratings" leave too few, "ties" (there would be a cycle if equal ratings
            counted), and "no_cycle" in the ratings.
    """

    pairs: list[PreferencePair]
    cycles: list[Cycle]
    groups: int
    cyclic_groups: int
    skipped: dict[str, int]


def cyclic_pairs(
    groups: Sequence[RatedGroup],
    criteria: Sequence[str],
    *,
    responses: str = "any",
    per_group: int | None = 1,
) -> CyclicPreferences:
    """Preferences that go in circles, from ratings on several criteria.

    For criteria c1, ..., cm a cycle is m responses to one prompt, r1, ..., rm, of which each is
    rated strictly higher than the next on its criterion, r1 than r2 on c1, and so on to rm than r1
    on cm (arXiv 2410.02197, appendix E, steps 1 to 4). The paper does not say how many cycles it
    takes of a prompt; here those of the largest ``gap`` are taken first, and none that prefers a
    pair of responses the other way than one before: the pairs of a prompt never contradict each
    other. Responses with the same text are not told apart.

    Args:
        groups: rated responses.
        criteria: m >= 3 of them in the cycle's order. One may occur again, but not next to itself
            all the way round.
        responses: "any" m responses; or "best", r_i the one rated strictly best of all on c_i, the
            strictest reading and the one that the shipped demonstration set is made by.
        per_group: the most cycles to take of a group; None for all.

    Raises:
        ValueError: for fewer than three criteria or one alone, an unknown choice, per_group below
            1, or a criterion that no group has.

    Example:
        >>> ratings = {"wit": (3.0, 2.0, 1.0), "tact": (1.0, 3.0, 2.0), "care": (2.0, 1.0, 3.0)}
        >>> group = RatedGroup((), ("a", "b", "c"), ratings)
        >>> built = cyclic_pairs([group], ["wit", "tact", "care"])
        >>> [(pair.chosen, pair.rejected) for pair in built.pairs]
        [('a', 'b'), ('b', 'c'), ('c', 'a')]
    """
    _check(groups, criteria, responses, per_group)
    find = _every_cycle if responses == "any" else _best_cycle
    pairs: list[PreferencePair] = []
    cycles: list[Cycle] = []
    skipped = dict.fromkeys(SKIPPED, 0)
    for position, group in enumerate(groups):
        found = [
            Cycle(position, group.line, order, tuple(criteria), _gap(group, criteria, order))
            for order in find(group, criteria, operator.gt)
            if len({group.responses[i] for i in order}) == len(order)
        ]
        if not found:
            skipped[_reason(group, criteria, find)] += 1
            continue
        taken, chosen = _consistent(sorted(found, key=lambda cycle: -cycle.gap), per_group)
        cycles += taken
        pairs += [
            PreferencePair(group.prompt, group.responses[a], group.responses[b], line=group.line)
            for a, b in chosen
        ]
    cyclic = len({cycle.group for cycle in cycles})
    return CyclicPreferences(pairs, cycles, len(groups), cyclic, skipped)


def _every_cycle(
    group: RatedGroup, criteria: Sequence[str], exceeds: Comparison
) -> Iterator[tuple[int, ...]]:
    columns = [group.scores(criterion) for criterion in criteria]

    def extend(order: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        column = columns[len(order) - 1]
        if len(order) == len(criteria):
            if exceeds(column[order[-1]], column[order[0]]):
                yield order
            return
        for following in range(len(group.responses)):
            if following not in order and exceeds(column[order[-1]], column[following]):
                yield from extend((*order, following))

    for first in range(len(group.responses)):
        yield from extend((first,))


def _best(ratings: Sequence[float], exceeds: Comparison) -> list[int]:
    return [
        i
        for i, rating in enumerate(ratings)
        if not math.isnan(rating)
        and all(exceeds(rating, other) for j, other in enumerate(ratings) if j != i)
    ]


def _best_cycle(
    group: RatedGroup, criteria: Sequence[str], exceeds: Comparison
) -> Iterator[tuple[int, ...]]:
    best = [_best(group.scores(criterion), exceeds) for criterion in criteria]
    for order in product(*best):
        if len(set(order)) == len(order):
            yield order


def _gap(group: RatedGroup, criteria: Sequence[str], order: Sequence[int]) -> float:
    gaps = []
    for link in links(criteria, order):
        ratings = group.scores(link.criterion)
        gaps.append(ratings[link.chosen] - ratings[link.rejected])
    return min(gaps)


def _consistent(
    cycles: Sequence[Cycle], most: int | None
) -> tuple[list[Cycle], list[tuple[int, int]]]:
    """The first cycles whose links do not contradict those before, and all their links once."""
    taken: list[Cycle] = []
    chosen: dict[tuple[int, int], None] = {}
    for cycle in cycles:
        edges = [(link.chosen, link.rejected) for link in links(cycle.criteria, cycle.responses)]
        if all(edge in chosen for edge in edges) or any((b, a) in chosen for a, b in edges):
            continue
        taken.append(cycle)
        chosen.update(dict.fromkeys(edges))
        if len(taken) == most:
            break
    return taken, list(chosen)


def _reason(
    group: RatedGroup,
    criteria: Sequence[str],
    find: Callable[[RatedGroup, Sequence[str], Comparison], Iterator[tuple[int, ...]]],
) -> str:
    if len(group.responses) < len(criteria):
        return "few_responses"
    columns = [group.scores(criterion) for criterion in criteria]
    rated = sum(not any(map(math.isnan, row)) for row in zip(*columns, strict=True))
    if rated < len(criteria):
        return "missing_ratings"
    return "no_cycle" if next(find(group, criteria, operator.ge), None) is None else "ties"


def _check(
    groups: Sequence[RatedGroup], criteria: Sequence[str], responses: str, per_group: int | None
) -> None:
    if isinstance(criteria, str) or len(criteria) < 3 or len(set(criteria)) < 2:
        raise ValueError(
            f"a cycle takes at least three criteria, not all the same; got {criteria!r}"
        )
    if responses not in ("any", "best"):
        raise ValueError(f"responses must be 'any' or 'best'; got {responses!r}")
    if responses == "best" and len(set(criteria)) < len(criteria):
        raise ValueError(f"responses='best' takes each criterion once; got {tuple(criteria)}")
    if per_group is not None and per_group < 1:
        raise ValueError(f"per_group must be at least 1, or None for all; got {per_group}")
    known = {name for group in groups for name in group.ratings}
    for criterion in criteria:
        if groups and criterion not in known:
            raise ValueError(f"no group is rated on {criterion!r}; there are {sorted(known)}")
