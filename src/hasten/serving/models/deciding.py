"""Answer raw samples, such as encoded pictures: prepare them, run the model, and decide.

Preparation and decision run on threads of their own, so that the event loop goes on; between the two,
the sample waits and runs in the model's queue like any other request.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np

from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.core.varying import of_sample
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin, Pipeline, as_request
from hasten.inputs.pipeline.decoded_bytes import allowed_bytes
from hasten.serving.fairness import Shares
from hasten.serving.models.batching import handed_over
from hasten.serving.models.caching import AnswerCache, PreparedSample, content_key, steps_key
from hasten.serving.models.decisions import as_json
from hasten.serving.models.prepared import row_bytes, together
from hasten.serving.models.room import COPIES, LARGE, ROOM, NoRoomError, Place
from hasten.serving.models.statistics import Statistics
from hasten.serving.protocol.errors import Kind, ProtocolError, own_fault, without_frames
from hasten.serving.protocol.requests import DECISION, RAW, Answer, Query
from hasten.serving.turns import Turns

_MOST_WAITING = 1024
_QUICK_NS = 100_000
"""Time below which work is done on the event loop's thread: about the cost of another thread's."""
_SHORT_BYTES = 4096
"""Size of a request's samples up to which its work may be done there."""
_MOST_THREADS = 12
"""Largest number of a model's threads for samples: each keeps some of the memory that it freed."""
_RECENT = 16
"""Number of latest spans whose median says how long a stage takes."""

_ALWAYS_BYTES = 16 << 20
"""Memory that the prepared samples of a request may take, however few bytes it has."""
_PER_BYTE, _FEW_BYTES = 2048, 64 << 10
"""Memory that they may take besides, for each byte of the samples beyond so many; as in `Decode`."""
_ALTOGETHER_BYTES = 256 << 20
"""Memory that the prepared samples of all requests under way may take, if there are several."""

Done: TypeAlias = Callable[[Answer | ProtocolError], None]
log = logging.getLogger("hasten.serving")


class Cancellable(Protocol):
    """Interface of an accepted request."""

    query: Query
    over: bool

    def cancel(self) -> None:
        """Give up the request, whose client went away."""

    def withdraw(self) -> bool:
        """Give up the request, uncounted, while it waits; return whether it did, or False if it runs or is over."""


class Asked(Protocol):
    """Interface of the model that prepared samples are sent to."""

    name: str
    version: str
    most_rows: int
    statistics: Statistics
    cache: AnswerCache | None
    inputs: tuple[TensorSpec, ...]
    varying: tuple[str, ...]

    @property
    def answers(self) -> str:
        """Model that answers: "winner" or "exact"."""

    @property
    def answering(self) -> str:
        """Name of what answers, for the keys of cached decisions; "" while it isn't known."""

    @property
    def steps(self) -> Sequence[Any]:
        """Models that this one asks; none unless it is a chain."""

    def submit(self, query: Query, done: Done) -> Cancellable:
        """Accept a request with tensors."""

    def answered(self, query: Query, rows: int, part: Sequence[Any] = ()) -> None:
        """Count a request with raw samples that is answered now."""

    def refused(self, query: Query, failure: ProtocolError) -> None:
        """Count a request that got an error."""


class RawTicket:
    """A request with raw samples, from its acceptance to its answer.

    Attributes:
        model: Model that the request was sent to.
        query: Request as it was parsed.
        over: Whether the request is answered, refused or given up.
        rows: Number of samples.
        key: Hash of the samples; None if their decisions aren't cached.
        kept: Cached forms of each sample, as the model takes it.
        origins: Where each prepared sample comes from.
        short: Whether the samples are so few bytes that their pipeline can't take long.
        prepared_bytes: Size of the prepared samples; 0 before they are there.
        place: Memory that is reserved for the samples.
        job: Work that waits for a thread, at most one; emptied when the request is over.
        deadline_ns: Time after which the request's answer comes too late.
        timer: Timer that refuses the request if it waits too long for memory.
        late_timer: Timer that refuses the request at its deadline; None without one.
        turn: Client's turn for a thread; 0 before it waits for one.
        smaller: Samples whose pictures were decoded smaller, which the exact model doesn't take; else none.
        part: Record and ticket of the model's answer; none before it is there.
    """

    __slots__ = (
        "_deciding",
        "_done",
        "deadline_ns",
        "inner",
        "job",
        "kept",
        "key",
        "late_timer",
        "model",
        "origins",
        "over",
        "part",
        "place",
        "prepared_bytes",
        "query",
        "rows",
        "short",
        "smaller",
        "timer",
        "turn",
    )
    place: Place

    def __init__(self, deciding: Deciding, query: Query, done: Done, rows: int) -> None:
        self._deciding, self.model, self.query, self._done = deciding, deciding.model, query, done
        self.rows, self.over = rows, False
        self.key: bytes | None = None
        self.inner: Cancellable | None = None
        self.kept: list[PreparedSample] = []
        self.origins: list[Origin] = []
        self.short, self.prepared_bytes, self.turn = False, 0, 0
        self.job: list[Callable[[], None]] = []
        self.timer: asyncio.TimerHandle | None = None
        self.late_timer: asyncio.TimerHandle | None = None
        self.deadline_ns: float = math.inf
        self.smaller: list[bytes] = []
        self.part: list[Any] = []

    def cancel(self) -> None:
        """Give up the request, whose client went away."""
        if self.over:
            return
        self._deciding.leave(self)
        if self.inner is not None and not self.inner.over:
            self.inner.cancel()
        else:
            gone = ProtocolError(Kind.GONE, "the client went away")
            self.model.refused(self.query, gone)

    def withdraw(self) -> bool:
        """Give up the request, uncounted, before the model runs; return whether that was done."""
        if self.over or (self.inner is not None and not self.inner.withdraw()):
            return False
        self.query.own = True
        self.cancel()
        return True

    def tell(self, answer: Answer | ProtocolError) -> None:
        """Answer the request, unless it is over."""
        if not self.over:
            self.inner = None  # its tensors would stay until the client has read the answer
            self._deciding.leave(self)
            self._done(answer)


class Deciding:
    """Prepares the raw samples of one model's requests, and decides on its outputs.

    Args:
        model: Model that the prepared samples are sent to.
        pipeline: The bundle's steps before and after the model.
        loop: Event loop on whose thread all methods are called.
        deadline_ns: Deadline of a request that states none, in nanoseconds; 0 for no deadline.
        clock_ns: Monotonic clock, in nanoseconds.
        most_wait_ns: Longest wait for memory, in nanoseconds.
        smaller: Steps by which pictures are decoded smaller for the bundle's winner; None where all of its models
            take what the pipeline gives.
    """

    def __init__(
        self,
        model: Asked,
        pipeline: Pipeline,
        loop: asyncio.AbstractEventLoop,
        deadline_ns: int,
        clock_ns: Callable[[], int],
        most_wait_ns: int,
        smaller: Pipeline | None = None,
    ) -> None:
        self.model, self.pipeline, self._most_wait_ns = model, pipeline, most_wait_ns
        self._smaller = smaller
        self._per_byte = max((step.memory_per_byte for step in pipeline.steps), default=0)
        self._longest = longest_of(pipeline)
        self._loop, self._deadline_ns, self._clock_ns = loop, deadline_ns, clock_ns
        # The processors that an engine leaves idle while it waits are few: one thread for each.
        self._at_once = min(Target.host().threads, _MOST_THREADS)
        self._threads = ThreadPoolExecutor(self._at_once, "hasten-deciding")
        self._counted = self._at_once
        ROOM.count_threads(self._counted)
        self._bounded = bool(pipeline.steps) and pipeline.steps[0].bounded
        self._repeatable = pipeline.deterministic
        """Whether an equal request gets an equal decision, so that it can be cached."""
        self._steps = steps_key(pipeline.steps, keeps_text=pipeline.reads_text)
        self._smaller_steps = None
        if smaller is not None:
            self._smaller_steps = steps_key(smaller.steps, keeps_text=smaller.reads_text)
        self._recent_ns: dict[str, deque[int]] = {
            stage: deque(maxlen=_RECENT) for stage in ("prepare", "decide")
        }
        self._under_way: set[RawTicket] = set()
        self._shares = Shares(_MOST_WAITING)
        self._turns, self._orders, self._lock = Turns(), itertools.count(), threading.Lock()
        self._waiting: list[tuple[int, int, list[Callable[[], None]]]] = []
        """Heap of the work that waits for a thread, by the client's turn and the order of arrival."""
        self._prepared_bytes = 0
        self._none_left = asyncio.Event()
        self._none_left.set()

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not self._under_way

    def check(self, datatype: str, shape: tuple[int, ...]) -> None:
        """Check the stated datatype and shape of raw samples before they are decoded.

        Raises:
            ProtocolError: they aren't a list of raw samples, or there are none or too many.
        """
        most = max(1, self.model.most_rows)
        if datatype != "BYTES" or len(shape) != 1 or not 1 <= shape[0] <= most:
            raise ProtocolError(
                Kind.INVALID,
                f"input {RAW!r}: the model takes BYTES[1 to {most}], one element per sample; got "
                f"{datatype}{list(shape)}",
            )

    def submit(self, query: Query, done: Done) -> RawTicket:
        """Accept a request with raw samples; `done` gets its answer on the loop's thread.

        Raises:
            ProtocolError: the request doesn't fit the model, or too many wait.
        """
        try:
            samples = self._samples(query)
            self._take_place(query.client)
        except ProtocolError as failure:
            self.model.refused(query, failure)
            raise
        ticket = self.ticket(query, done, len(samples))
        sent = sum(map(len, samples))
        most = allowed_bytes(max(map(len, samples)), self._per_byte) if self._per_byte else None
        ticket.place = Place(ROOM, query.client, query.sent_bytes or sent, most)
        ticket.short = self._bounded and sent <= _SHORT_BYTES
        self._under_way.add(ticket)
        self._none_left.clear()
        if self.model.cache is not None and self._repeatable and self._known(ticket):
            return ticket
        try:
            self._check_wait(ticket)
        except ProtocolError as failure:
            self.model.refused(query, failure)
            self.leave(ticket)
            raise
        timeout_ns = query.timeout_ns or self._deadline_ns
        if timeout_ns:
            ticket.deadline_ns = query.arrived_ns + timeout_ns
        self._begin(ticket, partial(self._prepared, ticket, samples))
        if not ticket.over and timeout_ns:
            self._late(ticket)
        return ticket

    def _begin(self, ticket: RawTicket, prepare: Callable[[], Any]) -> None:
        """Begin an accepted request; a chain lets it wait for its turn first."""
        self._run(ticket, prepare, self._ask)

    def ticket(self, query: Query, done: Done, rows: int) -> RawTicket:
        """Return the ticket of a request."""
        return RawTicket(self, query, done, rows)

    def leave(self, ticket: RawTicket) -> None:
        """Note that a request is answered or given up."""
        ticket.over, ticket.part = True, []
        give = partial(self._shares.give, ticket.query.client, 1)
        counted = ticket in self._under_way
        self._under_way.discard(ticket)
        try:  # the queue keeps the work's place, but not its samples
            ticket.job[0] = partial(self._later, give) if counted else _nothing
        except IndexError:  # a thread has taken it
            if counted:
                give()
        self._prepared_bytes -= ticket.prepared_bytes
        ticket.prepared_bytes = 0
        for timer in (ticket.timer, ticket.late_timer):
            if timer is not None:
                timer.cancel()
        ticket.place.leave()
        if not self._under_way:
            self._none_left.set()

    def _later(self, work: Callable[[], None]) -> None:
        """Let the event loop do work, unless it has ended; on a thread."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work)

    async def drained(self) -> None:
        """Wait until every accepted request is answered."""
        await self._none_left.wait()

    def close(self) -> None:
        """Refuse the requests under way, and end the threads."""
        for ticket in list(self._under_way):
            failure = ProtocolError(Kind.UNAVAILABLE, "the model was unloaded", 1.0)
            self.model.refused(ticket.query, failure)
            if ticket.inner is not None and not ticket.inner.over:
                ticket.inner.query.own = (
                    True  # an engine may still fail on it, which counts no more
                )
            with handed_over():
                ticket.tell(failure)
        self._threads.shutdown(wait=False, cancel_futures=True)
        ROOM.count_threads(-self._counted)
        self._counted = 0

    def _samples(self, query: Query) -> list[bytes]:
        array = query.inputs[RAW]
        if len(query.inputs) > 1:
            others = ", ".join(name for name in query.inputs if name != RAW)
            raise ProtocolError(
                Kind.INVALID,
                f"raw samples are the only input of a request; got {others:.400} too",
            )
        most = max(1, self.model.most_rows)
        if query.several and array.size > most:
            raise ProtocolError(
                Kind.INVALID,
                f"a request to {self.model.name!r} has at most {amount(most, 'row')}; got {array.size:,}: send "
                "several requests",
            )
        self.check("BYTES" if array.dtype == object else array.dtype.name, array.shape)
        for wanted in query.outputs:
            if wanted.name != DECISION:
                raise ProtocolError(
                    Kind.INVALID,
                    f"raw samples are answered by the output {DECISION!r}; got {wanted.name!r:.100}: "
                    "send tensors to get the model's own outputs",
                )
        samples = [bytes(sample) for sample in array]
        if (size := max(map(len, samples))) > self._longest:
            raise ProtocolError(
                Kind.INVALID,
                f"a sample for {self.model.name!r} may have {self._longest:,} bytes; got {size:,}: send a shorter "
                "one, such as the part that matters",
            )
        return samples

    def _take_place(self, client: str) -> None:
        """Count a request that begins.

        Raises:
            ProtocolError: too many are under way, or too many of this client while others are there.
        """
        shares = self._shares
        if shares.took(client, 1):
            return
        said = f"overloaded: {shares.total} requests with raw samples are in progress; retry later"
        if shares.taken < shares.total:
            said = f"overloaded: {shares.of(client)} of the {shares.total} requests with raw samples that may be in progress are this client's, and other clients are waiting; retry later"
        raise ProtocolError(Kind.OVERLOADED, said, retry_s=1.0)

    def _check_wait(self, ticket: RawTicket) -> None:
        """Nothing: what is prepared waits in the model's queue, which refuses what would wait too long."""

    def _known(self, ticket: RawTicket) -> bool:
        """Answer from the cache; False if the answer isn't there."""
        assert self.model.cache is not None
        if not (answering := self.model.answering):
            return False
        statistics, began_ns = self.model.statistics, self._clock_ns()
        ticket.key = content_key(ticket.query.inputs, answering)
        found = self.model.cache.get(ticket.key)
        span_ns = self._clock_ns() - began_ns
        if found is None:
            if self.model.steps:  # any other model looks for its outputs, and counts that
                statistics.cache_miss.add(span_ns)
            return False
        statistics.cache_hit.add(span_ns)
        self.model.answered(ticket.query, ticket.rows)
        ticket.tell(self._answer(ticket, [bytes(found[str(n)]) for n in range(ticket.rows)]))
        return True

    def _run(
        self,
        ticket: RawTicket,
        work: Callable[[], Any],
        then: Callable[[RawTicket, Any], None],
        *,
        later: bool = False,
    ) -> None:
        """Run work at once if it is quick, else on a thread; go on with its result on the loop's.

        Args:
            ticket: The request.
            work: Function that returns the result.
            then: Function that gets it.
            later: Whether the samples are prepared already, so that the work can't begin again.
        """

        stage = "decide" if later else "prepare"

        def worked() -> None:
            if not ticket.over and (told := self._worked(ticket, work, later)) is not None:
                self._loop.call_soon_threadsafe(self._go_on, ticket, stage, *told, then)

        ticket.place.go = partial(self._queue, ticket, worked)
        if not self._quick(stage, ticket):
            ticket.place.go()
        elif (told := self._worked(ticket, work, later)) is not None:
            self._go_on(ticket, stage, *told, then)

    def _queue(self, ticket: RawTicket, work: Callable[[], None]) -> None:
        """Let a thread do work when its turn comes; the turns of large samples are those of the room."""
        ticket.job = [work]
        with contextlib.suppress(RuntimeError):  # the model was unloaded, and the request refused
            if ticket.place.large:
                LARGE.submit(_do, ticket.job)
                return
            with self._lock:
                if (
                    not ticket.turn
                ):  # it keeps its turn, so that what has begun comes before what hasn't
                    ticket.turn = self._turns.next(ticket.query.client, ticket.rows)
                heapq.heappush(self._waiting, (ticket.turn, next(self._orders), ticket.job))
            self._threads.submit(self._work)

    def _work(self) -> None:
        """Do the work whose turn it is; on a thread."""
        with self._lock:
            turn, _, job = heapq.heappop(self._waiting)
            self._turns.begun(turn)
        _do(job)

    def _quick(self, stage: str, ticket: RawTicket) -> bool:
        """Whether a stage takes less time than the way to a thread and back, for a short sample."""
        spans = self._recent_ns[stage]
        return ticket.short and len(spans) == _RECENT and sorted(spans)[_RECENT // 2] < _QUICK_NS

    def _worked(
        self, ticket: RawTicket, work: Callable[[], Any], later: bool
    ) -> tuple[Any, int] | None:
        """Return what work returns, or the error that its request gets, and how long it took.

        None if there is too little memory now: then the work begins again once there is enough.
        """
        began_ns = self._clock_ns()
        try:
            with ticket.place.works(later=later):
                result = work()
        except NoRoomError:
            result = None
        except ProtocolError as failure:
            result = without_frames(failure)
        except MemoryError as error:
            result = own_fault(error)
        except Exception:  # otherwise the client would get no answer at all
            log.exception("the pipeline failed on a request to %s", self.model.name)
            result = ProtocolError(
                Kind.INTERNAL, "the model's pipeline failed; the server's log has the reason"
            )
        if result is None:
            ticket.place.again()
            self._loop.call_soon_threadsafe(self._waits, ticket)
            return None
        return result, self._clock_ns() - began_ns

    def _waits(self, ticket: RawTicket) -> None:
        """Note that a request waits for memory, which it may do for a while."""
        if not ticket.over and ticket.timer is None:
            ticket.timer = self._loop.call_later(self._most_wait_ns / 1e9, self._give_up, ticket)

    def _give_up(self, ticket: RawTicket) -> None:
        """Refuse a request that still waits for memory."""
        ticket.timer = None
        if ticket.place.wanted_bytes:
            said = "overloaded: other samples take the memory that this one needs; retry later"
            failure = ProtocolError(Kind.OVERLOADED, said, retry_s=1.0)
            self.model.refused(ticket.query, failure)
            ticket.tell(failure)

    def _late(self, ticket: RawTicket) -> None:
        """Refuse a request at its deadline, though a thread may go on with it; in the queue, that does so itself."""
        ticket.late_timer = None
        left_ns = ticket.deadline_ns - self._clock_ns()
        if left_ns > 0:  # the loop's timers round to milliseconds
            ticket.late_timer = self._loop.call_later(left_ns / 1e9, self._late, ticket)
        elif ticket.inner is None or ticket.inner.over:
            stage = "sample was prepared" if ticket.inner is None else "decision was made"
            failure = ProtocolError(Kind.LATE, f"the deadline passed before the {stage}")
            self.model.refused(ticket.query, failure)
            ticket.tell(failure)

    def _go_on(
        self,
        ticket: RawTicket,
        stage: str,
        result: Any,
        span_ns: int,
        then: Callable[[RawTicket, Any], None],
    ) -> None:
        if ticket.over:
            return
        for one in ticket.kept:
            self.model.statistics.prepared_hits += one.hits
            self.model.statistics.prepared_misses += one.misses
            one.hits = one.misses = 0
        self._recent_ns[stage].append(span_ns)
        self._note(stage, span_ns)
        if isinstance(result, ProtocolError):
            self.model.refused(ticket.query, result)
            ticket.tell(result)
            return
        then(ticket, result)

    def _note(self, stage: str, span_ns: int) -> None:
        """Record how long it took to "prepare" a request's samples, or to "decide" on them."""
        self.model.statistics.staged(stage, span_ns)

    def _prepared(self, ticket: RawTicket, samples: list[bytes]) -> Tensors:
        """Return a request's prepared samples as tensors, one row each; on a thread."""
        if self._clock_ns() > ticket.deadline_ns:
            raise ProtocolError(Kind.LATE, "the deadline passed before the sample was prepared")
        self._check_sent(ticket.query, samples)
        ticket.place.hold(COPIES * row_bytes(self.model.inputs) * len(samples))
        ticket.origins.clear()
        pipeline, ticket.smaller = self.pipeline, []
        if self._smaller is not None and self.model.answers == "winner":
            pipeline, ticket.smaller = self._smaller, samples
        ticket.kept.clear()
        rows: list[dict[str, Array]] = []
        taken = 0
        most = _ALWAYS_BYTES + _PER_BYTE * max(0, sum(map(len, samples)) - _FEW_BYTES)
        for place, sample in enumerate(samples):
            what = "row" if ticket.query.several else "sample"
            where = f"{what} {place}: " if ticket.query.several or len(samples) > 1 else ""
            try:
                row, origin = self._row(ticket, sample, pipeline)
            except InputError as error:
                raise ProtocolError(Kind.INVALID, f"{where}{error}") from error
            rows.append(row)
            ticket.origins.append(origin)
            taken += sum(array.nbytes for array in rows[-1].values())
            if place and taken > most:
                raise ProtocolError(
                    Kind.INVALID,
                    f"once they are prepared, {place + 1} of the {len(samples)} samples take "
                    f"more than the {most / 2**20:,.0f} MiB that are allowed for a request of so "
                    "few bytes: send several requests",
                )
        ticket.place.settle(COPIES * taken)
        tensors = together(rows)
        ticket.place.keep(COPIES * taken)
        return tensors

    def _row(
        self, ticket: RawTicket, sample: bytes, pipeline: Pipeline
    ) -> tuple[dict[str, Array], Origin]:
        """Return a sample, prepared by a pipeline, as a request with one row, and where it comes from.

        Raises:
            InputError: the sample can't be read or doesn't fit.
        """
        steps = self._steps if pipeline is self.pipeline else self._smaller_steps
        if self.model.cache is None or steps is None:
            prepared, origin = pipeline.prepared(sample)
            return as_request(prepared, self.model.inputs), origin
        kept = self.model.cache.prepared(sample)
        ticket.kept.append(kept)
        if (found := kept.get(steps)) is not None:
            kept.hits += 1
            return as_request(found[0], self.model.inputs), found[1]
        kept.misses += 1
        prepared, origin = pipeline.prepared(sample)
        row = as_request(prepared, self.model.inputs)
        kept.put(steps, prepared, origin)
        return row, origin

    def _check_sent(self, query: Query, samples: list[bytes]) -> None:
        """Check that a compressed body doesn't make a picture, a sound or a text large, whose bytes allow it memory."""
        size, most = max(map(len, samples)), max(query.sent_bytes, _FEW_BYTES)
        if query.sent_bytes and size > most and self._per_byte:
            raise ProtocolError(
                Kind.INVALID,
                f"a sample in a compressed body may have {most:,} bytes; got {size:,}: send it without "
                "Content-Encoding",
            )

    def _ask(self, ticket: RawTicket, tensors: dict[str, Array]) -> None:
        query, taken = ticket.query, sum(array.nbytes for array in tensors.values())
        if self._prepared_bytes and self._prepared_bytes + taken > _ALTOGETHER_BYTES:
            failure = ProtocolError(
                Kind.OVERLOADED,
                "overloaded: too many prepared samples are waiting; retry later",
                retry_s=1.0,
            )
            self.model.refused(query, failure)
            ticket.tell(failure)
            return
        ticket.prepared_bytes, ticket.part = taken, []
        self._prepared_bytes += taken
        inner = Query(
            query.model,
            query.version,
            query.id,
            tensors,
            priority=query.priority,
            timeout_ns=query.timeout_ns,
            arrived_ns=query.arrived_ns,
            parsed_ns=query.parsed_ns,
            trace=query.trace,
            source=query.source,
            client=query.client,
            name=query.name,
            raw=ticket.smaller,
            part=ticket.part,
        )
        try:
            asked = self.model.submit(inner, partial(self._answered, ticket))
        except ProtocolError as failure:  # the model has counted it
            ticket.tell(failure)
            return
        if not ticket.over:  # else the answer came at once
            ticket.inner = asked

    def _answered(self, ticket: RawTicket, answer: Answer | ProtocolError) -> None:
        if isinstance(answer, ProtocolError):
            ticket.tell(answer)
            return
        if ticket.smaller and self.model.answers != "winner":
            self._ask_again(ticket)
            return
        outputs = answer.outputs
        self._run(ticket, partial(self._decided, ticket, outputs), self._finish, later=True)

    def _ask_again(self, ticket: RawTicket) -> None:
        """Prepare a request again for the exact model, which took over after its pictures were decoded smaller."""
        samples, ticket.inner, ticket.part = ticket.smaller, None, []
        self._prepared_bytes -= ticket.prepared_bytes
        ticket.prepared_bytes = 0
        self._run(ticket, partial(self._prepared, ticket, samples), self._ask)

    def as_given(self, sample: bytes) -> Tensors:
        """Return a sample as the exact model takes it; on any thread.

        Raises:
            InputError: it can't be read so, as a picture that would take too much memory whole.
        """
        prepared, _ = self.pipeline.prepared(sample)
        return as_request(prepared, self.model.inputs)

    def _decided(self, ticket: RawTicket, outputs: Tensors) -> list[bytes]:
        """Return the decision on each sample as JSON; on a thread."""
        decisions = []
        for place, origin in enumerate(ticket.origins):
            own = of_sample(outputs, place, self.model.varying)
            try:
                decisions.append(as_json(self.pipeline.decided(own, origin)))
            except InputError as error:
                raise ProtocolError(Kind.INTERNAL, str(error)) from error
        return decisions

    def _finish(self, ticket: RawTicket, decisions: list[bytes]) -> None:
        """Count a request whose samples are decided on, and tell the decisions."""
        self.model.answered(ticket.query, ticket.rows, ticket.part)
        self._tell(ticket, decisions)

    def _tell(self, ticket: RawTicket, decisions: list[bytes]) -> None:
        if ticket.key is not None and self.model.cache is not None:
            kept = {str(n): np.frombuffer(one, np.uint8) for n, one in enumerate(decisions)}
            self.model.cache.put(ticket.key, kept)
        ticket.tell(self._answer(ticket, decisions))

    def _answer(self, ticket: RawTicket, decisions: list[bytes]) -> Answer:
        array = np.empty(len(decisions), object)
        array[:] = decisions
        model = self.model
        answer = Answer(model.name, model.version, ticket.query.id, {DECISION: array})
        answer.decisions_bytes = sum(map(len, decisions))
        return answer


def longest_of(*pipelines: Pipeline) -> float:
    """Return the size of the longest sample that all pipelines take."""
    stated = (step.longest_bytes for pipeline in pipelines for step in pipeline.steps)
    return min((size for size in stated if size), default=math.inf)


def _nothing() -> None:
    """Do nothing, in place of work that nobody waits for."""


def _do(job: list[Callable[[], None]]) -> None:
    """Do the work that waits, unless its request is over; on a thread."""
    try:
        work = job.pop()
    except IndexError:
        return
    work()
