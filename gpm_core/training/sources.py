"""What a run is trained and evaluated on: pairs as they are stored, or made of ratings."""

from __future__ import annotations

import os
from dataclasses import dataclass

from gpm_core.data.criteria import labelled_pairs
from gpm_core.data.cycles import cyclic_pairs
from gpm_core.data.hub import load_pairs, load_rated
from gpm_core.data.pairs import PreferencePair
from gpm_core.data.preferences import pairs_from_ratings
from gpm_core.data.splitting import check_disjoint, split_indices

#: What :attr:`DataOptions.ratings` is for the mean of all criteria.
MEAN = "mean"


@dataclass(frozen=True)
class DataOptions:
    """Which part of the data, and how pairs are made where it is responses with ratings.

    Attributes:
        split: of a folder or a data set of the hub that has several, as "train"; see
            :func:`gpm_core.data.load_pairs`.
        eval_split: the same of the evaluation data. Without evaluation data: of the data.
        ratings: the data are responses with ratings, and of two the one that is higher on this
            criterion is chosen, or in the "mean" of all; see
            :func:`gpm_core.data.pairs_from_ratings`.
        cycle: the data are responses with ratings, and preferences go in circles over these
            criteria; see :func:`gpm_core.data.cyclic_pairs`.
        criteria: the data are responses with ratings, and each of these criteria is a preference of
            its own, of a model of several; see :func:`gpm_core.data.labelled_pairs`.

    Raises:
        ValueError: if more than one of ``ratings``, ``cycle`` and ``criteria`` is given.
    """

    split: str | None = None
    eval_split: str | None = None
    ratings: str | None = None
    cycle: list[str] | None = None
    criteria: list[str] | None = None

    def __post_init__(self) -> None:
        ways = ("ratings", "cycle", "criteria")
        given = [name for name in ways if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"{' and '.join(given[:2])} are two ways to make pairs: give one of them"
            )

    def read(
        self, data: str | os.PathLike[str], eval_data: str | os.PathLike[str] | None
    ) -> tuple[list[PreferencePair], list[PreferencePair] | None]:
        """The pairs of ``data``, and those to evaluate on where they are given apart.

        Raises:
            FileNotFoundError: if there is no such file, folder or data set.
            ValueError: for bad data, an unknown split or criterion, or if a prompt is in both.
        """
        pairs = self._pairs(data, self.split)
        if eval_data is None and self.eval_split is None:
            return pairs, None
        heldout = self._pairs(data if eval_data is None else eval_data, self.eval_split)
        check_disjoint(pairs, heldout)
        return pairs, heldout

    def _pairs(self, source: str | os.PathLike[str], split: str | None) -> list[PreferencePair]:
        if self.ratings is None and self.cycle is None and self.criteria is None:
            return load_pairs(source, split)
        groups = load_rated(source, split)
        pairs: list[PreferencePair]
        if self.criteria is not None:
            pairs = [*labelled_pairs(groups, self.criteria)]
            kind = "two responses with different ratings on any of the criteria"
        elif self.cycle is not None:
            pairs, kind = cyclic_pairs(groups, self.cycle).pairs, "cycle in the ratings"
        else:
            criterion = None if self.ratings == MEAN else self.ratings
            pairs = pairs_from_ratings(groups, criterion=criterion)
            kind = "two responses with different ratings"
        if not pairs:
            raise ValueError(f"{os.fspath(source)} holds no {kind}: there is nothing to learn from")
        return pairs


def divided(
    options: DataOptions,
    data: str | os.PathLike[str],
    eval_data: str | os.PathLike[str] | None,
    heldout_fraction: float,
    seed: int,
) -> tuple[list[PreferencePair], list[int], list[int]]:
    """All pairs of a run, and the positions of those to train on and of those held out.

    Where no held-out pairs are given they are a share of the pairs, by prompt.

    Raises:
        FileNotFoundError, ValueError: as :meth:`DataOptions.read`, and if pairs cannot be divided.
    """
    pairs, heldout = options.read(data, eval_data)
    if heldout is None:
        return pairs, *split_indices(pairs, heldout_fraction, seed)
    count = len(pairs)
    return pairs + heldout, list(range(count)), list(range(count, count + len(heldout)))
