"""C that turns a row into the entries which the nodes of a forest read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from hasten.core.tensors import Array
from hasten.engines.compiled.operators.rankings import Entries

if TYPE_CHECKING:
    from hasten.engines.compiled.writer import Writer

_STEP = 16
"""Thresholds that are counted at once."""
_TWO_STEPS = _STEP * (_STEP + 1)
"""Largest number of thresholds of a column that two counts rank it among."""


def emit_entries(writer: Writer, kind: str, entries: Entries, store: str) -> None:
    """Write statements that compute all entries of the row `x`.

    Args:
        writer: Writer of the operation.
        kind: Type of the row in C.
        entries: Entries of the forest.
        store: Statement that keeps an entry `value` as number `e`.
    """
    if entries.columns:
        _emit_ranks(writer, kind, entries, store)
    ranked = len(entries.source)
    for column, categories, table in entries.categories:
        count, width = table.shape[0] - 2, table.shape[1]
        with writer.block(""):
            writer.line(f"const {kind} v = x[{column}];")
            row = str(count)
            if count:
                numbers = writer.table(categories)
                _emit_search(writer, f"{numbers}", str(count))
                row = f"(rank < {count} && {numbers}[rank] == v ? rank : {count})"
            known = f"(v != v ? {count + 1} : {row})"
            writer.line(f"const u8 *own = {writer.table(table)} + (long){known} * {width};")
            with writer.loops((width,), name="k"):
                writer.line(f"const i32 e = {ranked} + k0, value = own[k0];")
                writer.line(store)
        ranked += width


def _emit_ranks(writer: Writer, kind: str, entries: Entries, store: str) -> None:
    columns = np.asarray(entries.columns, np.int32)
    count = len(columns)
    column = "j0" if (columns == np.arange(count)).all() else f"{writer.table(columns)}[j0]"
    alone = entries.source == list(range(count)) and not any(entries.base)
    nans = writer.table(np.asarray(entries.nan, np.int32))
    if not alone:
        writer.line(f"i32 ranks[{count}]; u8 unknown[{count}];")
    most = max(len(one) for one in entries.thresholds)
    with writer.loops((count,), name="j"):
        writer.line(f"const {kind} v = x[{column}];")
        if most <= _TWO_STEPS:
            _emit_counts(writer, kind, entries.thresholds)
        else:
            sizes = np.asarray([len(one) for one in entries.thresholds], np.int32)
            begins = (np.cumsum(sizes) - sizes).astype(np.int32)
            every = writer.table(np.concatenate(entries.thresholds))
            place = f"({every} + {writer.table(begins)}[j0])"
            _emit_search(writer, place, f"{writer.table(sizes)}[j0]")
        if alone:
            writer.line(f"const i32 e = j0, value = v != v ? {nans}[e] : rank;")
            writer.line(store)
        else:
            writer.line("ranks[j0] = rank; unknown[j0] = v != v;")
    if alone:
        return
    source = writer.table(np.asarray(entries.source, np.int32))
    base = writer.table(np.asarray(entries.base, np.int32))
    with writer.loops((len(entries.source),), name="e"):
        writer.line(f"const i32 e = e0, above = ranks[{source}[e]] - {base}[e];")
        writer.line("const i32 within = above < 0 ? 0 : above > MOST ? MOST : above;")
        writer.line(f"const i32 value = unknown[{source}[e]] ? {nans}[e] : within;")
        writer.line(store)


def _emit_counts(writer: Writer, kind: str, thresholds: list[Array]) -> None:
    """Write a search in two counts: among every sixteenth threshold, then within sixteen."""
    dtype = thresholds[0].dtype
    table = np.full((len(thresholds), _STEP + _TWO_STEPS), np.inf, dtype)
    for number, one in enumerate(thresholds):
        table[number, _STEP : _STEP + len(one)] = one
    table[:, :_STEP] = table[:, 2 * _STEP - 1 :: _STEP][:, :_STEP]
    writer.line(f"const {kind} *every = {writer.table(table)} + j0 * {table.shape[1]};")
    writer.line("i32 rank = 0;")
    for place in (0, _STEP):
        writer.line(f"{{ const {kind} *from = every + {place} + rank * {_STEP};")
        _emit_count(writer, kind)
        writer.line(f"rank = rank * {_STEP} + count; }}")


def _emit_count(writer: Writer, kind: str) -> None:
    """Write the count of the sixteen numbers from `from` on that are below `v`."""
    if writer.vector_bytes < 32:
        writer.line("i32 count = 0;")
        writer.line(f"for (int k = 0; k < {_STEP}; k++) count += from[k] < v;")
        return
    letter, lanes = ("s", 8) if kind == "float" else ("d", 4)
    writer.line(f"typedef {kind} some __attribute__((vector_size(32), may_alias));")
    parts = " | ".join(
        f"__builtin_ia32_movmskp{letter}256((some)(((const some *)from)[{k}] < v)) << {k * lanes}"
        for k in range(_STEP // lanes)
    )
    writer.line(f"const i32 count = __builtin_popcount({parts});")


def _emit_search(writer: Writer, numbers: str, count: str) -> None:
    """Write the search for `rank`, how many of some sorted numbers are below `v`, without a branch."""
    writer.line(f"i32 rank = 0; for (i32 left = {count}; left; ) {{")
    writer.line("const i32 half = (left + 1) >> 1;")
    writer.line(f"rank += half & -({numbers}[rank + half - 1] < v); left -= half; }}")
