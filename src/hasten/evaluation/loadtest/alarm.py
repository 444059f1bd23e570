"""A timer that an event loop can wait for, exact to a few microseconds."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from typing import Self

_ABSOLUTE = 1
"""TFD_TIMER_ABSTIME of timerfd_settime(2)."""


class Alarm:
    """Makes a file descriptor readable at a given time; Linux only.

    An event loop's own timers tick in milliseconds, so a request would be sent that much too late.
    Spinning until it is due would take a core from the server, which may run on the same machine.

    Source: timerfd_create(2). Python has it from 3.13 on.
    """

    def __init__(self) -> None:
        """Open the descriptor.

        Raises:
            OSError: too many are open.
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self.descriptor: int = self._libc.timerfd_create(time.CLOCK_MONOTONIC, flags)
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def set(self, at_ns: int) -> None:
        """Set the time of `time.monotonic_ns` to go off at, now if past, replacing any other."""
        seconds, ns = divmod(max(1, at_ns), 1_000_000_000)
        setting = (ctypes.c_long * 4)(0, 0, seconds, ns)
        if self._libc.timerfd_settime(self.descriptor, _ABSOLUTE, setting, None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def clear(self) -> None:
        """Make the descriptor unreadable again after the alarm went off."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.descriptor, 8)
