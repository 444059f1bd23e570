"""Decode tensors whose elements gRPC messages list one by one, without an object for each element."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from hasten.core.protobufs import parse_errors
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.serving.protocol.datatypes import count_of, from_bytes, numpy_type
from hasten.serving.wire.checks import MOST_SAID_BYTES
from hasten.serving.wire.grpc_fields import BYTES_FIELD, fields_of, number_at

LONG_CONTENTS = 1 << 10
"""Size above which contents are held against the shape before they are parsed."""
_LONGEST_ELEMENT = 11
"""Largest number of bytes of a number in contents, key included."""
_LONGEST_NUMBER = 10
"""Largest number of bytes of a whole number in packed contents."""
_PIECE_BYTES = 1 << 16
"""Size of the pieces in which whole numbers are decoded, to bound the memory beside them."""
_UNREADABLE = "its contents can't be parsed"
_FIELDS = {
    "BOOL": ("bool_contents", 1),
    "UINT8": ("uint_contents", 4),
    "UINT16": ("uint_contents", 4),
    "UINT32": ("uint_contents", 4),
    "UINT64": ("uint64_contents", 5),
    "INT8": ("int_contents", 2),
    "INT16": ("int_contents", 2),
    "INT32": ("int_contents", 2),
    "INT64": ("int64_contents", 3),
    "FP32": ("fp32_contents", 6),
    "FP64": ("fp64_contents", 7),
    "BYTES": ("bytes_contents", 8),
}
"""Datatype -> field that lists its elements one by one, and the field's number."""
_TYPES = {
    "bool_contents": np.bool_,
    "int_contents": np.int32,
    "int64_contents": np.int64,
    "uint_contents": np.uint32,
    "uint64_contents": np.uint64,
}
"""Field of whole numbers -> their type."""
_BYTES_CONTENTS = 8 << 3 | BYTES_FIELD


def read_contents(
    tensor: Any, long: memoryview | None, datatype: str, shape: tuple[int, ...]
) -> Array:
    """Read a tensor that was sent element by element.

    Args:
        tensor: `InferInputTensor`, with its contents unless they are long.
        long: Bytes of the contents if they are long; otherwise None.
        datatype: Name of the type in the protocol.
        shape: Shape as the request states it.

    Raises:
        InputError: the elements don't fit the datatype or the shape, or can't be parsed.
    """
    if datatype not in _FIELDS:
        raise InputError(f"{datatype} can only be sent in raw_input_contents")
    if long is not None:
        _check_size(long, datatype, shape)
        if (packed := _packed(long, datatype, shape)) is not None:
            return packed
        _fill(tensor.contents, long)
    field, _ = _FIELDS[datatype]
    elements = getattr(tensor.contents, field)
    if len(tensor.contents.ListFields()) > 1:
        raise InputError(
            f"{datatype} must be sent in {field} only, but other contents are filled too"
        )
    count = _checked_count(datatype, shape, len(elements))
    if datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = list(elements)
        return array.reshape(shape)
    dtype = numpy_type(datatype)
    wide = dtype if dtype.itemsize >= 4 or dtype.kind == "b" else np.dtype(np.int64)
    return _narrow(np.fromiter(elements, wide, count), datatype).reshape(shape)


def _checked_count(datatype: str, shape: tuple[int, ...], found: int) -> int:
    """Return the number of elements of a shape.

    Raises:
        InputError: another number of elements was found.
    """
    count = count_of(shape)
    if found != count:
        raise InputError(
            f"{datatype}{list(shape)} has {count:,} elements; {_FIELDS[datatype][0]} has {found:,}"
        )
    return count


def _narrow(wide: Array, datatype: str) -> Array:
    """Convert numbers to a datatype, since messages have no numbers of fewer than 32 bits.

    Raises:
        InputError: a number has no value in the datatype.
    """
    dtype = numpy_type(datatype)
    if wide.dtype == dtype:
        return wide
    limits = np.iinfo(dtype)
    if wide.size and not (limits.min <= wide.min() and wide.max() <= limits.max):
        raise InputError(f"its {_FIELDS[datatype][0]} has a value that is not {datatype}")
    return wide.astype(dtype)


def _check_size(contents: memoryview, datatype: str, shape: tuple[int, ...]) -> None:
    """Hold contents against a shape, before memory is taken for each of their elements.

    Raises:
        InputError: they have more elements than the shape.
    """
    count, size = count_of(shape), len(contents)
    much = size > _LONGEST_ELEMENT * count + LONG_CONTENTS
    if datatype == "BYTES":
        keys = _keys(contents, count + 1)
        if any(key != _BYTES_CONTENTS for key in keys):
            raise InputError("BYTES must be sent in bytes_contents only")
        much = len(keys) > count
    if much:
        raise InputError(
            f"{datatype}{list(shape)} has {count:,} elements, but its contents of {size:,} bytes "
            "have more"
        )


def _keys(contents: memoryview, most: int) -> list[int]:
    """Return the keys of the first fields of contents.

    Raises:
        InputError: the fields can't be told apart.
    """
    fields = fields_of(contents, 0, len(contents), itertools.repeat(0))
    try:
        return [key for key, *_ in itertools.islice(fields, most)]
    except IndexError as error:
        raise InputError(_UNREADABLE) from error


def _packed(contents: memoryview, datatype: str, shape: tuple[int, ...]) -> Array | None:
    """Decode long contents that are one packed list of numbers, as clients write them.

    Returns:
        The tensor; None if the contents are BYTES, or are short enough to be parsed another way.

    Raises:
        InputError: the elements don't fit the datatype or the shape, or are long and written otherwise.
    """
    if datatype == "BYTES":
        return None
    field, number = _FIELDS[datatype]
    try:
        key, begin = number_at(contents, 0)
        length, begin = number_at(contents, begin)
    except IndexError as error:
        raise InputError(_UNREADABLE) from error
    values = contents[begin:]
    whole = numpy_type(datatype).kind != "f"
    if key == number << 3 | BYTES_FIELD and length == len(values):
        if not whole:
            return from_bytes(values, datatype, shape)
        bytes_ = np.frombuffer(values, np.uint8)
        count = _checked_count(datatype, shape, int(np.count_nonzero(bytes_ < 128)))
        if count and bytes_[-1] < 128:
            return _narrow(_numbers(bytes_, count, field), datatype).reshape(shape)
    if len(contents) > MOST_SAID_BYTES:
        raise InputError(
            f"{field} of more than {MOST_SAID_BYTES:,} bytes must be one packed list: send "
            "raw_input_contents instead"
        )
    return None


def _numbers(data: Array, count: int, field: str) -> Array:
    """Decode whole numbers of variable length into the type of their field.

    Args:
        data: Bytes of the numbers, of which the last ends.
        count: Number of numbers.
        field: Name of the field that lists them.

    Raises:
        InputError: a number has more than 64 bits.
    """
    dtype = _TYPES[field]
    found: Array = np.empty(count, dtype)
    place = begin = 0
    while begin < len(data):
        piece = data[begin : begin + _PIECE_BYTES]
        ends = np.flatnonzero(piece < 128)
        if not len(ends):
            raise InputError(_UNREADABLE)
        piece = piece[: ends[-1] + 1]
        begin += len(piece)
        if len(ends) < len(piece):
            values = _joined(piece, ends)
            # Of a longer number, 32 bits keep the lowest ones, as protobuf does it.
            piece = values != 0 if dtype is np.bool_ else values.astype(dtype)
        found[place : place + len(ends)] = piece
        place += len(ends)
    return found


def _joined(piece: Array, ends: Array) -> Array:
    """Return numbers of 7 bits a byte, the lowest first, given where each ends.

    Raises:
        InputError: a number has more than 64 bits.
    """
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST_NUMBER:
        raise InputError(_UNREADABLE)
    values = (piece[starts] & 127).astype(np.uint64)
    for place in range(1, int(lengths.max())):
        longer = np.flatnonzero(lengths > place)
        bits = (piece[starts[longer] + place] & 127).astype(np.uint64)
        values[longer] |= bits << np.uint64(7 * place)
    return values


def _fill(message: Any, data: memoryview) -> None:
    """Parse data into a message that has no content yet.

    Raises:
        InputError: the data can't be parsed.
    """
    try:
        message.MergeFromString(bytes(data))
    except parse_errors() as error:
        raise InputError(_UNREADABLE) from error
