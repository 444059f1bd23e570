"""Changes of bytes, of records and of messages that all surfaces share."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any

from fuzz.surface import MOST_BYTES

_NUMBERS = (
    *(-1, 0, 1, 2, 3, 5, 7, 8, 16, 64, 255, 256, 1000),
    *(2**16, 2**16 + 1, 2**20, 2**31 - 1, 2**31, 2**32, 2**40, 2**63 - 1, 2**63, 2**64, 10**40),
    *(-(2**31), -(2**40), -(2**63), 10**400, -(10**400)),
)
_HEX = "0x" + "f" * 5000
"""Number that Python reads and doesn't print: it has more than 4,300 decimal digits."""
_WORDS = ("", "..", "a/../b", "/x", "é", "x" * 2000, "a\0", "\n", "\ud800", "1", "null", _HEX)
_OTHERS: tuple[Any, ...] = ([], {}, None, True, 1.0, 1e300, [[]], [1, 1], [["a", 1]], {"a": {}})
_FLOATS = (1e300, 3e38, 1e-45, 5e-324, 0.0, -1.0, float("nan"), float("inf"))


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes at random places: set, flip, cut out, repeat, move, cut off."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at, length = rng.randrange(len(found) or 1), rng.choice((1, 2, 4, 8, 40))
        match rng.randrange(7):
            case 0:
                found[at : at + length] = rng.randbytes(length)
            case 1:
                found[at : at + 1] = bytes([(found[at] if found else 0) ^ (1 << rng.randrange(8))])
            case 2:
                del found[at : at + length]
            case 3:
                found[at:at] = found[at : at + length]
            case 4:
                found[at : at + length] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
            case 5:
                other = rng.randrange(len(found) + 1)
                found[at:at] = found[other : other + 48]
            case 6 if rng.random() < 0.3:
                del found[at:]
    return bytes(found)


def grown(data: bytes, rng: random.Random, most: int = MOST_BYTES) -> bytes:
    """Repeat a part of the bytes so often that up to `most` come of it."""
    at, length = rng.randrange(len(data) or 1), rng.choice((1, 1, 2, 3, 6, 12, 30, 100))
    part = data[at : at + length] or b"["
    goal = min(most, max(len(data), 1) * rng.choice((2, 8, 64, 4096)))
    times = max(1, (goal - len(data)) // len(part))
    return data[:at] + part * times + data[at:]


def changed_record(record: Any, rng: random.Random, words: Sequence[str] = ()) -> Any:
    """Return a copy of a JSON value with some of its parts changed, left out or repeated."""
    made = copy.deepcopy(record)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if isinstance(made, (dict, list)):
            _change(made, rng, words)
    return made


def _change(value: Any, rng: random.Random, words: Sequence[str]) -> None:
    """Change one value somewhere inside a record."""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            if isinstance(value, list):
                value.append(any_value(rng, words))
            return
        key = rng.choice(keys)
        if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.85:
            value = value[key]
            continue
        kind = rng.random()
        if kind < 0.1:
            del value[key]
        elif kind < 0.2 and isinstance(value, list):
            value.insert(key, copy.deepcopy(rng.choice(value)))
        elif kind < 0.2 and isinstance(value, dict):
            value[rng.choice((*words, *_WORDS))] = copy.deepcopy(value[key])
        elif kind < 0.6:
            value[key] = like(value[key], rng, words)
        else:
            value[key] = any_value(rng, words)
        return


def any_value(rng: random.Random, words: Sequence[str] = ()) -> Any:
    """Return any JSON value, one of those that are often wrong."""
    kinds: tuple[Sequence[Any], ...] = (_NUMBERS, _NUMBERS, (*words, *_WORDS), _OTHERS)
    return copy.deepcopy(rng.choice(rng.choice(kinds)))


def like(old: Any, rng: random.Random, words: Sequence[str] = ()) -> Any:
    """Return another value of the same type as an old one."""
    match old:
        case bool():
            return not old
        case int():
            near = (old + 1, old - 1, old * 2, old // 2, -old, old + 4, old - 4, old + 2**32)
            return rng.choice((*_NUMBERS, *near))
        case float():
            return rng.choice((*_FLOATS, 10**400))  # JSON has one type of numbers
        case str():
            return rng.choice((*words, *_WORDS))
    return any_value(rng, words)


def changed_leaves(record: Any, rng: random.Random, words: Sequence[str] = ()) -> Any:
    """Return a copy of a record with one or two of its leaves replaced by others of their types."""
    made = copy.deepcopy(record)
    ways = list(leaves(record))
    for _ in range(rng.choice((1, 1, 2))):
        if not ways or () in ways:
            return any_value(rng, words)
        way = rng.choice(ways)
        holder = made
        for step in way[:-1]:
            holder = holder[step]
        holder[way[-1]] = like(holder[way[-1]], rng, words)
    return made


def leaves(record: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each number, text and truth of a record."""
    if isinstance(record, dict):
        for key, one in record.items():
            yield from leaves(one, (*at, key))
    elif isinstance(record, (list, tuple)):
        for number, one in enumerate(record):
            yield from leaves(one, (*at, number))
    else:
        yield at
