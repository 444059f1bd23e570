"""Data set of a table: a CSV file, a data frame, or a list of rows, by the columns that a model takes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.core.words import type_in_words
from hasten.errors import InputError
from hasten.inputs.data.arrays import ArrayDataset
from hasten.inputs.data.csv_files import (
    ABSENT,
    BITS,
    PARQUET,
    check_names,
    read_csv,
    table_and_label,
)
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.groups import checked_groups
from hasten.inputs.data.missing import NO_CLASS, NO_NUMBER
from hasten.inputs.data.parquet_files import read_parquet
from hasten.inputs.data.samples import RESERVED
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.row_arrays import RowArrays
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.tables import is_absent

_MOST_EXACT = 2.0**53
"""Largest magnitude below which a float holds every whole number."""
_KEPT_ROWS, _KEPT_VALUES = 1_000, 1_000_000
"""Largest number of rows, and of their values, that are kept as a table has them."""


GROUPS = "groups"
"""Column of a table that says which rows belong together."""


class TableRows(ArrayDataset):
    """Rows of a table as the model takes them, and some of them as the table has them.

    Attributes:
        given: Values of some rows in the order of the columns, by the row's place; they are spread over the table.
        notes: Notes for people on how the table was read.
    """

    given: Mapping[int, Sequence[Any]] = {}
    notes: tuple[str, ...] = ()


def reads_rows(pipeline: Pipeline | None) -> Row | None:
    """Return the step that reads a row, where a pipeline consists of it; else None."""
    steps = () if pipeline is None else pipeline.steps
    return steps[0] if len(steps) == 1 and isinstance(steps[0], Row) else None


def rows_of(source: Any, pipeline: Pipeline, names: Sequence[str]) -> Dataset | None:
    """Open a table for a model that takes rows; None where the source is of another kind.

    Args:
        source: One of these:
            - the path of a CSV file whose first line names the columns, "rows.csv", or of a Parquet file;
              or "rows.csv:label" with the name of the label's column;
            - a data frame of pandas or polars, a table of pyarrow, or a mapping of columns;
            - a list of rows, each a mapping from columns to values;
            - an array of shape `(n, columns)`: numbers as the model takes them, or values as a row
              has them, which they always are where a column is hashed;
            - `(rows, labels)` or `(rows, labels, groups)`, where rows are one of the last three, and
              the labels and the groups may each be the name of a column.
            A column "groups" that the model doesn't take says which rows belong together.
        pipeline: Pipeline that consists of the step `row` before the model.
        names: Names of the model's inputs.

    A column that the model doesn't take is the label, if it is the only one.

    Raises:
        InputError: the file can't be read, a column is missing, or a row or a label can't be used.
    """
    row = reads_rows(pipeline)
    if row is None or len(names) != 1:
        return None
    row = replace(row, infinite="refuse")  # else a candidate's calibration would have to take them
    table, label, groups, said = _opened(source, row)
    if table is None:
        return None
    if isinstance(table, np.ndarray):
        rows = _checked(table, row)
        labels = label
        for noun, name in (("label", label), ("groups", groups)):
            if isinstance(name, str):
                raise InputError(f"{name!r} can't be the {noun}: an array has no column names")
        together = None if groups is None else checked_groups(_listed(groups), said)
    else:
        labels = _labels_in(table, label, row, said, groups)
        rows = _prepared(table, row, said)
        together = _groups_in(table, label, row, said, groups)
    numbers = None if labels is None else label_numbers(labels, pipeline, said)
    found = TableRows(
        {names[0]: rows}, numbers, None if together is None else np.array(together), missing=True
    )
    if not isinstance(table, np.ndarray):
        found.given = _kept(table, row, len(rows))
        found.notes = tuple(_spelled_bits(table, row, said))
    return found


def _spelled_bits(table: Mapping[str, Sequence[Any]], row: Row, said: str) -> Iterator[str]:
    """Yield a note for each column of categories that has only true and false, spelled as texts."""
    for name in row.hashed:
        if BITS.keys() >= set(map(str, table[name])) and isinstance(table[name][0], str):
            yield (
                f"{said}: the column {name!r} has only texts such as {table[name][0]!r}, which are categories as they "
                "are: if CatBoost was trained with truth values, which are 1 and 0 to it, write these"
            )


def _kept(table: Mapping[str, Sequence[Any]], row: Row, count: int) -> dict[int, list[Any]]:
    """Return the values of some rows that are spread over a table, by the row's place."""
    most = min(count, _KEPT_ROWS, max(1, _KEPT_VALUES // len(row.columns)))
    places = np.unique(np.linspace(0, count - 1, most).astype(np.int64)).tolist()
    return {place: [_plain(table[name][place]) for name in row.columns] for place in places}


def given_rows(source: Any, row: Row) -> list[Any] | None:
    """Return the rows of a table as `decide` of a bundle takes them; None where the source is none.

    Args:
        source: Table in any form that `rows_of` takes.
        row: Step that reads a row.

    Raises:
        InputError: the file can't be read, or a column is missing.
    """
    table, label, groups, said = _opened(source, row)
    if table is None:
        return None
    if isinstance(table, np.ndarray):
        return list(table)
    _labels_in(table, label, row, said, groups)
    return [dict(zip(row.columns, values, strict=True)) for values in _each(table, row)]


def _opened(source: Any, row: Row) -> tuple[dict[str, Sequence[Any]] | Array | None, Any, Any, str]:
    """Return a table's columns or numbers, None where it is none; its label and groups; and its name."""
    label: Any = None
    groups: Any = None
    said = "the table"
    file = table_and_label(source) if isinstance(source, (str, Path)) else None
    if file is not None:
        label = file[1]
        said = str(file[0])
        parquet = file[0].suffix == PARQUET
        source = read_parquet(*file, row) if parquet else read_csv(file[0], row)
    elif isinstance(source, tuple) and len(source) in (2, 3):
        source, label, groups = (*source, None)[:3]
    return _columns_of(source, row, read=file is not None), label, groups, said


def _columns_of(source: Any, row: Row, *, read: bool) -> dict[str, Sequence[Any]] | Array | None:
    """Return a table as columns by name, or an array of numbers; None where it is none."""
    if hasattr(source, "to_pydict"):  # pyarrow
        check_names("the table", source.schema.names)
        return dict(source.to_pydict())
    if hasattr(source, "columns") and hasattr(source, "to_dict"):  # pandas and polars
        check_names("the table", [str(name) for name in source.columns])
        return {str(name): source[name].to_list() for name in source.columns}
    if isinstance(source, Mapping) and (read or source.keys() & set(row.columns)):
        _check_columns({name: source[name] for name in row.columns if name in source})
        return {str(name): _listed(column) for name, column in source.items()}
    if isinstance(source, (list, tuple)) and source and all(isinstance(r, Mapping) for r in source):
        if not any(name in row.columns for name in source[0]):
            return None
        every = dict.fromkeys(name for one in source for name in one)
        if row.whole:
            _check_whole(source, [name for name in row.columns if name in every])
        return {str(name): [one.get(name) for one in source] for name in every}
    if isinstance(source, np.ndarray) and source.ndim == 2:
        if source.shape[1] != len(row.columns):
            raise InputError(
                f"the model takes {len(row.columns)} columns, from {row.columns[0]!r} to "
                f"{row.columns[-1]!r}, but the array has {source.shape[1]}"
            )
        if source.dtype.kind in "OUMm" or row.hashed:  # a whole number may be a category
            return {n: _listed(source[:, i]) for i, n in enumerate(row.columns)}
        return source
    return None


def _check_columns(columns: Mapping[str, Any]) -> None:
    """Check that columns are lists of equally many values: a text would be one of its characters.

    Raises:
        InputError: one isn't.
    """
    for name, column in columns.items():
        if isinstance(column, (str, bytes)) or not isinstance(column, Iterable):
            raise InputError(
                f"the table: the column {name!r} is {type_in_words(column)}: give a list with a value for each row"
            )
    counts = {name: len(column) for name, column in columns.items() if isinstance(column, Sized)}
    first, count = next(iter(counts.items()), ("", 0))
    odd = next((name for name in counts if counts[name] != count), None)
    if odd is not None:
        raise InputError(
            f"the table: the column {odd!r} has {counts[odd]} values, but {first!r} has {count}: give one for each row"
        )


def _check_whole(rows: Sequence[Mapping[Any, Any]], columns: Sequence[str]) -> None:
    """Check that every row has some columns.

    Raises:
        InputError: a row lacks one, which may be misspelled.
    """
    for number, one in enumerate(rows, 1):
        lacking = next((name for name in columns if name not in one), None)
        if lacking is not None:
            raise InputError(
                f"the table: row {number} has no column {lacking!r}: give None where there is no value"
            )


def _checked(table: Array, row: Row) -> Array:
    """Return an array of numbers as the model takes it, checked as the step `row` checks a row; what is masked is NaN."""
    numbers = np.ma.filled(table.astype(row.dtype), np.nan)
    if found := RowArrays(row).refused(numbers):
        raise InputError(f"the table: row {found[0] + 1}: {found[1]}")
    return numbers


def _labels_in(
    table: dict[str, Sequence[Any]], label: Any, row: Row, said: str, groups: Any
) -> Sequence[Any] | None:
    """Return the labels, and check that the table has every column."""
    taken = frozenset((*row.columns, groups) if isinstance(groups, str) else row.columns)
    lacking = [name for name in row.columns if name not in table]
    others = [name for name in table if name not in taken and name not in RESERVED]
    if lacking:
        instead = f"; it has {_named(others)} in addition to the known ones"
        raise InputError(
            f"{said} has no column {lacking[0]!r}, which the model takes{instead if others else ''}"
        )
    if label is not None and not isinstance(label, str):
        return _listed(label)
    if label is not None:
        if label not in table:
            raise InputError(
                f"{said} has no column {label!r} for the labels: it has {_named(table)}"
            )
        if label in row.columns:
            raise InputError(
                f"{said}: the model takes the column {label!r}, so it can't be the label"
            )
        return table[label]
    if "labels" in table and "labels" not in row.columns:
        return table["labels"]
    if len(others) > 1:
        raise InputError(
            f"{said} has the columns {_named(others)} in addition to the model's: name the "
            f"label, as in rows.csv:{others[-1]} or (table, {others[-1]!r})"
        )
    return table[others[0]] if others else None


def _groups_in(
    table: dict[str, Sequence[Any]], label: Any, row: Row, said: str, groups: Any
) -> list[Any] | None:
    """Return the groups of a table's rows, as they are given or in a column; None if there are none."""
    if groups is None:
        if GROUPS not in table or GROUPS in row.columns or label == GROUPS:
            return None
        return checked_groups(table[GROUPS], said, GROUPS)
    if isinstance(groups, str):
        if groups not in table:
            raise InputError(
                f"{said} has no column {groups!r} for the groups: it has {_named(table)}"
            )
        groups = table[groups]
    return checked_groups(_listed(groups), said)


def _named(names: Iterable[str]) -> str:
    text = ", ".join(map(repr, names))
    return text if len(text) <= 300 else text[:300].rpartition(", ")[0] + ", ..."


def _listed(labels: Any) -> Sequence[Any]:
    """Return the values of a column, or labels or groups, as Python's own where there are such."""
    if getattr(getattr(labels, "dtype", None), "kind", "") in ("M", "m"):
        return list(labels)  # of nanoseconds, tolist makes whole numbers
    return labels.tolist() if hasattr(labels, "tolist") else list(labels)


def _prepared(table: dict[str, Sequence[Any]], row: Row, said: str) -> Array:
    """Return the rows of a table as the step `row` gives them."""
    rows = []
    for number, values in enumerate(_each(table, row), 1):
        try:
            rows.append(row(values))
        except InputError as error:
            raise InputError(f"{said}: row {number}: {error}") from error
    if not rows:
        raise InputError(f"{said} has no rows")
    return np.stack(rows)


def _each(table: dict[str, Sequence[Any]], row: Row) -> Iterator[list[Any]]:
    """Yield each row's values in order, as plain Python values."""
    for values in zip(*(table[name] for name in row.columns), strict=True):
        yield [_plain(value) for value in values]


def _plain(value: Any) -> Any:
    """Return a value of a data frame as a row has it: truth values are numbers."""
    if isinstance(value, (bool, np.bool_)):
        return int(value)
    if is_absent(value):
        return None
    if isinstance(
        value, (np.datetime64, np.timedelta64)
    ):  # of nanoseconds, `item` makes a whole number
        return value.astype(f"{value.dtype.kind}8[us]").item()
    return value.item() if isinstance(value, np.generic) else value


def label_numbers(labels: Any, pipeline: Pipeline, said: str) -> Array:
    """Return labels as numbers: those of classes are their places among the classes' names.

    Where a label is missing stands `NO_NUMBER` for a class, and NaN for another number.

    Raises:
        InputError: a label is no class, or the name of several.
    """
    step = pipeline.after[0] if pipeline.after else None
    names = () if step is None else step.class_names
    values = [_plain(value) for value in _listed(labels)]
    if not names:
        try:
            numbers = np.array([np.nan if _missing(v) else float(v) for v in values])
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"{said}: this model needs numbers as labels: {error}") from error
        return as_classes(numbers) if getattr(step, "position", None) is not None else numbers
    absent = ABSENT.isdisjoint(map(str, names))
    by_number = have_numbers(names)
    places: dict[Any, set[int]] = {}
    if not by_number:  # then a number can only be a class's place
        places.update((number, {number}) for number in range(len(names)))
    for place, name in enumerate(names):
        places.setdefault(name, set()).add(place)
        number = _number(name)
        if number is not None:
            places.setdefault(number, set()).add(place)
    found = []
    for number, value in enumerate(values, 1):
        own = places.get(value, set()) if isinstance(value, Hashable) else set()
        own = own or places.get(_number(value), set())
        if len(own) > 1:
            raise InputError(
                f"{said}: row {number}: several classes are called {value!r:.80}: "
                + (
                    "give each class a name of its own"
                    if by_number
                    else "give labels as numbers of classes"
                )
            )
        place_ = next(iter(own), None)
        if (
            place_ is None and absent
        ):  # a -1 may be meant as a class, which is refused where it seems so
            place_ = (
                NO_NUMBER if _missing(value) else NO_CLASS if _number(value) == NO_CLASS else None
            )
        if place_ is None:
            raise InputError(
                f"{said}: row {number}: the label must be one of "
                f"{', '.join(map(repr, names))[:300]}: got "
                f"{value!r:.80}"
            )
        found.append(place_)
    return np.array(found, np.int64)


def as_classes(numbers: Array) -> Array:
    """Return labels as whole numbers, if all are such that a float holds exactly; `NO_NUMBER` where one is missing."""
    known = ~np.isnan(numbers)
    if not ((np.abs(numbers[known]) <= _MOST_EXACT) & (numbers[known] % 1 == 0)).all():
        return numbers
    return np.where(known, numbers, float(NO_NUMBER)).astype(np.int64)


def _missing(value: Any) -> bool:
    """Whether a value of a label's column stands for none: None, NaN, or an empty cell."""
    if value is None or (isinstance(value, str) and value.strip() in ABSENT):
        return True
    return isinstance(value, float) and math.isnan(value)


def have_numbers(names: Sequence[str]) -> bool:
    """Whether any of the classes is called by a number, so that a number is a name before it is a place."""
    return any(_number(name) is not None for name in names)


def _number(value: Any) -> float | None:
    """Return a label as a number, also "True" and "False"; None where it is none."""
    if value in ("True", "False"):
        return float(value == "True")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number
