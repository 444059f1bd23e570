"""Tables of numbers by keys of 64 bits, looked up in ONNX: for each key one product and three places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.models.tabular.graph import Graph

MOST_NUMBERS = 1 << 26
"""Largest number of keys and numbers of all tables together: with the room between them about 1 GB."""
_SHIFT = 32
"""Bit of a product from which on it says the place."""
_TRIES = 4_096
"""Number of factors that are tried for the keys of a group."""
_TRIES_A_KEY = 64
"""Number of tries for each key, on average, after which a table's keys don't fit: about two are needed."""
_FACTORS = np.random.default_rng(0).integers(0, 1 << 64, _TRIES, np.uint64) | np.uint64(1)
_MORE_ROOM = 3
"""Number of times that a table gets twice the room before its keys are refused."""


@dataclass(frozen=True)
class Table:
    """Numbers of some keys.

    Attributes:
        keys: The keys, int64, each once.
        numbers: Rows of numbers, float32 of shape `(rows, keys + 1)`; the last number of a row is for all
            other keys.
    """

    keys: Array
    numbers: Array


@dataclass(frozen=True)
class _Places:
    """Places of a table's keys.

    A key belongs to the group that its low bits say. The product of the key and its group's factor has its
    place in the bits from `_SHIFT` on, and no two keys have the same place. So keys must differ in their low
    bits, as hashes do.

    Attributes:
        factors: Factor of each group, int64; their number is a power of two.
        places: Place of each key.
        room: Number of places, a power of two.
    """

    factors: Array
    places: Array
    room: int


def check_size(size: int) -> None:
    """Refuse tables with too many numbers and keys.

    Raises:
        InputError: there are more than `MOST_NUMBERS`.
    """
    if size > MOST_NUMBERS:
        raise InputError(
            f"the model has {size:,} numbers for its categories: at most {MOST_NUMBERS:,} are supported"
        )


def look_up(graph: Graph, keys: str, tables: Sequence[Table]) -> str:
    """Add the numbers that tables have for keys.

    Args:
        graph: Graph to add to.
        keys: Name of the keys, int64 of shape `[batch, tables]`.
        tables: The tables, at least one.

    Returns:
        Name of the numbers, float32 of shape `[batch, rows of all tables]`, in the order of the tables.

    Raises:
        InputError: there are too many numbers, or keys that nothing tells apart.
    """
    check_size(sum(table.numbers.size + len(table.keys) for table in tables))
    placed = [_placed(table.keys) for table in tables]
    groups = np.array([len(one.factors) for one in placed], np.int64)
    rooms = np.array([one.room for one in placed], np.int64)
    begins = np.cumsum(rooms + 1) - rooms - 1  # after each table's places one for all other keys
    stored = np.zeros(
        int((rooms + 1).sum()), np.int64
    )  # what is found where no key is, is as if it weren't
    for table, one, begin in zip(tables, placed, begins, strict=True):
        stored[begin + one.places] = table.keys
    group = graph.add("BitwiseAnd", keys, groups - 1)
    factors = np.concatenate([one.factors for one in placed])
    at = graph.add("Add", group, np.cumsum(groups) - groups)
    product = graph.add("Mul", keys, graph.add("Gather", factors, at))
    masked = graph.add("BitwiseAnd", product, (rooms - 1) << _SHIFT)
    within = graph.add("Div", masked, np.array(1 << _SHIFT, np.int64))  # exact, of positive numbers
    place = graph.add("Add", within, begins)
    known = graph.add("Equal", graph.add("Gather", stored, place), keys)
    place = graph.add("Where", known, place, begins + rooms)
    return _numbers(graph, place, tables, placed, begins)


def _numbers(
    graph: Graph, place: str, tables: Sequence[Table], placed: Sequence[_Places], begins: Array
) -> str:
    """Add the numbers at the places that keys have, or the ones for all other keys."""
    rows: list[Array] = []
    of, shifts, start = [], [], 0
    for number, (table, one) in enumerate(zip(tables, placed, strict=True)):
        for row in table.numbers:
            kept = np.full(one.room + 1, row[-1], np.float32)
            kept[one.places] = row[:-1]
            rows.append(kept)
            of.append(number)
            shifts.append(start - int(begins[number]))
            start += len(kept)
    chosen = graph.add("Gather", place, np.array(of, np.int64), axis=1)
    return graph.add(
        "Gather", np.concatenate(rows), graph.add("Add", chosen, np.array(shifts, np.int64))
    )


def _placed(keys: Array) -> _Places:
    """Find a factor for each group of keys."""
    room = _power(max(2, len(keys) * 5 // 4 + 1))
    for _ in range(_MORE_ROOM):
        if found := _fitted(keys, room):
            return found
        room *= 2
    raise InputError("the keys of its categories can't be told apart: the file is damaged")


def _power(least: int) -> int:
    """Return the least power of two that isn't below a number."""
    return 1 << (least - 1).bit_length()


def _fitted(keys: Array, room: int) -> _Places | None:
    """Find factors that give every key a place of its own among so many; None where there are none."""
    groups = _power(max(1, len(keys) // 2))
    group = keys & (groups - 1)
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group, minlength=groups)
    begins = np.cumsum(sizes) - sizes
    factors, places = np.ones(groups, np.int64), np.zeros(len(keys), np.int64)
    taken = np.zeros(room, bool)
    left = _TRIES_A_KEY * (len(keys) + _TRIES)
    # A key like 0 has the first place whatever the factor, so its group chooses before all others; then large ones do.
    first = keys.view(np.uint64) & np.uint64((room << _SHIFT) - 1) == 0
    zeros = np.unique(group[first])
    others = np.setdiff1d(np.flatnonzero(sizes), zeros)
    kinds = [zeros, *(others[sizes[others] == n] for n in np.unique(sizes[others])[::-1])]
    for pending in kinds[not len(zeros) :]:
        members = order[begins[pending, None] + np.arange(sizes[pending[0]])]
        for factor in _FACTORS:
            own = keys[members].view(np.uint64) * factor >> np.uint64(_SHIFT)
            at = (own & np.uint64(room - 1)).astype(np.int64)
            fits = _apart(at, taken)
            factors[pending[fits]] = factor.view(np.int64)
            places[members[fits]] = at[fits]
            taken[at[fits]] = True
            pending, members = pending[~fits], members[~fits]
            left -= members.size
            if not len(pending):
                break
            if left < 0:
                return None
        else:
            return None
    return _Places(factors, places, room)


def _apart(at: Array, taken: Array) -> Array:
    """Return which groups can have their places: free ones, each once, that no group before wants.

    Args:
        at: Places that each group's keys want, of shape `(groups, keys)`.
        taken: Places that aren't free.
    """
    ordered = np.sort(at, axis=1)
    alone: Array = (ordered[:, 1:] != ordered[:, :-1]).all(axis=1) & ~taken[at].any(axis=1)
    wanting = np.flatnonzero(alone)
    first = np.zeros(at[wanting].size, bool)
    first[np.unique(at[wanting].ravel(), return_index=True)[1]] = True
    alone[wanting] = first.reshape(at[wanting].shape).all(axis=1)
    return alone
