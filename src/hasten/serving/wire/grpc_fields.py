"""Find the fields of protobuf messages, before the protobuf library takes memory for each of them.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from hasten.serving.protocol.errors import Kind, ProtocolError

BYTES_FIELD = 2
"""Wire type of text, bytes and messages; a field's key is 8 times its number plus the wire type."""
_MOST_FIELDS = 4096
"""Largest number of fields in a large request: inputs, outputs, parameters and tensors, each of which needs memory."""
_FIXED_BYTES = {1: 8, 5: 4}
"""Wire type of numbers of a fixed size -> the size."""


def fields_of(
    data: bytes | memoryview, place: int, end: int, count: Iterator[int]
) -> Iterator[tuple[int, int, int, int]]:
    """Yield the fields of a message: key, and where the field begins, its value begins and ends.

    Args:
        data: Bytes that hold the message.
        place: Where the message begins.
        end: Where it ends.
        count: Number of each field among all that the request has.

    Raises:
        IndexError: the fields can't be told apart, or too many are numbers.
        ProtocolError: there are too many fields.
    """
    while place < end:
        start = place
        key, begin = number_at(data, place)
        kind = key & 7
        if next(count) > _MOST_FIELDS:
            if kind != BYTES_FIELD:
                raise IndexError
            raise ProtocolError(
                Kind.INVALID,
                f"a request has at most {_MOST_FIELDS:,} inputs, outputs and parameters",
            )
        if kind == BYTES_FIELD:
            length, begin = number_at(data, begin)
            place = begin + length
        elif kind == 0:
            _, place = number_at(data, begin)
        elif kind in _FIXED_BYTES:
            place = begin + _FIXED_BYTES[kind]
        else:
            raise IndexError
        if place > end:
            raise IndexError
        yield key, start, begin, place


def number_at(data: bytes | memoryview, place: int) -> tuple[int, int]:
    """Decode a variable-length integer; return it and the place where it ends.

    Raises:
        IndexError: the data ends early, or the integer has more than 64 bits.
    """
    value = data[place]
    place += 1
    if value < 128:
        return value, place
    value &= 127
    for shift in range(7, 64, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise IndexError


def written_number(number: int) -> bytes:
    """Encode a variable-length integer."""
    written = bytearray()
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    written.append(number)
    return bytes(written)
