"""Decode labels of answers: their ids first, and a label itself only once its answer is known to wait for it."""

from __future__ import annotations

from typing import TypeAlias

import msgspec
import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.serving.protocol.errors import Kind, ProtocolError

MOST_LABELS = 10_000
"""Labels in a request: more would hold the interpreter for long."""
_BODY_BYTES = 1 << 20
_TEXT_BYTES = 128 << 10
"""Size of the JSON of a label with texts, for all rows of its request together. A mask's numbers may be a whole body."""
_MOST_LISTS = 4096
"""Lists in a label, each of which takes far more memory than its JSON."""
_SHOWN = 40
_FORM = 'labels are {"labels": [{"id": "a request\'s id", "label": 3}, ...]}'
_KINDS = "a label is a number, a text, or a list of numbers or of such lists"

_Number: TypeAlias = bool | int | float
_Rank1: TypeAlias = list[_Number]
_Rank2: TypeAlias = list[_Number | _Rank1]
_Rank3: TypeAlias = list[_Number | _Rank2]
_Label: TypeAlias = _Number | str | list[_Number | str | _Rank3]
"""Label of one row: of at most 4 axes, as many as the masks of several pictures have."""


class LabelOf(msgspec.Struct):
    """Label of a request, which isn't decoded yet.

    Attributes:
        id: Id of the request.
        label: JSON of the label.
    """

    id: str
    label: msgspec.Raw

    @property
    def shown(self) -> str:
        """The beginning of the label's JSON, for messages."""
        return repr(bytes(memoryview(self.label)[:_SHOWN]).decode("utf-8", "replace"))


class _Body(msgspec.Struct):
    labels: list[LabelOf]


_body = msgspec.json.Decoder(_Body)
_rows = msgspec.json.Decoder(list[msgspec.Raw])
_label = msgspec.json.Decoder(_Label)


def labels_of(body: bytes) -> list[LabelOf]:
    """Decode a request of labels, but not the labels themselves.

    Raises:
        ProtocolError: the request has another form, or is too long.
    """
    if len(body) > _BODY_BYTES:
        raise ProtocolError(
            Kind.TOO_LARGE,
            f"a request of labels has at most {_BODY_BYTES:,} bytes of JSON; got {len(body):,}: send "
            "several requests",
        )
    if body.count(b"{") > MOST_LABELS + 1:  # before memory is taken for each of them
        raise ProtocolError(
            Kind.TOO_LARGE,
            f"a request has at most {MOST_LABELS:,} labels, and each {{ in it counts as one: send "
            "several requests",
        )
    try:
        return _body.decode(body).labels
    except msgspec.ValidationError as error:
        raise ProtocolError(Kind.INVALID, f"{_FORM}: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(Kind.INVALID, f"the request is not JSON: {error}") from error


def label_array(given: LabelOf, rows: int, row: int) -> Array:
    """Return the label of one row as the metric reads it, `(1, ...)`: numbers, or one text.

    Args:
        given: Label of the row's request; of several rows a list with one label for each.
        rows: Number of rows in the request.
        row: Row whose label is returned.

    Raises:
        InputError: the label has another form, or is too long.
    """
    size, text = len(given.label), bytes(given.label)
    if size > _TEXT_BYTES and b'"' in text:
        raise InputError(
            f"a label with texts has at most {_TEXT_BYTES:,} bytes of JSON; got {size:,}"
        )
    if text.startswith(b"[") and text.count(b"[") > _MOST_LISTS:
        raise InputError(f"a label has at most {_MOST_LISTS:,} lists")
    if rows > 1:
        text = _of_row(text, rows, row, given.shown)
    try:
        label = _label.decode(text)
        if isinstance(label, list) and label[1:] and any(isinstance(each, str) for each in label):
            raise InputError(f"a list of texts is no label; {_KINDS}")  # numpy would pad each text
        array = np.asarray(label)[np.newaxis]
    except (msgspec.DecodeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{_KINDS}; got {given.shown}") from error
    if array.dtype.kind not in "biufU":
        raise InputError(f"{_KINDS}; got {given.shown}")
    return array


def _of_row(text: bytes, rows: int, row: int, shown: str) -> bytes:
    """Return the JSON of one row's label.

    Raises:
        InputError: the label isn't a list with one for each row.
    """
    try:
        each = _rows.decode(text)
    except (msgspec.DecodeError, ValueError, RecursionError):
        each = []
    if len(each) != rows:
        raise InputError(f"the request has {rows} rows; its label is {shown}")
    return bytes(each[row])
