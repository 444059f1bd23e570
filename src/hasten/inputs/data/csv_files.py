"""Files that are tables, and CSV files among them: their columns by name, with the numbers and words that their texts stand for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hasten.core.csv_lines import csv_lines
from hasten.core.presence import is_file, is_folder
from hasten.errors import InputError
from hasten.inputs.pipeline.rows import Row

PARQUET = ".parquet"
TABLES = (".csv", PARQUET)
"""Endings of the files that are read as tables."""
ABSENT = frozenset(("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "<NA>"))
"""Texts that stand for a value that isn't there, in a column that doesn't have them among its words."""
BITS = {
    **dict.fromkeys(("True", "true", "TRUE"), 1.0),
    **dict.fromkeys(("False", "false", "FALSE"), 0.0),
}
"""Texts that stand for true and false, as pandas, polars and R write them, in a column that the model takes."""


def is_table(source: str | Path) -> bool:
    """Whether a user named a table's file that exists, "rows.csv", or one with its label, "rows.csv:label"."""
    return table_and_label(source) is not None


def table_and_label(source: str | Path) -> tuple[Path, str | None] | None:
    """Return the path of a CSV or Parquet file that a user named, and the name of its label's column.

    None for no such file.

    Raises:
        InputError: it is a folder of Parquet files.
    """
    head, _, label = str(source).rpartition(":")
    for path, column in ((Path(source), None), (Path(head), label)):
        if path.suffix not in TABLES or column == "":
            continue
        if is_file(path):
            return path, column
        if path.suffix == PARQUET and is_folder(path):
            raise InputError(
                f"{path} is a folder, but a table is one Parquet file: write its rows into one, as by "
                f'pandas.read_parquet({path.name!r}).to_parquet("rows.parquet")'
            )
    return None


def check_names(said: Path | str, names: Sequence[str]) -> None:
    """Check that a table names each column once.

    Args:
        said: Name of the table in messages.
        names: Names of its columns.

    Raises:
        InputError: a column comes twice.
    """
    counts = Counter(names)
    twice = next((name for name in names if counts[name] > 1), None)
    if twice is not None:
        raise InputError(f"{said} has the column {twice!r} twice: name each column once")


def read_csv(path: Path, row: Row) -> dict[str, list[Any]]:
    """Return the columns of a CSV file: numbers, words as texts, and None for what isn't there; others as texts."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv_lines(path, file)
            _, names = next(lines, (0, []))
            check_names(path, names)
            columns: list[list[str]] = [[] for _ in names]
            for number, (_, line) in enumerate(lines, 1):
                if not line:
                    continue
                if len(line) != len(names):
                    raise InputError(
                        f"{path}: row {number} has {len(line)} values, but the first line names "
                        f"{len(names)} columns"
                    )
                for column, value in zip(columns, line, strict=True):
                    column.append(value)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} can't be read as CSV in UTF-8: {error}") from error
    words, known = dict(row.words), set(row.columns)
    # "NA" may be a hashed column's category or a class, and "01" another group or class than "1".
    return {
        name: [text or None for text in column]
        if name in row.hashed or name not in known
        else [_value(text, words.get(name)) for text in column]
        for name, column in zip(names, columns, strict=True)
    }


def _value(text: str, words: tuple[str | float, ...] | None) -> Any:
    """Return a value of a column that the model takes as a word, a number, None, or the text that it is.

    True and false are the numbers 1 and 0, unless all words are texts.

    Args:
        text: The value.
        words: Words of its column; None for a column without words.
    """
    if words is not None and text in words:
        return text
    if text.strip() in ABSENT:
        return None
    if words is not None and all(isinstance(word, str) for word in words):
        return text
    if text.strip() in BITS:
        return BITS[text.strip()]
    try:
        return float(text)
    except ValueError:
        return text
