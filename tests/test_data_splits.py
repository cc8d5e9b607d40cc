"""Three-way division by prompt, leaks between sets, and repeated or contradicting pairs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpm_core.data import (
    Message,
    PreferencePair,
    check_disjoint,
    deduplicate,
    shared_prompts,
    split_by_prompt,
    split_dataset,
)


def pair(prompt: str, chosen: str = "a", rejected: str = "b", **more: Any) -> PreferencePair:
    turns = (Message("user", prompt),) if prompt else ()
    return PreferencePair(turns, chosen, rejected, **more)


MANY = [pair(f"prompt {i // 2}", chosen=str(i)) for i in range(4000)]
#: The same prompt to a reader: composed and decomposed, with other white space.
VARIANTS = ["un caf\u00e9", "un cafe\u0301", " un  caf\u00e9\n"]


def test_three_parts_share_no_prompt_and_have_about_the_size_asked_for() -> None:
    parts = split_dataset(MANY, validation_fraction=0.1, test_fraction=0.2)
    numbers = [[int(one.chosen) for one in part] for part in parts]
    assert sorted(number for part in numbers for number in part) == list(range(4000))
    assert all(part == sorted(part) for part in numbers)
    assert not shared_prompts(parts.train, parts.test)
    assert not shared_prompts(parts.train, parts.validation)
    assert not shared_prompts(parts.validation, parts.test)
    # Four standard deviations of the number of prompts of 2000, which have two pairs each.
    assert abs(len(parts.test) / 2 - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5
    assert abs(len(parts.validation) / 2 - 200) < 4 * (2000 * 0.1 * 0.9) ** 0.5


def test_prompts_stay_where_they_are_when_data_are_added() -> None:
    some = split_dataset(MANY[:1000:3])
    more = split_dataset(MANY[::-1])
    for part, larger in zip(some, more, strict=True):
        assert set(part) <= set(larger)
    assert split_dataset(MANY, seed=1).test != split_dataset(MANY, seed=0).test
    assert set(split_dataset(MANY, test_fraction=0.05).test) < set(split_dataset(MANY).test)


def test_where_a_prompt_goes_is_a_promise() -> None:
    # Computed once and written down: on every machine, in every version.
    pairs = [pair(str(i)) for i in range(60)]
    test = [int(one.prompt[0].content) for one in split_dataset(pairs).test]
    assert test == [4, 15, 23, 30, 45, 56]


@pytest.mark.parametrize("first", [split_by_prompt, lambda pairs: split_dataset(pairs)[::2]])
def test_variants_of_a_prompt_stay_together(first: Any) -> None:
    pairs = [pair(f"{text} {i}") for i in range(40) for text in VARIANTS]
    train, test = first(pairs)
    keys = [{one.prompt[0].content.split()[-1] for one in part} for part in (train, test)]
    assert not keys[0] & keys[1]


def test_a_part_may_be_left_out_but_not_stay_empty() -> None:
    parts = split_dataset(MANY, validation_fraction=0)
    assert parts.validation == []
    with pytest.raises(ValueError, match="no prompt of the 2 pairs fell to the"):
        split_dataset(MANY[:2])
    for options in ({"test_fraction": -0.1}, {"validation_fraction": 1.0}):
        with pytest.raises(ValueError, match=r"_fraction must be in \[0, 1\)"):
            split_dataset(MANY, **options)
    with pytest.raises(ValueError, match="nothing to train on"):
        split_dataset(MANY, validation_fraction=0.5, test_fraction=0.5)


def test_leaks_are_found_with_their_lines() -> None:
    train = [pair(VARIANTS[0], line=3), pair("x", line=4), pair(VARIANTS[1], line=5)]
    test = [pair("y", line=1), pair(VARIANTS[2], "p", "q", line=2)]
    (shared,) = shared_prompts(train, test)
    assert (shared.pair, shared.train_lines, shared.test_lines) == (test[1], [3, 5], [2])
    with pytest.raises(ValueError, match=r"1 of the prompts .* on line 2 and, to train on, line 3"):
        check_disjoint(train, test)
    check_disjoint(train, test[:1])


def test_without_prompts_the_replies_tell_pairs_apart() -> None:
    assert shared_prompts([pair("", "a", "b")], [pair("", "b", " a")])
    assert not shared_prompts([pair("", "a", "b")], [pair("", "a", "c")])
    # Texts are not run together: the border between two of them counts.
    assert not shared_prompts([pair("", "ab", "c")], [pair("", "a", "bc")])


def test_repetitions_go() -> None:
    pairs = [pair(text, "a ", "b", line=i) for i, text in enumerate(VARIANTS, 1)]
    pairs += [pair("x", "same", " same", line=4), pair("x", line=5)]
    left, report = deduplicate(pairs)
    assert left == [pairs[0], pairs[4]]
    assert (report.pairs, report.kept, report.identical, report.duplicates) == (5, 2, 1, 2)
    assert (report.contradictions, report.contradicting_lines) == (0, ())
    assert report.as_dict()["kept"] == 2


#: Three votes for a, one for b.
VOTES = [pair("x", *replies, line=i) for i, replies in enumerate(["ab", "ba", "ab", "ab"], 1)]


@pytest.mark.parametrize(
    ("contradictions", "expected"),
    [
        ("soft", [replace(VOTES[0], target=0.75)]),
        ("drop", []),
        ("keep", [VOTES[0], VOTES[1]]),
    ],
)
def test_contradictions(contradictions: str, expected: list[PreferencePair]) -> None:
    left, report = deduplicate([*VOTES, pair("y")], contradictions=contradictions)
    assert left == [*expected, pair("y")]
    assert (report.contradictions, report.duplicates) == (1, 2)
    assert report.contradicting_lines == ((1, 2, 3, 4),)


def test_the_majority_decides_which_is_chosen() -> None:
    left, _ = deduplicate([VOTES[1], *VOTES])
    assert left[0].target == 0.6
    left, _ = deduplicate([VOTES[1], VOTES[0], VOTES[2]])
    assert (left[0].chosen, left[0].target) == ("a", pytest.approx(2 / 3))


def test_soft_labels_and_margins_are_averaged() -> None:
    pairs = [pair("x", target=0.9, margin=1.0), pair("x", "b", "a", target=0.3, margin=2.0)]
    left, report = deduplicate(pairs)
    assert (left[0].chosen, left[0].target, left[0].margin) == ("a", pytest.approx(0.8), -0.5)
    assert report.contradictions == 0
    ties = [pair("x", "b", "a", target=0.5), pair("x"), pair("x", "b", "a", target=0.5)]
    assert deduplicate(ties)[1].contradictions == 0
    assert deduplicate(ties, contradictions="drop")[1].kept == 1


probabilities = st.one_of(st.none(), st.sampled_from([0.0, 0.125, 0.5, 0.75, 1.0]))


@given(st.lists(st.tuples(st.booleans(), probabilities), min_size=1, max_size=6))
def test_soft_pairs_have_the_gradient_of_all_votes(votes: list[tuple[bool, float | None]]) -> None:
    pairs = [pair("x", *("ab" if flag else "ba"), target=target) for flag, target in votes]
    (merged,), _ = deduplicate(pairs)

    def gradient(pairs: list[PreferencePair]) -> torch.Tensor:
        score = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        signs = torch.tensor([1.0 if one.chosen == "a" else -1.0 for one in pairs])
        targets = [1.0 if one.target is None else one.target for one in pairs]
        target = torch.tensor(targets, dtype=torch.float64)
        probability = torch.sigmoid(score * signs)
        loss = -(target * probability.log() + (1 - target) * (1 - probability).log())
        return torch.autograd.grad(loss.mean(), score)[0]

    torch.testing.assert_close(gradient([merged]), gradient(pairs))


def test_unknown_choice() -> None:
    with pytest.raises(ValueError, match="contradictions must be one of"):
        deduplicate(VOTES, contradictions="majority")
