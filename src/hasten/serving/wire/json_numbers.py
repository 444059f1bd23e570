"""Parse lists of numbers in JSON without creating an object per number."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.serving.protocol.datatypes import count_of, numpy_type

simdjson: Any
try:
    simdjson = import_module("simdjson")
except ImportError:  # simdjson lags behind new Python versions: callers have a slower fallback
    simdjson = None

_parser: Any = simdjson and simdjson.Parser()
IS_QUICK = simdjson is not None
"""Whether large lists of numbers can be parsed without an object per number."""
_FEW = 64
"""Number of numbers up to which Python's own arithmetic takes less time than a call of numpy."""
_LARGEST = {char: float(np.finfo(char).max) for char in "efd"}
"""Type of floats -> the largest."""
_KEPT_BYTES = 1 << 20
"""Size of a text above which the parser's memory isn't kept for the next text."""
_WIDE: dict[str, tuple[str, type[Any]]] = {
    "f": ("d", np.float64),
    "i": ("i", np.int64),
    "u": ("u", np.uint64),
}
_OF_NUMBERS = b"0123456789+-.eE \t\r\n"


def numbers(data: memoryview, datatype: str, shape: tuple[int, ...]) -> Array | None:
    """Parse a list of numbers that is flat, or nested like the shape; for use by one thread only.

    Args:
        data: JSON of the list.
        datatype: Name of the type in the protocol.
        shape: Shape of the tensor.

    Returns:
        The tensor; None if the data isn't such a list, or this fast parser can't handle it.

    Raises:
        InputError: there is no such type.
    """
    dtype = numpy_type(datatype)
    count = count_of(shape)
    if dtype.kind not in _WIDE or not count or simdjson is None:
        return None
    text = bytes(data)
    lists = text.count(b"[")
    # Before memory is taken for each element, and each list.
    if text.count(b",") != count - 1 or (lists > 1 and lists > lists_of(shape)):
        return None
    try:
        wide = _decoded(data, dtype.kind)
    except (ValueError, TypeError, AttributeError, RuntimeError, MemoryError):
        return None
    if wide.size != count or (lists > 1 and not _is_nested_like(text, shape)):
        return None
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        if not (limits.min <= int(wide.min()) and int(wide.max()) <= limits.max):
            return None
        return wide.astype(dtype).reshape(shape)
    if count <= _FEW:
        values, most = wide.tolist(), _LARGEST[dtype.char]
        fit = -most <= min(values) and max(values) <= most
        return wide.astype(dtype).reshape(shape) if fit else None
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype)
    return narrow.reshape(shape) if all_finite(narrow) else None


def all_finite(flat: Array) -> bool:
    """Whether no number of a flat array is infinite or NaN."""
    if flat.size <= _FEW:
        return all(map(math.isfinite, flat.tolist()))
    return bool(np.isfinite(flat).all())


def switches(data: memoryview, shape: tuple[int, ...]) -> Array | None:
    """Parse a list of true, false, 1 and 0, known to be JSON, as `numbers` parses one of numbers."""
    text = bytes(data).replace(b"true", b"1").replace(b"false", b"0")
    found = numbers(memoryview(text), "UINT8", shape)
    return None if found is None or found.max() > 1 else found.astype(np.bool_)


def lists_of(shape: tuple[int, ...]) -> int:
    """Return the most lists that data of a shape are nested in."""
    lists = most = 1
    for size in shape[:-1]:
        most *= size or 1
        lists += most
    return lists


def _decoded(data: memoryview, kind: str) -> Array:
    """Parse a list of numbers of one kind into 64 bits each; nested lists are flattened.

    Raises:
        ValueError: the data isn't such a list; the parser may also raise TypeError, AttributeError,
            RuntimeError or MemoryError.
    """
    parser = _parser if len(data) <= _KEPT_BYTES else simdjson.Parser()
    array = parser.parse(data)
    return np.frombuffer(array.as_buffer(of_type=_WIDE[kind][0]), _WIDE[kind][1])


def _is_nested_like(text: bytes, shape: tuple[int, ...]) -> bool:
    """Whether nested lists with as many numbers as the shape are nested like the shape."""
    found, want = text.translate(None, _OF_NUMBERS), b""
    for size in reversed(shape):
        want = b"[" + ((want + b",") * size)[:-1] + b"]"
    return found == want
