"""Rooms: files and arrays of a known size that several threads fill, in any order."""

from __future__ import annotations

import errno
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hasten.core.tensors import Array

_HASHED_BYTES = 1 << 18
"""Number of bytes that are hashed at a time, few enough to be in the processor's cache still."""


class Room(ABC):
    """Bytes of a known number that are being filled; any thread may write and read.

    Attributes:
        size_bytes: Number of bytes.
        memory_bytes: Number of bytes of memory that filling it takes, which nobody holds for it yet.
    """

    size_bytes: int
    memory_bytes: int = 0

    @abstractmethod
    def put(self, offset: int, data: Array) -> None:
        """Write some bytes: uint8 of shape (n,), contiguous.

        Raises:
            OSError: there is no room for them.
        """

    @abstractmethod
    def get(self, offset: int, length: int) -> Array:
        """Return bytes that were written: uint8 of shape (length,).

        Raises:
            OSError: they can't be read.
        """

    def reached(self, offset: int) -> None:  # noqa: B027 - most rooms needn't know
        """Note that all bytes before `offset` were written; one thread says so, in rising order.

        Raises:
            OSError: they can't be read.
        """


class ArrayRoom(Room):
    """Room in an array.

    Args:
        data: Array to fill: uint8 of shape (n,).
    """

    def __init__(self, data: Array) -> None:
        self._data, self.size_bytes = data, len(data)

    def put(self, offset: int, data: Array) -> None:
        self._data[offset : offset + len(data)] = data

    def get(self, offset: int, length: int) -> Array:
        return self._data[offset : offset + length]


class FileRoom(Room):
    """Room in a file, which is written to and never mapped.

    Writing to a mapped file would crash the process where no memory or disk is left.

    Args:
        descriptor: Descriptor of an empty file, which stays open as long as the room is used.
        size_bytes: Size that the file gets.
        reserved: Whether to take the space now, so that a full disk shows before anything is written.

    Raises:
        OSError: there is no room.
        OverflowError: no file can have that size.
    """

    def __init__(self, descriptor: int, size_bytes: int, *, reserved: bool = False) -> None:
        self._descriptor, self.size_bytes = descriptor, size_bytes
        if reserved and size_bytes:
            os.posix_fallocate(descriptor, 0, size_bytes)
        else:
            os.ftruncate(descriptor, size_bytes)

    def put(self, offset: int, data: Array) -> None:
        _write(self._descriptor, offset, data.data)

    def get(self, offset: int, length: int) -> Array:
        found = np.empty(length, np.uint8)
        _read(self._descriptor, offset, found.data)
        return found


class PathRoom(Room):
    """Room in a file that is opened for each access, where too many files would be open otherwise.

    Args:
        path: The file, which has its size already.
        size_bytes: Its size.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path, self.size_bytes = path, size_bytes

    def put(self, offset: int, data: Array) -> None:
        with self._opened() as descriptor:
            _write(descriptor, offset, data.data)

    def get(self, offset: int, length: int) -> Array:
        found = np.empty(length, np.uint8)
        with self._opened() as descriptor:
            _read(descriptor, offset, found.data)
        return found

    @contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


class HashedRoom(FileRoom):
    """Room in a file in memory, whose bytes are hashed in order while later ones are still being written."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        super().__init__(descriptor, size_bytes)
        self.memory_bytes = size_bytes
        self._hash, self._hashed = hashlib.sha256(), 0
        self._buffer: Array | None = None

    def reached(self, offset: int) -> None:
        while offset - self._hashed >= (1 if offset == self.size_bytes else _HASHED_BYTES):
            if self._buffer is None:
                self._buffer = np.empty(min(self.size_bytes, _HASHED_BYTES), np.uint8)
            part = self._buffer[: offset - self._hashed].data
            _read(self._descriptor, self._hashed, part)
            self._hash.update(part)
            self._hashed += len(part)
        if self._hashed == self.size_bytes:
            self._buffer = None  # a model may have thousands of files

    def sha256(self) -> str:
        """Return the SHA-256 of all bytes in hex, once they are written.

        Raises:
            OSError: they can't be read.
        """
        self.reached(self.size_bytes)
        return self._hash.hexdigest()


def _write(descriptor: int, offset: int, view: memoryview) -> None:
    while len(view):
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _read(descriptor: int, offset: int, view: memoryview) -> None:
    while len(view):
        count = os.preadv(descriptor, [view], offset)
        if not count:
            raise OSError(errno.EIO, "the file was cut off while it was written")
        view, offset = view[count:], offset + count
