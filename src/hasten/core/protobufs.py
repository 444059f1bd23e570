"""Fields of a protobuf message, and the error that protobuf raises for bytes that are no message."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

_TAG = 0xFFFFFFFF
"""Bits of a field's tag that parsers look at."""


def parse_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that protobuf raises for bytes that it can't parse.

    Its compiled code raises `DecodeError` for all of them. Its Python code, which runs where the
    package has no compiled code or where PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION asks for it, raises
    `UnicodeDecodeError` for text that isn't UTF-8.

    Raises:
        ImportError: protobuf isn't installed.
    """
    from google.protobuf.message import DecodeError

    return DecodeError, UnicodeDecodeError


def parts(data: bytes | mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, begin and end of each field of a message that has a length, up to damage.

    Source: https://protobuf.dev/programming-guides/encoding.
    """
    groups = 0
    while begin < end:
        tag, begin = _varint(data, begin, end)
        number, kind = (tag & _TAG) >> 3, tag & 7
        if kind == 3:
            groups += 1
        elif kind == 4:
            groups -= 1
        elif kind == 0:
            _, begin = _varint(data, begin, end)
        elif kind in (1, 5):
            begin += 8 if kind == 1 else 4
        elif kind == 2:
            length, begin = _varint(data, begin, end)
            if begin + length > end:
                return
            if not groups:
                yield number, begin, begin + length
            begin += length
        if kind > 5 or groups < 0 or not number:
            return


def _varint(data: bytes | mmap.mmap, begin: int, end: int) -> tuple[int, int]:
    """Return an integer and where the next field begins: past the end where it doesn't end."""
    value = 0
    for place in range(begin, min(end, begin + 10)):
        value |= (data[place] & 0x7F) << (7 * (place - begin))
        if data[place] < 0x80:
            return value, place + 1
    return 0, end + 1
