"""Turn signals into bytes on a socket, so that they interrupt nothing."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import Self


class Signals:
    """Context that turns SIGTERM, SIGINT and SIGHUP into bytes on a socket.

    Attributes:
        reading: Socket that is readable once a signal arrived.
    """

    def __init__(self) -> None:
        self.reading, self._writing = socket.socketpair()
        self.reading.setblocking(False)
        self._writing.setblocking(False)

    def came(self) -> bytes:
        """Return the numbers of the signals that arrived, one byte each."""
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
