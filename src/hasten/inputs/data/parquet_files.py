"""Parquet files as tables, read by pyarrow."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hasten.errors import InputError, told

PARQUET = ".parquet"
_INDEX = re.compile(r"__index_level_\d+__")
"""Name under which pandas writes an index without a name, which is no column of the user's."""


def read_parquet(path: Path) -> Any:
    """Return a Parquet file as a table of pyarrow, without an index of pandas.

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
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"can't read {path} as a Parquet file: {told(error)}") from error
    return table.drop_columns([name for name in table.column_names if _INDEX.fullmatch(name)])
