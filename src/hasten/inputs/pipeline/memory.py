"""Let steps say how much memory they are about to take, so that a server can bound what many samples take."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

making_room: ContextVar[Callable[[int], None]] = ContextVar("making_room", default=lambda _: None)
"""Function that gets the bytes that a step is about to take, its input included; it raises if they aren't free."""


def make_room(size_bytes: int) -> None:
    """Say how many bytes a step is about to take, its input included; a server may refuse or postpone the sample."""
    making_room.get()(size_bytes)
