"""Run one model's queue: the event loop forms batches, and threads run the engine.

Everything here except `_Thread.work` is called on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from hasten.core.tensors import Array, Tensors
from hasten.engines.padding import Padder
from hasten.errors import BeyondRange, HastenError, InputError, IntegrityError, named
from hasten.serving.models.clients import Clients
from hasten.serving.models.scheduling import BatchRun, Pending, Scheduler, Wait
from hasten.serving.models.statistics import Statistics
from hasten.serving.protocol.errors import Kind, ProtocolError, own_fault, without_frames

log = logging.getLogger("hasten.serving")

INLINE_NS = 100_000
"""Time below which a batch runs on the event loop's own thread: handing it to another thread takes as
long, or longer if both threads need the interpreter lock."""
_INLINE_STEP = 1.05
_LONE_NS = 10_000_000
"""Time below which a lone client's batch runs on the event loop's own thread; in a longer batch the
cost of handing it over hardly shows."""
_STALL_NS = 2 * _LONE_NS
"""Time of a batch on the loop's own thread that shows that batches may take far longer than was measured."""
_COARSE_NS = 1_000_000
_LARGE_BYTES = 1 << 20
"""Size of a batch's answers from which they are handed over before the next batch, if nothing told how large they are."""
_MOST_SHAPES = 256
"""Sizes of requests whose answers' sizes are remembered."""
_UNLOADED = "the model was unloaded"
_SIZED_BY_VALUE = "values decide how large the answers of a batch are, so no requests share one from now on; retry"
_TRY_AGAIN = 256
"""Number of batches that were too long for the loop's thread before one is tried there again."""

Model: TypeAlias = Callable[[Tensors], dict[str, Array]]


class InsteadAnswer(dict[str, Array]):
    """Outputs of the exact model, which answers in the fast one's place."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of an answered request's stages, on the monotonic clock.

    Attributes:
        begun_ns: Time when the request's batch left the queue.
        stacked_ns: Time when the batch's inputs were stacked.
        computed_ns: Time when the engine was done.
        rows: Rows in the batch.
        instead: Whether the exact model answered in the fast one's place.
    """

    begun_ns: int
    stacked_ns: int
    computed_ns: int
    rows: int
    instead: bool = False

    def since(self, queued_ns: int, now_ns: int) -> tuple[int, int, int, int, int]:
        """Return the spans of queueing, stacking, computing and splitting, then the batch's rows."""
        return (
            self.begun_ns - queued_ns,
            self.stacked_ns - self.begun_ns,
            self.computed_ns - self.stacked_ns,
            now_ns - self.computed_ns,
            self.rows,
        )


@contextlib.contextmanager
def handed_over() -> Iterator[None]:
    """Log an answer that can't be handed over: other requests, and what waits for an empty queue, must go on."""
    try:
        yield
    except Exception:
        log.exception("an answer couldn't be handed over")


class ServerTask(Pending):
    """Request that can be run.

    Attributes:
        inputs: Checked arrays by input name.
        over: Whether the request is answered, refused or given up.
        timer: Timer that fails the request at its deadline; None if there is no deadline.
    """

    __slots__ = ("inputs", "over", "timer")

    inputs: Tensors
    over: bool
    timer: asyncio.TimerHandle | None

    def reply(self, outputs: Tensors | ProtocolError, timing: Timing | None) -> None:
        """Receive the answer, on the loop's thread; again if that fails before the request is over.

        Args:
            outputs: Arrays by output name, or the error.
            timing: Times of the request's stages; None if it wasn't run.
        """
        raise NotImplementedError

    def forget(self) -> None:
        """Let go of what the request keeps in memory, as it is over and no thread runs it.

        A queue may hold it for much longer.
        """
        self.inputs = {}


def unmade() -> ProtocolError:
    """Return the error of a request whose answer couldn't be made."""
    why = "the answer couldn't be made; the server's log has the reason"
    return ProtocolError(Kind.INTERNAL, why)


def tell_unmade(item: ServerTask) -> None:
    """Tell a request that its own part of an answer couldn't be made."""
    with handed_over():
        item.reply(unmade(), None)


class Batching:
    """Queue of one model version, with the threads that run its batches.

    Args:
        models: Functions that run a batch, one per session; each is called by one thread at a time.
        scheduler: Scheduler that orders requests and forms batches.
        statistics: Statistics that batches are added to.
        loop: Event loop of the server.
        clients: Record of which client of the server is active.
        clock_ns: Monotonic clock, in nanoseconds.
        padder: Padding of requests up to buckets, which may then share a batch; None for no padding.
        timed: Input -> its sizes in the requests whose times the scheduler knows, without the batch; larger
            requests take nobody knows how long, so they never run on the loop's thread. Empty if no
            request was timed, None if all requests are of the same sizes.
        told: Whether the sizes of requests tell how large their answers are.
    """

    def __init__(
        self,
        models: Sequence[Model],
        scheduler: Scheduler[ServerTask],
        statistics: Statistics,
        loop: asyncio.AbstractEventLoop,
        clients: Clients,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        padder: Padder | None = None,
        timed: Mapping[str, tuple[int, ...]] | None = None,
        *,
        told: bool = True,
    ) -> None:
        self._padder, self._timed, self._told = padder, timed, told
        self.scheduler = scheduler
        self._clients = clients
        self._statistics = statistics
        self._loop = loop
        self._clock_ns = clock_ns
        self._threads = [_Thread(model, loop, self._landed, clock_ns, padder) for model in models]
        self._free = list(self._threads)
        self._shapes: dict[Hashable, tuple[tuple[int, ...], ...]] = {}
        """Sizes of requests -> those of their answers, without the rows, where shapes don't tell these."""
        self._runs: dict[int, BatchRun[ServerTask]] = {}
        self._afterwards: dict[int, list[Callable[[], None]]] = {}
        """Number of a batch -> batch that a thread runs, and functions to call after it."""
        self._inline_factor = 1.0
        """Ratio of a batch's time on the loop's own thread to the curve's. Times on other threads
        don't count, since they include waits for the interpreter lock."""
        self._elsewhere = self._away = 0
        self._looking = False
        self._waiting: asyncio.Handle | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._closed = False

    def submit(self, item: ServerTask) -> None:
        """Queue a request, or run it at once.

        Raises:
            ProtocolError: the request is refused.
        """
        if self._closed:
            raise ProtocolError(Kind.UNAVAILABLE, _UNLOADED, 1.0)
        now_ns = self._clock_ns()
        if (run := self.scheduler.take_alone(item, now_ns)) is not None:
            if self._belongs_here(run, now_ns):
                self._run_here(run, now_ns)
            else:
                self._run_there(run, now_ns)
            return
        self.scheduler.offer(item, now_ns)
        if item.deadline_ns != math.inf:
            delay_s = max(0.0, (item.deadline_ns - now_ns) / 1e9)
            item.timer = self._loop.call_later(delay_s, self._late, item)
        self._look_soon()

    def cancel(self, item: ServerTask) -> None:
        """Drop a request, without a reply, because its client went away."""
        if item.state == "done":
            return
        running = item.state == "running"
        self.scheduler.drop(item)
        self._settle(item)
        if not running:
            item.forget()
        self._look_soon()

    def after(self, item: ServerTask, done: Callable[[], None]) -> None:
        """Call a function once no thread runs a request, whether that is over or not; at once if none does."""
        for number, run in self._runs.items():
            if item in run.items:
                self._afterwards.setdefault(number, []).append(done)
                return
        done()

    def stay_away(self) -> None:
        """Never again run a long batch on the loop's thread; may be called from any thread."""
        self._clients = Clients()  # a new record never reports a client as alone

    def promote(self, item: ServerTask, waiting: ServerTask) -> None:
        """Let a request go as early as an equal one would that waits for its answer."""
        self.scheduler.promote(item, waiting)
        self._look_soon()

    def _settle(self, item: ServerTask) -> None:
        """Mark a request as done, and stop its timer."""
        item.state = "done"
        if item.timer is not None:
            item.timer.cancel()

    def _late(self, item: ServerTask) -> None:
        """Fail a queued or running request whose deadline has come."""
        if item.state == "done":
            return
        left_ns = item.deadline_ns - self._clock_ns()
        if left_ns > 0:  # the loop's timers round to milliseconds
            item.timer = self._loop.call_later(left_ns / 1e9, self._late, item)
            return
        self.scheduler.judge(item, late=True)
        queued = self.scheduler.drop(item)
        self._settle(item)
        with handed_over():
            item.reply(_late("in the queue" if queued else "while it was computed"), None)
        if queued:
            item.forget()
        self._look_soon()

    def _look_soon(self) -> None:
        """Schedule a look at the queue after all requests that have arrived by now are queued."""
        if not self._looking:
            self._looking = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looking = False
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None
        while True:
            now_ns = self._clock_ns()
            for item in self.scheduler.hopeless(now_ns):
                self._settle(item)
                why = (
                    "overloaded: requests of higher priority took all the time; retry later"
                    if item.deadline_ns == math.inf
                    else "overloaded: the deadline can no longer be met; retry later"
                )
                with handed_over():
                    item.reply(ProtocolError(Kind.OVERLOADED, why, retry_s=0.0), None)
                item.forget()
            step = self.scheduler.next(now_ns)
            if step is None:
                self._tell_if_empty()
                return
            if isinstance(step, Wait):
                self._wait(step.until_ns, now_ns)
                return
            if self._belongs_here(step, now_ns):
                self._run_here(step, now_ns)
                self._look_soon()  # after a turn of the loop, so that it can receive and send
                return
            self._run_there(step, now_ns)

    def _wait(self, until_ns: int, now_ns: int) -> None:
        """Look at the queue at a precise time, although the loop's timers round to milliseconds."""
        left_ns = until_ns - now_ns
        if left_ns <= 0:
            self._look()
        elif left_ns >= _COARSE_NS:
            delay_s = left_ns // 1_000_000 / 1e3
            self._waiting = self._loop.call_later(delay_s, self._wait_on, until_ns)
        else:
            self._waiting = self._loop.call_soon(self._wait_on, until_ns)

    def _wait_on(self, until_ns: int) -> None:
        self._wait(until_ns, self._clock_ns())

    def _run_there(self, run: BatchRun[ServerTask], now_ns: int) -> None:
        """Run a batch on an engine thread."""
        number = self.scheduler.begun(run, now_ns)
        self._runs[number] = run
        self._free.pop().jobs.put((run, number))

    def _run_here(self, run: BatchRun[ServerTask], now_ns: int) -> None:
        """Run a short batch on the loop's own thread."""
        number = self.scheduler.begun(run, now_ns)
        thread = self._free.pop()
        outputs, timing = thread.run(run)
        took_ns = timing.computed_ns - now_ns
        if (
            took_ns > _STALL_NS
        ):  # as where a request's values decide: the longer, the more go elsewhere
            self._away = _TRY_AGAIN * took_ns // _LONE_NS
        ratio = took_ns / self.scheduler.latencies.measured_ns(run.rows)
        # Small steps track the median ratio, which rare long pauses of the thread don't affect.
        self._inline_factor *= _INLINE_STEP if ratio > self._inline_factor else 1 / _INLINE_STEP
        self._ended(thread, number, outputs, timing)
        self._answer(run, outputs, timing)
        self._tell_if_empty()

    def _belongs_here(self, run: BatchRun[ServerTask], now_ns: int) -> bool:
        """Whether a batch should run on the event loop's own thread."""
        if self._away:
            self._away -= 1
            return False
        if self._timed is not None and not all(_within(i.inputs, self._timed) for i in run.items):
            return False
        return self._short(run.rows) or self._is_lone(run, now_ns)

    def _is_lone(self, run: BatchRun[ServerTask], now_ns: int) -> bool:
        """Whether a batch may block the loop: its client is alone, and it meets its deadline."""
        item, scheduler = run.items[0], self.scheduler
        if not self._clients.alone(item.source, now_ns) or len(run.items) > 1:
            return False
        latencies = scheduler.latencies
        took_ns = latencies.expected_ns(run.rows)
        if self._timed is not None:  # smaller requests may have made it seem shorter
            took_ns = max(took_ns, latencies.measured_ns(run.rows))
        return (
            scheduler.idle
            and took_ns <= _LONE_NS
            and now_ns + latencies.promised_ns(run.rows) <= item.deadline_ns
        )

    def _short(self, rows: int) -> bool:
        """Whether a batch is short enough to run on the event loop's own thread."""
        if self.scheduler.latencies.measured_ns(rows) * self._inline_factor <= INLINE_NS:
            return True
        self._elsewhere += 1
        if (
            self._elsewhere >= _TRY_AGAIN
            and self.scheduler.latencies.measured_ns(rows) <= INLINE_NS
        ):
            self._elsewhere = 0
            return True
        return False

    def _landed(
        self,
        thread: _Thread,
        run: BatchRun[ServerTask],
        number: int,
        outputs: Tensors | Exception,
        timing: Timing,
    ) -> None:
        """Handle a batch that its thread ran: start the next one before answering this one.

        If the answers are large and nothing told that before, those of the next one may be too, and those who wait for
        it may have to take their requests back.
        """
        self._ended(thread, number, outputs, timing)
        del self._runs[number]
        if (
            self.scheduler.queued_rows
            and not isinstance(outputs, Exception)
            and (self._told or _size_of(outputs) <= _LARGE_BYTES)
        ):
            self._look()
        self._answer(run, outputs, timing)
        for done in self._afterwards.pop(number, ()):
            done()
        self._look_soon()

    def _ended(
        self, thread: _Thread, number: int, outputs: Tensors | Exception, timing: Timing
    ) -> None:
        self._free.append(thread)
        failed = isinstance(outputs, Exception)
        took_ns = None if failed else timing.computed_ns - timing.begun_ns
        self.scheduler.ended(number, took_ns, timing.computed_ns)

    def _answer(
        self, run: BatchRun[ServerTask], outputs: Tensors | Exception, timing: Timing
    ) -> None:
        """Reply to each request of a batch with its own rows."""
        began_ns = self._clock_ns()
        if not self._told and self._are_unlike(run, outputs):
            self.scheduler.latencies = self.scheduler.latencies.one_by_one()
            if len(run.items) > 1:
                outputs = _UnlikeRowsError(Kind.INTERNAL, _SIZED_BY_VALUE)
        if isinstance(outputs, Exception) and len(run.items) > 1 and not self._closed:
            if isinstance(outputs, _UnlikeRowsError):
                # The next batch may happen to have as many rows as requests, and not one for each.
                self.scheduler.latencies = self.scheduler.latencies.one_by_one()
            # One request may have made the batch fail: each is run alone, so that the others succeed.
            self.scheduler.put_back([item for item in run.items if item.state != "done"])
            return
        row = 0
        padder = self._padder and _needed(self._padder, run.items)
        for item in run.items:
            begin, row = row, row + item.rows
            if item.state == "done":
                continue
            self._settle(item)
            late = began_ns > item.deadline_ns
            if item.deadline_ns != math.inf:
                self.scheduler.judge(item, late=late)
            try:
                if isinstance(outputs, Exception):
                    item.reply(_failure(outputs), None)
                elif late:  # its timer couldn't fire while the batch ran on the loop's own thread
                    item.reply(_late("while it was computed"), None)
                elif len(run.items) == 1:
                    item.reply(outputs, timing)
                else:
                    own = {name: array[begin:row] for name, array in outputs.items()}
                    if padder is not None and (sizes := padder.sizes(_shapes(item))) is not None:
                        own = padder.cut(own, sizes)
                    item.reply(own, timing)
            except Exception:  # as `handed_over`, which would take longer
                log.exception("an answer couldn't be handed over")
                if not item.over:
                    tell_unmade(item)
        if not isinstance(outputs, Exception):
            self._statistics.ran(
                run.rows,
                timing.stacked_ns - timing.begun_ns,
                timing.computed_ns - timing.stacked_ns,
                self._clock_ns() - began_ns,
            )

    def _are_unlike(self, run: BatchRun[ServerTask], outputs: Tensors | Exception) -> bool:
        """Whether answers have another size than those before to requests of the same sizes, and may yet share batches.

        All rows of a batch have answers of one size, so those to each request would depend on the others.
        """
        key = run.items[0].key
        if isinstance(outputs, Exception) or len(self.scheduler.latencies.sizes) == 1:
            return False
        if not isinstance(key, tuple):  # padded up to a bucket, or put back
            return False
        if len(self._shapes) >= _MOST_SHAPES and key not in self._shapes:
            self._shapes.clear()
        shapes = tuple(array.shape[1:] for array in outputs.values())
        return self._shapes.setdefault(key, shapes) != shapes

    def _tell_if_empty(self) -> None:
        if self._emptied is not None and self.scheduler.idle and not self._emptied.done():
            self._emptied.set_result(None)

    async def drained(self) -> None:
        """Wait until every accepted request is answered."""
        if not self.scheduler.idle:
            self._emptied = self._loop.create_future()
            await self._emptied

    def close(self) -> None:
        """Refuse the queued requests, and end each thread once its batch is done."""
        self._closed = True
        while items := self.scheduler.drain():  # whoever waited for one of them comes after it
            for item in items:
                self._settle(item)
                with handed_over():
                    item.reply(ProtocolError(Kind.UNAVAILABLE, _UNLOADED, 1.0), None)
        for thread in self._threads:
            thread.jobs.put(None)


class _Thread:
    """Thread that runs the batches of one session.

    Args:
        model: Function that runs a batch.
        loop: Event loop of the server.
        landed: Callback on the loop's thread for a batch that was run.
        clock_ns: Monotonic clock, in nanoseconds.
        padder: Padding of requests up to buckets; None for no padding.
    """

    def __init__(
        self,
        model: Model,
        loop: asyncio.AbstractEventLoop,
        landed: Callable[..., None],
        clock_ns: Callable[[], int],
        padder: Padder | None = None,
    ) -> None:
        self._padder = padder
        self.jobs: queue.SimpleQueue[tuple[BatchRun[ServerTask], int] | None] = queue.SimpleQueue()
        self._model, self._loop, self._landed = model, loop, landed
        self._clock_ns = clock_ns
        threading.Thread(target=self.work, name="hasten-engine", daemon=True).start()

    def work(self) -> None:
        """Run jobs from the queue until a None ends the thread."""
        while (job := self.jobs.get()) is not None:
            run, number = job
            result = self.run(run)
            try:
                self._loop.call_soon_threadsafe(self._landed, self, run, number, *result)
            except RuntimeError:  # the loop was closed meanwhile, so no client waits
                return
            del job, run, result  # otherwise the last request stays in memory until the next job

    def run(self, run: BatchRun[ServerTask]) -> tuple[Tensors | Exception, Timing]:
        """Stack the requests and run the engine."""
        begun_ns = stacked_ns = self._clock_ns()
        instead = False
        try:
            padder = self._padder and _needed(self._padder, run.items)
            inputs, number = _padded(run.items, padder) if padder else (_stacked(run.items), -1)
            stacked_ns = self._clock_ns()
            answers = self._model(inputs)
            instead = type(answers) is InsteadAnswer
            if len(run.items) > 1:
                check_rows(answers, run.rows)
            if padder is not None:
                padder.check(answers, number)
            outputs: Tensors | Exception = answers
        except Exception as error:
            outputs = without_frames(error)
        return outputs, Timing(begun_ns, stacked_ns, self._clock_ns(), run.rows, instead)


def _size_of(outputs: Tensors) -> int:
    return sum(array.nbytes for array in outputs.values())


def _within(inputs: Tensors, timed: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether no input is larger along any axis, counted from the last one, than the timed one."""
    return bool(timed) and all(
        size <= most
        for name, array in inputs.items()
        for size, most in zip(reversed(array.shape), reversed(timed[name]), strict=False)
    )


def _stacked(items: Sequence[ServerTask]) -> Tensors:
    """Return one request's inputs unchanged, or several requests' rows concatenated."""
    first: Tensors = items[0].inputs
    if len(items) == 1:
        return first
    return {name: np.concatenate([item.inputs[name] for item in items]) for name in first}


def _needed(padder: Padder, items: Sequence[ServerTask]) -> Padder | None:
    """Return the padding for a batch whose requests differ in shape beyond their rows; else None."""
    first = items[0].inputs
    unlike = any(
        array.shape[1:] != first[name].shape[1:]
        for item in items[1:]
        for name, array in item.inputs.items()
    )
    return padder if unlike else None


def _shapes(item: ServerTask) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in item.inputs.items()}


def _padded(items: Sequence[ServerTask], padder: Padder) -> tuple[Tensors, int]:
    """Return the rows of requests, each padded up to the bucket that they share, and its number."""
    number = padder.bucket(padder.sizes(_shapes(items[0])))
    filled = [padder.filled(item.inputs, number) for item in items]
    return {name: np.concatenate([one[name] for one in filled]) for name in filled[0]}, number


class _UnlikeRowsError(ProtocolError):
    """An output of a batch hasn't one row per input row, so nothing says whose its rows are."""


def check_rows(outputs: Tensors, rows: int) -> None:
    """Check that every output has one row per input row, so that it can be split by request.

    Raises:
        _UnlikeRowsError: an output has another shape.
    """
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise _UnlikeRowsError(
                Kind.INTERNAL,
                f"the output {name!r} of {rows} rows has the shape {list(array.shape)}; serve this "
                "model with --max-batch 1",
            )


def _late(where: str) -> ProtocolError:
    return ProtocolError(Kind.LATE, f"the deadline passed {where}")


def _failure(error: Exception) -> ProtocolError:
    if isinstance(error, ProtocolError):
        return error
    if isinstance(error, MemoryError):
        return own_fault(error)
    if isinstance(error, HastenError):
        theirs = isinstance(error, InputError | BeyondRange)
        theirs = theirs and not isinstance(error, IntegrityError)
        return ProtocolError(Kind.INVALID if theirs else Kind.INTERNAL, str(error))
    return ProtocolError(Kind.INTERNAL, f"the engine failed: {named(error)}")
