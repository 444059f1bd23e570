"""Map system shared memory that clients register, so that tensors needn't be sent."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import stat
from dataclasses import dataclass
from typing import Any

from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import Region

_KEY = re.compile(r"/?[A-Za-z0-9_.\-]{1,250}")
_PLACE = "/dev/shm"
_MOST_REGIONS = 1024


@dataclass(frozen=True)
class Registration:
    """A registered region.

    Attributes:
        name: Name by which requests refer to the region.
        key: POSIX name of the shared memory object.
        offset: Offset of the region in the object, in bytes.
        size_bytes: Size of the region.
        memory: Mapping of the object.
    """

    name: str
    key: str
    offset: int
    size_bytes: int
    memory: mmap.mmap


class SharedMemory:
    """Registry of shared memory regions.

    Args:
        allowed: Regular expression of the POSIX names that may be registered; "" to allow none.
    """

    def __init__(self, allowed: str = "") -> None:
        self._allowed = re.compile(allowed) if allowed else None
        self._regions: dict[str, Registration] = {}

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
        self._regions[name] = Registration(
            name, key, offset, size_bytes, _mapped(key, offset + size_bytes)
        )

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
        return memoryview(found.memory)[begin : begin + region.size_bytes]

    def write(self, region: Region, data: Any) -> None:
        """Write data into a part of a region.

        Raises:
            ProtocolError: there is no such region, or the part or the data doesn't fit.
        """
        found, begin = self._part(region)
        if len(data) > region.size_bytes:
            raise ProtocolError(
                Kind.INVALID,
                f"an output of {len(data):,} bytes doesn't fit in the {region.size_bytes:,} bytes "
                f"given for it in the region {region.name!r:.100}",
            )
        try:
            found.memory[begin : begin + len(data)] = data
        except ValueError as error:  # an answer is written on a thread, and may come too late
            raise ProtocolError(
                Kind.INVALID, f"the region {region.name!r:.100} was unregistered meanwhile"
            ) from error


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
