"""Give OpenSSL one record of TLS after another, and end connections that send too many without data.

OpenSSL handles all records without data that it finds before it returns. So thousands of new keys of TLS 1.3, of 27
bytes each, held the event loop up for 0.2 seconds. Many connections could do the same together. Therefore each record
of a connection in a handshake waits for a turn, and so does each record of one that sent more without data than is usual.
"""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from typing import Any, ClassVar, Protocol

_TYPES = b"\x14\x15\x16\x17"
"""Types of records (RFC 8446, 5.1)."""
_HEAD_BYTES = 5
"""Size of a record's head, which ends in the size of its content."""
_MOST_BYTES = (16 << 10) + 2048
"""Largest content of a record in TLS 1.2; TLS 1.3 allows less."""
_IN_HANDSHAKE, _WITHOUT_DATA = 256, 32
"""Records that a handshake may have (two to five are usual), and records without data that may come after it (none is
usual)."""
_HANDSHAKE_BYTES = 32 << 10
"""Bytes of a client that a handshake may take: most take less than 4 KiB, and a long chain of certificates 16 KiB. What
one step costs grows with the square of some messages' length: 37 ms for 64 kB of shares of keys."""
_DATA_BYTES = 1 << 20
"""Data for which a connection may have one record more without data."""


class Pace(Protocol):
    """Turns of a connection for its records.

    Attributes:
        first: Bytes that arrived before the connection was secured.
    """

    first: bytes

    def may_go(self) -> bool:
        """Whether a record may be handled now; if not, the connection is read again once it may."""

    def shook(self) -> None:
        """Note that the handshake is complete."""


PACES: ContextVar[list[Pace]] = ContextVar("PACES")
"""Pace of the connection that is secured next in this context; it is taken out then. Others never wait."""


class SecuredByRecords(ssl.SSLObject):
    """Secured connection over memory that reads one record at a time. Contexts make it."""

    _incoming: ssl.MemoryBIO
    """Bytes from the client that OpenSSL didn't get yet."""
    _given: ssl.MemoryBIO
    """Bytes that OpenSSL got; it reads them whenever there are any."""
    _head = b""
    """Head of the record whose content isn't there yet."""
    _data_bytes = _without_data = _handshake_bytes = 0
    """Data that was read, in bytes, number of records without data since the handshake, or in it, and its bytes."""
    _most = _IN_HANDSHAKE
    _pace: Pace | None = None
    _waits = True
    """Whether each record waits for a turn: in the handshake, and after more records without data than the data pay for."""

    def begin(self, incoming: ssl.MemoryBIO, given: ssl.MemoryBIO) -> None:
        """Begin to take records from `incoming`, and to give them to OpenSSL through `given`."""
        self._incoming, self._given = incoming, given
        if paces := PACES.get(None):
            self._pace = paces.pop()
            incoming.write(self._pace.first)
            self._pace.first = b""

    def do_handshake(self) -> None:
        """Go on with the handshake.

        Raises:
            ssl.SSLWantReadError: more must come from the client.
            ssl.SSLError: the handshake failed, or it had too many records or bytes.
        """
        while self._give():
            self._handshake_bytes += self._given.pending
            if self._handshake_bytes > _HANDSHAKE_BYTES:
                raise ssl.SSLError("the handshake is too long")
            try:
                super().do_handshake()
            except ssl.SSLWantReadError:
                self._count()
            else:
                self._most, self._without_data, self._waits = _WITHOUT_DATA, 0, False
                if self._pace is not None:
                    self._pace.shook()
                return
        super().do_handshake()

    def read(self, len: int = 1024, buffer: Any = None) -> Any:  # noqa: A002 - as in ssl
        """Read what is there, up to the end of one record.

        Args:
            len: Most bytes to read.
            buffer: Where to write them; None to return them.

        Returns:
            Number of bytes in `buffer`, or the bytes; 0 or none at the end.

        Raises:
            ssl.SSLWantReadError: more must come from the client.
            ssl.SSLError: the connection failed, or it had too many records without data.
        """
        if not self.pending():
            while self._give():
                try:
                    return self._take(len, buffer)
                except ssl.SSLWantReadError:
                    self._count()
        return self._take(len, buffer)

    def unwrap(self) -> Any:
        """Begin or end the goodbye; see `ssl.SSLObject.unwrap`.

        Raises:
            ssl.SSLWantReadError: the client's goodbye isn't there yet.
            ssl.SSLError: the connection failed, or it had too many records without data.
        """
        while self._give():
            try:
                return super().unwrap()
            except ssl.SSLWantReadError:
                self._count()
        return super().unwrap()

    def _take(self, most: int, buffer: Any) -> Any:
        data: Any = super().read(most) if buffer is None else super().read(most, buffer)
        self._data_bytes += len(data) if buffer is None else data
        if self._waits:
            self._waits = self._without_data > self._data_bytes // _DATA_BYTES
        return data

    def _give(self) -> bool:
        """Give OpenSSL the next record; return whether it is there, and may be handled."""
        incoming, head = self._incoming, self._head
        if not head:
            if incoming.pending < _HEAD_BYTES:
                return False
            head = incoming.read(_HEAD_BYTES)
        size = int.from_bytes(head[3:], "big")
        if head[0] not in _TYPES or size > _MOST_BYTES:
            size = incoming.pending  # OpenSSL refuses it
        elif incoming.pending < size:
            self._head = head
            return False
        if self._waits and self._pace is not None and not self._pace.may_go():
            self._head = head
            return False
        self._head = b""
        self._given.write(head + incoming.read(size))
        return True

    def _count(self) -> None:
        """Count a record without data.

        Raises:
            ssl.SSLError: there were too many.
        """
        self._without_data += 1
        paid = self._data_bytes // _DATA_BYTES
        if self._without_data > self._most + paid:
            raise ssl.SSLError("too many records without data")
        self._waits = self._most == _IN_HANDSHAKE or self._without_data > paid


class ContextByRecords(ssl.SSLContext):
    """Context of a server whose connections read one record at a time."""

    sslobject_class: ClassVar[type[ssl.SSLObject]] = SecuredByRecords  # type: ignore[misc]

    def wrap_bio(
        self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **named: Any
    ) -> Any:
        """Return a secured connection between two memories, as `ssl.SSLContext.wrap_bio` does."""
        given = ssl.MemoryBIO()
        secured = super().wrap_bio(given, outgoing, *args, **named)
        assert isinstance(secured, SecuredByRecords)
        secured.begin(incoming, given)
        return secured
