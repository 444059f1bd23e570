"""Groups of samples that belong together, as every form of data names them."""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.samples import complete, unmasked
from hasten.inputs.pipeline.tables import is_absent

_MIDNIGHT = " 00:00:00"
_DATE = re.compile(r"\d{4}-\d\d-\d\d( \d\d:\d\d:\d\d(\.\d+)?)?")
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
"""Text of a whole number."""
_MOST_EXACT = 1 << 53
"""Largest magnitude up to which a float holds every whole number."""


def group_array(groups: Any) -> Array:
    """Return groups as an array; dates and ids of a database, such as a `Decimal` or a `UUID`, become texts.

    Args:
        groups: Group of each sample: an array, or a list or a tuple.

    Raises:
        InputError: a sample has no group: None, NaN, an empty text or a masked one.
    """
    if not isinstance(groups, (list, tuple)):
        array = np.asarray(unmasked(groups))
        if array.ndim != 1:
            return array  # whoever counts the samples refuses it
        groups = array
    for index, one in enumerate(groups):
        if _is_missing(one):
            raise InputError(
                f"groups: sample {index} has none: give it a group of its own, or leave the sample out"
            )
    if isinstance(groups, np.ndarray) and groups.dtype.kind != "O":
        return groups
    named = [in_text(one) for one in groups]
    if any(map(_is_long, named)) and all(
        isinstance(n, (str, int, float, np.generic)) for n in named
    ):
        named = list(map(str, named))  # else numpy may round them
    return complete(named)


def _is_long(group: Any) -> bool:
    """Whether a group is a whole number that a float doesn't hold, such as a hash of 64 bits."""
    return isinstance(group, (int, np.integer)) and abs(int(group)) > _MOST_EXACT


def _is_missing(group: Any) -> bool:
    """Whether a group isn't there: None, NaN, NaT, or a text of spaces."""
    if isinstance(group, (str, bytes)):
        return not group.strip()
    if isinstance(group, decimal.Decimal):
        return group.is_nan()
    return is_absent(group) or (isinstance(group, (float, np.generic)) and bool(group != group))


def checked_groups(groups: Sequence[Any], said: str, column: str = "") -> list[Any]:
    """Return groups, checked to be a text, a number or a date for each sample; spaces around a text don't count.

    Args:
        groups: Group of each sample; dates and timestamps become texts.
        said: Name of the data in messages.
        column: Name of the groups' column, where only its name says that it has them.

    Raises:
        InputError: a sample has no group, or one of another kind.
    """
    found = []
    for number, one in enumerate(groups, 1):
        if _is_missing(one):
            instead = (
                f"name one, leave the row out, or rename the column {column!r} if it isn't about rows that belong "
                "together"
                if column
                else "name one, or leave the row out"
            )
            raise InputError(f"{said}: row {number} has no group: {instead}")
        named = one.strip() if isinstance(one, (str, bytes)) else in_text(one)
        if not isinstance(named, (str, bytes, int, float, np.generic)):
            raise InputError(
                f"{said}: row {number}: the group must be a text, a number or a date: got {one!r:.80}"
            )
        found.append(named)
    return found


def in_text(group: Any) -> Any:
    """Return a date, or an id of a database, as a text; None for a group that isn't there; anything else as it is."""
    if _is_missing(group):
        return None
    if isinstance(group, (datetime.date, np.datetime64)):
        return dated(group)
    return str(group) if isinstance(group, (decimal.Decimal, uuid.UUID)) else group


def group_name(group: object) -> str:
    """Return a group's name as a text: 7, 7.0, "7" and b"7" are one group, since forms of data differ in type."""
    if isinstance(group, (datetime.date, np.datetime64)):
        return dated(group)
    text = group.decode("utf-8", "replace") if isinstance(group, bytes) else str(group)
    if _DATE.fullmatch(text):
        return text.removesuffix(_MIDNIGHT)
    return text[:-2] if text.endswith(".0") and _WHOLE.fullmatch(text[:-2]) else text


def spellings(name: str) -> tuple[str, ...]:
    """Return a group's name, and those of older bundles: 7 was "7.0" as a float, and "b'7'" as bytes."""
    as_bytes = str(name.encode())
    if _WHOLE.fullmatch(name):
        return name, f"{name}.0", as_bytes
    if not _DATE.fullmatch(name):
        return name, as_bytes
    whole = name if " " in name else name + _MIDNIGHT
    written = whole.replace(" ", "T")
    try:
        moments = [str(np.datetime64(written, unit)) for unit in ("h", "m", "s", "ms", "us", "ns")]
    except ValueError:  # no date, though it looks like one
        moments = []
    # A unit that is too coarse cuts more than zeros off: that is another group.
    cut = written.rstrip("0:.")
    return name, as_bytes, whole, *(one for one in moments if one.rstrip("0:.") == cut)


def dated(one: datetime.date | np.datetime64) -> str:
    """Return a date or a timestamp as a text, which is the same in an array, in a column and in a CSV file."""
    if isinstance(one, np.datetime64) and isinstance(one.item(), int):  # nanoseconds
        whole = one.astype("datetime64[us]")
        text = str(whole.item() if whole == one else one)
    else:
        text = str(one.item() if isinstance(one, np.datetime64) else one)
    return text.removesuffix(_MIDNIGHT)
