"""Dividing pairs into those to train on and those held out."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from gpm_core.data.pairs import PreferencePair


def split_indices(
    pairs: Sequence[PreferencePair], heldout_fraction: float, seed: int
) -> tuple[list[int], list[int]]:
    """As :func:`split_by_prompt`, the positions of the pairs instead of the pairs."""
    if not 0 < heldout_fraction < 1:
        raise ValueError(f"heldout_fraction must be between 0 and 1; got {heldout_fraction}")
    groups: dict[Hashable, list[int]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(_key(pair), []).append(i)
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

    Pairs without a prompt are told apart by their two replies, in either order.

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


def _key(pair: PreferencePair) -> Hashable:
    return pair.prompt or frozenset((pair.chosen, pair.rejected))
