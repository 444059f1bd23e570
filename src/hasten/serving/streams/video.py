"""Video files, cameras and network streams, decoded by FFmpeg through PyAV."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np

from hasten.core.extras import missing_extra
from hasten.core.tensors import Array
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.pipeline.image import MAX_PIXELS
from hasten.serving.streams.frames import FrameClock
from hasten.serving.streams.sources import CAMERA, Source, scheme_of, shown

OPEN_S, READ_S = 10.0, 5.0
"""Longest wait for a source to open, and for its next bytes, in seconds."""
RETRY_S = 0.5
UNSTATED = (480, 640)
"""Height and width that are assumed until the first frame where a source states none."""
LONGEST_GAP_NS = 5_000_000_000
"""Longest pause between two frames of a recording that is waited for."""
FILE_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,ogg,flv,asf,mjpeg,h264,hevc,ivf"
)
"""Formats of files that are read: containers that hold their frames, and refer to no other file."""
LIVE_FORMATS = f"{FILE_FORMATS},mpjpeg,nut,rtsp"
"""Formats that an address may send. A playlist isn't one: its sender would choose what else is opened."""
LIVE_PROTOCOLS = {
    "rtsp": "rtsp,rtp,tcp",
    "rtsps": "rtsp,rtp,tcp,tls",
    "udp": "udp",
    "tcp": "tcp",
}
"""Protocols that an address may use: its own, and those that carry it."""


def av() -> Any:
    """Import PyAV, and silence FFmpeg's own messages.

    Raises:
        InputError: it isn't installed.
    """
    try:
        import av as module
        import av.logging as logging
    except ImportError as error:
        raise missing_extra("a video", "video") from error
    logging.set_level(logging.PANIC)
    return module


def _check_file(path: str) -> None:
    """Check that there is a file at a path.

    Raises:
        OSError: nothing is there, or it can't be looked at.
        InputError: it is a named pipe, a device or a socket, for whose other end FFmpeg would wait without end.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  (its error says what is wrong with the path)
        raise InputError(
            f"{path} is a pipe, a device or a socket, whose frames may never come: give a file, or let its writer send "
            "them to an address such as tcp://127.0.0.1:9000?listen"
        )


class Video(Source):
    """A video file, a camera or a network stream.

    Args:
        address: Path or address.
        fps: Frames per second; by default the source's own.
        live: Whether frames come at the sender's pace and may stop coming.
        reconnect_s: Longest time to try to reach a live source again after its last frame.

    Raises:
        InputError: it isn't there, is no video, or states no rate where none is given.
    """

    def __init__(
        self, address: str, fps: float | None, *, live: bool, reconnect_s: float = 0.0
    ) -> None:
        super().__init__()
        self._av = av()
        self.name = shown(address)
        self._address = address
        self._fps = fps
        self._live = live
        self._reconnect_s = reconnect_s
        self._seen = 0
        try:
            self._open()
        except (self._av.error.InvalidDataError, self._av.error.ArgumentError) as error:
            raise InputError(f"{self.name} is not a video, or was cut short") from error
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise InputError(f"can't open {self.name}: {why}") from error
        except self._av.error.FFmpegError as error:
            raise InputError(f"can't open {self.name}: {error.strerror}") from error

    def _open(self) -> None:
        options = {"max_pixels": str(MAX_PIXELS)}
        form = None
        if self._address.startswith(CAMERA):
            form = "v4l2"
            options |= {} if self._fps is None else {"framerate": f"{self._fps:g}"}
        elif self._live:
            options |= {
                "rtsp_transport": "tcp",
                "protocol_whitelist": LIVE_PROTOCOLS[scheme_of(self._address)],
                "format_whitelist": LIVE_FORMATS,
            }
        else:
            options |= {"protocol_whitelist": "file", "format_whitelist": FILE_FORMATS}
            _check_file(self._address)
        self._container = self._av.open(
            self._address, format=form, options=options, timeout=(OPEN_S, READ_S)
        )
        if not self._container.streams.video:
            self._container.close()
            raise InputError(f"{self.name} has no pictures: it contains no video stream")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        context.options = {"max_pixels": str(MAX_PIXELS)}
        context.thread_type, context.thread_count = "SLICE", 1  # frame threads would delay frames
        rate = self._fps or float(self._stream.average_rate or self._stream.guessed_rate or 0)
        if not 0 < rate <= 1000:
            self._container.close()
            raise InputError(f"{self.name} doesn't state its frames per second: give fps=")
        self.rate_per_s = rate
        self.size = (context.height or UNSTATED[0], context.width or UNSTATED[1])
        self._check_size(*self.size)

    def _check_size(self, height: int, width: int) -> None:
        if height * width > MAX_PIXELS:
            raise InputError(
                f"{self.name} has frames of {width} x {height} pixels, more than {MAX_PIXELS}"
            )

    def frames(self, pace: FrameClock) -> Iterator[tuple[Array, int]]:
        last_ns = pace.clock_ns()
        while True:
            cut = ""
            try:
                for image, arrived_ns in self._frames(pace):
                    self._seen += 1
                    last_ns = pace.clock_ns()
                    yield image, arrived_ns
            except (self._av.error.FFmpegError, OSError) as error:
                cut = error.strerror or type(error).__name__  # its text has the address
            if not self._live:
                self._note_of_end(cut)
                return
            why = f" ({cut})" if cut else ""
            self.note(f"{self.name} disconnected after {amount(self._seen, 'frame')}{why}")
            if not self._reopened(pace, last_ns + round(1e9 * self._reconnect_s)):
                self.ended = "lost"
                return

    def _frames(self, pace: FrameClock) -> Iterator[tuple[Array, int]]:
        """Decode packet by packet: a frame has arrived once the packet that completes it has."""
        period_ns = 1e9 / self.rate_per_s
        first: float | None = None
        offset = before = skipped = 0.0
        context = self._stream.codec_context
        for count, packet in enumerate(self._container.demux(self._stream)):
            end = packet.size == 0
            if self._live:
                arrived_ns = pace.clock_ns()
            elif not end:
                at = count * period_ns
                if self._fps is None and packet.dts is not None:
                    time_ns = float(packet.dts * packet.time_base) * 1e9
                    first = time_ns - at if first is None else first
                    at = time_ns - first
                if not 0 <= at - before <= LONGEST_GAP_NS:
                    skipped += at - before - period_ns
                before, offset = at, at - skipped
                arrived_ns = pace.arrival_ns(round(offset))
            if packet.is_corrupt:
                self.unreadable += 1
                continue
            try:
                pictures = context.decode(None if end else packet)
            except self._av.error.InvalidDataError:
                self.unreadable += 1
                continue
            for picture in pictures:
                if picture.is_corrupt:
                    self.unreadable += 1
                    continue
                if (
                    end and not self._live
                ):  # frames that the decoder held back have times of their own
                    offset += period_ns
                    arrived_ns = pace.arrival_ns(round(offset))
                yield self._rgb(picture), arrived_ns

    def _rgb(self, picture: Any) -> Array:
        self._check_size(picture.height, picture.width)
        image: Array = picture.to_ndarray(format="rgb24")
        turns = round(picture.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image

    def _note_of_end(self, cut: str) -> None:
        """Say of a recording that its end is missing, where it states a length that didn't come."""
        stated = self._stream.frames
        if not stated and self._container.duration:
            rate = float(self._stream.average_rate or self.rate_per_s)
            stated = round(self._container.duration / 1e6 * rate)
        lacking = stated - self._seen
        if cut or self.unreadable or lacking > max(2, stated // 100):
            self.ended = "cut short"
            of = f" of about {stated:,}" if stated else ""
            damaged = f"; {self.unreadable:,} were damaged" if self.unreadable else ""
            self.note(
                f"{self.name} is cut short or damaged: {self._seen:,}{of} frames could be read{damaged}"
            )

    def _reopened(self, pace: FrameClock, until_ns: int) -> bool:
        self._container.close()
        while pace.clock_ns() < until_ns:
            try:
                self._open()
            except (self._av.error.FFmpegError, OSError, InputError):
                if pace.sleep_s(RETRY_S):
                    return False
            else:
                self.note(f"{self.name} came back")
                return True
        return False

    def close(self) -> None:
        self._container.close()
