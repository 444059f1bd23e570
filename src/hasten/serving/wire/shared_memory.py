"""Map system shared memory that clients register, so that tensors needn't be sent."""

from __future__ import annotations

import contextlib
import errno
import itertools
import mmap
import os
import re
import stat
from dataclasses import dataclass, field, replace
from typing import Any

from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import Region

_KEY = re.compile(r"/?[A-Za-z0-9_.\-]{1,250}")
_PLACE = "/dev/shm"
_MOST_REGIONS = 1024
_READ, _WRITE = 22, 23
"""MADV_POPULATE_READ and MADV_POPULATE_WRITE of linux/mman.h, since Linux 5.14; see man 2 madvise."""
_MOST_KNOWN = 256
"""Parts of a region that are remembered to have memory."""


@dataclass(frozen=True)
class Registration:
    """A registered region.

    Attributes:
        name: Name by which requests refer to the region.
        key: POSIX name of the shared memory object.
        offset: Offset of the region in the object, in bytes.
        size_bytes: Size of the region.
        memory: Mapping of the object.
        number: Number that no other registration of the server has.
        known: Parts that have memory, and keep it: where each begins, its size, and what it was checked for.
    """

    name: str
    key: str
    offset: int
    size_bytes: int
    memory: mmap.mmap
    number: int
    known: set[tuple[int, int, int]] = field(default_factory=set)

    def check_there(self, begin: int, size_bytes: int, how: int) -> None:
        """Check that a part of the object has memory: otherwise the kernel would end the process that uses it (SIGBUS).

        Args:
            begin: Offset of the part in the object.
            size_bytes: Size of the part.
            how: `_READ` or `_WRITE`.

        Raises:
            ProtocolError: the object was made smaller, or the system has no memory for it.
            ValueError: the region was unregistered.
        """
        have, end = self.memory.size(), begin + size_bytes
        if have < end:
            self.known.clear()
            raise ProtocolError(
                Kind.INVALID,
                f"the shared memory object {self.key!r:.100} was made smaller: it has {have:,} bytes, but "
                f"the tensor ends at {end:,}: unregister the region, and register it again",
            )
        part = begin, size_bytes, how
        if not size_bytes or part in self.known:  # asking takes 60 us for 600 kB
            return
        page = begin - begin % mmap.PAGESIZE
        try:
            self.memory.madvise(how, page, end - page)
        except OSError as error:
            if error.errno == errno.EINVAL:  # an older kernel
                return
            raise ProtocolError(
                Kind.OVERLOADED,
                f"the system has no memory left for the shared memory object {self.key!r:.100}: free some "
                "in /dev/shm, or make that larger",
                1.0,
            ) from error
        if len(self.known) >= _MOST_KNOWN:
            self.known.clear()
        self.known.add(part)


class SharedMemory:
    """Registry of shared memory regions.

    Args:
        allowed: Regular expression of the POSIX names that may be registered; "" to allow none.
    """

    def __init__(self, allowed: str = "") -> None:
        self._allowed = re.compile(allowed) if allowed else None
        self._regions: dict[str, Registration] = {}
        self._numbers = itertools.count(1)

    def register(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """Register and map a region.

        Raises:
            ProtocolError: the name isn't allowed, there is no such object, or it is too small.
        """
        if self._allowed is None:
            raise ProtocolError(
                Kind.FORBIDDEN,
                "shared memory is off: start the server with --shared-memory and a pattern of names",
            )
        if not _KEY.fullmatch(key) or key.strip("/.") == "" or not self._allowed.fullmatch(key):
            raise ProtocolError(
                Kind.FORBIDDEN, f"the shared memory object {key!r:.100} may not be registered here"
            )
        if name in self._regions:
            raise ProtocolError(Kind.INVALID, f"a region {name!r:.100} is already registered")
        if not name or len(self._regions) >= _MOST_REGIONS:
            raise ProtocolError(
                Kind.INVALID,
                f"a region needs a name, and at most {_MOST_REGIONS} can be registered",
            )
        if offset < 0 or size_bytes <= 0:
            raise ProtocolError(
                Kind.INVALID,
                f"offset {offset} and byte_size {size_bytes} are not a valid part of an object",
            )
        memory = _mapped(key, offset + size_bytes)
        number = next(self._numbers)
        self._regions[name] = Registration(name, key, offset, size_bytes, memory, number)

    def unregister(self, name: str = "") -> None:
        """Unregister a region, or all.

        Mapped memory is freed once no request reads it any more.
        """
        gone = [name] if name else list(self._regions)
        for each in gone:
            region = self._regions.pop(each, None)
            if region is not None:
                with contextlib.suppress(BufferError):  # a request still has a view, which frees it
                    region.memory.close()

    def status(self, name: str = "") -> list[Registration]:
        """Return the region of a name, or all regions.

        Raises:
            ProtocolError: there is no such region.
        """
        if not name:
            return list(self._regions.values())
        return [self._find(name)]

    def _find(self, name: str) -> Registration:
        found = self._regions.get(name)  # at once: answers are written on threads, too
        if found is None:
            raise ProtocolError(
                Kind.INVALID,
                f"no shared memory region {name!r:.100} is registered: register it first",
            )
        return found

    def _part(self, region: Region) -> tuple[Registration, int]:
        found = self._find(region.name)
        end = region.offset + region.size_bytes
        if region.offset < 0 or region.size_bytes < 0 or end > found.size_bytes:
            raise ProtocolError(
                Kind.INVALID,
                f"{region.size_bytes:,} bytes at offset {region.offset:,} don't fit in the region "
                f"{region.name!r:.100} of {found.size_bytes:,} bytes",
            )
        return found, found.offset + region.offset

    def read(self, region: Region) -> memoryview:
        """Return a part of a region without copying it.

        Raises:
            ProtocolError: there is no such region, or the part doesn't fit in it.
        """
        found, begin = self._part(region)
        found.check_there(begin, region.size_bytes, _READ)
        return memoryview(found.memory)[begin : begin + region.size_bytes]

    def place(self, region: Region) -> Region:
        """Return a part of a region as that of the present registration, for an output that is written later.

        Raises:
            ProtocolError: there is no such region, or the part doesn't fit in it.
        """
        found, _ = self._part(region)
        return replace(region, number=found.number)

    def write(self, region: Region, data: Any) -> None:
        """Write data into a part of a region; on any thread.

        Args:
            region: Part that `place` returned.
            data: Bytes to write.

        Raises:
            ProtocolError: the region was unregistered, also if its name is registered again; or the data doesn't fit.
        """
        gone = f"the region {region.name!r:.100} was unregistered meanwhile"
        found = self._regions.get(region.name)
        if found is None or found.number != region.number:
            raise ProtocolError(Kind.INVALID, gone)
        begin = found.offset + region.offset
        if len(data) > region.size_bytes:
            raise ProtocolError(
                Kind.INVALID,
                f"an output of {len(data):,} bytes doesn't fit in the {region.size_bytes:,} bytes "
                f"given for it in the region {region.name!r:.100}",
            )
        try:
            found.check_there(begin, len(data), _WRITE)
            found.memory[begin : begin + len(data)] = data
        except ValueError as error:  # the loop's thread closed the memory
            raise ProtocolError(Kind.INVALID, gone) from error


def _mapped(key: str, size_bytes: int) -> mmap.mmap:
    """Map a POSIX shared memory object.

    Raises:
        ProtocolError: there is no such object, it isn't plain memory, or it is too small.
    """
    path = f"{_PLACE}/{key.lstrip('/')}"
    try:
        number = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ProtocolError(
            Kind.INVALID, f"can't open the shared memory object {key!r:.100}: {error.strerror}"
        ) from error
    try:
        facts = os.fstat(number)
        if not stat.S_ISREG(facts.st_mode):
            raise ProtocolError(Kind.INVALID, f"{key!r:.100} is not a shared memory object")
        if facts.st_size < size_bytes:
            raise ProtocolError(
                Kind.INVALID,
                f"the shared memory object {key!r:.100} has {facts.st_size:,} bytes, but the "
                f"region needs {size_bytes:,}",
            )
        return mmap.mmap(number, facts.st_size)
    except (OSError, ValueError) as error:
        raise ProtocolError(Kind.INVALID, f"can't map {key!r:.100}: {error}") from error
    finally:
        os.close(number)
