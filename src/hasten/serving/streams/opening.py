"""The source of a stream that a path or an address stands for."""

from __future__ import annotations

from pathlib import Path

from hasten.errors import InputError
from hasten.serving.streams.sources import CAMERA, LIVE_SCHEMES, Source, scheme_of, shown

PICTURES_PER_S = 30.0
"""Rate at which a folder of pictures is played unless one is given."""


def open_source(source: str | Path, fps: float | None, *, reconnect_s: float = 0.0) -> Source:
    """Open a source.

    Args:
        source: A video file, a folder of pictures, a camera such as /dev/video0, or an address that
            begins with rtsp://, rtsps://, udp:// or tcp://.
        fps: Frames per second; by default the source's own, and 30 for a folder of pictures.
        reconnect_s: Longest time to try to reach a camera or an address again after its last frame.

    Raises:
        InputError: there is no such source, or it has no pictures.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise InputError(f"the rate must be above 0 and at most 1000 frames a second: got {fps:g}")
    text = str(source)
    scheme = scheme_of(text)
    if scheme and scheme not in LIVE_SCHEMES:
        raise InputError(
            f"the source {shown(text)} begins with {scheme}://: give a file, a folder, {CAMERA}0, or an "
            f"address that begins with one of {', '.join(f'{one}://' for one in LIVE_SCHEMES)}"
        )
    if not scheme and Path(text).is_dir():
        from hasten.serving.streams.pictures import Pictures

        return Pictures(Path(text), fps or PICTURES_PER_S)
    from hasten.serving.streams.video import Video

    live = bool(scheme) or text.startswith(CAMERA)
    return Video(text, fps, live=live, reconnect_s=reconnect_s)
