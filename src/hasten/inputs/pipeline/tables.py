"""Rows and tables of numpy, pandas and Arrow as Python's own values; pandas and Arrow aren't imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hasten.errors import InputError

_ABSENT = ("NAType", "NaTType")
"""Types of pandas for a value that isn't there."""


def plain_row(value: Any) -> Any:
    """Return a row of another library as a mapping; anything else as it is.

    Rows are a `Series` of pandas with the columns as its index, a struct scalar of Arrow, a record of
    numpy, and a table of one row.

    Raises:
        InputError: a column comes twice, or a table has more or fewer rows than one.
    """
    if isinstance(value, np.void) and value.dtype.names:
        return dict(zip(value.dtype.names, value.tolist(), strict=True))
    if is_table(value):
        rows = records(value)
        if len(rows) != 1:
            raise InputError(f"a row is one row of a table: got a table of {len(rows):,} rows")
        return rows[0]
    kind = _kind(value)
    if kind == "pandas Series":
        return _named(value.index.tolist(), [_value(one) for one in value.tolist()])
    if kind == "pyarrow StructScalar":
        _check_once([field.name for field in value.type])
        return value.as_py()
    return value


def is_absent(value: Any) -> bool:
    """Whether a value is None, or what pandas or a masked array of numpy has where there is no value."""
    return value is None or value is np.ma.masked or type(value).__name__ in _ABSENT


def is_table(value: Any) -> bool:
    """Whether a value is a data frame of pandas, or a table or a record batch of Arrow."""
    return _kind(value) in ("pandas DataFrame", "pyarrow Table", "pyarrow RecordBatch")


def records(table: Any) -> list[dict[Any, Any]]:
    """Return a table's rows as mappings of Python's own values.

    Raises:
        InputError: a column comes twice.
    """
    names, columns = _apart(table)
    lists = [[_value(one) for one in column] for column in columns]
    _check_once(names)
    return [dict(zip(names, row, strict=True)) for row in zip(*lists, strict=True)]


def columns_of(table: Any) -> dict[Any, Any]:
    """Return a table's columns by name: arrays of numbers, or lists of Python's own values.

    A number that isn't there is NaN.

    Raises:
        InputError: a column comes twice.
    """
    if _kind(table) == "pandas DataFrame":
        names = table.columns.tolist()
        found = [_frame_column(column) for _, column in table.items()]
    else:
        names = list(table.schema.names)
        found = [_arrow_column(column) for column in table.columns]
    _check_once(names)
    return dict(zip(names, found, strict=True))


def _frame_column(column: Any) -> Any:
    """Return a column of pandas as numbers, or as a list where it has none."""
    kind = getattr(column.dtype, "kind", "O")
    if kind in "biuf" and isinstance(column.dtype, np.dtype):
        return column.to_numpy()
    if kind in "biuf":  # a type of pandas' own, which may lack values
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    return [_value(one) for one in column.tolist()]


def _arrow_column(column: Any) -> Any:
    """Return a column of Arrow as numbers, or as a list where it has none."""
    if str(column.type) in _ARROW_NUMBERS:
        if column.null_count:
            column = column.cast("float64")
        return np.asarray(column.to_numpy(**_copying(column)))
    return column.to_pylist()


_ARROW_NUMBERS = frozenset(
    (
        "float",
        "double",
        "bool",
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
)


def _copying(column: Any) -> dict[str, bool]:
    """Return what a column that is in one piece needs to hear to be copied where it lacks values."""
    return {} if type(column).__name__ == "ChunkedArray" else {"zero_copy_only": False}


def _apart(table: Any) -> tuple[list[Any], list[list[Any]]]:
    """Return a table's names, and each column as a list."""
    if _kind(table) == "pandas DataFrame":
        names = table.columns.tolist()
        return names, [column.tolist() for _, column in table.items()]
    return list(table.schema.names), [column.to_pylist() for column in table.columns]


def _named(names: Sequence[Any], values: Sequence[Any]) -> Mapping[Any, Any]:
    _check_once(names)
    return dict(zip(names, values, strict=True))


def _check_once(names: Sequence[Any]) -> None:
    counts = Counter(names)
    if len(counts) < len(names):
        twice = next(name for name in names if counts[name] > 1)
        raise InputError(f"the row has the column {twice!r:.80} twice: give each column once")


def _kind(value: Any) -> str:
    """Return a value's library and type: "pandas Series"."""
    kind = type(value)
    return f"{kind.__module__.partition('.')[0]} {kind.__name__}"


def _value(value: Any) -> Any:
    """Return None for what pandas has where there is no value."""
    return None if is_absent(value) else value
