"""Words with a tag each, as data sets of named entities have them, turned into a text and a label for each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Tokenized
from hasten.inputs.pipeline.tables import is_absent
from hasten.inputs.pipeline.text import Tokenize
from hasten.inputs.pipeline.text_words import words_of

WORDS = ("tokens", "words")
"""Columns that hold a text's words, in a list."""
NOT_COUNTED = -100
"""Label of a token that no word's tag belongs to, as torch's losses and transformers have it."""
_MOST_CLASSES = 2**31
_MOST_LABELS = 2**28
"""Largest number of labels, of all samples' tokens and what fills them up: 1 GiB."""


@dataclass(frozen=True)
class Tags:
    """Tags of the words of one text.

    Attributes:
        spans: First character of each word in the text, and the character after its last one.
        classes: Class of each word; `NOT_COUNTED` where none is known.
    """

    spans: tuple[tuple[int, int], ...]
    classes: tuple[int, ...]


def words_column(names: Sequence[str]) -> str | None:
    """Return the name of the column that holds the texts' words, if there is one."""
    return next((name for name in WORDS if name in names), None)


def is_words(value: Any) -> bool:
    """Whether a value is a list of words, or an array or a tuple of them."""
    return isinstance(value, (list, tuple, np.ndarray)) and all(isinstance(w, str) for w in value)


def joined(
    rows: Sequence[Mapping[str, Any]],
    column: str,
    label: str | None,
    names: Sequence[str],
    said: str,
) -> tuple[list[str], list[Tags] | None]:
    """Return rows' texts, which are their words with a space between, and the tags of the words.

    Args:
        rows: Rows by the names of their columns.
        column: Column of the words.
        label: Column of the tags; None if there are none.
        names: Tag of each class, in order; none where the tags are the classes' numbers.
        said: Name of the data in messages.

    Raises:
        InputError: a row has no words, or words and tags don't fit.
    """
    texts, tags = [], []
    for number, row in enumerate(rows, 1):
        words: Any = row.get(column)
        if not is_words(words):
            raise InputError(
                f"{said}: row {number}: {column!r} must be a list of words: got {words!r:.80}; a .jsonl file can "
                "have lists"
            )
        words = [word.strip() for word in words]
        texts.append(" ".join(words))
        if label is None:
            continue
        given: Any = row.get(label)
        several = isinstance(given, (list, tuple, np.ndarray))
        if not several or len(given) != len(words):
            what = amount(len(given), "tag") if several else f"{given!r:.60}"
            raise InputError(
                f"{said}: row {number} has {amount(len(words), 'word')}, but {what} in {label!r}: give "
                "a tag for each word, in a list"
            )
        ends = np.cumsum([len(word) + 1 for word in words], dtype=np.int64) - 1
        spans = [(end - len(word), end) for word, end in zip(words, ends.tolist(), strict=True)]
        classes = [_class_of(tag, names, f"{said}: row {number}") for tag in given]
        tags.append(Tags(tuple(spans), tuple(classes)))
    return texts, None if label is None else tags


def _class_of(tag: Any, names: Sequence[str], where: str) -> int:
    """Return the class of a tag: its place among the names, or a number itself."""
    if isinstance(tag, np.generic):
        tag = tag.item()
    if isinstance(tag, str) and tag in names:
        if names.count(tag) > 1:
            raise InputError(
                f"{where}: several classes are called {tag!r:.80}: give tags as numbers of classes"
            )
        return names.index(tag)
    if is_absent(tag) or tag != tag:  # NaN, as pandas has it
        return NOT_COUNTED
    if (
        isinstance(tag, float) and tag.is_integer()
    ):  # as pandas has whole numbers beside missing ones
        tag = int(tag)
    if type(tag) is int and tag < (len(names) or _MOST_CLASSES):
        return tag if tag >= 0 else NOT_COUNTED
    if names:
        raise InputError(
            f"{where}: the tag must be one of {', '.join(map(repr, names))[:300]}, or its number: got {tag!r:.80}"
        )
    raise InputError(
        f"{where}: the tag must be the number of a class, unless the pipeline's step entities names the classes: "
        f"got {tag!r:.80}"
    )


def token_labels(
    texts: Sequence[Any], tags: Sequence[Tags], step: Tokenize, said: str
) -> list[Array]:
    """Return a label for each token of each text, padded to the longest text: int32 `(tokens,)` each.

    The first token of a word has the word's class; every other one is `NOT_COUNTED`.

    Args:
        texts: Texts, as `joined` returns them.
        tags: Tags of each text's words.
        step: Step that tokenizes.
        said: Name of the data in messages.

    Raises:
        InputError: a text can't be tokenized, no word's tag became a label, or the labels would take too
            much memory.
    """
    rows = []
    for number, (text, own) in enumerate(zip(texts, tags, strict=True), 1):
        try:
            origin = step.traced(text, Origin(keeps_text=True))[1]
        except InputError as error:
            raise InputError(f"{said}: text {number}: {error}") from error
        assert origin.text is not None  # each is one text
        rows.append(_of_tokens(origin.text, own))
    longest = max(map(len, rows), default=0)
    if longest * len(rows) > _MOST_LABELS:
        raise InputError(
            f"{said}: the longest of the {len(rows):,} texts has {longest:,} tokens, and each gets as many labels: "
            "cut the texts by the setting length of the step tokenize, or leave out the longest"
        )
    tagged = any(any(one >= 0 for one in own.classes) for own in tags)
    if tagged and not any((row >= 0).any() for row in rows):
        raise InputError(
            f"{said}: no token of the tokenizer begins in any word that has a tag: give labels for the tokens "
            "themselves, with arrays"
        )
    return [
        np.concatenate([row, np.full(longest - len(row), NOT_COUNTED, np.int32)]) for row in rows
    ]


def _of_tokens(text: Tokenized, tags: Tags) -> Array:
    row = np.full(len(text.words), NOT_COUNTED, np.int32)
    words, place = words_of(text), 0
    for (start, end), label in zip(tags.spans, tags.classes, strict=True):
        while place < len(words) and words[place].end <= start:
            place += 1
        # The tokenizer may divide a word further; what begins in it first is its beginning.
        if place < len(words) and words[place].start < end:
            row[words[place].token] = label
    return row
