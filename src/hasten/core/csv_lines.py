"""Rows of CSV files, read strictly: a quotation mark without its end takes no rows with it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from hasten.errors import InputError

_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


def csv_lines(
    path: Path, file: TextIO, *, delimiter: str = ",", longer: str = ""
) -> Iterator[tuple[int, list[str]]]:
    """Yield each row of a CSV file: the number of its last line, from 1, and its values.

    Args:
        path: Path of the file, for messages.
        file: The file, opened with `newline=""`.
        delimiter: Character between values: a comma, a semicolon or a tab.
        longer: Advice for a value that is too long to be read.

    Raises:
        InputError: a quotation mark has no end, or a value is too long.
    """
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    first = 1
    try:
        for row in reader:
            yield reader.line_num, row
            first = reader.line_num + 1
    except csv.Error as error:
        last = reader.line_num
        where = f"{path}: line {first}" if last <= first else f"{path}: lines {first} to {last}"
        if "field limit" in str(error):
            raise InputError(
                f"{where}: a value has more than {csv.field_size_limit():,} characters, or a quotation mark has no end: "
                f"write a mark inside a cell twice{longer and f', and {longer}'}"
            ) from error
        raise InputError(
            f"{where}: a quotation mark has no end, or something other than {_NAMES[delimiter]} follows one: write a "
            "mark inside a cell twice"
        ) from error
