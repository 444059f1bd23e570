"""Sources of streams: what each of them gives, and the names of their addresses for people."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

from hasten.core.tensors import Array
from hasten.serving.streams.frames import FrameClock
from hasten.serving.streams.tally import Ended

LIVE_SCHEMES = ("rtsp", "rtsps", "udp", "tcp")
"""Schemes of addresses that send frames at their own pace."""
CAMERA = "/dev/video"
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_ADDRESS = re.compile(
    r"([^:]+://)(?:[^/?#]*@)?([\w.-]*|\[[\w:.%]*\])((?::\d+)?)((?:/[^?#@]*)?)(?:[?#][^@]*)?"
)
"""Scheme, host, port and path of an address; no match where a password may reach past its host."""
_VALUE = re.compile(r"=[^/&;]+")
MOST_NOTES = 50


class Source(ABC):
    """A stream of pictures.

    Attributes:
        name: Name for people, without a password.
        rate_per_s: Frames per second.
        size: Height and width of the first frame, in pixels.
        unreadable: Number of frames that came and couldn't be decoded.
        ended: End of the stream: "end"; "cut short", where frames are missing at the end of a recording;
            "lost", where a camera went away.
        notes: Sentences for people on what went wrong.
    """

    name: str
    rate_per_s: float
    size: tuple[int, int]
    unreadable: int = 0
    ended: Ended = "end"

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Add a sentence to `notes`; of very many, the newest are kept."""
        self.notes.append(text)
        del self.notes[:-MOST_NOTES]

    @abstractmethod
    def frames(self, pace: FrameClock) -> Iterator[tuple[Array, int]]:
        """Yield each frame, `(height, width, 3)` uint8 in RGB, once it arrives, and when it arrived.

        The time is that at which the frame's bytes had arrived, before they were decoded.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what is open."""


def scheme_of(source: str) -> str:
    """Return the scheme of an address, in lower case; "" for a path."""
    found = _SCHEME.match(source)
    return "" if found is None else found[1].lower()


def shown(source: str) -> str:
    """Return a source's name for people: an address without user, password, query and values in its path.

    Args:
        source: Path or address.
    """
    if not (scheme := scheme_of(source)):
        return source
    found = _ADDRESS.fullmatch(source)
    if found is None:
        return f"{scheme}://..."
    start, host, port, path = found.groups()
    return f"{start}{host}{port}{_VALUE.sub('=...', path)}"
