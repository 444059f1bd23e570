"""Translate the protocol's element types to numpy's, and tensors from and to bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError

DATATYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BF16": "bfloat16",
    "BYTES": "object",
}
"""Name of a type in the protocol -> name in numpy."""
_NAMES = {name: datatype for datatype, name in DATATYPES.items()}
_SIZES = {
    datatype: 2 if datatype == "BF16" else np.dtype(name).itemsize
    for datatype, name in DATATYPES.items()
    if datatype != "BYTES"
}
_LENGTH = struct.Struct("<I")
_OF = {np.dtype(name): datatype for datatype, name in DATATYPES.items() if datatype != "BF16"}
"""numpy's type -> the protocol's name; a table, since `dtype.name` takes microseconds."""


def datatype_of(dtype: str) -> str:
    """Return the protocol's name of a numpy type.

    Raises:
        InputError: the protocol has no such type.
    """
    if dtype not in _NAMES:
        raise InputError(f"the protocol has no type for {dtype}; it has {', '.join(_NAMES)}")
    return _NAMES[dtype]


def datatype_of_array(array: Array) -> str:
    """Return the protocol's name of an array's type.

    Raises:
        InputError: the protocol has no such type.
    """
    return _OF.get(array.dtype) or datatype_of(array.dtype.name)


def item_size(datatype: str) -> int | None:
    """Return the size of one element in bytes; None for BYTES, whose elements vary in size.

    Raises:
        InputError: there is no such type.
    """
    if datatype == "BYTES":
        return None
    if datatype not in _SIZES:
        raise InputError(f"there is no datatype {datatype!r:.40}; there are {', '.join(DATATYPES)}")
    return _SIZES[datatype]


def numpy_type(datatype: str) -> np.dtype[Any]:
    """Return numpy's type for a type of the protocol.

    Raises:
        InputError: there is no such type, or it is BF16 and the package that defines it isn't loaded.
    """
    if datatype not in DATATYPES:
        item_size(datatype)
    try:
        return np.dtype(DATATYPES[datatype])
    except TypeError as error:
        raise InputError(
            f"{datatype} needs a package that defines it: pip install ml_dtypes"
        ) from error


def from_bytes(data: Any, datatype: str, shape: tuple[int, ...]) -> Array:
    """Read a tensor, without copying `data` if it is aligned for the processor.

    Args:
        data: Little-endian elements in C order; each element of BYTES follows its length in 4 bytes.
        datatype: Name of the type in the protocol.
        shape: Sizes of at least 0.

    Raises:
        InputError: the size of `data` doesn't fit the shape.
    """
    count = count_of(shape)
    if datatype == "BYTES":
        return bytes_elements(data, count).reshape(shape)
    want = count * (item_size(datatype) or 0)
    have = len(data)
    if have != want:
        raise InputError(f"{datatype}{list(shape)} has {want:,} bytes; got {have:,}")
    array = np.frombuffer(data, numpy_type(datatype)).reshape(shape)
    return array if array.flags.aligned else array.copy()


def count_of(shape: Iterable[int]) -> int:
    """Return the number of elements of a shape."""
    count = 1
    for size in shape:
        count *= size
    return count


def to_bytes(array: Array) -> memoryview | bytes:
    """Write a tensor as little-endian bytes in C order, without copying it if possible."""
    if array.dtype == object:
        return encoded_elements(array.reshape(-1).tolist())
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    if not array.size:
        return b""
    try:
        return memoryview(array).cast("B")  # type: ignore[arg-type]
    except (TypeError, ValueError):  # bfloat16, which Python's buffers don't know
        return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def bytes_elements(data: Any, count: int) -> Array:
    """Read `count` elements of BYTES.

    Raises:
        InputError: the data ends early, or goes on after the last element.
    """
    view, place = memoryview(data), 0
    if count * _LENGTH.size > len(view):
        raise InputError(f"{count:,} elements of BYTES don't fit in {len(view):,} bytes")
    array = np.empty(count, object)
    for number in range(count):
        end = place + _LENGTH.size
        if end > len(view):
            raise InputError(f"element {number} of BYTES has no length")
        (length,) = _LENGTH.unpack_from(view, place)
        place = end + length
        if place > len(view):
            raise InputError(f"element {number} of BYTES ends early: {length:,} bytes announced")
        array[number] = bytes(view[end:place])
    if place != len(view):
        raise InputError(f"BYTES continue after {count:,} elements: {len(view) - place:,} bytes")
    return array


def encoded_elements(elements: Iterable[bytes | str]) -> bytes:
    """Write elements of BYTES, each after its length."""
    parts = []
    for element in elements:
        data = element.encode() if isinstance(element, str) else element
        parts += [_LENGTH.pack(len(data)), data]
    return b"".join(parts)
