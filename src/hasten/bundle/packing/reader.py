"""Read a packed bundle: its head, and those of its files that are asked for."""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self, TypeAlias

import numpy as np

from hasten.bundle.packing import layout
from hasten.bundle.packing.blocks import Codecs
from hasten.bundle.packing.layout import Head, Item, Piece
from hasten.bundle.packing.source import Source
from hasten.core.memory_folder import check_memory
from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError

_ALONE_BYTES = 1 << 20
"""Size up to which one thread decodes everything."""
_THREADS = 8
_BATCH_BYTES = 1 << 20
"""Largest number of bytes that a thread decodes at a time while others are read."""
_READ_BYTES = 1 << 20
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
                raise IntegrityError("it is cut off within its head")
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
        self, files: Mapping[str, Array], older: Older | None = None, threads: int | None = None
    ) -> None:
        """Decode some of the files; the chunks of each tensor are decoded beside each other.

        Args:
            files: Bytes to fill, by path in the bundle: uint8 of the file's size each.
            older: Function that returns bytes of the base; None for a bundle that stands alone.
            threads: Largest number of threads that decode.

        Raises:
            IntegrityError: a chunk is damaged; the message names its tensor.
            InputError: the bytes can't be read, or there is no memory for them.
        """
        try:
            self._unpack(files, older, threads)
        except MemoryError as error:
            raise InputError(
                f"{self.source.name}: there isn't enough memory to unpack it; free some"
            ) from error

    def _unpack(self, files: Mapping[str, Array], older: Older | None, threads: int | None) -> None:
        wanted = self._wanted(files)
        total = sum(self.head.items[number].size_bytes for number in wanted)
        most = min(_THREADS, len(os.sched_getaffinity(0)), threads or _THREADS)
        if total <= _ALONE_BYTES:
            most = 1
        codecs = Codecs(self.head.codecs)
        goals: dict[int, Array] = {}
        with _Workers(most, min(_BATCH_BYTES, total // (4 * most))) as workers:
            for number in wanted:
                item = self.head.items[number]
                goal = goals[number] = self._goal(item, files)
                if item.like in goals:
                    continue
                old = _joined(item.since, older) if item.relation else None
                if item.relation == "same":
                    goal[...] = old
                source = number if item.like == -1 else item.like
                coded = self.head.items[source]
                for at, data in enumerate(self._chunks(coded, self._starts[source])):
                    workers.add(
                        min(coded.chunk, coded.size_bytes),
                        self._decode,
                        coded,
                        at,
                        data,
                        goal,
                        old,
                        codecs,
                    )
        for number, goal in goals.items():
            item = self.head.items[number]
            if item.like in goals:
                goal[...] = goals[item.like]
            if len(item.pieces) > 1:
                self._spread(item, goal, files)

    def _wanted(self, files: Mapping[str, Array]) -> list[int]:
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
            raise IntegrityError(f"{self.source.name} was changed after it was packed")

    def _goal(self, item: Item, files: Mapping[str, Array]) -> Array:
        """Return the bytes of a file that an item fills; memory for it if it is in several places."""
        if len(item.pieces) > 1:
            return _room(item)
        piece = item.pieces[0]
        return files[self.head.files[piece.file][0]][piece.offset : piece.offset + piece.length]

    def _spread(self, item: Item, found: Array, files: Mapping[str, Array]) -> None:
        """Copy an item's bytes to its pieces, as far as their files are wanted."""
        place = 0
        for piece in item.pieces:
            name = self.head.files[piece.file][0]
            if name in files:
                files[name][piece.offset : piece.offset + piece.length] = found[
                    place : place + piece.length
                ]
            place += piece.length

    def _chunks(self, item: Item, start: int) -> Iterator[memoryview]:
        """Read an item's coded chunks."""
        for length in item.coded:
            yield self.source.read(start, length)
            start += length

    def _decode(
        self,
        item: Item,
        at: int,
        data: memoryview,
        goal: Array,
        old: Array | None,
        codecs: Codecs,
    ) -> None:
        """Decode one chunk to its place."""
        begin = at * item.chunk
        out = goal[begin : begin + item.chunk]
        where = f"{self.source.name}: the tensor {item.name!r:.100}"
        if zlib.crc32(data) != item.sums[at]:
            raise IntegrityError(
                f"{where} is damaged: its chunk {at + 1} isn't what was written; get the file again"
            )
        try:
            codecs.decode(data, out, item.width)
        except IntegrityError as error:
            raise IntegrityError(
                f"{where} is damaged in chunk {at + 1}: {error}; get the file again"
            ) from error
        except InputError as error:
            raise InputError(f"{where} can't be unpacked: {error}") from error
        if old is not None:
            apply(out, old[begin : begin + item.chunk], item.relation, item.width)


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


def _room(item: Item) -> Array:
    """Return memory for an item that lies in several places: uint8 of shape (its size,).

    Raises:
        InputError: there is none.
    """
    try:
        check_memory(item.size_bytes)
    except OSError as error:
        raise InputError(
            f"no room for the {item.size_bytes:,} bytes of {item.name!r:.100}: {error.strerror}"
        ) from error
    return np.empty(item.size_bytes, np.uint8)


def _joined(pieces: Sequence[Piece], older: Older | None) -> Array:
    """Return the older bytes of an item."""
    if older is None:
        raise InputError("it is only the difference to an older bundle: give that bundle too")
    parts = [older(piece) for piece in pieces]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _Workers:
    """Threads that decode while the calling one reads; with one, the calling one does both.

    Each is given the work of many chunks at a time: a chunk by itself takes a fraction of a millisecond, and
    handing it over about as long.

    Args:
        count: Number of threads.
        batch_bytes: Number of decoded bytes from which work is handed over.
    """

    def __init__(self, count: int, batch_bytes: int) -> None:
        self._pool = ThreadPoolExecutor(count, "hasten-unpacking") if count > 1 else None
        self._most, self._batch_bytes = 4 * count, batch_bytes
        self._open: collections.deque[Future[None]] = collections.deque()
        self._batch: list[Callable[[], None]] = []
        self._waiting_bytes = 0

    def add(self, size_bytes: int, work: Callable[..., None], *arguments: Any) -> None:
        """Do some work soon; wait for earlier work where much is waiting already.

        Args:
            size_bytes: Number of bytes that it decodes.
            work: Function to call.
            *arguments: Its arguments.
        """
        if self._pool is None:
            work(*arguments)
            return
        self._batch.append(partial(work, *arguments))
        self._waiting_bytes += size_bytes
        if self._waiting_bytes >= self._batch_bytes:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._pool is None or not self._batch:
            return
        if len(self._open) >= self._most:
            self._open.popleft().result()
        self._open.append(self._pool.submit(_all_of, self._batch))
        self._batch, self._waiting_bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            try:
                if kind is None:
                    self._hand_over()
                while self._open and kind is None:
                    self._open.popleft().result()
            finally:
                self._pool.shutdown(cancel_futures=True)


def _all_of(batch: Sequence[Callable[[], None]]) -> None:
    for work in batch:
        work()
