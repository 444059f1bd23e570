"""Changes of protobuf messages, field by field and without a description: messages of gRPC, and ONNX files."""

from __future__ import annotations

import random
import struct

from fuzz.mutation import changed_bytes
from fuzz.surface import MOST_BYTES

_DEPTH = 6
_LENGTHS = (0, 1, 127, 128, 2**14, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1)
_FIXED = {1: 8, 5: 4}
Field = tuple[int, int, bytes]
"""Number of a field, its wire type, and its value as it was written, without a length."""


def fields(data: bytes) -> list[Field] | None:
    """Take a message apart; None where the bytes aren't one."""
    found, place = [], 0
    try:
        while place < len(data):
            key, place = _number(data, place)
            kind, start = key & 7, place
            if kind == 0:
                _, place = _number(data, place)
            elif kind == 2:
                size, start = _number(data, place)
                place = start + size
            elif kind in _FIXED:
                place += _FIXED[kind]
            else:
                return None
            if place > len(data) or not key >> 3:
                return None
            found.append((key >> 3, kind, data[start:place]))
    except IndexError:
        return None
    return found


def written(parts: list[Field]) -> bytes:
    """Put a message together."""
    made = bytearray()
    for number, kind, value in parts:
        made += varying(number << 3 | kind)
        if kind == 2:
            made += varying(len(value))
        made += value
    return bytes(made)


def changed_message(data: bytes, rng: random.Random, depth: int = 0) -> bytes:
    """Change a message at one place, mostly deep inside of it."""
    parts = fields(data)
    if not parts:
        return changed_bytes(data, rng)
    at = rng.randrange(len(parts))
    number, kind, value = parts[at]
    inner = fields(value) if kind == 2 and depth < _DEPTH else None
    if inner and rng.random() < 0.7:
        parts[at] = (number, kind, changed_message(value, rng, depth + 1))
        return written(parts)
    match rng.randrange(8):
        case 0:
            del parts[at]
        case 1:
            parts[at:at] = [parts[at]] * rng.choice((1, 2, 50))
        case 2:
            room = max(1, (MOST_BYTES - len(data)) // (len(value) + 3))
            parts[at:at] = [parts[at]] * min(room, rng.choice((1000, 10_000, 60_000)))
        case 3:
            parts[at] = (rng.randrange(1, 20), kind, value)
        case 4:
            rng.shuffle(parts)
        case 5:
            return _cut_or_lied(parts, at, rng)
        case _:
            parts[at] = (number, kind, _other(kind, value, rng))
    return written(parts)


def _cut_or_lied(parts: list[Field], at: int, rng: random.Random) -> bytes:
    """Put a message together in which a field is cut off, or states another length than it has."""
    before = written(parts[:at])
    number, _, value = parts[at]
    lied = varying(number << 3 | 2) + varying(rng.choice(_LENGTHS)) + value
    return before + (lied + written(parts[at + 1 :]) if rng.random() < 0.7 else lied[:-1])


def _other(kind: int, value: bytes, rng: random.Random) -> bytes:
    if kind == 0:
        return varying(rng.choice((*_LENGTHS, rng.randrange(40))))
    if kind in _FIXED:
        form, odd = ("<d", 1e308) if kind == 1 else ("<f", 3e38)
        return struct.pack(form, rng.choice((0.0, -1.0, odd, float("nan"), float("inf"))))
    choices = (b"", b"\xff\xfe", b"x" * 5000, value * 2, value * 200, b"../../x", b"\0", b"a\nb")
    return rng.choice((changed_bytes(value, rng), changed_bytes(value, rng), *choices))


def varying(number: int) -> bytes:
    """Encode a variable-length integer."""
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def _number(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7
    raise IndexError
