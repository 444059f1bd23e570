"""Values of a scikit-learn pipeline while it is written as ONNX, and what becomes of its columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.tabular.base import marked
from hasten.inputs.models.tabular.graph import Graph
from hasten.inputs.pipeline.rows import Row

ABSENT = object()
"""Category that stands for a value that isn't there."""
_LAST_BITS = 1e-12
"""Relative error of numbers whose last bits differ: far above what exp and log leave, far below data's digits."""


@dataclass(frozen=True)
class Column:
    """A column of a value.

    Attributes:
        sources: Places of the model's own columns that it is made of.
        raw: Whether it is one of these columns itself, at most with missing values filled in.
        missing: Whether NaN comes through where the source has no value.
        level: None where its numbers are the library's to the last bit. Else their last bits may differ, of
            numbers as large as they are, plus this.
    """

    sources: frozenset[int]
    raw: bool = False
    missing: bool = True
    level: float | None = None

    def tolerance(self, value: float) -> float:
        """Return the distance from a number within which the library's number may be the same."""
        return 0.0 if self.level is None else _LAST_BITS * (abs(value) + self.level)

    def shifted(self, shift: float, factor: float) -> Column:
        """Return the column for `(x + shift) * factor`."""
        if self.level is None:
            return self
        return replace(self, level=(self.level + abs(shift)) * abs(factor))


@dataclass(frozen=True)
class ColumnBlock:
    """A value of shape `[batch, columns]`.

    Attributes:
        name: Name of the value in the graph.
        columns: Description of each column.
    """

    name: str
    columns: tuple[Column, ...]

    @property
    def size(self) -> int:
        """Number of columns."""
        return len(self.columns)


@dataclass
class Building:
    """A graph under construction, and what its steps say of the model's columns.

    Attributes:
        graph: The graph.
        dtype: Type of the values, by numpy's name.
        names: Names of the model's columns.
        words: Words of each column that takes words, each with its number, by the column's place.
        refusing: Columns of which an encoder refuses what it doesn't know.
        required: Columns that need a value.
        numeric: Columns that a step computes with.
        hashed: Columns of which the model reads the hash of any text.
        choices: Numbers that an encoder takes, by the column's place.
        smooth: Whether small changes of a row make small changes of the answer so far.
        moved: Whether the steps so far only move and replace numbers, as rounding them before would.
        infinite: Whether the model takes infinite numbers.
    """

    graph: Graph
    dtype: str
    names: tuple[str, ...]
    words: dict[int, dict[str | float, int]] = field(default_factory=dict)
    refusing: set[int] = field(default_factory=set)
    required: set[int] = field(default_factory=set)
    numeric: set[int] = field(default_factory=set)
    hashed: set[int] = field(default_factory=set)
    choices: dict[int, set[float]] = field(default_factory=dict)
    smooth: bool = True
    moved: bool = True
    infinite: bool = False

    def begin(self, rows: str) -> ColumnBlock:
        """Return the model's own columns."""
        columns = (Column(frozenset([place]), raw=True) for place in range(len(self.names)))
        return ColumnBlock(rows, tuple(columns))

    def array(self, values: Any) -> Array:
        """Return numbers in the type of the values, to become a constant."""
        return np.asarray(values, self.dtype)

    def take(self, part: ColumnBlock, places: Sequence[int] | Array) -> ColumnBlock:
        """Return some columns of a value."""
        places = [int(place) for place in places]
        if places == list(range(part.size)):
            return part
        name = self.graph.add("Gather", part.name, np.array(places, np.int64), axis=1)
        return ColumnBlock(name, tuple(part.columns[place] for place in places))

    def join(self, parts: Sequence[ColumnBlock]) -> ColumnBlock:
        """Return values side by side."""
        parts = [part for part in parts if part.size]
        if not parts:
            raise InputError("the scikit-learn pipeline leaves no columns for the model")
        if len(parts) == 1:
            return parts[0]
        name = self.graph.add("Concat", *(part.name for part in parts), axis=1)
        return ColumnBlock(name, tuple(column for part in parts for column in part.columns))

    def computed(self, part: ColumnBlock, name: str, *, exact: bool = False) -> ColumnBlock:
        """Return a value of which each column is computed from the same column of another.

        Args:
            part: The value that it is made from.
            name: Name of the new value.
            exact: Whether the result is the same if the numbers are rounded to float32 before.
        """
        self.counted(part)
        self.moved &= exact
        return ColumnBlock(name, tuple(replace(column, raw=False) for column in part.columns))

    def mixed(
        self, part: ColumnBlock, name: str, size: int, level: float | None = None
    ) -> ColumnBlock:
        """Return a value of `size` columns that are made of all columns of another.

        Args:
            part: The value that it is made from.
            name: Name of the new value.
            size: Number of its columns.
            level: Size of the numbers of which it is the sum, if a runtime may add them in another order.
        """
        self.counted(part)
        self.moved = False
        sources = frozenset().union(*(column.sources for column in part.columns))
        missing = any(column.missing for column in part.columns)
        levels = [one for one in (level, *(c.level for c in part.columns)) if one is not None]
        level = max(levels, default=None)
        return ColumnBlock(name, (Column(sources, missing=missing, level=level),) * size)

    def approximate(self, part: ColumnBlock, name: str, level: float = 0.0) -> ColumnBlock:
        """Return a value like `computed`, by an operator whose last bits differ from the library's.

        Args:
            part: The value that it is made from.
            name: Name of the new value.
            level: Size of the numbers from which it was computed by a sum.
        """
        made = self.computed(part, name)
        columns = (replace(c, level=max(level, c.level or 0.0)) for c in made.columns)
        return ColumnBlock(name, tuple(columns))

    def counted(self, part: ColumnBlock) -> None:
        """Note that a step computes with the columns of a value, so that they can't be words."""
        self.numeric |= {place for column in part.columns for place in column.sources if column.raw}

    def need(self, part: ColumnBlock) -> ColumnBlock:
        """Note that a step takes no missing values, and return the value."""
        for column in part.columns:
            if column.missing:
                self.required |= column.sources
        return part

    def numbers_of(self, column: Column, categories: Sequence[Any], step: str) -> list[float]:
        """Return the number by which each category comes: a word's place, NaN, or itself.

        Args:
            column: Column that the categories are of.
            categories: Texts or numbers; `ABSENT` for the one that is a missing value.
            step: Name of the step for messages.

        Raises:
            InputError: texts and numbers are mixed, or texts come from a computed column.
        """
        present = [one for one in categories if one is not ABSENT]
        if not any(isinstance(one, str) for one in present):
            self.smooth = self.moved = False  # numbers are compared with numbers
            self.counted(ColumnBlock("", (column,)))
            return [math.nan if one is ABSENT else float(one) for one in categories]
        if not all(isinstance(one, str) for one in present):
            raise InputError(
                f"{step} has a column that mixes text and numbers: make all its values text"
            )
        known = self.known_words(column, step)
        return [
            math.nan if one is ABSENT else known.setdefault(one, len(known)) for one in categories
        ]

    def known_words(self, column: Column, step: str) -> dict[str | float, int]:
        """Return the words of a column, to which more may be added."""
        if not column.raw:
            raise InputError(
                f"{step} reads words that another step computed, which isn't supported"
            )
        (source,) = column.sources
        return self.words.setdefault(source, {})

    def read_words(
        self, column: Column, words: Sequence[str | float], step: str, *, refuses: bool
    ) -> None:
        """Note that a step takes a column's words by the numbers that it gave them in training.

        Args:
            column: Column that has the words.
            words: The words, in the order of their numbers.
            step: Name of the step for messages.
            refuses: Whether it refuses what it doesn't know.

        Raises:
            InputError: another step computed the column, or numbered its words otherwise.
        """
        known = self.known_words(column, step)
        if not known:
            known.update({word: place for place, word in enumerate(words)})
        if list(known) != list(words):
            (source,) = column.sources
            raise InputError(
                f"the words of the column {self.names[source]!r} have other numbers in {step} than in "
                "another step, which isn't supported: encode them once"
            )
        if refuses:
            self.refusing |= column.sources

    def read_hashes(self, column: Column, step: str) -> None:
        """Note that a step takes the hashes of any texts in a column.

        Raises:
            InputError: another step computed the column.
        """
        if not column.raw:
            raise InputError(
                f"{step} reads categories that another step computed, which isn't supported"
            )
        self.hashed |= column.sources

    def row(self) -> Row:
        """Return the step that reads a row for this model."""
        for place in sorted(self.hashed & {*self.numeric, *self.words}):
            raise InputError(
                f"the column {self.names[place]!r} is read as categories by the model and by another step too, "
                "which isn't supported"
            )
        for place in sorted(self.numeric & set(self.words)):
            raise InputError(
                f"the column {self.names[place]!r} is read as words by one step and as numbers by "
                "another, which isn't supported"
            )
        needed = range(len(self.names)) if len(self.required) == len(self.names) else self.required
        unseen: list[tuple[str, Literal["missing", "other"]]] = [
            (self.names[place], "other")
            for place in sorted(self.words)
            if place not in self.refusing
        ]
        return Row(
            self.names,
            "refuse" if isinstance(needed, range) else "nan",
            tuple((self.names[place], tuple(self.words[place])) for place in sorted(self.words)),
            "float32" if self.dtype == "float32" else "float64",
            () if isinstance(needed, range) else tuple(self.names[p] for p in sorted(needed)),
            tuple(unseen),
            tuple(
                (self.names[place], tuple(sorted(self.choices[place])))
                for place in sorted(self.choices)
                if place in self.refusing
            ),
            whole=True,
            infinite="allow" if self.infinite else "refuse",
            hashed=tuple(self.names[place] for place in sorted(self.hashed)),
        )


def fill(building: Building, part: ColumnBlock, places: set[int], values: Array) -> str:
    """Return a value whose NaN are replaced in some columns, by a number of each column."""
    graph = building.graph
    gone = graph.add("IsNaN", part.name)
    if len(places) < part.size:
        gone = graph.add("And", gone, marked(places, part.size))
    return graph.add("Where", gone, building.array(values)[None], part.name)
