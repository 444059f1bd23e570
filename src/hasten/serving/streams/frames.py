"""Frames of a stream, the slot that holds the newest one, and the pace at which they arrive."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from hasten.core.tensors import Array


@dataclass(frozen=True)
class Frame:
    """One picture of a stream.

    Attributes:
        number: Number of frames that were captured before this one.
        image: Pixels, `(height, width, 3)` uint8 in RGB.
        captured_ns: Time at which its last bytes had arrived, on the watch's clock.
    """

    number: int
    image: Array
    captured_ns: int


class Signal(Protocol):
    """Methods that a slot needs of a `threading.Condition`; tests hand in one that moves their clock."""

    def __enter__(self) -> object: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> object: ...
    def wait(self, timeout: float | None = None) -> object:
        """Wait until another thread notifies."""

    def notify_all(self) -> None:
        """Wake the threads that wait."""


class Slot:
    """Place of one frame between a camera and a model: a newer frame replaces an older one.

    Args:
        signal: Condition that the two threads share.
    """

    def __init__(self, signal: Signal | None = None) -> None:
        self._signal: Signal = threading.Condition() if signal is None else signal
        self._frame: Frame | None = None
        self._closed = False

    def put(self, frame: Frame) -> bool:
        """Offer a frame, and return whether an older one was dropped for it."""
        with self._signal:
            dropped = self._frame is not None
            self._frame = frame
            self._signal.notify_all()
            return dropped

    def wait_until_empty(self) -> None:
        """Wait until the frame that is in the slot was taken, or the slot is closed."""
        with self._signal:
            while self._frame is not None and not self._closed:
                self._signal.wait()

    def take(self) -> Frame | None:
        """Wait for a frame and remove it; None once the slot is closed and empty."""
        with self._signal:
            while self._frame is None and not self._closed:
                self._signal.wait()
            frame, self._frame = self._frame, None
            self._signal.notify_all()
            return frame

    def close(self) -> None:
        """Let the taker end once it has taken the frame that is in the slot."""
        with self._signal:
            self._closed = True
            self._signal.notify_all()


class FrameClock:
    """When the frames of a recording arrive, as a camera would deliver them.

    Args:
        clock_ns: Monotonic clock, in nanoseconds.
        sleep_s: Function that waits for a number of seconds, and returns whether the watch was
            stopped meanwhile.
        follow: Whether frames arrive at their own times; else each arrives when it is asked for.
    """

    def __init__(
        self, clock_ns: Callable[[], int], sleep_s: Callable[[float], bool], *, follow: bool = True
    ) -> None:
        self.clock_ns = clock_ns
        self.sleep_s = sleep_s
        self._follow = follow
        self._begin_ns: int | None = None

    def arrival_ns(self, offset_ns: int) -> int:
        """Wait until a frame arrives, and return when it did.

        Args:
            offset_ns: Time of the frame after the recording's beginning, in nanoseconds.
        """
        now = self.clock_ns()
        if not self._follow:
            return now
        if self._begin_ns is None:
            self._begin_ns = now - offset_ns
        due = self._begin_ns + offset_ns
        while (early_ns := due - self.clock_ns()) > 0:
            if self.sleep_s(early_ns / 1e9):
                break
        return due
