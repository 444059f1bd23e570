"""A quick reader of rows, into memory that is there already."""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.rows import Row
from hasten.inputs.pipeline.tables import columns_of, is_table, records

_KNOWN = frozenset(
    (
        *("columns", "missing", "words", "dtype", "required", "unseen", "choices", "whole"),
        *("infinite", "hashed"),
    )
)
"""Settings of `Row` that the quick way keeps; under any other one it leaves every row to `Row`."""
_MOST_COLUMNS = 2_000
_BOUNDS = {"float32": 1e38, "float64": 1e150}
"""Root of the sum of squares below which no number of a row is too large for a type."""
_NUMBERS = frozenset((int, float, bool))
_OBJECT = ord("{")
_WORDS = frozenset((str, int, float, bool))
_HASHED = frozenset((str, int, bool))
_DOUBTS = (
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    IndexError,
    struct.error,
    msgspec.MsgspecError,
    UnicodeError,
)


_astuple = msgspec.structs.astuple


class _UnusualError(KeyError):
    """Sign that a row may be none, or isn't one of the usual form."""


class RowReader:
    """Reads rows into an array, as `Row` reads them.

    Whatever plainly is a row is read by a few calls into C. All else is left to `Row`, which alone says
    what a row is and what is wrong with one.

    Attributes:
        step: Step whose rows are read.
        columns: Number of columns.
        dtype: Type of the numbers.
        able: Whether there is a quick way for this step's settings.
    """

    def __init__(self, step: Row) -> None:
        self.step, self.columns = step, len(step.columns)
        self.dtype = np.dtype(getattr(step, "dtype", "float32"))
        self._bound = _BOUNDS[self.dtype.name]
        self._nan = step.missing == "nan"
        self._required = tuple(map(step.columns.index, step.required))
        self._chosen, self._instead = step._chosen, step._instead
        self._worded = tuple((place, places) for place, places, _ in step._places)
        self._hashed, self._hashes = step._hashed, step._hashes
        self.able = self.columns <= _MOST_COLUMNS and type(step) is Row and _is_known(step)
        self._numeric = not self._worded and not self._hashed
        """Whether all values are numbers."""
        self._plain = self._numeric and not self._nan and not self._chosen
        """Whether a row's values are numbers, and any of them."""
        form = struct.Struct(f"{self.columns}{'f' if self.dtype == np.float32 else 'd'}")
        self._row_bytes = form.size
        self._pack: Callable[..., None] = form.pack_into
        self._names = tuple(step.columns)
        self._most_bytes = step._most_bytes
        self._index: Any = None
        """Index of pandas that is known to be the columns in their order."""
        if self.able:
            self._fields = self._struct()
            self._decode = msgspec.json.Decoder(self._fields).decode
            self._decode_list = msgspec.json.Decoder(list[float | int | bool | str | None]).decode

    def _struct(self) -> Any:
        """Return a type with a field for each column, so that rows become values in their order."""
        worded = {*(place for place, _ in self._worded), *self._hashed}
        fields: list[Any] = []
        for place in range(self.columns):
            kind: Any = float | int | bool
            if place in worded:
                kind |= str
            if self._nan:
                kind |= None
            default = (None,) if self._nan and not self.step.whole else ()
            fields.append((f"c{place}", kind, *default))
        names = {f"c{place}": name for place, name in enumerate(self._names)}
        return msgspec.defstruct(
            "Columns", fields, rename=names, forbid_unknown_fields=True, gc=False
        )

    def read(self, value: Any, into: Array, row: int = 0) -> None:
        """Read one row.

        Args:
            value: Row in any form that `Row` takes.
            into: Array to read into, C-contiguous, of shape (rows, columns) and of `dtype`.
            row: Place in `into`.

        Raises:
            InputError: the row can't be read; the message names the column.
        """
        if not self.read_quickly(value, into, row):
            into[row] = self.step(value)

    def read_quickly(self, value: Any, into: Array, row: int = 0) -> bool:
        """Read one row as `read` does; False, maybe with other values in `into`, for all but plain rows."""
        if not self.able:
            return False
        try:
            plain = self._plain and type(value) is bytes and len(value) <= self._most_bytes
            if plain and value[0] == _OBJECT:
                values = _astuple(self._decode(value))
                if math.hypot(*values) <= self._bound:
                    self._pack(into, row * self._row_bytes, *values)
                    return True
            self._quickly(value, into, row)
        except _DOUBTS:
            return False
        return True

    def _quickly(self, value: Any, into: Array, row: int) -> None:
        kind = type(value)
        if kind is dict:
            self._put_checked(msgspec.convert(value, self._fields), into, row)
        elif kind is bytes or kind is str:
            self._put_json(value, into, row)
        elif kind is tuple or kind is list:
            if len(value) != self.columns:
                raise _UnusualError
            self._put(value, into, row)
        elif kind is np.ndarray:
            self._put_array(value, into, row)
        elif kind.__name__ == "Series":
            self._put_series(value, into, row)
        else:
            raise _UnusualError

    def _put_json(self, value: bytes | str, into: Array, row: int) -> None:
        if len(value) > self._most_bytes:
            raise _UnusualError
        if value[:1] in (b"[", "["):
            values = self._decode_list(value)
            if len(values) != self.columns:
                raise _UnusualError
            self._put(values, into, row)
            return
        self._put_checked(self._decode(value), into, row)

    def _put_checked(self, fields: Any, into: Array, row: int) -> None:
        """Write values whose names and types msgspec has checked."""
        values = _astuple(fields)
        if not self._plain:
            self._put(values, into, row)
        elif math.hypot(*values) <= self._bound:
            self._pack(into, row * self._row_bytes, *values)
        else:
            raise _UnusualError

    def _put(self, values: Sequence[Any], into: Array, row: int) -> None:
        """Write values in the order of the columns."""
        if self._worded:
            values = list(values)
            for place, places in self._worded:
                word = values[place]
                if type(word) in _WORDS:
                    number = places.get(word)
                    if number is not None:
                        values[place] = number
                    elif word == word:
                        values[place] = self._instead[place]
                elif word is not None:
                    raise _UnusualError
        if self._hashed:
            values = list(values)
            for place in self._hashed:
                if type(values[place]) not in _HASHED:
                    raise _UnusualError
                values[place] = self._hashes[values[place]]
        if not _NUMBERS.issuperset(map(type, values)):
            if not self._nan:
                raise _UnusualError
            values = [math.nan if one is None else one for one in values]
            if not _NUMBERS.issuperset(map(type, values)):
                raise _UnusualError
        self._check_numbers(values)
        self._pack(into, row * self._row_bytes, *values)

    def _check_numbers(self, values: Sequence[Any]) -> None:
        """Leave numbers to `Row` that are too large, infinite, or NaN or others where that is refused."""
        if not math.hypot(*values) <= self._bound:
            there = [one for one in values if one == one]
            if not self._nan or not math.hypot(*there) <= self._bound:
                raise _UnusualError
            if any(values[place] != values[place] for place in self._required):
                raise _UnusualError
        for place, choices in self._chosen:
            if (number := values[place]) not in choices and number == number:
                raise _UnusualError

    def _put_array(self, values: Array, into: Array, row: int) -> None:
        if values.shape != (self.columns,) or not self._numeric:
            raise _UnusualError
        if values.dtype.char not in "fd":
            if values.dtype.kind not in "biu":
                raise _UnusualError
            values = values.astype(np.float64)
        self._check_numbers(values.tolist())
        into[row] = values

    def _put_series(self, value: Any, into: Array, row: int) -> None:
        index = value.index
        if self._index is None or not index.is_(self._index):  # each row has an object of its own
            if tuple(index.tolist()) != self._names:
                raise _UnusualError
            self._index = index
        if isinstance(value.dtype, np.dtype) and value.dtype.kind in "biuf":
            self._put_array(value.to_numpy(), into, row)
        else:
            self._put(value.tolist(), into, row)

    def read_all(self, rows: Any) -> Array:
        """Read many rows, as `read` reads each of them.

        Args:
            rows: Rows, in any form that `Row` takes; or a matrix, a data frame of pandas, or a table or
                a record batch of Arrow.

        Returns:
            Array of shape (rows, columns).

        Raises:
            InputError: there are no rows, or one can't be read; the message says which, from 0.
        """
        if is_table(rows):
            found = self._frame(rows)
            if found is None:
                found = self._table(columns_of(rows))
            if found is not None:
                return found
            rows = records(rows)
        elif isinstance(rows, np.ndarray) and rows.ndim == 2:
            found = self._matrix(rows)
            if found is not None:
                return found
        elif isinstance(rows, (str, bytes, dict)) or not isinstance(rows, Iterable):
            raise InputError(
                f"rows are a list of rows, or a table: got {type(rows).__name__}; give one row in a list"
            )
        rows = rows if isinstance(rows, Sequence) else list(rows)
        if not len(rows):
            raise InputError("there are no rows: give at least 1")
        into = np.empty((len(rows), self.columns), self.dtype)
        for place, row in enumerate(rows):
            try:
                self.read(row, into, place)
            except InputError as error:
                raise InputError(f"row {place}: {error}") from error
        return into

    def _frame(self, rows: Any) -> Array | None:
        """Return the rows of a data frame whose columns are these, in their order, and numbers."""
        if type(rows).__name__ != "DataFrame" or tuple(rows.columns.tolist()) != self._names:
            return None
        return self._matrix(rows.to_numpy())

    def _table(self, columns: dict[Any, Any]) -> Array | None:
        """Return a table's rows; None where a value may be none that `Row` takes."""
        if not self.able or columns.keys() != set(self._names):
            return None
        lists = dict(self._worded)
        count = len(next(iter(columns.values())))
        found = np.empty((count, self.columns))
        for place, name in enumerate(self._names):
            column = columns[name]
            if place in self._hashed:
                if isinstance(column, np.ndarray):
                    column = column.tolist()
                if not _HASHED.issuperset(map(type, column)):
                    return None
                try:
                    found[:, place] = [self._hashes[word] for word in column]
                except _DOUBTS:
                    return None
                continue
            if place not in lists:
                if not isinstance(column, np.ndarray):
                    return None
                found[:, place] = column
                continue
            if isinstance(column, np.ndarray) or not {str}.issuperset(map(type, column)):
                return None
            numbers = [lists[place].get(word, -1) for word in column]
            if -1 in numbers:
                return None
            found[:, place] = numbers
        return self._matrix(found, read=True)

    def _matrix(self, rows: Array, *, read: bool = False) -> Array | None:
        """Return a matrix's rows; None where a number may be none that `Row` takes."""
        if not self.able or not len(rows) or rows.shape[1] != self.columns:
            return None
        if rows.dtype.kind != "b" and rows.dtype.char not in "fdilqILQ":
            return None
        if not (self._numeric or read) or self._chosen:
            return None
        if rows.dtype.kind != "f":
            rows = rows.astype(np.float64)
        least, most = rows.min(), rows.max()  # NaN where there is one
        if least != least and self._nan and not self._required:
            there = rows[rows == rows]
            least, most = (there.min(), there.max()) if there.size else (0.0, 0.0)
        if not (-self._bound <= least and most <= self._bound):
            return None
        return np.ascontiguousarray(rows, self.dtype)


def _is_known(step: Row) -> bool:
    """Whether a step has no setting, beside its defaults, that the quick way doesn't keep."""
    return all(
        field.name in _KNOWN or getattr(step, field.name) == field.default
        for field in dataclasses.fields(step)
    )
