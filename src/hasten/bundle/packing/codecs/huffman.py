"""Canonical Huffman codes of bytes: fast to decode, within half a bit or so of the bound."""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hasten.bundle.packing.codecs import native
from hasten.bundle.packing.codecs.base import Codec, Inner, Outer
from hasten.bundle.packing.codecs.tables import counts_of, entropy_bytes, stated
from hasten.core.tensors import Array

LONGEST = 11
"""Largest number of bits of a code, so that a decoder's table has 2,048 entries."""
_ENDS = struct.Struct("<III")


@dataclass(frozen=True)
class Huffman(Codec):
    """A code of 1 to 11 bits for each byte that occurs, in four streams.

    The coded bytes:

        1 byte    first byte of a run that has all bytes that occur; byte 0 follows byte 255
        1 byte    length of the run, less 1
        ...       bits of the code of each byte of the run, 4 bits each, low half first; 0 where it doesn't
                  occur; a half that is left over is 0
        12 bytes  size of the first three streams in bytes, little-endian; the last one takes the rest
        ...       the four streams: one for each quarter of the chunk, of which each has a fourth of n bytes,
                  rounded up, as far as there are any

    Codes are given in the order of their length, then of their byte, and full: as in DEFLATE. A stream holds
    them one after another from the lowest bit of each byte up, a code's highest bit first; bits that are
    left over are 0.

    Source: RFC 1951, section 3.2.2; Larmore and Hirschberg, "A fast algorithm for optimal length-limited
    Huffman codes", 1990.
    """

    cost: ClassVar[float] = 0.95

    def promising(self, data: Array, width: int, least: int) -> bool:
        return entropy_bytes(counts_of(data)) < least

    def encode(self, data: Array, width: int, inner: Inner) -> bytes | None:
        counts = counts_of(data)
        if np.count_nonzero(counts) < 2:
            return None
        lengths = code_lengths(counts)
        if (coders := native.for_coding()) is not None:
            return coders.huffman_encode(data, lengths, *stated(lengths > 0))
        return encoded(data, lengths)

    def decode(self, coded: memoryview, out: Array, width: int, inner: Outer) -> None:
        if (coders := native.for_decoding(len(out))) is not None:
            coders.huffman_decode(np.frombuffer(coded, np.uint8), out)
        else:
            decode_into(coded, out)


def code_lengths(counts: Array) -> Array:
    """Return how many bits the code of each byte takes in the best code of at most 11 bits.

    Coins of each size, cheapest first, are paired into coins of the next size (package-merge).

    Args:
        counts: Number of times that each byte occurs: integers of shape (256,), at least two of them positive.

    Returns:
        Bits: uint8 of shape (256,), 0 for a byte that doesn't occur.
    """
    held = np.flatnonzero(counts)
    held = held[np.argsort(counts[held], kind="stable")]
    leaves = counts[held].astype(np.int64)
    coins, rounds = leaves, []
    for _ in range(LONGEST):
        order = np.argsort(coins, kind="stable")
        rounds.append(order < len(leaves))
        coins = coins[order]
        pairs = coins[: len(coins) // 2 * 2].reshape(-1, 2).sum(axis=1)
        coins = np.concatenate([leaves, pairs])
    taken, bits = 2 * len(leaves) - 2, np.zeros(len(leaves), np.uint8)
    for is_leaf in reversed(rounds):
        single = int(is_leaf[:taken].sum())
        bits[:single] += 1
        taken = 2 * (taken - single)
    lengths = np.zeros(256, np.uint8)
    lengths[held] = bits
    return lengths


def encoded(data: Array, lengths: Array) -> bytes:
    """Return what the coder in C makes of some bytes, made without it."""
    first, span = stated(lengths > 0)
    run = lengths[(first + np.arange(span + span % 2)) % 256]
    run[span:] = 0
    head = bytes([first, span - 1]) + (run[::2] | run[1::2] << 4).tobytes()
    codes = _codes(lengths)
    streams = [_stream(data[at], lengths, codes) for at in _quarters(len(data))]
    return b"".join([head, _ENDS.pack(*map(len, streams[:3])), *streams])


def decode_into(coded: memoryview, out: Array) -> None:
    """Decode without the decoder in C, and refuse what that refuses.

    Raises:
        IntegrityError: the bytes don't decode to exactly as many; the message says how.
    """
    if len(coded) < 2:
        native.check(native.SHORT)
    first, span = coded[0], coded[1] + 1
    ends_at = 2 + (span + 1) // 2
    if len(coded) < ends_at + _ENDS.size:
        native.check(native.SHORT)
    packed = np.frombuffer(coded[2:ends_at], np.uint8)
    run = np.stack([packed & 15, packed >> 4], axis=1).ravel()
    lengths = np.zeros(256, np.uint8)
    lengths[(first + np.arange(span)) % 256] = run[:span]
    # Wider than the lengths can be, so that no sum of theirs turns over.
    halves = np.int64(1) << (15 - lengths[lengths > 0].astype(np.int64))
    if run[span:].any() or lengths.max() > LONGEST or halves.sum() != 1 << 15:
        native.check(native.TABLE)
    sizes, rest = _ENDS.unpack_from(coded, ends_at), coded[ends_at + _ENDS.size :]
    if sum(sizes) > len(rest):
        native.check(native.STREAMS)
    bits, symbols = _tables(lengths)
    for at, size in zip(_quarters(len(out)), (*sizes, len(rest) - sum(sizes)), strict=True):
        _read(rest[:size], out[at], bits, symbols)
        rest = rest[size:]


def _quarters(n: int) -> list[slice]:
    each = (n + 3) // 4
    ends = [min(n, k * each) for k in range(5)]
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def _codes(lengths: Array) -> Array:
    """Return the code of each byte, its highest bit in the lowest place: int64 of shape (256,)."""
    codes, code = np.zeros(256, np.int64), 0
    for bits in range(1, LONGEST + 1):
        for symbol in np.flatnonzero(lengths == bits):
            codes[symbol] = int(f"{code:0{bits}b}"[::-1], 2)
            code += 1
        code <<= 1
    return codes


def _tables(lengths: Array) -> tuple[Array, Array]:
    """Return how many bits the code takes that begins 11 given bits, and its byte."""
    codes = _codes(lengths)
    bits, symbols = np.zeros(1 << LONGEST, np.uint8), np.zeros(1 << LONGEST, np.uint8)
    for symbol in np.flatnonzero(lengths):
        places = slice(int(codes[symbol]), None, 1 << int(lengths[symbol]))
        bits[places], symbols[places] = lengths[symbol], symbol
    return bits, symbols


def _stream(data: Array, lengths: Array, codes: Array) -> bytes:
    taken = lengths[data].astype(np.int64)
    starts = np.cumsum(taken) - taken
    stream = np.zeros(int(taken.sum()), np.uint8)
    for bit in range(LONGEST):
        has = taken > bit
        stream[starts[has] + bit] = codes[data[has]] >> bit & 1
    return np.packbits(stream, bitorder="little").tobytes()


def _read(stream: memoryview, out: Array, bits: Array, symbols: Array) -> None:
    """Decode one stream: what would begin at every bit of it first, then from code to code."""
    most = (len(out) * LONGEST + 7) // 8
    if len(stream) > most:
        native.check(native.LEFT)
    whole = np.zeros(len(stream) + 2, np.uint32)
    whole[:-2] = np.frombuffer(stream, np.uint8)
    rows = np.empty((len(stream), 8), np.uint16)
    three = whole[:-2] | whole[1:-1] << 8 | whole[2:] << 16
    for bit in range(8):
        rows[:, bit] = three >> bit & (1 << LONGEST) - 1
    windows = rows.ravel()
    steps, starts, at = bits[windows].tobytes(), [], 0
    try:
        for _ in range(len(out)):
            starts.append(at)
            at += steps[at]
    except IndexError:
        native.check(native.ENDED)
    if at > 8 * len(stream):
        native.check(native.ENDED)
    if 8 * len(stream) - at >= 8 or (at % 8 and stream[-1] >> at % 8):
        native.check(native.LEFT)
    out[:] = symbols[windows[starts]]
