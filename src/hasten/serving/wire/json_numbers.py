"""Numbers out of JSON, without an object for each."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.serving.protocol.datatypes import count_of, numpy_type

simdjson: Any
try:
    simdjson = import_module("simdjson")
except ImportError:  # there is none for the newest Python yet: whoever asks has a slower way
    simdjson = None

_parser: Any = simdjson and simdjson.Parser()
_KEPT_BYTES = 1 << 20
"""Of a longer text the parser's memory isn't kept."""
_WIDE: dict[str, tuple[str, type[Any]]] = {
    "f": ("d", np.float64),
    "i": ("i", np.int64),
    "u": ("u", np.uint64),
}
_OF_NUMBERS = b"0123456789+-.eE \t\r\n"


def numbers(data: memoryview, datatype: str, shape: tuple[int, ...]) -> Array | None:
    """Read numbers, a flat list or one nested like the shape. Of one thread only.

    Args:
        data: The list's JSON.
        datatype: The protocol's name.
        shape: Of the tensor.

    Returns:
        None where they aren't that, or can't be read in this way.

    Raises:
        InputError: there is no such type.
    """
    dtype = numpy_type(datatype)
    count = count_of(shape)
    if dtype.kind not in _WIDE or not count or simdjson is None:
        return None
    try:
        wide = _decoded(data, dtype.kind)
    except (ValueError, TypeError, AttributeError, RuntimeError, MemoryError):
        return None
    if wide.size != count or not _is_nested_like(data, shape):
        return None
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        if not (limits.min <= int(wide.min()) and int(wide.max()) <= limits.max):
            return None
        return wide.astype(dtype).reshape(shape)
    with np.errstate(over="ignore"):
        narrow = wide.astype(dtype)
    return narrow.reshape(shape) if np.isfinite(narrow).all() else None


def _decoded(data: memoryview, kind: str) -> Array:
    """Read a list of numbers of one kind into 64 bits each; lists within it are read as if flat.

    Raises:
        ValueError: it is no such list; so do the other errors that its caller knows.
    """
    parser = _parser if len(data) <= _KEPT_BYTES else simdjson.Parser()
    array = parser.parse(data)
    return np.frombuffer(array.as_buffer(of_type=_WIDE[kind][0]), _WIDE[kind][1])


def _is_nested_like(data: memoryview, shape: tuple[int, ...]) -> bool:
    """Whether numbers, so many as the shape's, are a flat list or nested as it is."""
    text = bytes(data)
    if text.count(b"[") == 1:
        return True
    found, want = text.translate(None, _OF_NUMBERS), b""
    for size in reversed(shape):
        want = b"[" + b",".join([want] * size) + b"]"
    return found == want
