"""Texts from the classes of a network that reads or listens: by a vocabulary, and along a CTC's path."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.metrics.outputs import of_samples

_SPECIAL = re.compile(r"<[^<>]+>|\[[A-Z]+\]")
"""Pieces that are no text: <pad>, <s>, [UNK], ..."""
_WORD_START = "\u2581"
"""Mark of SentencePiece for a space."""
_MOST = 1_000_000


def read_vocabulary(path: str, text: str) -> tuple[str, ...]:
    """Read the piece of text of each class, in order; a special piece is an empty text.

    A .json file is a list of pieces, or Hugging Face's vocab.json, a mapping of pieces to classes,
    in which "|" is a space. Any other file has a piece on each line.

    Args:
        path: Path of the file.
        text: Whole text of the metric, for messages.

    Raises:
        InputError: there is no such file, or it holds no vocabulary.
    """
    pieces = read_lines(path, text, "vocabulary")
    if path.endswith(".json"):
        pieces = tuple(" " if piece == "|" else piece for piece in pieces)
    return tuple(
        "" if _SPECIAL.fullmatch(piece) else piece.replace(_WORD_START, " ") for piece in pieces
    )


def read_lines(path: str, text: str, what: str) -> tuple[str, ...]:
    """Read a text for each class, in order: one on each line, or a JSON list or mapping of texts to classes.

    Args:
        path: Path of the file.
        text: Whole text of the metric, for messages.
        what: Name of the texts, for messages: "vocabulary".

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    file = Path(path)
    try:
        written = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else "it can't be read as text"
        raise InputError(f"metric {text!r}: the {what} {path}: {why}") from error
    if file.suffix == ".json":
        pieces = _of_json(written, path, text, what)
    else:
        pieces = written.removesuffix("\n").split("\n") if written else []
    if not 0 < len(pieces) <= _MOST:
        raise InputError(f"metric {text!r}: the {what} {path} has {len(pieces):,} pieces")
    return tuple(pieces)


def _of_json(written: str, path: str, text: str, what: str) -> list[str]:
    """Return the pieces of a JSON list, or of a mapping of pieces to classes from 0 on."""
    try:
        found = json.loads(written)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        classes = list(found.values())
        if all(type(c) is int for c in classes) and sorted(classes) == [*range(len(classes))]:
            found = sorted(found, key=found.__getitem__)
    if not isinstance(found, list) or not all(isinstance(piece, str) for piece in found):
        raise InputError(
            f"metric {text!r}: the {what} {path} is neither a list of texts nor a mapping of "
            "texts to the classes 0, 1, 2, ..."
        )
    return found


def classes_read(output: Array, blank: int, who: str) -> list[list[int]]:
    """Return the classes that a model read in each sample, blanks and padding left out.

    Args:
        output: Scores of a CTC, `(n, times, classes)`, of which the likeliest at each time is
            taken and repetitions count once; or classes `(n, length)`, of which those below 0 are
            padding.
        blank: Class of a CTC's blank; -1 where it is the last.
        who: Name of the metric, for messages.

    Raises:
        InputError: the output is neither, or the blank is none of its classes.
    """
    if output.ndim == 2 and output.dtype.kind in "iu":
        return [[int(c) for c in row if c >= 0] for row in output.tolist()]
    if output.ndim != 3 or output.dtype.kind != "f":
        raise InputError(
            f"{who} reads scores (n, times, classes) or integers (n, length); the output is "
            f"{output.dtype} {of_samples(output)}"
        )
    classes = output.shape[2]
    if not -1 <= blank < classes:
        raise InputError(f"{who}: the blank is class {blank}; the output has {classes} classes")
    paths = output.argmax(axis=2)
    new = np.diff(paths, axis=1, prepend=-1) != 0
    kept = new & (paths != blank % classes)
    return [path[own].tolist() for path, own in zip(paths, kept, strict=True)]


def spelled(
    classes: Sequence[Sequence[int]], alphabet: Sequence[str], *, left_out: int | None, who: str
) -> list[str]:
    """Return the text of each sample's classes.

    Args:
        classes: Classes of each sample.
        alphabet: Text of each class, in order.
        left_out: Class that the alphabet leaves out, as a blank's; None where it leaves out none.
        who: Name of the metric, for messages.

    Raises:
        InputError: a class has no text.
    """
    texts = []
    for sample in classes:
        places = [c - (left_out is not None and c > left_out) for c in sample]
        if places and max(places) >= len(alphabet):
            raise InputError(
                f"{who}: the model returns class {max(sample)}, but the vocabulary has "
                f"{len(alphabet)} pieces"
            )
        texts.append(" ".join("".join(alphabet[place] for place in places).split()))
    return texts
