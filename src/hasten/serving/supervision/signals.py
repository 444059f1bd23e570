"""Signals that are heeded where it suits, and interrupt nothing."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import Self


class Signals:
    """SIGTERM, SIGINT and SIGHUP as bytes on a socket: they interrupt nothing.

    Attributes:
        reading: Readable when one came.
    """

    def __init__(self) -> None:
        self.reading, self._writing = socket.socketpair()
        self.reading.setblocking(False)
        self._writing.setblocking(False)

    def came(self) -> bytes:
        """The numbers of those that came."""
        with contextlib.suppress(BlockingIOError):
            return self.reading.recv(64)
        return b""

    def __enter__(self) -> Self:
        self._wakeup = signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        self._before = [
            (number, signal.signal(number, lambda number, frame: None))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before:
            signal.signal(number, handler)
        self.reading.close()
        self._writing.close()
