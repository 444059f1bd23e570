"""Watch a stream: capture in one thread, answer in another, and count what became of each frame."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from hasten.errors import InputError
from hasten.serving.streams.files import Lines
from hasten.serving.streams.frames import Frame, FrameClock, Slot
from hasten.serving.streams.opening import open_source
from hasten.serving.streams.overlay import Overlay
from hasten.serving.streams.sources import Source, scheme_of
from hasten.serving.streams.tally import Answer, Ended, Tally, Watched

if TYPE_CHECKING:
    from hasten.bundle import Loaded
    from hasten.bundle.chains.opened import OpenChain

TOLD_EVERY_S = 0.25
RECENT = 8
"""Number of the newest decisions whose fastest one says whether another can still be in time."""
LATELY = 1000
"""Number of the newest latencies that are told while a watch goes on."""


class Decider(Protocol):
    """Object whose `decide` answers a frame, as a loaded bundle does."""

    def decide(self, value: Any) -> Any:
        """Return the decision on a picture, `(height, width, 3)` uint8 in RGB."""


def watch(
    bundle: str | os.PathLike[str] | Decider,
    source: str | os.PathLike[str],
    *,
    fps: float | None = None,
    deadline_ns: int | None = None,
    as_fast_as_possible: bool = False,
    drop_late: bool = False,
    on_decision: Callable[[Answer], None] | None = None,
    out: str | os.PathLike[str] | None = None,
    decisions: str | os.PathLike[str] | None = None,
    reconnect_s: float = 0.0,
    duration_s: float | None = None,
    listen: Callable[[Watched], None] | None = None,
) -> Watched:
    """Answer a stream's frames as they come, the newest first.

    A thread captures and decodes; the calling thread answers. One frame waits between them: a newer
    one replaces it, and a frame older than one period is never started. Both count as dropped.
    Latency is from the arrival of a frame's last bytes, before it is decoded, to its decision.
    Ctrl-C ends the watch, and what was seen until then is returned.

    Args:
        bundle: Folder of a bundle; a chain, as `hasten.chain` takes it; or what is open already, or
            another object with a method `decide`.
        source: A video file, a folder of pictures, a camera such as /dev/video0, or an address that
            begins with rtsp://, rtsps://, udp:// or tcp://.
        fps: Frames per second; by default the source's own, and 30 for a folder of pictures.
        deadline_ns: Longest time from capture to a decision, in nanoseconds; one period by default.
        as_fast_as_possible: Answer every frame of a recording, each once the one before is answered.
            No frame is dropped, and latency is from the decoded frame to the decision.
        drop_late: Whether to drop a decision that comes after the deadline: nobody gets it, and it is
            counted as late. A frame isn't started where the fastest of the newest decisions took longer
            than is left until its deadline.
        on_decision: Function that gets each answer, in the calling thread.
        out: Video file to write with the decisions drawn in; it ends in .mp4, .mkv or .mov.
        decisions: File to write with a line of JSON for each answer.
        reconnect_s: Longest time to try to reach a camera or an address again after its last frame, in seconds.
        duration_s: Time after which the watch ends, in seconds; by default the source's end.
        listen: Function that gets the counts every quarter of a second, in a thread of its own.

    Returns:
        Numbers of frames that were answered and dropped, and their latencies.

    Raises:
        InputError: the bundle, the source or a file can't be used, or the bundle can't decide on
            pictures; the message says why.
        CandidateError: the model failed.
    """
    _check(deadline_ns, as_fast_as_possible, drop_late, reconnect_s, duration_s)
    _check_files(os.fspath(source), out, decisions)
    with contextlib.ExitStack() as stack:
        opened = open_source(os.fspath(source), fps, reconnect_s=reconnect_s)
        stack.callback(opened.close)
        decide = stack.enter_context(_decider(bundle)).decide
        overlay = lines = None
        pictures = records = None
        done = False
        try:
            if out is not None:
                overlay = Overlay(Path(out), opened.rate_per_s, wait=as_fast_as_possible)
            lines = None if decisions is None else Lines(Path(decisions))
            decide(np.zeros((*opened.size, 3), np.uint8))  # first calls are slow: not on the stream
            period_ns = round(1e9 / opened.rate_per_s)
            paced_ns = None if as_fast_as_possible else period_ns
            run = _Run(opened, time.perf_counter_ns, paced_ns, deadline_ns)
            run.overlay, run.tell = overlay, _tellers(lines, on_decision)
            run.drop_late = drop_late
            with run.telling(listen), run.capturing(duration_s):
                run.answer(decide)
            done = True
        finally:
            try:
                pictures = None if overlay is None else overlay.close()
            finally:
                records = None if lines is None else lines.close(done=done)
    return run.watched((pictures, records))


def _check(
    deadline_ns: int | None,
    unpaced: bool,
    drop_late: bool,
    reconnect_s: float,
    duration_s: float | None,
) -> None:
    if unpaced and drop_late:
        raise InputError(
            "as_fast_as_possible=True has no deadline, so no decision can be late: leave out "
            "drop_late=True"
        )
    if deadline_ns is not None and unpaced:
        raise InputError(
            "as_fast_as_possible=True has no deadline, because frames don't come at their "
            "recorded times: leave out one of the two"
        )
    if deadline_ns is not None and deadline_ns <= 0:
        raise InputError(f"the deadline must be above 0 ns: got {deadline_ns} ns")
    if not 0 <= reconnect_s < float("inf"):
        raise InputError(f"the time to reconnect must be at least 0 s: got {reconnect_s:g} s")
    if duration_s is not None and not 0 < duration_s < float("inf"):
        raise InputError(f"the length of the watch must be above 0 s: got {duration_s:g} s")


def _check_files(
    source: str, out: str | os.PathLike[str] | None, decisions: str | os.PathLike[str] | None
) -> None:
    """Check that no file that is written is another one of the watch.

    Raises:
        InputError: two of the files are the same one.
    """
    named = {"source": None if scheme_of(source) else source, "out": out, "decisions": decisions}
    given = [(name, os.fspath(file)) for name, file in named.items() if file is not None]
    for (one, first), (other, second) in itertools.combinations(given, 2):
        if _is_same(first, second):
            raise InputError(
                f"{other}= would replace the file of {one}=, {first}: give it another name"
            )


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)  # noqa: PTH121  (a source is text)
    except OSError:  # one isn't there yet
        return os.path.realpath(one) == os.path.realpath(other)


@contextlib.contextmanager
def _decider(bundle: str | os.PathLike[str] | Decider) -> Iterator[Decider]:
    if isinstance(bundle, (str, os.PathLike)):
        from hasten.bundle import load
        from hasten.bundle.chains.opened import open_chain
        from hasten.inputs.chains import is_chain

        opened: OpenChain | Loaded
        opened = (
            open_chain(bundle, sessions=1)
            if is_chain(bundle)
            else load(bundle, sessions=1, beside_others=True)  # frames are read and drawn meanwhile
        )
        with opened:
            yield opened
    elif hasattr(bundle, "decide"):
        yield bundle
    else:
        raise InputError(
            "bundle must be a folder, an open bundle or an object with a method decide: got "
            f"{bundle!r}"
        )


def _tellers(
    lines: Lines | None, on_decision: Callable[[Answer], None] | None
) -> tuple[Callable[[Answer], None], ...]:
    return (*([] if lines is None else [lines.write]), *([on_decision] if on_decision else []))


class _Run:
    """One watch: its two threads and what they share."""

    def __init__(
        self,
        source: Source,
        clock_ns: Callable[[], int],
        period_ns: int | None,
        deadline_ns: int | None,
        slot: Slot | None = None,
    ) -> None:
        self._source = source
        self._clock_ns = clock_ns
        self._period_ns = period_ns
        self._begin_ns = clock_ns()
        self._slot = slot or Slot()
        self._stop = threading.Event()
        self._failed: BaseException | None = None
        self._stopped = False
        self._deadline_ns = period_ns if deadline_ns is None else deadline_ns
        self._recent_ns: deque[int] = deque(maxlen=RECENT)
        self.tally = Tally(self._deadline_ns, self._begin_ns)
        self.drop_late = False
        self.refusal = ""
        self.overlay: Overlay | None = None
        self.tell: tuple[Callable[[Answer], None], ...] = ()

    def answer(self, decide: Callable[[Any], Any]) -> None:
        """Answer frames until the stream ends."""
        try:
            while (frame := self._slot.take()) is not None:
                self._answer_one(frame, decide)
        except KeyboardInterrupt:
            self._stopped = True
        if self._failed is not None:
            raise self._failed

    def _answer_one(self, frame: Frame, decide: Callable[[Any], Any]) -> None:
        began_ns = self._clock_ns()
        if self._period_ns is not None and began_ns - frame.captured_ns > self._period_ns:
            self.tally.drop()
            return
        if self.drop_late and self._hopeless(began_ns - frame.captured_ns):
            self.tally.drop()
            return
        try:
            decision = decide(frame.image)
        except InputError as error:  # the next frame may be another one
            self._refuse(frame, error)
            return
        ended_ns = self._clock_ns()
        self._recent_ns.append(ended_ns - began_ns)
        latency_ns = ended_ns - (began_ns if self._period_ns is None else frame.captured_ns)
        if self.drop_late and self._deadline_ns is not None and latency_ns > self._deadline_ns:
            self.tally.drop(late=True)
            return
        answer = self.tally.answer(frame.number, frame.captured_ns, latency_ns, decision)
        for tell in self.tell:
            tell(answer)
        self._draw(frame, answer)

    def _refuse(self, frame: Frame, error: InputError) -> None:
        """Count a frame that the bundle can't decide on, and say why of the first one."""
        self.tally.drop(refused=True)
        self._draw(frame, None)
        if not self.refusal:
            self.refusal = str(error)
            self._source.note(f"frame {frame.number:,} was refused: {error}")

    def _draw(self, frame: Frame, answer: Answer | None) -> None:
        """Hand a frame over to the overlay where it waits for each frame's own answer."""
        if self.overlay is not None and self._period_ns is None:
            time_ns = round(1e9 * frame.number / self._source.rate_per_s)
            self.overlay.offer(frame, time_ns, answer)

    def _hopeless(self, age_ns: int) -> bool:
        """Whether a frame of this age can't be decided in time, although a fresh one could.

        Each frame that isn't started takes away one decision of those that say so, so that a model
        that became faster, or a processor that became free, is noticed.
        """
        assert self._deadline_ns is not None
        fastest_ns = min(self._recent_ns, default=0)
        hopeless = age_ns + fastest_ns > self._deadline_ns >= fastest_ns
        if hopeless and self._recent_ns:
            self._recent_ns.popleft()
        return hopeless

    @contextlib.contextmanager
    def capturing(self, duration_s: float | None) -> Iterator[None]:
        """Capture in a thread until the block ends, the source does, or the time is over."""
        thread = threading.Thread(target=self._capture, name="hasten-capture", daemon=True)
        timer = None if duration_s is None else threading.Timer(duration_s, self._time_is_over)
        thread.start()
        if timer is not None:
            timer.start()
        try:
            yield
        finally:
            self._stop.set()
            self._slot.close()
            if timer is not None:
                timer.cancel()
            thread.join()
            self.tally.settle()

    def _time_is_over(self) -> None:
        self._stopped = True
        self._stop.set()
        self._slot.close()

    def _capture(self) -> None:
        pace = FrameClock(self._clock_ns, self._stop.wait, follow=self._period_ns is not None)
        begin_ns: int | None = None
        try:
            for image, captured_ns in self._source.frames(pace):
                if self._period_ns is None:
                    self._slot.wait_until_empty()
                if self._stop.is_set():
                    break
                frame = Frame(self.tally.capture(), image, captured_ns)
                if self._slot.put(frame):
                    self.tally.drop()
                if self.overlay is not None and self._period_ns is not None:
                    begin_ns = captured_ns if begin_ns is None else begin_ns
                    self.overlay.offer(frame, captured_ns - begin_ns, self.tally.newest)
        except BaseException as error:
            self._failed = error
        finally:
            self._slot.close()

    @contextlib.contextmanager
    def telling(self, listen: Callable[[Watched], None] | None) -> Iterator[None]:
        """Tell the counts at intervals until the block ends."""
        if listen is None:
            yield
            return
        over = threading.Event()

        def tell() -> None:
            while not over.wait(TOLD_EVERY_S):
                listen(self.tally.watched(self._made, last=LATELY))

        thread = threading.Thread(target=tell, name="hasten-telling", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _made(self, **counts: Any) -> Watched:
        ended: Ended = "stopped" if self._stopped else self._source.ended
        return Watched(
            source=self._source.name,
            rate_per_s=self._source.rate_per_s,
            unreadable=self._source.unreadable,
            duration_ns=self._clock_ns() - self._begin_ns,
            ended=ended,
            notes=tuple(self._source.notes),
            **counts,
        )

    def watched(self, written: tuple[Path | None, Path | None]) -> Watched:
        """Return what became of the frames, and of the files.

        Raises:
            InputError: no frame came, or the bundle refused all that it was asked about.
        """
        overlay = self.overlay
        notes = list(self._source.notes)
        if overlay is not None and overlay.failed:
            notes.append(f"the overlay couldn't be written: {overlay.failed}")
        more = {
            "overlay": written[0],
            "overlay_dropped": 0 if overlay is None else overlay.dropped,
            "decisions": written[1],
            "notes": tuple(notes),
        }
        watched = self.tally.watched(functools.partial(self._whole, more))
        if not watched.captured and watched.ended != "stopped":
            raise InputError(
                "; ".join((f"{watched.source} has no frame that could be read", *notes))
            )
        if watched.refused and not watched.answered and watched.ended != "stopped":
            raise InputError(
                f"{watched.source} has no frame that could be answered: {self.refusal}"
            )
        return watched

    def _whole(self, more: dict[str, Any], **counts: Any) -> Watched:
        import dataclasses

        return dataclasses.replace(self._made(**counts), **more)
