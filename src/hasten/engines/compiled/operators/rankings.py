"""Ranks of a row's numbers among the thresholds of a forest, which small integers then stand for.

A node sends a row high where the number of its column is above its threshold: where its rank, the number of
thresholds of the column below it, is above the threshold's own. An entry is such a rank of a column, with
the one that NaN has. Nodes that send NaN to different sides need two entries of a column; a set of
categories is an entry of its own, which is 1 within the set and else 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import IntegrityError

_MOST_TABLE = 64 << 20
"""Largest number of bytes of all columns' tables of categories together."""
_MOST_MEMBERS = 1 << 24
"""Largest number of members of the sets that all columns' nodes speak of together: seconds of sorting."""


@dataclass(frozen=True)
class Splits:
    """Inner nodes, in any order.

    Attributes:
        feature: Column that each one looks at.
        threshold: Number above which a row goes high; unused for sets.
        nan_high: Whether NaN goes high.
        members: Number of the set that sends a row high; -1 for a threshold.
        sets: Sorted members of each set.
    """

    feature: Array
    threshold: Array
    nan_high: Array
    members: Array
    sets: tuple[Array, ...]

    @cached_property
    def columns(self) -> int:
        """Number of columns that nodes look at, each of which has an entry or more."""
        return len(np.unique(self.feature))

    @cached_property
    def categorized(self) -> list[_Categorized]:
        """Columns with sets.

        Raises:
            IntegrityError: the sets are too many, or too large.
        """
        found: list[_Categorized] = []
        members = cells = 0
        for column, own in _by_value(self.feature, np.flatnonzero(self.members >= 0)):
            keys = self.members[own] * 2 + self.nan_high[own]
            unique, places = np.unique(keys, return_inverse=True)
            used = [self.sets[key // 2] for key in unique]
            members += sum(map(len, used))
            if members <= _MOST_MEMBERS:
                categories = np.unique(np.concatenate([self.threshold[:0], *used]))
                cells += (len(categories) + 2) * len(unique)
            if members > _MOST_MEMBERS or cells > _MOST_TABLE:
                raise IntegrityError(
                    "the plan is damaged: trees: too many sets of too many categories"
                )
            table = np.zeros((len(categories) + 2, len(unique)), np.uint8)
            for number, one in enumerate(used):
                table[np.searchsorted(categories, one), number] = 1
            table[-1] = unique % 2
            found.append(_Categorized(column, own, places, categories, table))
        return found


@dataclass(frozen=True)
class _Categorized:
    """Column with sets.

    Attributes:
        column: The column.
        nodes: Numbers of the nodes that look at it by a set.
        places: Entry of each of them, counted from the column's first: one for each set and side of NaN.
        categories: Sorted members of all these sets.
        table: The entries' values; see `Entries.categories`.
    """

    column: int
    nodes: Array
    places: Array
    categories: Array
    table: Array


@dataclass
class Entries:
    """Entries of a forest, and which of them each node reads.

    Attributes:
        columns: Columns that are ranked, each once.
        thresholds: Sorted thresholds of each of them.
        source: For each ranked entry, the place of its column in `columns`.
        base: Rank that counts as 0 in each ranked entry; lower ones count as 0, too.
        nan: Rank of NaN in each ranked entry.
        categories: Columns with sets, each with its sorted categories, and the entries' values for each
            category, for any other number and for NaN, as uint8 of shape `(categories + 2, entries)`.
        entry: Entry of each node: the ranked ones come first, then those of sets, column by column.
        rank: Rank of each node's threshold within its entry.
    """

    entry: Array
    rank: Array
    columns: list[int] = field(default_factory=list)
    thresholds: list[Array] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    base: list[int] = field(default_factory=list)
    nan: list[int] = field(default_factory=list)
    categories: list[tuple[int, Array, Array]] = field(default_factory=list)

    @classmethod
    def of(cls, splits: Splits, most: int) -> Entries:
        """Find the entries of nodes.

        Args:
            splits: The nodes.
            most: Highest value of an entry. A column with more thresholds has several entries, each for
                a part of them.
        """
        nodes = len(splits.feature)
        made = cls(np.zeros(nodes, np.int64), np.zeros(nodes, np.int64))
        ranked = splits.members < 0
        for column, own in _by_value(splits.feature, np.flatnonzero(ranked)):
            values, ranks = np.unique(splits.threshold[own], return_inverse=True)
            made.columns.append(column)
            made.thresholds.append(values)
            made._rank(own, ranks, splits.nan_high[own], most)
        for one in splits.categorized:
            made.entry[one.nodes] = len(made) + one.places
            made.categories.append((one.column, one.categories, one.table))
        return made

    def __len__(self) -> int:
        return len(self.source) + sum(int(table.shape[1]) for _, _, table in self.categories)

    def _rank(self, own: Array, ranks: Array, nan_high: Array, most: int) -> None:
        """Add the entries of one column's nodes."""
        for part, places in _by_value(ranks // (most - 1), np.arange(len(own))):
            base = part * (most - 1)
            within, high = ranks[places] - base, nan_high[places]
            if not high.any():
                groups = [(np.ones(len(places), bool), 0)]
            elif high.all() or within[high].max() < within[~high].min():
                groups = [(np.ones(len(places), bool), int(within[high].max()) + 1)]
            else:
                groups = [(~high, 0), (high, most)]
            for chosen, nan in groups:
                self.entry[own[places[chosen]]] = len(self.source)
                self.rank[own[places[chosen]]] = within[chosen]
                self.source.append(len(self.columns) - 1)
                self.base.append(base)
                self.nan.append(nan)


def _by_value(values: Array, places: Array) -> Iterator[tuple[int, Array]]:
    """Yield each value that stands at some places, with those of them where it does."""
    order = places[np.argsort(values[places], kind="stable")]
    found = values[order]
    cuts = np.flatnonzero(found[1:] != found[:-1]) + 1
    for part in np.split(order, cuts):
        if part.size:
            yield int(values[part[0]]), part
