"""CityHash64 in its version 1.0, as CatBoost has it: the hash by which its models know a category."""

from __future__ import annotations

import struct

_MASK = (1 << 64) - 1
_K0, _K1, _K2, _K3 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F, 0xC949D7C7509E6557
_MULTIPLIER = 0x9DDFEA08EB382D69
"""Constants of the algorithm by Geoff Pike and Jyrki Alakuijala."""
_MOST_KEPT = 1 << 15
_MOST_LETTERS = 128
"""Bounds of what is remembered: some 20 MB at most."""
_LONG = 1 << 63


class WordHashes(dict[str | int, int]):
    """Hashes of words, which are texts or whole numbers; those of short words are remembered, up to a bound."""

    def __missing__(self, word: str | int) -> int:
        """Calculate a hash.

        Raises:
            UnicodeError: a text can't be written as UTF-8.
            OverflowError: a whole number has more than 64 bits.
        """
        if not isinstance(word, str) and not -_LONG <= word < _LONG:
            raise OverflowError("a category that is a number has up to 64 bits")
        text = word if isinstance(word, str) else str(int(word))
        number = word_hash(text)
        if len(text) <= _MOST_LETTERS:
            if len(self) >= _MOST_KEPT:
                self.clear()
            self[word] = number
        return number


def word_hash(word: str) -> int:
    """Return the low 32 bits of a text's hash as a signed number.

    Raises:
        UnicodeError: it can't be written as UTF-8.
    """
    low = city_hash(word.encode()) & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low


def city_hash(data: bytes) -> int:
    """Return the hash of some bytes, of 64 bits without a sign."""
    size = len(data)
    if size <= 16:
        return _short(data, size)
    if size <= 32:
        return _medium(data, size)
    if size <= 64:
        return _long(data, size)
    return _longest(data, size)


def _turned(number: int, by: int) -> int:
    """Rotate 64 bits to the right."""
    return (number >> by | number << (64 - by)) & _MASK


def _folded(number: int) -> int:
    return number ^ number >> 47


def _pair(one: int, other: int) -> int:
    """Return the hash of two numbers of 64 bits."""
    first = _folded((one ^ other) * _MULTIPLIER & _MASK)
    second = _folded((other ^ first) * _MULTIPLIER & _MASK)
    return second * _MULTIPLIER & _MASK


def _word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _short(data: bytes, size: int) -> int:
    if size > 8:
        last = _word(data, size - 8)
        return _pair(_word(data, 0), _turned((last + size) & _MASK, size)) ^ last
    if size >= 4:
        first, last = (int.from_bytes(data[at : at + 4], "little") for at in (0, size - 4))
        return _pair(size + (first << 3), last)
    if not size:
        return _K2
    low, high = data[0] + (data[size >> 1] << 8), size + (data[-1] << 2)
    return _folded((low * _K2 ^ high * _K3) & _MASK) * _K2 & _MASK


def _medium(data: bytes, size: int) -> int:
    one, other = _word(data, 0) * _K1 & _MASK, _word(data, 8)
    near, far = _word(data, size - 8) * _K2 & _MASK, _word(data, size - 16) * _K0
    left = _turned((one - other) & _MASK, 43) + _turned(near, 30) + far
    return _pair(left & _MASK, (one + _turned(other ^ _K3, 20) - near + size) & _MASK)


def _long(data: bytes, size: int) -> int:
    begin = _word(data, 0) + (size + _word(data, size - 16)) * _K0
    front = _sums(begin, _word(data, 8), _word(data, 16), _word(data, 24))
    begin = _word(data, 16) + _word(data, size - 32)
    back = _sums(begin, _word(data, size - 24), _word(data, size - 16), _word(data, size - 8))
    mixed = (front[0] + back[1]) * _K2 + (back[0] + front[1]) * _K0
    rest = _folded(mixed & _MASK) * _K0 + front[1]
    return _folded(rest & _MASK) * _K2 & _MASK


def _sums(begin: int, one: int, other: int, last: int) -> tuple[int, int]:
    """Return two sums over four numbers."""
    begin &= _MASK
    whole = _turned((begin + last) & _MASK, 52) + _turned(begin, 37)
    begin = (begin + one) & _MASK
    whole += _turned(begin, 7)
    begin = (begin + other) & _MASK
    return (begin + last) & _MASK, (whole + _turned(begin, 31)) & _MASK


def _seeded(four: tuple[int, ...], one: int, other: int) -> tuple[int, int]:
    """Return two sums over 32 bytes that begin with two numbers."""
    one = (one + four[0]) & _MASK
    other = _turned((other + one + four[3]) & _MASK, 21)
    begin = one
    one = (one + four[1] + four[2]) & _MASK
    return (one + four[3]) & _MASK, (other + _turned(one, 44) + begin) & _MASK


def _longest(data: bytes, size: int) -> int:
    x, y, z = _word(data, 0), _word(data, size - 16) ^ _K1, _word(data, size - 56) ^ _K0
    tail = struct.unpack_from("<8Q", data, size - 64)
    v = _seeded(tail[:4], size, y)
    w = _seeded(tail[4:], size * _K1 & _MASK, _K0)
    z = (z + _folded(v[1]) * _K1) & _MASK
    x = _turned((z + x) & _MASK, 39) * _K1 & _MASK
    y = _turned(y, 33) * _K1 & _MASK
    for at in range(0, (size - 1) // 64 * 64, 64):
        eight = struct.unpack_from("<8Q", data, at)
        x = _turned((x + y + v[0] + eight[2]) & _MASK, 37) * _K1 & _MASK
        y = _turned((y + v[1] + eight[6]) & _MASK, 42) * _K1 & _MASK
        x, y = x ^ w[1], y ^ v[0]
        z = _turned(z ^ w[0], 33)
        v = _seeded(eight[:4], v[1] * _K1 & _MASK, (x + w[0]) & _MASK)
        w = _seeded(eight[4:], (z + w[1]) & _MASK, y)
        z, x = x, z
    left = _pair(v[0], w[0]) + _folded(y) * _K1 + z
    return _pair(left & _MASK, (_pair(v[1], w[1]) + x) & _MASK)
