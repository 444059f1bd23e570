"""Asymmetric numeral systems: near to the bound, also where most bytes are the same."""

from __future__ import annotations

import heapq
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.bundle.packing.codecs import native
from hasten.bundle.packing.codecs.base import Codec, Inner, Outer
from hasten.bundle.packing.codecs.tables import counts_of, entropy_bytes, stated
from hasten.core.tensors import Array

LOW = 1 << 16
"""Least state."""
_PRECISIONS = (10, 11, 12, 13, 14, 15)
_SLACK = 1.001
"""Factor by which a finer table, which decodes slower, must make a chunk shorter."""
_LANES = ((8, 4000), (4, 1000), (2, 300), (1, 0))
"""Number of states, and coded bytes from which they are worth their 2 or so bytes each."""


@dataclass(frozen=True)
class Rans(Codec):
    """Frequencies of bytes out of a power of 2, and 1, 2, 4 or 8 states that take turns.

    The coded bytes:

        1 byte    precision p less 8, in the lowest 3 bits; binary logarithm of the number of states, in
                  the next 2; order k, in the highest 3
        1 byte    the byte that occurs most often
        1 byte    first byte of a run that has all bytes that occur; byte 0 follows byte 255
        1 byte    length of the run; 0 where only one byte occurs
        ...       frequency f of each byte of the run but the one that occurs most often, from the lowest
                  bit of each byte up, as an exponential Golomb code of order k: of f + 2^k, which has b
                  bits, b - 1 - k zeros, then 1, then the lowest b - 1 bits. Bits that are left over are 0
        ...       states, little-endian uint32 each, at least 2^16
        ...       words, little-endian uint16 each

    The most frequent byte has what the others leave of 2^p, at least 1. Byte i of the chunk is decoded by
    state i modulo their number, x: it is the byte whose frequencies, summed in the order of bytes, hold
    slot s = x mod 2^p. With its frequency f and the sum c of those before it, x becomes f * (x >> p) + s - c,
    and if that is below 2^16, x * 2^16 + the next word. In the end each state is 2^16, and no word is left.

    Source: Duda, "Asymmetric numeral systems", 2013; Giesen, "Interleaved entropy coders", 2014.
    """

    cost: ClassVar[float] = 1.7

    def promising(self, data: Array, width: int, least: int) -> bool:
        return entropy_bytes(counts_of(data)) < least

    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        counts = counts_of(data)
        precision, freq = _chosen(counts)
        expected = _expected_bytes(counts, freq, precision)
        lanes = next(lanes for lanes, least in _LANES if expected >= least)
        coders = native.for_coding()
        coding = encoded if coders is None else coders.rans_encode
        return table(freq, precision, lanes) + coding(data, freq, precision, lanes)

    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        if (coders := native.for_decoding(len(out))) is not None:
            coders.rans_decode(np.frombuffer(coded, np.uint8), out)
        else:
            decode_into(coded, out)


def frequencies(counts: Array, precision: int) -> Array:
    """Return frequencies that sum up to 2^precision, near to the counts: uint32 of shape (256,).

    Rounding leaves a few too many or too few; each of them goes where a byte's code changes least.

    Args:
        counts: Number of times that each byte occurs: integers of shape (256,), not all 0.
        precision: Exponent of 2, at least 8.
    """
    whole, scale = 1 << precision, int(counts.sum())
    freq = [max(1, count * whole // scale) if count else 0 for count in counts.tolist()]
    left = whole - sum(freq)
    # The gain of one more slot is about counts / freq, and so is the loss of one.
    toward, half = (1, 0.5) if left > 0 else (-1, -0.5)
    held = [(symbol, count) for symbol, count in enumerate(counts.tolist()) if freq[symbol]]
    heap = [(-toward * count / (freq[symbol] + half), symbol, count) for symbol, count in held]
    heapq.heapify(heap)
    while left:
        _, symbol, count = heap[0]
        if toward < 0 and freq[symbol] == 1:
            heapq.heappop(heap)
            continue
        freq[symbol] += toward
        left -= toward
        heapq.heapreplace(heap, (-toward * count / (freq[symbol] + half), symbol, count))
    return np.array(freq, np.uint32)


def table(freq: Array, precision: int, lanes: int) -> bytes:
    """Return the start of a coded chunk, up to its states."""
    often, first, span, values = _run(freq)
    order, _ = _best_order(values)
    kind = (precision - 8) | (lanes.bit_length() - 1) << 3 | order << 5
    bits = np.frombuffer(_golomb(values.tolist(), order).encode(), np.uint8) - ord("0")
    return bytes([kind, often, first, span]) + np.packbits(bits, bitorder="little").tobytes()


def _run(freq: Array) -> tuple[int, int, int, Array]:
    """Return the most frequent byte, the run that states the others, its length, and what it states."""
    often = int(np.argmax(freq))
    others = freq > 0
    others[often] = False
    first, span = stated(others) if others.any() else (0, 0)
    run = (first + np.arange(span)) % 256
    return often, first, span, freq[run[run != often]].astype(np.int64)


def _best_order(values: Array) -> tuple[int, int]:
    """Return the order of Golomb codes that makes numbers shortest, and their size in bits."""
    orders = np.arange(8)[:, None]
    _, bits = np.frexp(values + (1 << orders))  # how many bits each number has
    sizes = (2 * bits - 1 - orders).sum(axis=1)
    return int(np.argmin(sizes)), int(sizes.min())


def _golomb(values: list[int], order: int) -> str:
    """Return numbers in exponential Golomb codes as text of bits, the lowest one first."""
    parts = []
    for value in values:
        low = f"{value + (1 << order):b}"[:0:-1]  # all bits but the highest one
        parts.append("0" * (len(low) - order) + "1" + low)
    return "".join(parts)


def encoded(data: Array, freq: Array, precision: int, lanes: int) -> bytes:
    """Return states and words as the coder in C makes them, made without it."""
    freqs = freq.tolist()
    starts = (np.cumsum(freq) - freq).tolist()
    states, words = [LOW] * lanes, []
    symbols = data.tobytes()
    for at in range(len(symbols) - 1, -1, -1):
        symbol, lane = symbols[at], at % lanes
        x, f = states[lane], freqs[symbol]
        if x >= f << (32 - precision):
            words.append(x & 0xFFFF)
            x >>= 16
        states[lane] = (x // f << precision) + x % f + starts[symbol]
    return struct.pack(f"<{lanes}I", *states) + np.array(words[::-1], "<u2").tobytes()


def decode_into(coded: memoryview, out: Array) -> None:
    """Decode without the decoder in C, and refuse what that refuses.

    Raises:
        IntegrityError: the bytes don't decode to exactly as many; the message says how.
    """
    freq, precision, lanes, rest = _read_table(coded)
    if len(rest) < 4 * lanes:
        native.check(native.SHORT)
    states = list(struct.unpack_from(f"<{lanes}I", rest))
    rest = rest[4 * lanes :]
    if min(states) < LOW:
        native.check(native.STATE)
    if len(rest) > 2 * len(out):
        native.check(native.LEFT)
    symbols = np.repeat(np.arange(256, dtype=np.uint8), freq).tobytes()
    sizes, starts = freq.tolist(), (np.cumsum(freq) - freq).tolist()
    words = iter(np.frombuffer(rest[: len(rest) // 2 * 2], "<u2").tolist())
    found, mask = bytearray(len(out)), (1 << precision) - 1
    try:
        for at in range(len(found)):
            x = states[at % lanes]
            slot = x & mask
            found[at] = symbol = symbols[slot]
            x = sizes[symbol] * (x >> precision) + slot - starts[symbol]
            states[at % lanes] = x if x >= LOW else x << 16 | next(words)
    except StopIteration:
        native.check(native.ENDED)
    if any(x != LOW for x in states):
        native.check(native.STATE)
    if next(words, None) is not None or len(rest) % 2:
        native.check(native.LEFT)
    out[:] = np.frombuffer(found, np.uint8)


def _read_table(coded: memoryview) -> tuple[Array, int, int, memoryview]:
    """Return frequencies, the precision, the number of states, and the bytes that follow."""
    if len(coded) < 4:
        native.check(native.SHORT)
    kind, often, first, span = coded[:4]
    precision, lanes, order = 8 + (kind & 7), 1 << (kind >> 3 & 3), kind >> 5
    # A frequency takes at most 14 zeros, 1, and 14 + 7 bits.
    bits, at = int.from_bytes(coded[4 : 4 + 255 * 36 // 8 + 1], "little"), 0
    freq, left = np.zeros(256, np.int64), 1 << precision
    for symbol in ((first + k) % 256 for k in range(span)):
        if symbol == often:
            continue
        zeros = next((k for k in range(precision) if bits >> at + k & 1), precision)
        if zeros == precision:
            native.check(native.TABLE)
        size = zeros + order
        value = (1 << size) + (bits >> at + zeros + 1 & (1 << size) - 1) - (1 << order)
        at += zeros + 1 + size
        if at > 8 * (len(coded) - 4):
            native.check(native.SHORT)
        freq[symbol] = value
        left -= value
        if left < 1:
            native.check(native.TABLE)
    if bits >> at & (1 << -at % 8) - 1:
        native.check(native.TABLE)
    freq[often] = left
    return freq, precision, lanes, coded[4 + (at + 7) // 8 :]


def _chosen(counts: Array) -> tuple[int, Array]:
    """Return the coarsest precision after which finer ones gain next to nothing, and its frequencies."""
    best, size = (0, counts), np.inf
    for precision in _PRECISIONS:
        freq = frequencies(counts, precision)
        found = _expected_bytes(counts, freq, precision)
        if found * _SLACK > size:
            break
        best, size = (precision, freq), found
    return best


def _expected_bytes(counts: Array, freq: Array, precision: int) -> float:
    """Return how many bytes a chunk will take without its states: its table counted, too."""
    held = counts > 0
    _, table_bits = _best_order(_run(freq)[3])
    return (float(counts[held] @ (precision - np.log2(freq[held]))) + table_bits) / 8 + 4
