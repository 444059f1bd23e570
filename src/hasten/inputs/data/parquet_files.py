"""Parquet files as tables, read by pyarrow."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.errors import InputError, told
from hasten.inputs.data.csv_files import check_names
from hasten.inputs.data.samples import RESERVED
from hasten.inputs.pipeline.rows import Row

if TYPE_CHECKING:
    import pyarrow

_INDEX = re.compile(r"__index_level_\d+__")
"""Name under which pandas writes an index without a name, which is no column of the user's."""


def read_parquet(path: Path, label: str | None, row: Row) -> dict[str, Sequence[Any]]:
    """Return the columns of a Parquet file, without an index of pandas; columns that aren't used have no values.

    Decimal numbers are numbers like any others, except where they are categories whose text counts.

    Args:
        path: Path of the file.
        label: Name of the label's column; None for the only column that the model doesn't take.
        row: Step that reads a row.

    Raises:
        InputError: pyarrow isn't installed, or the file can't be read.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            f"{path} is a Parquet file, which pyarrow reads: pip install pyarrow, or give a CSV file"
        ) from error
    try:
        with parquet.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if not _INDEX.fullmatch(name)]
            check_names(path, names)
            used = _used(names, label, row)
            table = file.read(used)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"can't read {path} as a Parquet file: {told(error)}") from error
    return {name: _values(path, name, table[name], row) if name in used else () for name in names}


def _used(names: Sequence[str], label: str | None, row: Row) -> list[str]:
    """Return the columns that are read: those of the model, of the label, and of names that every table may have."""
    kept = {*row.columns, *RESERVED, label}
    others = [name for name in names if name not in kept]
    only = others if label is None and len(others) == 1 else ()
    return [name for name in names if name in kept or name in only]


def _values(path: Path, name: str, column: pyarrow.ChunkedArray, row: Row) -> list[Any]:
    """Return the values of a column, as Python's own.

    Raises:
        InputError: Python has no such value, as a date after the year 9999.
    """
    import pyarrow

    try:
        if pyarrow.types.is_decimal(column.type) and name not in row.hashed:
            column = column.cast(pyarrow.float64())
        return list(column.to_pylist())
    except (pyarrow.ArrowException, ValueError, OverflowError) as error:
        raise InputError(f"{path}: the column {name!r} can't be read: {told(error)}") from error
