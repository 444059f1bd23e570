"""Read a packed bundle: its head, and those of its files that are asked for."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Self, TypeAlias

import numpy as np

from hasten.bundle.packing import layout
from hasten.bundle.packing.blocks import Codecs
from hasten.bundle.packing.layout import Head, Item, Piece
from hasten.bundle.packing.source import Source
from hasten.core.memory_folder import check_memory
from hasten.core.rooms import Room
from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError

_ALONE_BYTES = 1 << 20
"""Size up to which one thread decodes everything."""
_THREADS = 8
_BATCH_BYTES = 1 << 20
"""Largest number of bytes that a thread decodes at a time while others are read."""
_READ_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 20
"""Size up to which a thread decodes chunks into the same memory, one after another."""
Older: TypeAlias = Callable[[Piece], Array]
"""Function that returns the bytes of a piece of the base."""


@dataclass
class Packed:
    """A packed bundle whose head was read and checked.

    Attributes:
        source: Where its bytes come from; this object closes it.
        head: Its head.
    """

    source: Source
    head: Head
    _starts: list[int] = field(default_factory=list)

    @classmethod
    def open(cls, source: Source) -> Packed:
        """Read the head.

        Raises:
            IntegrityError: it is no packed bundle, or damaged; the message says where.
            InputError: it can't be read.
        """
        known = source.size_bytes
        with _named(source.name):
            if known is not None and known < layout.PREFIX.size:
                raise IntegrityError(
                    "it isn't a packed bundle: its first bytes aren't those of one"
                )
        prefix = bytes(source.read(0, layout.PREFIX.size))
        with _named(source.name):
            length, sha256 = layout.head_length(prefix)
            if known is not None and known < layout.PREFIX.size + length:
                raise IntegrityError("it is cut off within its head; get the file again")
        packed = bytes(source.read(layout.PREFIX.size, length))
        with _named(source.name):
            head = layout.read_head(packed, sha256, known)
        starts, place = [], layout.PREFIX.size + length
        for item in head.items:
            starts.append(place)
            place += item.coded_bytes
        return cls(source, head, starts)

    @property
    def end(self) -> int:
        """Place of the hash of the whole file."""
        last = self.head.items[-1] if self.head.items else None
        return self._starts[-1] + last.coded_bytes if last else layout.PREFIX.size

    def unpack(
        self, files: Mapping[str, Room], older: Older | None = None, threads: int | None = None
    ) -> None:
        """Decode some of the files; the chunks of each tensor are decoded beside each other.

        Args:
            files: Rooms to fill, by path in the bundle, of the file's size each.
            older: Function that returns bytes of the base; None for a bundle that stands alone.
            threads: Largest number of threads that decode.

        Raises:
            IntegrityError: a chunk is damaged; the message names its tensor.
            InputError: the bytes can't be read, or there is no room for them.
        """
        try:
            self._unpack(files, older, threads)
        except MemoryError as error:
            raise InputError(
                f"{self.source.name}: there isn't enough memory to unpack it; free some"
            ) from error

    def _unpack(self, files: Mapping[str, Room], older: Older | None, threads: int | None) -> None:
        wanted = self._wanted(files)
        sizes = {number: self.head.items[number].size_bytes for number in wanted}
        apart = sum(size for n, size in sizes.items() if len(self.head.items[n].pieces) > 1)
        self._check_memory(apart + sum(room.memory_bytes for room in files.values()))
        total = sum(sizes.values())
        most = min(_THREADS, len(os.sched_getaffinity(0)), threads or _THREADS)
        if total <= _ALONE_BYTES:
            most = 1
        places = [_File(name, files.get(name)) for name, _ in self.head.files]
        goals = {number: _Goal(self.head.items[number], places) for number in wanted}
        decoding = _Decoding(self.source, self.head)
        if self.source.anywhere:  # then the bytes before each large tensor are soon complete
            wanted.sort(key=lambda number: len(self.head.items[number].pieces) == 1)
        with _Workers(most, min(_BATCH_BYTES, total // (4 * most))) as workers:
            for number in wanted:
                item, goal = self.head.items[number], goals[number]
                if item.like in goals:
                    continue
                old = _joined(item.since, older) if item.relation else None
                if old is not None and item.relation == "same":
                    goal.take(0, old)
                source = number if item.like == -1 else item.like
                coded = self.head.items[source]
                small = len(item.pieces) > 1 and item.size_bytes <= _ALONE_BYTES
                place = self._starts[source]
                for at, length in enumerate(coded.coded):
                    part = decoding.part(_Chunk(coded, at, place, length), goal, old)
                    place += length
                    if small:  # its many places are written to faster while no thread decodes
                        part.finish()
                    else:
                        workers.add(part)
        for number, goal in goals.items():
            like = self.head.items[number].like
            if like in goals:
                goal.copy(goals[like])

    def _check_memory(self, size_bytes: int) -> None:
        """Check that there is memory for all that is about to be taken, as long as nothing is."""
        try:
            check_memory(size_bytes)
        except OSError as error:
            raise InputError(
                f"{self.source.name}: no room to unpack {size_bytes:,} bytes: {error.strerror}"
            ) from error

    def _wanted(self, files: Mapping[str, Room]) -> list[int]:
        """Return the numbers of the items that some files need, in their order."""
        numbers = {n for n, (name, _) in enumerate(self.head.files) if name in files}
        return [
            number
            for number, item in enumerate(self.head.items)
            if any(piece.file in numbers for piece in item.pieces)
        ]

    def check_alone(self) -> None:
        """Check that this is no difference to another bundle.

        Raises:
            InputError: it is one.
        """
        if self.head.base is not None:
            raise InputError(
                f"{self.source.name} is only the difference to an older bundle: make it whole "
                f"with hasten unpack {self.source.name} --base OLD.hasten"
            )

    def check_end(self) -> None:
        """Check the hash of the whole file.

        Raises:
            IntegrityError: it isn't what was written.
        """
        whole, place = hashlib.sha256(), 0
        while place < self.end:
            part = self.source.read(place, min(_READ_BYTES, self.end - place))
            whole.update(part)
            place += len(part)
        if bytes(self.source.read(self.end, layout.END_BYTES)) != whole.digest():
            raise IntegrityError(
                f"{self.source.name} was changed after it was packed; get the file again"
            )


@dataclass(frozen=True)
class _Chunk:
    """A chunk of an item, as it lies in the packed file.

    Attributes:
        item: The item.
        number: Number of the chunk in it.
        place: Place of the chunk's first byte in the file.
        coded_bytes: Number of its bytes in the file.
    """

    item: Item
    number: int
    place: int
    coded_bytes: int

    @property
    def begin(self) -> int:
        """Place of its first decoded byte in the item."""
        return self.number * self.item.chunk

    @property
    def size_bytes(self) -> int:
        """Number of bytes that it decodes to."""
        return min(self.item.chunk, self.item.size_bytes - self.begin)


@dataclass(frozen=True)
class _Part:
    """A chunk that is to be decoded.

    Attributes:
        size_bytes: Number of bytes that it decodes to.
        work: Function that decodes it to its place.
        done: Function that is told, by the thread that reads, once it is there.
    """

    size_bytes: int
    work: Callable[[], None]
    done: Callable[[], None]

    def finish(self) -> None:
        """Decode it, and tell that it is there."""
        self.work()
        self.done()


class _Decoding:
    """Decoder of chunks, on several threads.

    Args:
        source: Where the packed bundle's bytes come from.
        head: The packed bundle's head.
    """

    def __init__(self, source: Source, head: Head) -> None:
        self._source, self._head, self._local = source, head, threading.local()
        self._codecs = Codecs(head.codecs)

    def part(self, chunk: _Chunk, goal: _Goal, old: Array | None) -> _Part:
        """Return the work on a chunk, which is read now where only one thread may read.

        Args:
            chunk: The chunk.
            goal: Where the item's bytes go.
            old: Older bytes of the item; None if it is no difference.
        """
        data = None if self._source.anywhere else self._source.read(chunk.place, chunk.coded_bytes)
        return _Part(
            chunk.size_bytes,
            partial(self._decode, chunk, data, goal, old),
            partial(goal.reached, chunk.begin, chunk.size_bytes),
        )

    def _decode(
        self, chunk: _Chunk, data: memoryview | None, goal: _Goal, old: Array | None
    ) -> None:
        """Decode one chunk to its place."""
        item, begin = chunk.item, chunk.begin
        if data is None:
            buffer = self._memory("read", chunk.coded_bytes)
            data = self._source.read_into(chunk.place, buffer.data)
        where = f"{self._source.name}: {self._head.told(item)}"
        if zlib.crc32(data) != item.sums[chunk.number]:
            raise IntegrityError(
                f"{where} is damaged: its chunk {chunk.number + 1} isn't what was written; get the file again"
            )
        out = self._memory("decoded", chunk.size_bytes)
        try:
            self._codecs.decode(data, out, item.width)
        except IntegrityError as error:
            raise IntegrityError(
                f"{where} is damaged in chunk {chunk.number + 1}: {error}; get the file again"
            ) from error
        except InputError as error:
            raise InputError(f"{where} can't be unpacked: {error}") from error
        if old is not None:
            apply(out, old[begin : begin + len(out)], item.relation, item.width)
        goal.take(begin, out)

    def _memory(self, use: str, size_bytes: int) -> Array:
        """Return this thread's memory for a use: uint8 of shape (size_bytes,), with any content."""
        if size_bytes > _BUFFER_BYTES:
            return _memory(size_bytes)
        whole: Array | None = getattr(self._local, use, None)
        if whole is None or len(whole) < size_bytes:
            whole = np.empty(size_bytes, np.uint8)
            setattr(self._local, use, whole)
        return whole[:size_bytes]


class _File:
    """File of the bundle that is unpacked, or passed over.

    Args:
        name: Path in the bundle.
        room: Room that it is written to; None if it isn't wanted.
    """

    def __init__(self, name: str, room: Room | None) -> None:
        self._name, self._room = name, room
        self._ends: dict[int, int] = {}
        self._whole = 0

    def put(self, offset: int, data: Array) -> None:
        """Write some bytes.

        Raises:
            InputError: there is no room for them.
        """
        if self._room is not None:
            with self._said(self._room):
                self._room.put(offset, data)

    def get(self, offset: int, length: int) -> Array:
        """Return bytes that were written: uint8 of shape (length,)."""
        assert self._room is not None
        with self._said(self._room):
            return self._room.get(offset, length)

    def reached(self, begin: int, length: int) -> None:
        """Note that some bytes are written; tell the room how far it is complete."""
        if self._room is None or not length:
            return
        self._ends[begin] = begin + length
        before = self._whole
        while (end := self._ends.pop(self._whole, None)) is not None:
            self._whole = end
        if self._whole > before:
            with self._said(self._room):
                self._room.reached(self._whole)

    @contextlib.contextmanager
    def _said(self, room: Room) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"no room for the {room.size_bytes:,} bytes of {self._name}: {error.strerror}"
            ) from error


class _Goal:
    """Place of an item's bytes in the files that are unpacked.

    Bytes of an item that lies in several places are collected first.

    Args:
        item: The item.
        files: Files of the bundle, by their numbers.
    """

    def __init__(self, item: Item, files: Sequence[_File]) -> None:
        self._item, self._files = item, files
        self._apart: Array | None = None
        self._missing = self._unreached = item.size_bytes
        self._lock = threading.Lock()

    def take(self, begin: int, data: Array) -> None:
        """Put some of the item's bytes where they belong; any thread may call this.

        Args:
            begin: Place of the first one in the item.
            data: Bytes: uint8 of shape (n,).

        Raises:
            InputError: there is no room for them.
        """
        if len(self._item.pieces) == 1:
            (piece,) = self._item.pieces
            self._files[piece.file].put(piece.offset + begin, data)
            return
        with self._lock:
            if self._apart is None:
                self._apart = _memory(self._item.size_bytes)
        self._apart[begin : begin + len(data)] = data
        with self._lock:
            self._missing -= len(data)
            complete = not self._missing
        if complete:
            place = 0
            for piece in self._item.pieces:
                self._files[piece.file].put(piece.offset, self._apart[place : place + piece.length])
                place += piece.length

    def reached(self, begin: int, length: int) -> None:
        """Note that some of the bytes were taken; one thread calls this."""
        self._unreached -= length
        if len(self._item.pieces) == 1:
            (piece,) = self._item.pieces
            self._files[piece.file].reached(piece.offset + begin, length)
        elif not self._unreached:
            for piece in self._item.pieces:
                self._files[piece.file].reached(piece.offset, piece.length)

    def copy(self, other: _Goal) -> None:
        """Take the bytes of an item that is equal and complete."""
        size_bytes = self._item.size_bytes
        for begin in range(0, size_bytes, _BUFFER_BYTES):
            self.take(begin, other._bytes(begin, min(_BUFFER_BYTES, size_bytes - begin)))

    def _bytes(self, begin: int, count: int) -> Array:
        if self._apart is not None:
            return self._apart[begin : begin + count]
        (piece,) = self._item.pieces
        return self._files[piece.file].get(piece.offset + begin, count)


def apply(out: Array, old: Array, relation: str, width: int) -> None:
    """Make new bytes of a difference and the older bytes, in place.

    Args:
        out: Difference, and then the new bytes: uint8 of shape (n,).
        old: Older bytes: uint8 of shape (n,).
        relation: "xor", "minus" or "zigzag"; see `Item.relation`.
        width: Size of an element in bytes.
    """
    if relation == "xor":
        np.bitwise_xor(out, old, out=out)
    else:
        new, before = out.view(f"<u{width}"), np.ascontiguousarray(old).view(f"<u{width}")
        if relation == "zigzag":
            np.bitwise_xor(new >> 1, np.negative(new & 1), out=new)
        np.add(new, before, out=new)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the file's name before what is wrong with it."""
    try:
        yield
    except IntegrityError as error:
        raise IntegrityError(f"{name}: {error}") from error


def _memory(size_bytes: int) -> Array:
    """Return memory: uint8 of shape (size_bytes,), with any content.

    Raises:
        InputError: there is none.
    """
    try:
        check_memory(size_bytes)
    except OSError as error:
        raise InputError(f"no room for {size_bytes:,} bytes: {error.strerror}") from error
    return np.empty(size_bytes, np.uint8)


def _joined(pieces: Sequence[Piece], older: Older | None) -> Array:
    """Return the older bytes of an item."""
    if older is None:
        raise InputError("it is only the difference to an older bundle: give that bundle too")
    parts = [older(piece) for piece in pieces]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _Workers:
    """Threads that decode beside the calling one, which decodes too while they have enough to do.

    Each is given the work of many chunks at a time: a chunk by itself takes a fraction of a millisecond, and
    handing it over about as long.

    Args:
        count: Number of threads, with the calling one.
        batch_bytes: Number of decoded bytes from which work is handed over.
    """

    def __init__(self, count: int, batch_bytes: int) -> None:
        self._pool = ThreadPoolExecutor(count - 1, "hasten-unpacking") if count > 1 else None
        self._most, self._batch_bytes = 2 * (count - 1), batch_bytes
        self._open: collections.deque[tuple[Future[None], Sequence[_Part]]] = collections.deque()
        self._batch: list[_Part] = []
        self._waiting_bytes = 0

    def add(self, part: _Part) -> None:
        """Decode a chunk now or soon."""
        self._batch.append(part)
        self._waiting_bytes += part.size_bytes
        if self._pool is None or self._waiting_bytes >= self._batch_bytes:
            self._hand_over()

    def _hand_over(self) -> None:
        batch, self._batch, self._waiting_bytes = self._batch, [], 0
        while self._open and self._open[0][0].done():
            self._take_back()
        if self._pool is not None and len(self._open) < self._most:
            self._open.append((self._pool.submit(_all_of, batch), batch))
            return
        for part in batch:
            part.finish()

    def _take_back(self) -> None:
        """Wait for the chunks that were handed over first."""
        future, parts = self._open.popleft()
        future.result()
        for part in parts:
            part.done()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._hand_over()
            while self._open and kind is None:
                self._take_back()
        finally:
            if self._pool is not None:
                _end(self._pool)


def _end(pool: ThreadPoolExecutor) -> None:
    """Wait for threads, also where a second Ctrl-C comes: they write to files that are closed next."""
    try:
        pool.shutdown(cancel_futures=True)
    except BaseException:
        _end(pool)
        raise


def _all_of(parts: Sequence[_Part]) -> None:
    for part in parts:
        part.work()
