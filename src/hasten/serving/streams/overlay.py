"""Write the stream with its decisions drawn in, in a thread that never delays an answer."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.serving.streams.drawing import drawn
from hasten.serving.streams.files import Beside
from hasten.serving.streams.frames import Frame
from hasten.serving.streams.tally import Answer
from hasten.serving.streams.video import av

FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}
WAITING = 4
"""Largest number of frames that wait to be drawn."""
NICENESS = 10
"""Priority of the thread that draws and encodes, below that of the model."""
_CLOCK = Fraction(1, 90_000)


class Overlay:
    """A video file with each frame and the newest decision that was known when it was captured.

    Frames are drawn and encoded by a thread of low priority. Where it can't keep up, a frame is left
    out and counted, and the others keep their times.

    Args:
        path: The file; it ends in .mp4, .mkv or .mov.
        rate_per_s: Frames per second, which the file states.
        wait: Whether to wait for the thread instead of leaving frames out.

    Attributes:
        dropped: Number of frames that were left out, since there was no time or their shape can't be scaled.
        failed: Why no file could be written; "" where it could.

    Raises:
        InputError: the file's ending is another, or its folder can't be written to.
    """

    def __init__(self, path: Path, rate_per_s: float, *, wait: bool) -> None:
        if path.suffix.lower() not in FORMATS:
            raise InputError(f"out={str(path)!r}: give a name that ends in {', '.join(FORMATS)}")
        self.dropped = 0
        self.failed = ""
        self._av = av()
        self._format = FORMATS[path.suffix.lower()]
        self._rate = Fraction(rate_per_s).limit_denominator(1001)
        self._wait = wait
        self._beside = Beside(path)
        self._queue: queue.Queue[tuple[Frame, int, Answer | None] | None] = queue.Queue(WAITING)
        self._last = -1
        self._closed = False
        drawn(np.zeros((32, 32, 3), np.uint8), None, "0")  # loads the font before the stream begins
        self._thread = threading.Thread(target=self._run, name="hasten-overlay", daemon=True)
        self._thread.start()

    def offer(self, frame: Frame, time_ns: int, answer: Answer | None) -> None:
        """Hand over a frame.

        Args:
            frame: The frame.
            time_ns: Its time from the beginning of the file, in nanoseconds.
            answer: The answer to show with it, if one is known.
        """
        try:
            self._queue.put((frame, time_ns, answer), block=self._wait)
        except queue.Full:
            self.dropped += 1

    def close(self) -> Path | None:
        """Finish the file under its name; None where there were no frames or writing failed."""
        self._queue.put(None)
        self._thread.join()
        if self._last < 0 or self.failed:
            self._beside.drop()
            return None
        try:
            return self._beside.keep()
        except OSError as error:
            self.failed = str(error.strerror or error)
            return None

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            self._write()
        except Exception as error:  # whatever fails here must hold up no answer
            self.failed = str(getattr(error, "strerror", None) or error)
            while not self._closed and self._queue.get() is not None:  # nobody waits for a place
                self.dropped += 1

    def _write(self) -> None:
        with self._av.open(str(self._beside.part), "w", format=self._format) as container:
            stream: Any = None
            while (item := self._queue.get()) is not None:
                frame, time_ns, answer = item
                corner = "" if answer is None else f"{answer.latency_ns / 1e6:.1f} ms"
                image = drawn(frame.image, None if answer is None else answer.decision, corner)
                if stream is None:
                    stream = self._stream(container, image)
                picture = self._av.VideoFrame.from_ndarray(_even(image), format="rgb24")
                try:
                    picture = picture.reformat(
                        width=stream.width, height=stream.height, format="yuv420p"
                    )
                except self._av.error.FFmpegError:  # a shape that it can't scale, as 30000 x 1
                    self.dropped += 1
                    continue
                self._last = max(self._last + 1, round(time_ns / 1e9 / _CLOCK))
                picture.pts, picture.time_base = self._last, _CLOCK
                container.mux(stream.encode(picture))
            self._closed = True  # nothing comes any more, also where what follows fails
            if stream is not None:
                container.mux(stream.encode(None))

    def _stream(self, container: Any, image: Array) -> Any:
        """Open the encoder; frames of another size than the first are scaled to its size."""
        stream = container.add_stream("libx264", rate=self._rate)
        stream.height, stream.width = _even(image).shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = _CLOCK
        stream.options = {"preset": "ultrafast", "crf": "23"}
        stream.codec_context.thread_count = 1
        return stream


def _even(image: Array) -> Array:
    """Repeat the last row and column where they are odd in number, as the encoder needs them even."""
    down, across = image.shape[0] % 2, image.shape[1] % 2
    return np.pad(image, ((0, down), (0, across), (0, 0)), "edge") if down or across else image
