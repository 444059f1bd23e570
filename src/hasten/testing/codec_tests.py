"""Conformance suite for codecs: subclass `CodecTests` and name the codec."""

from __future__ import annotations

import contextlib
import functools
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest

from hasten.bundle.packing.codecs.base import Codec
from hasten.core.tensors import Array
from hasten.errors import IntegrityError

_GUARD, _MARK = 64, 0xA5
_MOST_RATIO, _ALWAYS_BYTES = 96, 2 << 20
"""A decoder may take so many times the size of a chunk, and so many bytes whatever its size."""
_SMALL_BYTES = 24_000
_WIDTHS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Coded:
    """A chunk, and what a codec made of it.

    Attributes:
        name: Kind of chunk.
        data: Its bytes.
        width: Size of an element in bytes.
        block: Bytes that the codec made.
    """

    name: str
    data: Array
    width: int
    block: bytes


def inner(part: Array, width: int) -> bytes:
    """Code a part of a chunk as it is."""
    return part.tobytes()


def outer(block: memoryview, out: Array, width: int) -> None:
    """Decode what `inner` coded.

    Raises:
        IntegrityError: it has another size.
    """
    if len(block) != len(out):
        raise IntegrityError(f"a part has {len(block)} bytes, but {len(out)} are needed")
    out[:] = np.frombuffer(block, np.uint8)


def chunks() -> Iterator[tuple[str, Array, int]]:
    """Yield chunks of many kinds: what it is, its bytes and the size of an element."""
    rng = np.random.default_rng(5)

    def weights(n: int, deviation: float = 30.0, kept: float = 1.0) -> Array:
        drawn = np.clip(rng.normal(0, deviation, n).round(), -127, 127)
        return (drawn * (rng.random(n) < kept)).astype(np.int8).view(np.uint8)

    yield "one byte", np.array([7], np.uint8), 1
    yield "one value", np.full(5000, 255, np.uint8), 1
    yield "zeros", np.zeros(5000, np.uint8), 1
    yield "two values", np.tile(np.array([0, 255], np.uint8), 700), 1
    yield "every byte", np.arange(256, dtype=np.uint8), 1
    yield "uniform", rng.integers(0, 256, 9999, np.uint8), 1
    yield "doubling counts", np.repeat(np.arange(17, dtype=np.uint8), 1 << np.arange(17)), 1
    yield "one of 1,000", weights(40_000, kept=0.001), 1
    yield "pruned", weights(20_003, kept=0.2), 1
    yield "a mebibyte", weights(1 << 20), 1
    for n in (2, 3, 4, 5, 7, 8, 9, 13, 31, 100, 255, 256, 257, 300):
        yield f"{n} bytes", weights(n, 3.0), 1
    for shape in ((16, 24), (9, 300), (300, 9), (64, 96)):
        yield f"rows {shape}", grid(*shape), 1
    yield "pruned rows", pruned_rows(64, 300, 0.8), 1
    yield "far apart", np.bincount([0, 254, 510, 766, 5000, 9000]).astype(np.uint8), 1
    for width in _WIDTHS[1:]:
        words = f"<u{width}"
        yield f"uniform, {width}", rng.integers(0, 256, 1000 * width, np.uint8), width
        yield f"one element, {width}", rng.integers(0, 256, width, np.uint8), width
        few = rng.integers(0, 1 << 8 * width, 16, words, endpoint=False)
        yield f"16 values, {width}", few[rng.integers(0, 16, 3000)].view(np.uint8), width
        many = rng.integers(0, 1 << 8 * width, 300, words, endpoint=False)
        yield f"300 values, {width}", many[rng.integers(0, 300, 3000)].view(np.uint8), width
        some = np.where(rng.random(3000) < 0.1, few[rng.integers(0, 16, 3000)], 0).astype(words)
        yield f"pruned, {width}", some.view(np.uint8), width
    for kind in (np.float16, np.float32, np.float64):
        numbers = rng.normal(0, 0.05, 3000).astype(kind)
        yield f"{numbers.dtype}", numbers.view(np.uint8), numbers.itemsize
        yield f"strange {numbers.dtype}", strange(numbers.dtype), numbers.itemsize


def grid(rows: int, length: int) -> Array:
    """Return bytes of signed numbers that are larger in some rows, and in some columns, than in others."""
    rng = np.random.default_rng(7)
    deviations = np.outer(2.0 ** rng.integers(-2, 4, rows), 2.0 ** rng.integers(-1, 2, length))
    drawn = rng.normal(0, deviations).round().clip(-127, 127)
    return drawn.astype(np.int8).view(np.uint8).ravel()


def pruned_rows(rows: int, length: int, zeros: float) -> Array:
    """Return bytes of int8 weights of which a share is zero, with a scale for each row; rows are unlike each other."""
    rng = np.random.default_rng(8)
    weights = rng.standard_normal((rows, length)) * 2.0 ** rng.normal(0, 0.2, (rows, 1))
    weights[np.abs(weights) <= np.quantile(np.abs(weights), zeros)] = 0
    scales = np.abs(weights).max(axis=1, keepdims=True) / 127
    whole = np.round(weights / np.where(scales, scales, 1))
    return whole.astype(np.int8).view(np.uint8).ravel()


def strange(dtype: np.dtype[np.generic]) -> Array:
    """Return bytes of floats that compare strangely: zeros of both signs, NaN of several kinds, ..."""
    width = dtype.itemsize
    high = 1 << (8 * width - 1)
    infinity = int(np.array(np.inf, dtype).view(f"<u{width}"))
    kinds = (0, 0, 0, high, 1, infinity, infinity | high, infinity + 1, high - 1, 2 * high - 1)
    words = np.array(kinds, f"<u{width}")
    return words[np.random.default_rng(6).integers(0, len(words), 500)].view(np.uint8)


def damaged(coded: bytes, other: bytes, count: int) -> Iterator[bytes]:
    """Yield bytes that aren't what a codec made: cut, flipped, spliced with others, random."""
    rng = np.random.default_rng(len(coded))
    for _ in range(count):
        flipped = bytearray(coded)
        for at in rng.integers(0, len(flipped), rng.integers(1, 4)):
            flipped[at] ^= 1 << rng.integers(8)
        yield bytes(flipped)
        # Most of what a decoder believes stands at the beginning.
        early = bytearray(coded)
        early[rng.integers(0, min(40, len(early)))] = rng.integers(256)
        yield bytes(early)
        yield coded[: rng.integers(0, len(coded))]
        yield coded[: rng.integers(0, len(coded))] + other[rng.integers(0, len(other)) :]
        yield coded + rng.bytes(int(rng.integers(1, 9)))
        yield rng.bytes(int(rng.integers(0, 60)))


class CodecTests:
    """Claims that hold for every codec.

    Attributes:
        codec: The codec.
        largest: Size in bytes of the largest chunk that it is tried on.
        rounds: Number of times that each chunk is damaged in each of six ways.
    """

    codec: Codec
    largest: int = 1 << 20
    rounds: int = 5

    def decode(self, block: bytes, out: Array, width: int) -> None:
        self.codec.decode(memoryview(block), out, width, outer)

    def coded(self, largest: int | None = None) -> list[Coded]:
        """Return the chunks that the codec takes, with what it makes of them."""
        most = self.largest if largest is None else largest
        found = [one for one in _coded(self.codec) if len(one.data) <= most]
        assert found, "it takes none of the chunks"
        return found

    def test_chunks_come_back_bit_for_bit(self) -> None:
        for one in self.coded():
            whole, out = guarded(len(one.data))
            self.decode(one.block, out, one.width)
            assert out.tobytes() == one.data.tobytes(), one.name
            assert intact(whole), one.name

    def test_a_chunk_is_always_coded_alike_and_left_as_it_is(self) -> None:
        for one in self.coded(_SMALL_BYTES):
            given = one.data.copy()
            given.setflags(write=False)
            assert self.codec.encode(given, one.width, inner) == one.block, one.name

    def test_damaged_bytes_are_refused_or_stay_within_the_chunk(self) -> None:
        small = self.coded(_SMALL_BYTES)
        for at, one in enumerate(small):
            whole, out = guarded(len(one.data))
            for bad in damaged(one.block, small[at - 1].block, self.rounds):
                with contextlib.suppress(IntegrityError):
                    self.decode(bad, out, one.width)
                assert intact(whole), one.name

    def test_bytes_that_end_early_or_late_are_refused(self) -> None:
        for one in self.coded(_SMALL_BYTES):
            block, out = one.block, np.empty(len(one.data), np.uint8)
            for bad in (b"", block[:1], block[: len(block) // 2], block[:-1], block + b"\0"):
                if bad != block:
                    with pytest.raises(IntegrityError):
                        self.decode(bad, out, one.width)

    def test_memory_is_bounded_by_the_size_of_the_chunk(self) -> None:
        one = max(self.coded(3000), key=lambda one: len(one.data))
        out = np.empty(len(one.data), np.uint8)
        tracemalloc.start()
        try:
            for bad in (one.block, *damaged(one.block, one.block, 1), one.block * 200):
                with contextlib.suppress(IntegrityError):
                    self.decode(bad, out, one.width)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < _MOST_RATIO * len(one.data) + _ALWAYS_BYTES, one.name

    def test_threads_decode_side_by_side(self) -> None:
        def right(one: Coded) -> bool:
            out = np.empty(len(one.data), np.uint8)
            self.decode(one.block, out, one.width)
            return bool((out == one.data).all())

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(right, self.coded(_SMALL_BYTES)))


@functools.cache
def _coded(codec: Codec) -> list[Coded]:
    return [
        Coded(name, data, width, block)
        for name, data, width in chunks()
        if not codec.widths or width in codec.widths
        if (block := codec.encode(data, width, inner)) is not None
    ]


def guarded(n: int) -> tuple[Array, Array]:
    """Return an array with marks on both sides, and its inner part of n bytes."""
    whole = np.full(n + 2 * _GUARD, _MARK, np.uint8)
    return whole, whole[_GUARD : _GUARD + n]


def intact(whole: Array) -> bool:
    """Return whether the marks on both sides are as they were."""
    return bool((whole[:_GUARD] == _MARK).all() and (whole[-_GUARD:] == _MARK).all())
