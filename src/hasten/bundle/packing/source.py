"""Where a packed bundle's bytes come from: a file, or memory; see `web` for web servers."""

from __future__ import annotations

import mmap
import os
import stat
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Self

from hasten.errors import InputError, IntegrityError


class Source(ABC):
    """Bytes of a packed bundle.

    Attributes:
        name: Name for messages: a path or an address.
        size_bytes: Size in bytes; None where a server doesn't tell.
        anywhere: Whether reading in another order than that of the bytes takes no longer, and several
            threads may read at once.
    """

    name: str
    size_bytes: int | None
    anywhere: ClassVar[bool] = True

    @abstractmethod
    def read(self, offset: int, length: int) -> memoryview:
        """Return some bytes; reading on from where the last call ended is the quickest.

        Raises:
            IntegrityError: the bytes end before; or they changed since the first call.
            InputError: they can't be read; the message says why.
        """

    def read_into(self, offset: int, buffer: memoryview) -> memoryview:
        """Return as many bytes as a buffer has, there or elsewhere; raises what `read` raises."""
        return self.read(offset, len(buffer))

    @abstractmethod
    def close(self) -> None:
        """Free what reading took."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ended(self, offset: int, length: int, found: int) -> IntegrityError:
        return IntegrityError(
            f"{self.name} is cut off: {length:,} bytes at {offset:,} are needed, but there are "
            f"only {found:,}; get the file again"
        )


class FileSource(Source):
    """File, which is read and not mapped: one that is cut off meanwhile would crash the process.

    Raises:
        InputError: the file can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise InputError(f"can't read {path}: {error.strerror}") from error
        found = os.fstat(self._file)
        if not stat.S_ISREG(found.st_mode):
            self.close()
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no file"
            raise InputError(f"can't read {path}: it is {kind}")
        self.size_bytes: int | None = found.st_size

    def read(self, offset: int, length: int) -> memoryview:
        self._check_there(offset, length)
        return self.read_into(offset, memoryview(bytearray(length)))

    def read_into(self, offset: int, buffer: memoryview) -> memoryview:
        length, done = len(buffer), 0
        self._check_there(offset, length)
        while done < length:
            try:
                got = os.preadv(self._file, [buffer[done:]], offset + done)
            except OSError as error:
                raise InputError(f"can't read {self.name}: {error.strerror}") from error
            if not got:
                raise self._ended(offset, length, done)
            done += got
        return buffer

    def _check_there(self, offset: int, length: int) -> None:
        """Check that the file was long enough at first, before memory is taken."""
        if self.size_bytes is not None and length > self.size_bytes - offset:
            raise self._ended(offset, length, max(0, self.size_bytes - offset))

    def close(self) -> None:
        file, self._file = self._file, -1  # the number may be another file's by the second call
        if file >= 0:
            os.close(file)


class MemorySource(Source):
    """Bytes in memory, as of a memory map, which can be closed once the source is closed and nothing is read any more."""

    def __init__(self, data: bytes | bytearray | memoryview | mmap.mmap) -> None:
        self.name = "the packed bundle in memory"
        self._data = memoryview(data).cast("B")
        self.size_bytes: int | None = len(self._data)

    def read(self, offset: int, length: int) -> memoryview:
        found = self._data[offset : offset + length]
        if len(found) < length:
            raise self._ended(offset, length, len(found))
        return found

    def close(self) -> None:
        self._data.release()
