"""Words with a tag each, as data sets of named entities have them, turned into a text and a label for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.data.table import label_numbers
from hasten.inputs.pipeline.base import Origin, Pipeline
from hasten.inputs.pipeline.text import Tokenize

WORDS = ("tokens", "words")
"""Columns that hold a text's words, in a list."""
NOT_COUNTED = -100
"""Label of a token that no word's tag belongs to, as torch's losses and transformers have it."""


@dataclass(frozen=True)
class Tags:
    """Tags of the words of one text.

    Attributes:
        starts: First character of each word in the text.
        classes: Class of each word.
    """

    starts: tuple[int, ...]
    classes: tuple[int, ...]


def words_column(names: Sequence[str]) -> str | None:
    """Return the name of the column that holds the texts' words, if there is one."""
    return next((name for name in WORDS if name in names), None)


def joined(
    rows: Sequence[Mapping[str, Any]], column: str, label: str | None, pipeline: Pipeline, said: str
) -> tuple[list[str], list[Tags] | None]:
    """Return rows' texts, which are their words with a space between, and the tags of the words.

    Args:
        rows: Rows by the names of their columns.
        column: Column of the words.
        label: Column of the tags; None if there are none.
        pipeline: Pipeline whose step after the model may name the tags.
        said: Name of the data in messages.

    Raises:
        InputError: a row has no words, or words and tags don't fit.
    """
    texts, starts, tags = [], [], []
    for number, row in enumerate(rows, 1):
        words = row.get(column)
        if not isinstance(words, list) or not all(isinstance(one, str) for one in words):
            raise InputError(
                f"{said}: row {number}: {column!r} must be a list of words: got {words!r:.80}"
            )
        given = None if label is None else row.get(label)
        if label is not None and (not isinstance(given, list) or len(given) != len(words)):
            what = amount(len(given), "tag") if isinstance(given, list) else f"{given!r:.60}"
            raise InputError(
                f"{said}: row {number} has {amount(len(words), 'word')}, but {what} in {label!r}: give "
                "a tag for each word, in a list"
            )
        places, length = [], 0
        for word in words:
            places.append(length)
            length += len(word) + 1
        texts.append(" ".join(words))
        starts.append(tuple(places))
        tags.append(given or [])
    if label is None:
        return texts, None
    numbers = iter(label_numbers([tag for row in tags for tag in row], pipeline, said).tolist())
    classes = [tuple(int(next(numbers)) for _ in row) for row in tags]
    return texts, [Tags(*pair) for pair in zip(starts, classes, strict=True)]


def token_labels(
    texts: Sequence[Any], tags: Sequence[Tags], step: Tokenize, said: str
) -> list[Array]:
    """Return a label for each token of each text, padded to the longest text: int64 `(tokens,)` each.

    The first token of a word has the word's class; every other one is `NOT_COUNTED`.

    Args:
        texts: Texts, as `joined` returns them.
        tags: Tags of each text's words.
        step: Step that tokenizes.
        said: Name of the data in messages.

    Raises:
        InputError: a text can't be tokenized.
    """
    rows = []
    for number, (text, own) in enumerate(zip(texts, tags, strict=True), 1):
        try:
            origin = step.traced(text, Origin())[1]
        except InputError as error:
            raise InputError(f"{said}: text {number}: {error}") from error
        assert origin.text is not None  # each is one text
        rows.append(_of_tokens(origin.text.words, origin.text.spans, text, own))
    longest = max(map(len, rows), default=0)
    return [np.array(row + [NOT_COUNTED] * (longest - len(row)), np.int64) for row in rows]


def _of_tokens(
    words: Sequence[int | None], spans: Sequence[tuple[int, int]], text: str, tags: Tags
) -> list[int]:
    classes = dict(zip(tags.starts, tags.classes, strict=True))
    row = []
    for word, (start, end) in zip(words, spans, strict=True):
        # Some tokenizers count the space before a word to its first token.
        first = start + (start < end and text[start].isspace())
        row.append(NOT_COUNTED if word is None else classes.pop(first, NOT_COUNTED))
    return row
