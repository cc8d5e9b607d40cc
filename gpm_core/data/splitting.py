"""Dividing pairs into those to train on and those held out, never with a prompt on both sides."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from gpm_core.data.keys import prompt_key
from gpm_core.data.pairs import PreferencePair


def split_indices(
    pairs: Sequence[PreferencePair], heldout_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """As :func:`split_by_prompt`, the positions of the pairs instead of the pairs."""
    if not 0 < heldout_fraction < 1:
        raise ValueError(f"heldout_fraction must be between 0 and 1; got {heldout_fraction}")
    groups: dict[bytes, list[int]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(prompt_key(pair), []).append(i)
    if len(groups) < 2:
        raise ValueError(
            f"cannot split by prompt: the {len(pairs)} pairs have {len(groups)} distinct prompt, "
            "at least 2 are needed; give held-out pairs in a file of their own"
        )
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    goal = heldout_fraction * len(pairs)
    heldout: list[int] = []
    for members in order:
        size = len(heldout) + len(members)
        if size <= goal + 0.5 and size < len(pairs):
            heldout.extend(members)
    if not heldout:
        heldout = min(order, key=len)
    chosen = set(heldout)
    return [i for i in range(len(pairs)) if i not in chosen], sorted(heldout)


def split_by_prompt(
    pairs: Sequence[PreferencePair], heldout_fraction: float = 0.2, seed: int = 0
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Divide pairs at random so that no prompt is on both sides.

    Prompts are the same if they differ only in white space and Unicode form. Pairs without a prompt
    are told apart by their two replies, in either order. The share is met closely, and so where a
    prompt goes depends on all the others: :func:`split_dataset` keeps prompts where they are as
    data are added.

    Args:
        pairs: what to divide.
        heldout_fraction: share of the pairs to hold out, in (0, 1); met as closely as whole prompts
            allow, and at least one prompt is on each side.
        seed: equal seeds and pairs give equal divisions.

    Returns:
        (train, heldout), each in the order of ``pairs``.

    Raises:
        ValueError: if the fraction is out of range, or there are fewer than two distinct prompts.

    Example:
        >>> pairs = [PreferencePair((Message("user", str(i)),), "a", "b") for i in range(10)]
        >>> train, heldout = split_by_prompt(pairs, 0.2)
        >>> len(train), len(heldout)
        (8, 2)
    """
    train, heldout = split_indices(pairs, heldout_fraction, seed)
    return [pairs[i] for i in train], [pairs[i] for i in heldout]


class DatasetSplit(NamedTuple):
    """Three lists of pairs that share no prompt."""

    train: list[PreferencePair]
    validation: list[PreferencePair]
    test: list[PreferencePair]


def split_dataset(
    pairs: Sequence[PreferencePair],
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> DatasetSplit:
    """Divide pairs in three by their prompts, each prompt by itself.

    A hash of the normalized prompt and the seed says where a prompt goes: it stays there when pairs
    are added, removed or put in another order, on every machine. A model can so be trained on more
    data and tested on the old test set. A smaller fraction also takes a part of what a larger one
    took for the test set. The shares are met as well as chance has it.

    Args:
        pairs: what to divide; prompts are the same as :func:`split_by_prompt` has it.
        validation_fraction: expected share of the prompts for validation, in [0, 1).
        test_fraction: the same for the test set.
        seed: another seed, another division.

    Returns:
        (train, validation, test), each in the order of ``pairs``.

    Raises:
        ValueError: if a fraction is out of range or nothing is left to train on, or if a part
            with a fraction above 0 stays empty, for want of prompts.

    Example:
        >>> pairs = [PreferencePair((Message("user", str(i)),), "a", "b") for i in range(1000)]
        >>> [len(part) for part in split_dataset(pairs)]
        [813, 99, 88]
    """
    for name, fraction in (("validation", validation_fraction), ("test", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name}_fraction must be in [0, 1); got {fraction}")
    if validation_fraction + test_fraction >= 1:
        raise ValueError(
            "validation_fraction and test_fraction leave nothing to train on; got "
            f"{validation_fraction} + {test_fraction}"
        )
    parts = DatasetSplit([], [], [])
    salt = (seed % 2**64).to_bytes(8, "little")
    for pair in pairs:
        place = int.from_bytes(prompt_key(pair, salt)[:8], "little") / 2**64
        held = place < test_fraction, place < test_fraction + validation_fraction
        (parts.test if held[0] else parts.validation if held[1] else parts.train).append(pair)
    wanted = (1 - validation_fraction - test_fraction, validation_fraction, test_fraction)
    for name, part, fraction in zip(parts._fields, parts, wanted, strict=True):
        if fraction > 0 and not part:
            raise ValueError(
                f"no prompt of the {len(pairs)} pairs fell to the {name} part, where a share of "
                f"{fraction:g} is expected: give more prompts, a larger share or another seed"
            )
    return parts


class SharedPrompt(NamedTuple):
    """A prompt that two lists of pairs share: the lines of its pairs in each."""

    pair: PreferencePair
    train_lines: list[int]
    test_lines: list[int]


def shared_prompts(
    train: Sequence[PreferencePair], test: Sequence[PreferencePair]
) -> list[SharedPrompt]:
    """Prompts that are in both lists, the same as :func:`split_by_prompt` has it.

    Returns:
        One for each such prompt in the order of ``test``, whose first pair with it is ``pair``;
        empty if the lists share nothing.

    Example:
        >>> pairs = [PreferencePair((Message("user", "Hi"),), "a", "b", line=3)]
        >>> shared_prompts(pairs, pairs)[0].train_lines
        [3]
    """
    found: dict[bytes, SharedPrompt] = {}
    for pair in test:
        shared = found.setdefault(prompt_key(pair), SharedPrompt(pair, [], []))
        shared.test_lines.append(pair.line)
    for pair in train:
        other = found.get(prompt_key(pair))
        if other is not None:
            other.train_lines.append(pair.line)
    return [shared for shared in found.values() if shared.train_lines]


def check_disjoint(train: Sequence[PreferencePair], test: Sequence[PreferencePair]) -> None:
    """Refuse a test set whose prompts were trained on.

    Raises:
        ValueError: if there are :func:`shared_prompts`; says how many, and where the first is.
    """
    shared = shared_prompts(train, test)
    if shared:
        first = shared[0]
        raise ValueError(
            f"{len(shared)} of the prompts to test on are also trained on, which makes results too "
            f"good: the first is on line {first.test_lines[0]} and, to train on, line "
            f"{first.train_lines[0]}. Leave them out of one of the two"
        )
