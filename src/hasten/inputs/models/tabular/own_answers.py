"""Answers of a library's own live model to rows of plain values, in the form in which its ONNX file gives them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import told
from hasten.inputs.pipeline.rows import Row

if TYPE_CHECKING:
    from hasten.inputs.models.tabular.base import Tabular

Rows = Sequence[Sequence[Any]]
"""Rows of numbers, texts and None, in the order of the columns."""


class NoAnswersError(Exception):
    """The library doesn't answer these rows as they are given here; the message says why."""


class OwnAnswers:
    """The library's own answers to rows.

    Attributes:
        rounding: Largest difference from the ONNX file's answers, relative to the largest one, that rounding
            explains.
        missing_words: Whether it takes None for a missing value in a column with words, whatever marked such a
            value in training.

    Args:
        answer: Function from rows to answers, `(n,)` or `(n, width)`.
        rounding: See the attribute.
        missing_words: See the attribute.
    """

    def __init__(
        self, answer: Callable[[Rows], Any], rounding: float, *, missing_words: bool = True
    ) -> None:
        self._answer, self.rounding, self.missing_words = answer, rounding, missing_words

    def of(self, described: Tabular, rows: Rows) -> Array:
        """Return the answers to some rows, float64 of shape `(n, width)`.

        Raises:
            NoAnswersError: the library doesn't answer them.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = np.asarray(self._answer(rows), np.float64)
        except Exception as error:  # whatever a library says of rows
            raise NoAnswersError(told(error)) from error
        found = found.reshape(len(rows), -1)
        if described.labels and described.width == 2 and found.shape[1] == 1:
            first = np.zeros_like(found) if described.scored else 1 - found
            found = np.concatenate([first, found], axis=1)
        if found.shape[1] != described.width:
            raise NoAnswersError(f"it gives {found.shape[1]} numbers, not {described.width}")
        return found


def numbers_in(rows: Rows) -> Array:
    """Return rows of numbers as an array, with NaN for None."""
    return np.array(rows, np.float64)


def in_frame(row: Row, rows: Rows, originals: dict[str, Sequence[Any]] | None = None) -> Any:
    """Return rows as a data frame of pandas, if a column has words; else as an array.

    Args:
        row: Step that reads the rows.
        rows: The rows.
        originals: Categories of columns with words, where they aren't the words themselves, in their order.

    Raises:
        ImportError: pandas isn't installed.
    """
    if not row.words:
        return numbers_in(rows)
    import pandas

    places = {column: {word: i for i, word in enumerate(words)} for column, words in row.words}
    columns: dict[str, Any] = {}
    for column, values in zip(row.columns, zip(*rows, strict=True), strict=True):
        if column in places:
            codes = [places[column].get(value, -1) for value in values]
            categories = (originals or {}).get(column, dict(row.words)[column])
            columns[column] = pandas.Categorical.from_codes(codes, list(categories))
        else:
            columns[column] = np.array(values, np.float64)
    return pandas.DataFrame(columns)
