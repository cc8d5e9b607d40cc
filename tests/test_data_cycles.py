"""Cyclic preference sets from ratings: by hand, and every cycle against trying all orders."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpm_core.data import (
    PAPER_CYCLES,
    ULTRAFEEDBACK_CRITERIA,
    CyclicPreferences,
    Message,
    PreferencePair,
    RatedGroup,
    cyclic_pairs,
)
from gpm_core.data.cycles import SKIPPED, best_response

NAN = math.nan
PROMPT = (Message("user", "q"),)


def rated(*columns: tuple[float, ...], line: int = 0) -> RatedGroup:
    """Responses "a", "b", ... with these ratings on x, y, z, ..."""
    texts = tuple("abcdefgh"[: len(columns[0])])
    return RatedGroup(PROMPT, texts, dict(zip("xyzuvw", columns, strict=False)), line)


#: a > b on x, b > c on y, c > a on z; nobody is best on x alone.
CYCLIC = rated((3, 2, 3), (1, 3, 2), (1, 1, 3), line=5)
#: Each is the best on one criterion.
BEST = rated((5, 1, 2), (2, 4, 1), (1, 2, 3))


def names(built: CyclicPreferences) -> list[str]:
    return [pair.chosen + pair.rejected for pair in built.pairs]


def skipped(**counts: int) -> dict[str, int]:
    return {**dict.fromkeys(SKIPPED, 0), **counts}


def test_the_papers_sets_are_all_criteria_but_one() -> None:
    assert [set(ULTRAFEEDBACK_CRITERIA) - set(cycle) for cycle in PAPER_CYCLES] == [
        {"instruction_following"},
        {"honesty"},
        {"truthfulness"},
        {"helpfulness"},
    ]


def test_a_cycle_by_hand() -> None:
    built = cyclic_pairs([rated((3, 2, 1), (3, 2, 1), (3, 2, 1)), CYCLIC], ["x", "y", "z"])
    assert built.pairs == [
        PreferencePair(PROMPT, "a", "b", line=5),
        PreferencePair(PROMPT, "b", "c", line=5),
        PreferencePair(PROMPT, "c", "a", line=5),
    ]
    (cycle,) = built.cycles
    assert (cycle.group, cycle.line, cycle.responses) == (1, 5, (0, 1, 2))
    assert (cycle.criteria, cycle.gap) == (("x", "y", "z"), 1.0)
    assert (built.groups, built.cyclic_groups) == (2, 1)
    assert built.skipped == skipped(no_cycle=1)


def test_best_responses_only() -> None:
    assert names(cyclic_pairs([BEST], ["x", "y", "z"], responses="best")) == ["ab", "bc", "ca"]
    built = cyclic_pairs([CYCLIC], ["x", "y", "z"], responses="best")
    assert built.pairs == []
    assert built.skipped == skipped(ties=1)
    assert best_response(CYCLIC, "x") is None
    assert best_response(CYCLIC, "y") == 1
    assert best_response(rated((1, 2, NAN)), "x") is None


def test_a_criterion_may_occur_again() -> None:
    # The example of the paper's appendix E: honesty, helpfulness, honesty.
    group = rated((2, 1, 3), (1, 3, 2))
    assert names(cyclic_pairs([group], ["x", "y", "x"])) == ["ab", "bc", "ca"]


def test_why_a_group_has_no_cycle() -> None:
    groups = [
        rated((1, 2), (2, 1), (1, 2)),
        rated((3, NAN, 1), (1, 3, 2), (1, 2, 3)),
        RatedGroup((), ("a", "b", "c"), {"x": (3.0, 2.0, 1.0)}),
        rated((3, 3, 1), (1, 3, 2), (1, 2, 3)),
        rated((3, 2, 1), (3, 2, 1), (3, 2, 1)),
        CYCLIC,
    ]
    built = cyclic_pairs(groups, ["x", "y", "z"])
    assert built.skipped == skipped(few_responses=1, missing_ratings=2, ties=1, no_cycle=1)
    assert built.cyclic_groups == 1


def test_a_missing_rating_outside_of_the_cycle_does_not_matter() -> None:
    group = rated((3, 2, 3, NAN), (1, 3, 2, 5), (1, 1, 3, NAN))
    assert names(cyclic_pairs([group], ["x", "y", "z"])) == ["ab", "bc", "ca"]
    assert cyclic_pairs([group], ["x", "y", "z"], responses="best").pairs == []


def test_responses_of_the_same_text_make_no_cycle() -> None:
    group = RatedGroup((), ("a", "a", "b"), CYCLIC.ratings)
    assert cyclic_pairs([group], ["x", "y", "z"]).pairs == []


def test_the_clearest_cycle_first_and_no_contradictions() -> None:
    # a > b, b > c, c > a by 2 at least; a > c, c > b, b > a by 1; and a > b, b > d, d > a by 1.
    group = rated((5, 3, 4, 0), (1, 5, 3, 4), (1, 2, 5, 2))
    three = [cyclic_pairs([group], ["x", "y", "z"], per_group=count).cycles for count in (1, None)]
    assert [cycle.responses for cycle in three[0]] == [(0, 1, 2)]
    assert three[0][0].gap == 2.0
    assert [cycle.responses for cycle in three[1]] == [(0, 1, 2), (0, 1, 3)]
    built = cyclic_pairs([group], ["x", "y", "z"], per_group=None)
    assert names(built) == ["ab", "bc", "ca", "bd", "da"]


def test_the_same_circle_counts_once() -> None:
    # a > b > c > a also holds as b > c on x, c > a on y, a > b on z.
    group = rated((3, 2, 1), (1, 3, 2), (2, 1, 3))
    built = cyclic_pairs([group], ["x", "y", "z"], per_group=None)
    assert len(built.cycles) == 1
    assert names(built) == ["ab", "bc", "ca"]


ratings = st.sampled_from([1.0, 2.0, 3.0, NAN])
groups = st.integers(2, 5).flatmap(
    lambda count: st.lists(st.tuples(*[ratings] * count), min_size=4, max_size=4).map(
        lambda columns: rated(*columns)
    )
)


@settings(deadline=None)
@given(groups, st.integers(3, 4))
def test_all_cycles_against_every_order(group: RatedGroup, length: int) -> None:
    criteria = "xyzu"[:length]
    expected = set()
    for order in permutations(range(len(group.responses)), length):
        following = order[1:] + order[:1]
        if all(
            group.ratings[criterion][i] > group.ratings[criterion][j]
            for criterion, i, j in zip(criteria, order, following, strict=True)
        ):
            expected.add(order)
    built = cyclic_pairs([group], list(criteria), per_group=None)
    found = {cycle.responses for cycle in built.cycles}
    assert found <= expected
    assert bool(found) == bool(expected)
    preferred = names(built)
    assert len(set(preferred)) == len(preferred)
    assert not set(preferred) & {name[::-1] for name in preferred}
    one = cyclic_pairs([group], list(criteria))
    assert len(one.cycles) == min(len(expected), 1)
    assert len(one.pairs) == length * len(one.cycles)
    if expected:
        # What was left out repeats or contradicts what was taken.
        for order in expected - found:
            edges = {
                "abcdefgh"[i] + "abcdefgh"[j]
                for i, j in zip(order, order[1:] + order[:1], strict=True)
            }
            reverse = {edge[::-1] for edge in edges}
            assert edges <= set(preferred) or reverse & set(preferred)


@pytest.mark.parametrize(
    ("criteria", "options", "expected"),
    [
        (["x", "y"], {}, "at least three criteria"),
        (["x", "x", "x"], {}, "not all the same"),
        ("xyz", {}, "at least three criteria"),
        (["x", "y", "w"], {}, "no group is rated on 'w'"),
        (["x", "y", "x"], {"responses": "best"}, "each criterion once"),
        (["x", "y", "z"], {"responses": "worst"}, "'any' or 'best'"),
        (["x", "y", "z"], {"per_group": 0}, "per_group must be at least 1"),
    ],
)
def test_impossible_cycles(criteria: Any, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        cyclic_pairs([CYCLIC], criteria, **options)
