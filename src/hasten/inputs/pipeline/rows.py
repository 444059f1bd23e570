"""Rows of a table as the model's input: named numbers and words to an array in order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Step
from hasten.inputs.pipeline.city_hash import WordHashes
from hasten.inputs.pipeline.tables import is_absent, plain_row

MAX_COLUMNS = 100_000
"""Largest number of columns of a row."""
_LARGEST = {"float32": float(np.finfo(np.float32).max), "float64": float(np.finfo(np.float64).max)}
_LARGEST_SQUARE = _LARGEST["float32"] ** 2
_UNSEEN = {"missing": math.nan, "other": -1.0}
"""Number of a word that isn't known, by what is done about it."""
_NUMBERS = frozenset((int, float, bool))
_READ = (bytes, bytearray, memoryview, str, Path)
_PLAIN = frozenset((dict, list, tuple, np.ndarray))
_BYTES_PER_COLUMN = 100
_BYTES_PER_LETTER = 12
"""Largest number of bytes of a letter in JSON: two escapes of six."""
_HASHED_LETTERS = 1_000
"""Number of letters that a row's JSON has room for in a column whose words are hashed."""


@dataclass(frozen=True)
class Row(Step):
    """Turn a row of a table into numbers of shape `(columns,)`, in the order of the columns.

    A row is a mapping from columns to values, or the values alone in the order of the columns; or
    either of them as JSON, in bytes, in a text or in a file. It may be a row of pandas (`Series`), a
    struct scalar of Arrow, a record of numpy, or a table of one row. No column may be missing, and none may
    come that isn't known. Of a column that JSON names twice the last value counts, as JSON's readers
    have it.

    Values are numbers; true and false are 1 and 0. A column that has words takes one of them instead,
    and the array has the word's place, from 0. A hashed column takes any text or whole number instead, and
    the array has its hash.

    Attributes:
        columns: Names of the columns, in the order of the model's input.
        missing: Treatment of a value that isn't there, which is null in JSON, NaN, or None:
            "refuse", or "nan" for a model that takes NaN. Under "nan" a mapping may lack columns,
            unless `whole`.
        words: Columns that take words, each with all of its words. Where the words of a table are
            numbers, as codes of branches are, they may be numbers here; true and false are 1 and 0.
        dtype: Type of the numbers, "float32" or "float64".
        required: Columns that need a value even under "nan".
        unseen: Columns that take words that aren't known, each with what is done about them:
            "missing" for NaN, or "other" for the number -1. Elsewhere such words are refused.
        choices: Columns of numbers that take some only, each with all that it takes.
        whole: Whether a mapping must have every column, with null for a value that isn't there.
        infinite: Treatment of infinite numbers: "refuse", or "allow" for a model that takes them.
            Columns with words or choices, and hashed ones, take none in either case.
        hashed: Columns that take any text or whole number, which is the text of its digits. The array has
            the low 32 bits of the text's CityHash64, version 1.0, as a signed number, by which CatBoost's
            models know it. They need a value, and float64.
    """

    columns: tuple[str, ...]
    missing: Literal["refuse", "nan"] = "refuse"
    words: tuple[tuple[str, tuple[str | float, ...]], ...] = ()
    dtype: Literal["float32", "float64"] = "float32"
    required: tuple[str, ...] = ()
    unseen: tuple[tuple[str, Literal["missing", "other"]], ...] = ()
    choices: tuple[tuple[str, tuple[float, ...]], ...] = ()
    whole: bool = False
    infinite: Literal["refuse", "allow"] = "refuse"
    hashed: tuple[str, ...] = ()
    bounded: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check that the columns have names of their own, and the words columns."""
        if isinstance(self.columns, str) or not 0 < len(self.columns) <= MAX_COLUMNS:
            raise InputError(f"row.columns: give the names of 1 to {MAX_COLUMNS:,} columns")
        if twice := _twice(self.columns):
            raise InputError(f"row.columns has {twice!r} twice: give each column once")
        if self.missing not in ("refuse", "nan"):
            raise InputError(f"row.missing={self.missing!r}: give 'refuse' or 'nan'")
        if self.infinite not in ("refuse", "allow"):
            raise InputError(f"row.infinite={self.infinite!r}: give 'refuse' or 'allow'")
        if self.dtype not in _LARGEST:
            raise InputError(f"row.dtype={self.dtype!r}: give 'float32' or 'float64'")
        self._check_named("words", [column for column, _ in self.words])
        self._check_named("required", self.required)
        self._check_named("unseen", [column for column, _ in self.unseen])
        self._check_named("choices", [column for column, _ in self.choices])
        self._check_named("hashed", self.hashed)
        self._check_hashed()
        worded = dict(self.words)
        for column, instead in self.unseen:
            if column not in worded or instead not in _UNSEEN:
                raise InputError(
                    f"row.unseen of {column!r}: give 'missing' or 'other' for a column with words"
                )
        for column, words in self.words:
            if isinstance(words, str) or not words or _twice(words):
                raise InputError(f"row.words of {column!r}: give at least 1 word, and each once")

    def _check_hashed(self) -> None:
        """Check that hashes fit the type, and that a hashed column has no other kind of value."""
        if self.hashed and self.dtype != "float64":
            raise InputError("row.hashed needs row.dtype='float64': float32 can't hold a hash")
        others = {column for column, _ in (*self.words, *self.choices)}
        for column in self.hashed:
            if column in others:
                raise InputError(
                    f"row.hashed has {column!r}, which has words or choices too: give one of them"
                )

    def _check_named(self, setting: str, columns: Sequence[str]) -> None:
        """Check that a setting names columns of the row, each once."""
        if twice := _twice(columns):
            raise InputError(f"row.{setting} has {twice!r} twice: give each column once")
        for column in columns:
            if column not in self._known:
                raise InputError(f"row.{setting} has {column!r}, which isn't among the columns")

    def __call__(self, value: Any) -> Array:
        """Read one row.

        Raises:
            InputError: the row can't be read; the message names the column.
        """
        if isinstance(value, _READ):
            value = self._read(value)
        if type(value) not in _PLAIN:
            value = plain_row(value)
        if type(value) is dict or isinstance(value, Mapping):
            found = self._ordered(value)
        elif isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str):
            size = list(value.shape) if isinstance(value, np.ndarray) else [len(value)]
            if size != [len(self.columns)]:
                raise InputError(
                    f"a row has {len(self.columns)} values, from {self.columns[0]!r} to "
                    f"{self.columns[-1]!r}: got {' x '.join(map(str, size)) or 'one number'}"
                )
            found = value.tolist() if isinstance(value, np.ndarray) else list(value)
        else:
            raise InputError(
                f"a row is an object, a list or their JSON: got {_kind(value)}; give the "
                f"{len(self.columns)} columns"
            )
        for place, places, _ in self._places:
            word = found[place]
            if isinstance(word, np.generic):
                word = word.item()
            number = places.get(word) if isinstance(word, (str, int, float)) else None
            found[place] = self._unworded(place, word) if number is None else number
        for place in self._hashed:
            found[place] = self._hash(place, found[place])
        if not _NUMBERS.issuperset(map(type, found)):
            found = [self._number(place, one) for place, one in enumerate(found)]
        try:
            row = np.array(found, np.float64)
        except OverflowError:
            row = np.array([_clipped(one) for one in found], np.float64)
        with np.errstate(over="ignore"):
            square = row.dot(row)  # a tenth of the time of asking each number
        if not square <= _LARGEST_SQUARE:
            self._check_finite(row, found)
        for place, choices in self._chosen:
            if (number := row[place]) not in choices and number == number:
                named = ", ".join(f"{one:g}" for one in sorted(choices))
                raise InputError(
                    f"the column {self.columns[place]!r} takes {named:.400}: got {number:g}"
                )
        return row if self.dtype == "float64" else row.astype(np.float32)

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.columns)

    @cached_property
    def _places(self) -> tuple[tuple[int, dict[str | float, int], tuple[str | float, ...]], ...]:
        """Place of each column with words, the number of each of them, and the words."""
        at = {column: place for place, column in enumerate(self.columns)}
        return tuple(
            (at[column], {word: i for i, word in enumerate(words)}, words)
            for column, words in self.words
        )

    @cached_property
    def _chosen(self) -> tuple[tuple[int, frozenset[float]], ...]:
        """Place of each column that takes some numbers only, with these numbers."""
        at = {column: place for place, column in enumerate(self.columns)}
        return tuple((at[column], frozenset(choices)) for column, choices in self.choices)

    @cached_property
    def _hashed(self) -> tuple[int, ...]:
        """Place of each hashed column."""
        return tuple(map(self.columns.index, self.hashed))

    @cached_property
    def _hashes(self) -> WordHashes:
        """Hashes of words, the recent ones of which are kept."""
        return WordHashes()

    @cached_property
    def needed(self) -> frozenset[str]:
        """Columns that need a value."""
        return (
            self._known if self.missing == "refuse" else frozenset((*self.required, *self.hashed))
        )

    @cached_property
    def _instead(self) -> dict[int, float]:
        """Number of an unknown word, by the place of each column that takes such words."""
        at = {column: place for place, column in enumerate(self.columns)}
        return {at[column]: _UNSEEN[instead] for column, instead in self.unseen}

    @cached_property
    def _most_bytes(self) -> int:
        """Largest number of bytes of a row's JSON: what comes is bounded before it is unpacked."""
        letters = sum(map(len, self.columns))
        letters += sum(max(len(str(word)) for word in words) for _, words in self.words)
        letters += _HASHED_LETTERS * len(self.hashed)
        return 1_000 + _BYTES_PER_COLUMN * len(self.columns) + _BYTES_PER_LETTER * letters

    def _read(self, value: bytes | bytearray | memoryview | str | Path) -> Any:
        """Return what JSON holds."""
        most = self._most_bytes
        if isinstance(value, Path):
            value = _begin(value, most + 1)
        size = value.nbytes if isinstance(value, memoryview) else len(value)
        if size > most:
            raise InputError(
                f"a row of {len(self.columns)} columns takes at most {most:,} bytes of JSON: got more"
            )
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise InputError(f"the row isn't JSON: {error}") from error

    def _ordered(self, row: Mapping[Any, Any]) -> list[Any]:
        """Return a mapping's values in the order of the columns."""
        try:
            found = [row[column] for column in self.columns]
        except KeyError as error:
            if self.missing == "refuse" or self.whole:
                others = self._others(row)
                instead = f", but {others}" if others else ""
                raise InputError(f"the row has no column {error.args[0]!r}{instead}") from None
            found = [row.get(column) for column in self.columns]
        if len(row) > len(found) or (self.missing == "nan" and row.keys() - self._known):
            raise InputError(
                f"the row has the column {self._others(row)}, which isn't among the "
                f"{len(self.columns)} that are known: leave it out"
            )
        return found

    def _others(self, row: Mapping[Any, Any]) -> str:
        """Return the name of a column that isn't known; empty where there is none."""
        return next((f"{name!r:.80}" for name in row if name not in self._known), "")

    def _number(self, place: int, value: Any) -> float:
        """Return one value as a number, or say what it is instead."""
        column = self.columns[place]
        if _absent(value):
            if column in self.needed:
                raise InputError(f"the column {column!r} has no value: give one")
            return math.nan
        if isinstance(value, (int, float, np.integer, np.floating, np.bool_)):
            return value  # type: ignore[return-value]
        raise InputError(f"the column {column!r} needs a number: got {_kind(value)}")

    def _unworded(self, place: int, value: Any) -> float | None:
        """Return what stands for a value that isn't among a column's words, or refuse it."""
        if _absent(value):
            return None
        if place in self._instead and isinstance(value, (str, int, float)):
            return self._instead[place]
        raise self._no_word(place, value)

    def _hash(self, place: int, value: Any) -> int:
        """Return the hash of a text or a whole number, or say what it is instead."""
        if isinstance(value, (np.integer, np.bool_)):
            value = value.item()
        if isinstance(value, (str, int)):
            try:
                return self._hashes[value]
            except (UnicodeError, OverflowError):
                column = self.columns[place]
                raise InputError(
                    f"the column {column!r} needs a text in Unicode or a whole number of up to 64 bits: got "
                    f"{value!r:.80}"
                ) from None
        column = self.columns[place]
        if _absent(value):
            raise InputError(f"the column {column!r} has no value: give one")
        broken = isinstance(value, (float, np.floating))
        got = f"{float(value)!r}, a number with a point" if broken else _kind(value)
        raise InputError(f"the column {column!r} needs a text or a whole number: got {got}")

    def _no_word(self, place: int, value: Any) -> InputError:
        words = next(words for one, _, words in self._places if one == place)
        named = ", ".join(map(repr, words))
        got = f"{value!r:.80}" if isinstance(value, str) else _kind(value)
        return InputError(
            f"the column {self.columns[place]!r} needs one of its words, {named:.400}: got {got}"
        )

    def _check_finite(self, row: Array, found: Sequence[Any]) -> None:
        """Check that values are there, unless they may be missing, and that they fit the type.

        Args:
            row: The row's numbers.
            found: The values that they come from.
        """
        for column, number, value in zip(self.columns, row.tolist(), found, strict=True):
            if math.isnan(number):
                if column in self.needed:
                    raise InputError(f"the column {column!r} has no value: give one")
            elif abs(number) > _LARGEST[self.dtype]:
                if self.infinite == "allow" and _infinite(value):
                    continue
                raise InputError(f"the column {column!r} needs a number that {self.dtype} holds")


def _begin(file: Path, size: int) -> bytes:
    """Return at most so many bytes of a file."""
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError as error:
        raise InputError(f"{file} can't be read: {error.strerror}") from error


def _absent(value: Any) -> bool:
    if isinstance(value, (float, np.floating)):
        return bool(np.isnan(value))
    return is_absent(value)


def _infinite(value: Any) -> bool:
    """Whether a value is infinite itself, rather than a number that is too large for a type."""
    return isinstance(value, (float, np.floating)) and bool(np.isinf(value))


def _clipped(value: Any) -> float:
    """Return a number as float, infinite where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _kind(value: Any) -> str:
    """Return what a value is in JSON's words."""
    names: dict[type, str] = {bool: "true or false", int: "a number", float: "a number"}
    names |= {str: "a text", dict: "an object", list: "a list", type(None): "null"}
    return names.get(type(value), f"a {type(value).__name__}")


def _twice(names: Sequence[str | float]) -> str | float | None:
    """Return a name that comes twice."""
    seen: set[str | float] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]
