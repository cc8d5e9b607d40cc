"""Rated responses: their forms, and the pairs and labels made of them, worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from gpm_core.data import (
    DataError,
    Message,
    PreferencePair,
    RatedGroup,
    criteria_pairs,
    pairs_from_ratings,
    read_rated,
)

NAN = math.nan


def completion(response: str, **ratings: object) -> dict[str, Any]:
    notes = {name: {"Rating": rating, "Rationale": "..."} for name, rating in ratings.items()}
    return {"model": "m", "response": response, "annotations": notes, "overall_score": 7.5}


#: As a record of UltraFeedback.
ULTRAFEEDBACK = {
    "source": "sharegpt",
    "instruction": "Name a river.",
    "models": ["m", "n"],
    "completions": [
        completion("Po", helpfulness="4", honesty="5"),
        completion("Rome", helpfulness="N/A"),
    ],
}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def same(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return len(a) == len(b) and all(
        x == y or (x != x and y != y) for x, y in zip(a, b, strict=True)
    )


def test_ultrafeedback(tmp_path: Path) -> None:
    empty = {"instruction": "None answered.", "completions": []}
    first, second = read_rated(write(tmp_path / "a.jsonl", ULTRAFEEDBACK, empty))
    assert first.prompt == (Message("user", "Name a river."),)
    assert first.responses == ("Po", "Rome")
    assert list(first.ratings) == ["helpfulness", "honesty", "overall_score"]
    assert same(first.ratings["helpfulness"], (4.0, NAN))
    assert same(first.ratings["honesty"], (5.0, NAN))
    assert first.ratings["overall_score"] == (7.5, 7.5)
    assert first.criteria == ("helpfulness", "honesty")
    assert same(first.scores(), (4.5, NAN))
    assert (second.responses, second.line) == ((), 2)


def test_ultrafeedback_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra 'train' is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.Table.from_pylist([ULTRAFEEDBACK]), tmp_path / "a.parquet")
    (group,) = read_rated(tmp_path / "a.parquet")
    assert same(group.ratings["honesty"], (5.0, NAN))


@pytest.mark.parametrize(
    ("record", "criteria", "ratings"),
    [
        ({"responses": ["a", "b"], "ratings": [1, "2.5"]}, ["rating"], (1.0, 2.5)),
        ({"generations": ["a", "b"], "ratings": [None, 2]}, ["rating"], (NAN, 2.0)),
        (
            {"responses": ["a", "b"], "ratings": {"x": [3, NAN], "y": [1, 1], "z": None}},
            ["x", "y"],
            (3.0, NAN),
        ),
        (
            {"responses": [{"text": "a", "ratings": {"x": 4}}, {"text": "b", "ratings": {}}]},
            ["x"],
            (4.0, NAN),
        ),
    ],
)
def test_other_forms(tmp_path: Path, record: dict, criteria: list[str], ratings: tuple) -> None:
    (group,) = read_rated(write(tmp_path / "a.jsonl", record))
    assert (group.prompt, group.responses) == ((), ("a", "b"))
    assert list(group.ratings) == criteria
    assert same(group.ratings[criteria[0]], ratings)


def test_overall_scores_count_where_there_is_nothing_else(tmp_path: Path) -> None:
    record = {"completions": [{"response": "a", "overall_score": 3}]}
    (group,) = read_rated(write(tmp_path / "a.jsonl", record))
    assert group.scores() == (3.0,)


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ([1], "JSON object"),
        ({"prompt": "q"}, "needs 'responses' and 'ratings'"),
        ({"responses": ["a"]}, "'ratings' is missing"),
        ({"responses": "a", "ratings": [1]}, "must be a list"),
        ({"responses": ["a", 2], "ratings": [1, 2]}, r"responses\[1\] must be text"),
        ({"responses": ["a", "b"], "ratings": [1]}, "2 responses, and ratings has 1 numbers"),
        ({"responses": ["a"], "ratings": {"x": 3}}, r"ratings\['x'\] must be a list"),
        ({"responses": ["a"], "ratings": ["good"]}, r"ratings\[0\] must be a number.*'good'"),
        ({"responses": ["a"], "ratings": [True]}, "must be a number"),
        ({"responses": ["a"], "ratings": ["inf"]}, "must be finite"),
        ({"responses": ["\ud800"], "ratings": [1]}, "surrogate"),
        ({"completions": {}}, "'completions' must be a list"),
        ({"completions": [{"text": "a"}]}, r"completions\[0\] must be an object with 'response'"),
        ({"completions": [{"response": "a", "annotations": [1]}]}, "annotations must be an object"),
        (
            {"completions": [{"response": "a", "annotations": {"x": {"Rating": "?"}}}]},
            r"completions\[0\]\.annotations\['x'\] must be a number",
        ),
        ({"prompt": "a", "instruction": "b", "completions": []}, "differ"),
        ({"prompt": 3, "completions": []}, "field 'prompt': prompt must be text"),
    ],
)
def test_bad_records_name_the_line(tmp_path: Path, record: object, expected: str) -> None:
    with pytest.raises(DataError, match=rf"line 2: .*{expected}"):
        read_rated(write(tmp_path / "a.jsonl", ULTRAFEEDBACK, record))


def test_a_group_needs_a_rating_for_each_response() -> None:
    with pytest.raises(ValueError, match="2 responses but 1 ratings of 'x'"):
        RatedGroup((), ("a", "b"), {"x": (1.0,)})


PROMPT = (Message("user", "q"),)
#: Means 3, 4, missing, 3, 1.
FIVE = RatedGroup(
    PROMPT,
    ("a", "b", "c", "d", "e"),
    {"x": (5.0, 3.0, 5.0, 2.0, 1.0), "y": (1.0, 5.0, NAN, 4.0, 1.0)},
    line=7,
)


def names(pairs: list[PreferencePair]) -> list[str]:
    return [pair.chosen + pair.rejected for pair in pairs]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["ba", "ae", "bd", "be", "de"]),
        ({"ties": "half"}, ["ba", "ad", "ae", "bd", "be", "de"]),
        ({"pairs": "best_worst"}, ["be"]),
        ({"pairs": "adjacent"}, ["ba", "de"]),
        ({"pairs": "adjacent", "ties": "half"}, ["ba", "ad", "de"]),
        ({"minimum_gap": 2.0}, ["ae", "be", "de"]),
        ({"criterion": "x", "pairs": "best_worst"}, ["ae"]),
        ({"criterion": "x", "pairs": "adjacent"}, ["cb", "bd", "de"]),
    ],
)
def test_pairs_by_hand(options: dict[str, Any], expected: list[str]) -> None:
    assert names(pairs_from_ratings([FIVE], **options)) == expected


def test_pairs_carry_prompt_line_target_and_margin() -> None:
    pairs = pairs_from_ratings([FIVE], ties="half", margin=True)
    assert pairs[0] == PreferencePair(PROMPT, "b", "a", margin=1.0, target=None, line=7)
    assert pairs[1] == PreferencePair(PROMPT, "a", "d", margin=0.0, target=0.5, line=7)


def test_the_same_text_is_no_pair() -> None:
    group = RatedGroup((), ("a", "a", "b"), {"x": (1.0, 2.0, 3.0)})
    assert names(pairs_from_ratings([group])) == ["ba", "ba"]
    assert len(criteria_pairs([group]).pairs) == 2


def test_impossible_choices() -> None:
    for options, expected in (
        ({"pairs": "some"}, "pairs must be one of"),
        ({"ties": "win"}, "ties must be one of"),
        ({"minimum_gap": -1.0}, "minimum_gap must be"),
        ({"minimum_gap": NAN}, "minimum_gap must be"),
        ({"criterion": "z"}, "no group is rated on 'z'; there are 'x', 'y'"),
    ):
        with pytest.raises(ValueError, match=expected):
            pairs_from_ratings([FIVE], **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'z'"):
        criteria_pairs([FIVE], ["x", "z"])
    with pytest.raises(ValueError, match="given twice"):
        criteria_pairs([FIVE], ["x", "x"])
    assert pairs_from_ratings([], criterion="z") == []


def test_labels_of_each_criterion_by_hand() -> None:
    pairs, targets, criteria = criteria_pairs([FIVE])
    assert criteria == ("x", "y")
    assert names(pairs) == ["ab", "ac", "ad", "ae", "cb", "bd", "be", "cd", "ce", "de"]
    expected = [
        (1, 0),  # a, b: even, so the first is chosen
        (0.5, NAN),
        (1, 0),
        (1, 0.5),
        (1, NAN),  # b, c: c is better on x, and chosen
        (1, 1),
        (1, 1),
        (1, NAN),
        (1, NAN),
        (1, 1),
    ]
    torch.testing.assert_close(targets, torch.tensor(expected), equal_nan=True, rtol=0, atol=0)
    assert targets.dtype == torch.float32
    assert [pair.target for pair in pairs] == [0.5, 0.5, 0.5, 0.75, 1, 1, 1, 1, 1, 1]


def test_labels_follow_the_chosen_reply_and_the_order_asked_for() -> None:
    group = RatedGroup((), ("a", "b"), {"x": (1.0, 2.0), "y": (1.0, 2.0), "z": (3.0, 2.0)})
    pairs, targets, _ = criteria_pairs([group], ["z", "y", "x"])
    assert names(pairs) == ["ba"]
    assert targets.tolist() == [[0.0, 1.0, 1.0]]
    assert pairs[0].target == pytest.approx(2 / 3)


def test_pairs_that_nothing_rates_have_no_labels() -> None:
    group = RatedGroup((), ("a", "b"), {"x": (1.0, NAN), "y": (NAN, 2.0)})
    pairs, targets, _ = criteria_pairs([group])
    assert pairs == []
    assert targets.shape == (0, 2)
