"""Forests of large trees: eight trees at once, one step in each by turns, until all are at their leaves.

A node is one number of 64 bits: the rank of its threshold, its entry, and the place of its low child, which
the high child follows. A leaf is its own child. So a step is a few instructions without a branch,
and while one tree waits for the memory, the others go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.forests import Forest
from hasten.engines.compiled.operators.rankings import Entries, Splits
from hasten.engines.compiled.operators.rows import emit_entries
from hasten.errors import IntegrityError

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_TREES = 8
_RANK_BITS, _ENTRY_BITS, _PLACE_BITS = 24, 16, 24
_CHECKED = 4
"""Steps after which trees of uneven depth are asked whether all are at their leaves."""


def emit(writer: Writer, kind: str, forest: Forest, splits: Splits) -> None:
    """Write C that finds the leaves of the row `x`: `at[place[tree]]`.

    Raises:
        IntegrityError: the forest is too large.
    """
    most = (1 << _RANK_BITS) - 1
    large = IntegrityError("the plan is damaged: trees: there are too many trees or columns")
    if splits.columns >= 1 << _ENTRY_BITS or forest.sizes.max() >= 1 << _PLACE_BITS:
        raise large
    entries = Entries.of(splits, most)
    if len(entries) >= 1 << _ENTRY_BITS:
        raise large
    nodes, starts, order = _laid_out(forest, entries)
    steps, more = _steps(forest, order)
    writer.line(f"enum {{ MOST = {most} }}; typedef unsigned u32; typedef unsigned long long u64;")
    writer.line(f"i32 entry[{len(entries) + 1}];")
    emit_entries(writer, kind, entries, "entry[e] = value;")
    writer.line(f"entry[{len(entries)}] = 0;")
    writer.line(f"i32 at[{len(steps) * _TREES}];")
    table, begins = writer.table(nodes), writer.table(starts)
    with writer.loops((len(steps),), name="g"):
        writer.line(f"const i64 *tree[{_TREES}]; u32 n[{_TREES}];")
        _each(writer, f"tree[k] = {table} + {begins}[g0 * {_TREES} + k]; n[k] = 0;")
        step = "const u64 w = tree[k][n[k]];" + (
            f"n[k] = (u32)(w & {(1 << _PLACE_BITS) - 1})"
            f" + (entry[(w >> {_PLACE_BITS}) & {(1 << _ENTRY_BITS) - 1}] > (i32)(w >> {64 - _RANK_BITS}));"
        )
        with writer.block(f"for (i32 left = {writer.table(steps)}[g0]; left; left--)"):
            _each(writer, step)
        if more.any():
            writer.line(f"u32 moved = {writer.table(more)}[g0];")
            with writer.block("while (moved)"):
                for _ in range(_CHECKED - 1):
                    _each(writer, step)
                writer.line("moved = 0;")
                _each(writer, f"const u32 old = n[k]; {step} moved |= old ^ n[k];")
        _each(writer, f"at[g0 * {_TREES} + k] = (i32)((u64)tree[k][n[k]] >> {64 - _RANK_BITS});")
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order))
    writer.line(f"const i32 *place = {writer.table(place)};")


def _each(writer: Writer, statement: str) -> None:
    """Write a statement for each of the trees that are walked through at once."""
    writer.line(f"#pragma GCC unroll {_TREES}")
    writer.line(f"for (int k = 0; k < {_TREES}; k++) {{ {statement} }}")


def _laid_out(forest: Forest, entries: Entries) -> tuple[Array, Array, Array]:
    """Return nodes, level by level so that siblings are neighbours, each tree's first one, and the order.

    Trees of one depth stand together; the last eight are filled up with a leaf.
    """
    nodes = len(forest.leaf)
    inner = np.flatnonzero(~forest.leaf)
    rank = np.argsort(np.lexsort((np.arange(nodes), forest.depth, forest.tree)))
    place = rank - forest.starts[forest.tree]
    words = np.zeros(nodes, np.uint64)
    leaves = np.flatnonzero(forest.leaf)
    words[rank[inner]] = _packed(entries.rank, entries.entry, place[inner + 1])
    words[rank[leaves]] = _packed(
        forest.leaves_before[leaves], np.full(len(leaves), len(entries)), place[leaves]
    )
    order = np.argsort(forest.depths, kind="stable")
    filler = _packed(np.zeros(1), np.full(1, len(entries)), np.zeros(1))
    starts = np.full(-(-len(order) // _TREES) * _TREES, nodes, np.int32)
    starts[: len(order)] = forest.starts[order]
    return np.concatenate([words, filler]).view(np.int64), starts, order


def _packed(rank: Array, entry: Array, place: Array) -> Array:
    parts = [np.asarray(one).astype(np.uint64) for one in (rank, entry, place)]
    return np.asarray(
        parts[0] << np.uint64(64 - _RANK_BITS) | parts[1] << np.uint64(_PLACE_BITS) | parts[2]
    )


def _steps(forest: Forest, order: Array) -> tuple[Array, Array]:
    """Return for each eight trees the steps that are always made, and whether more may follow.

    Trees of nearly even depth take the steps of the deepest one; others are asked after their mean.
    """
    begins = np.arange(0, len(order), _TREES)
    most = np.maximum.reduceat(forest.depths[order], begins)
    mean = np.maximum.reduceat(forest.mean_depths[order], begins)
    uneven = mean < 0.6 * most
    steps = np.where(uneven, np.rint(mean), most)
    return steps.astype(np.int32), uneven.astype(np.int32)
