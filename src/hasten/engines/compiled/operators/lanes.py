"""Forests of small trees: 32 trees at once, one in each byte of a vector, all nodes in preorder.

Leaves are numbered from the left. Each tree has the number of the leftmost leaf that the row may still
reach. A node is on the row's way exactly if that is the leftmost leaf below the node; if the row goes high
there, it becomes the leftmost leaf below the high child. So a node is a comparison of the row's rank with
the threshold's, another of the leaf, and an exclusive or, all in bytes and without any branch or wait.
Looking at all 30 nodes of a tree in this way takes a tenth of the time of walking through five of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.forests import Forest
from hasten.engines.compiled.operators.rankings import Entries, Splits
from hasten.engines.compiled.operators.rows import emit_entries

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_LANES = 32
_TABLE = 16
"""Entries that one shuffle of a vector looks up."""
_MOST_ENTRIES = 128
_MOST_LEAVES = 256
_NODE_NS, _SHUFFLE_NS, _STEP_NS = 0.6, 0.32, 1.0
"""Time for 32 trees' nodes, for each table of entries, and for one tree's step otherwise, measured on
200 trees of 31 leaves (AMD EPYC, AVX2)."""


def emit(writer: Writer, kind: str, forest: Forest, splits: Splits) -> bool:
    """Write C that finds the leaves of the row `x`, `at[place[tree]]`; return whether it is worth while."""
    if writer.vector_bytes < _LANES or forest.leaves.max() > _MOST_LEAVES:
        return False
    if splits.columns > _MOST_ENTRIES:
        return False
    entries = Entries.of(splits, 255)
    if len(entries) > _MOST_ENTRIES:
        return False
    slots = _Slots.of(forest, splits, entries)
    tables = max(1, -(-len(entries) // _TABLE))
    cost = sum(map(len, slots.groups)) * (_NODE_NS + _SHUFFLE_NS * tables)
    if cost > forest.depths.sum() * _STEP_NS:
        return False
    writer.line("enum { MOST = 255 };")
    writer.line(f"typedef signed char lane __attribute__((vector_size({_LANES}), may_alias));")
    writer.line(f"typedef char bytes __attribute__((vector_size({_LANES})));")
    writer.line(f"u8 entry[{tables * _TABLE}] __attribute__((aligned({_LANES})));")
    emit_entries(writer, kind, entries, "entry[e] = value ^ 128;")
    writer.line(f"lane T[{tables}];")
    for number in range(tables):
        for half in range(2):
            writer.line(
                f"COPY((u8 *)&T[{number}] + {half * _TABLE}, entry + {number * _TABLE}, {_TABLE});"
            )
    writer.line(f"u8 at[{len(slots.groups) * _LANES}] __attribute__((aligned({_LANES})));")
    uneven = [one for one in slots.groups if one.shape[1] == 4]
    _emit_groups(writer, uneven, 0, tables)
    _emit_groups(writer, slots.groups[len(uneven) :], len(uneven), tables)
    writer.line(f"const i32 *place = {writer.table(slots.place.astype(np.int32))};")
    return True


def _emit_groups(writer: Writer, groups: list[Array], first: int, tables: int) -> None:
    if not groups:
        return
    ends = np.cumsum([len(one) for one in groups]).astype(np.int32)
    parts = groups[0].shape[1]
    nodes = writer.table(np.concatenate(groups).view(np.uint8))
    writer.line(f"{{ const lane *s = (const lane *){nodes}, *end;")
    with writer.loops((len(groups),), name="g"):
        writer.line("lane leaf = {0};")
        writer.line(f"end = (const lane *){nodes} + (long){writer.table(ends)}[g0] * {parts};")
        with writer.block(f"for (; s < end; s += {parts})"):
            _emit_lookup(writer, tables)
            if parts == 4:
                writer.line("leaf ^= (looked > s[1]) & (leaf == s[2]) & s[3];")
            else:
                writer.line("leaf = leaf + leaf - (looked > s[1]);")
        writer.line(f"*(lane *)(at + ({first} + g0) * {_LANES}) = leaf;")
    writer.line("}")


def _emit_lookup(writer: Writer, tables: int) -> None:
    """Write the lookup of 32 entries by their numbers `s[0]`: a shuffle gives 0 where the top bit is set."""
    look = "__builtin_ia32_pshufb256"
    if tables == 1:
        writer.line(f"const lane looked = (lane){look}((bytes)T[0], (bytes)s[0]);")
        return
    parts = [
        f"(lane){look}((bytes)T[{number}], (bytes)((s[0] ^ {number * _TABLE}) + 0x70))"
        for number in range(tables)
    ]
    writer.line(f"const lane looked = {' | '.join(parts)};")


@dataclass(frozen=True)
class _Slots:
    """Nodes of 32 trees side by side.

    Attributes:
        groups: For 32 trees each, int8 of shape `(nodes, 4, 32)`: entry, threshold's rank less 128, leftmost
            leaf, its change; or `(levels, 2, 32)` for trees that ask the same all along a level.
        place: Lane of each tree, counted through all groups.
    """

    groups: list[Array]
    place: Array

    @classmethod
    def of(cls, forest: Forest, splits: Splits, entries: Entries) -> _Slots:
        """Lay out a forest: trees of one size together."""
        inner = np.flatnonzero(~forest.leaf)
        tree = forest.tree[inner]
        begins = np.searchsorted(tree, np.arange(len(forest.starts)))
        counts = np.diff(np.append(begins, len(inner)))
        leftmost = forest.leaves_before[inner]
        change = leftmost ^ forest.leaves_before[forest.high[inner]]
        rank = entries.rank - 128
        level = forest.depth[inner]
        even = _even(forest, level, tree, entries, splits)
        order = np.lexsort((counts, even))
        groups: list[Array] = []
        place = np.zeros(len(order), np.int64)
        cut = int((~even).sum())
        for chosen, levels in ((order[:cut], False), (order[cut:], True)):
            for start in range(0, len(chosen), _LANES):
                trees = chosen[start : start + _LANES]
                place[trees] = len(groups) * _LANES + np.arange(len(trees))
                most = max(1, int((forest.depths if levels else counts)[trees].max()))
                made = np.zeros((most, 2 if levels else 4, _LANES), np.int8)
                made[:, 1] = 127
                for lane, one in enumerate(trees):
                    own = np.arange(begins[one], begins[one] + counts[one])
                    if levels:  # the nodes at the left edge, padded above: 0 stays 0
                        own = own[: forest.depths[one]]
                        rows = slice(most - len(own), most)
                    else:
                        rows = slice(0, len(own))
                        made[rows, 2, lane], made[rows, 3, lane] = leftmost[own], change[own]
                    made[rows, 0, lane] = entries.entry[own]
                    made[rows, 1, lane] = rank[own]
                groups.append(made)
        return cls(groups, place)


def _even(forest: Forest, level: Array, tree: Array, entries: Entries, splits: Splits) -> Array:
    """Return for each tree whether it is complete and its nodes of each level are alike."""
    complete = (forest.leaves == 1 << np.minimum(forest.depths, 8)) & (forest.depths > 1)
    complete &= np.abs(forest.mean_depths - forest.depths) < 1e-9
    keys = entries.entry * 256 + entries.rank
    cells = tree * 9 + np.minimum(level, 8)
    size = len(forest.starts) * 9
    low = np.full(size, np.iinfo(np.int64).max)
    high = np.full(size, -1)
    np.minimum.at(low, cells, keys)
    np.maximum.at(high, cells, keys)
    alike = ((low == high) | (high < 0)).reshape(-1, 9).all(axis=1)
    return np.asarray(complete & alike)
