"""Keep the states of sequences, and run each sequence's requests one after another."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeAlias
from weakref import WeakSet

import numpy as np

from hasten.bundle import Carrier, Loaded
from hasten.core.sequences import Pairs, Sequences
from hasten.errors import CandidateError
from hasten.serving.fairness import Shares
from hasten.serving.models.batching import handed_over, unmade
from hasten.serving.models.deciding import Cancellable, Done
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import Answer, Query, SequenceId

log = logging.getLogger("hasten.serving")
_MOST_WAITING = 256
"""Largest number of requests of one sequence that wait for their turn."""
_MOST_GONE = 4096
"""Number of ended sequences whose end can still be explained to a client that comes late."""
_COPIES = 3
"""Copies of its sequence's states that a step takes: as a batch's inputs, as its outputs, and the sequence's own of
those, until the older states go."""

_FAILED = "its first request failed"

_Key: TypeAlias = tuple[str, SequenceId]
"""Name of the client, and its identifier of the sequence: no client goes on with another's."""


class Asked(Protocol):
    """Interface of the model that steps are sent to."""

    name: str
    version: str

    def submit(self, query: Query, done: Done) -> Cancellable:
        """Accept a step, states included."""

    def after(self, ticket: Any, done: Callable[[], None]) -> None:
        """Call a function once no thread runs a step that was accepted; at once if none does."""

    def answered(self, query: Query, rows: int, part: Sequence[Any]) -> None:
        """Count a step that is answered now."""

    def refused(self, query: Query, failure: ProtocolError) -> None:
        """Count a request that got an error."""

    def check_outputs(self, query: Query) -> None:
        """Check that the model has the outputs that are asked for."""


class StepTicket:
    """A step of a sequence, from its acceptance to its answer.

    Attributes:
        query: Request as it was parsed.
        over: Whether the request is answered, refused or given up.
        inner: Step at the engine, with the states; None while it waits for its turn.
        begins: Number of the start that the step belongs to, among those of its record; its own if it is one.
        timer: Timer that refuses the step if it waits too long for its turn; None while it needn't.
    """

    __slots__ = ("_done", "_kept", "_record", "begins", "inner", "over", "query", "timer")

    def __init__(self, kept: KeptSequences, record: _Record, query: Query, done: Done) -> None:
        self._kept, self._record, self.query, self._done = kept, record, query, done
        self.inner: Cancellable | None = None
        self.over = False
        self.begins = record.number(query)
        self.timer: asyncio.TimerHandle | None = None

    def cancel(self) -> None:
        """Give up the request, whose client went away: the step didn't happen."""
        if self.over:
            return
        self.over = True
        self.rest()
        inner, self.inner = self.inner, None
        if inner is not None:
            inner.cancel()
        else:
            self._kept.model.refused(self.query, ProtocolError(Kind.GONE, "the client went away"))
        self._kept.left(self._record, self, inner)

    def withdraw(self) -> bool:
        """Give up the request, uncounted, before the model runs; return whether that was done."""
        if self.over or (self.inner is not None and not self.inner.withdraw()):
            return False
        self.query.own = True
        if self.starts:
            self._record.forget_start(self.begins)
        self.cancel()
        return True

    @property
    def starts(self) -> bool:
        """Whether the sequence begins with this step."""
        return self.query.sequence is not None and self.query.sequence.start

    def tell(self, answer: Answer | ProtocolError) -> None:
        """Answer the request, unless it is over."""
        if not self.over:
            self.over, self.inner = True, None  # else the two would keep each other in memory
            self.rest()
            self._done(answer)

    def rest(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _Record:
    """One sequence: its states, and its requests in the order of arrival."""

    __slots__ = (
        "_starts",
        "begun",
        "carrier",
        "client",
        "copied",
        "kept",
        "key",
        "latest",
        "line",
        "looping",
        "over",
        "running",
        "unavailable",
        "used_ns",
        "waits",
    )

    def __init__(self, kept: KeptSequences, key: _Key, client: str, now_ns: int) -> None:
        self.kept, self.key, self.used_ns = kept, key, now_ns
        self.carrier: Carrier | None = None
        """States; None until a start was answered."""
        self.client = client
        """Client in whose share it is counted."""
        self.line: deque[StepTicket] = deque()
        self.running: StepTicket | None = None
        self.looping = False
        self.copied = self.waits = False
        """Whether there is memory for a step's copies, and whether the sequence waits for some."""
        self._starts = 0
        """Number of starts that have arrived."""
        self.begun = 0
        """Number of the start whose states are kept; 0 without any."""
        self.latest = 0
        """Number of the start that the next request without one belongs to."""
        self.over = _FAILED
        """Reason that a request gets which finds no states."""
        self.unavailable = ""
        """Error of the latest start if the model couldn't run it at all, as at an unload; else ""."""

    @property
    def idle(self) -> bool:
        return self.running is None and not self.line

    def number(self, query: Query) -> int:
        """Return the number of the start that a request belongs to which arrives now."""
        assert query.sequence is not None
        if query.sequence.start:
            self._starts += 1
            self.latest = self._starts
        return self.latest

    def forget_start(self, number: int) -> None:
        """Undo the arrival of a start, unless another one arrived after it."""
        if number == self._starts:
            self._starts = self.latest = number - 1


Records: TypeAlias = "OrderedDict[_Key, _Record]"


class StateBytes:
    """Memory that the states of all models' sequences share, and their copies; used on the event loop's thread only.

    A step waits until there is room for its copies. What those of one step take is always left free of states, so
    that steps go on.

    Args:
        total: Largest size of all states and copies together, in bytes.

    Attributes:
        total: Largest size of all states and copies together, in bytes.
        shares: Bytes that each client's sequences take, without copies.
        copied: Bytes of the copies that steps have now.
        kept: Sequences of each model.
    """

    def __init__(self, total: int) -> None:
        self.total, self.copied = total, 0
        self.shares = Shares(total)
        self.kept: WeakSet[KeptSequences] = WeakSet()
        self._waiting: deque[_Record] = deque()
        self._scheduled = False

    def reserve(self, each_bytes: int) -> None:
        """Leave states of this size, and all smaller ones, as much as the copies of one step don't take."""
        largest = max([each_bytes, *(one.each_bytes for one in self.kept if len(one))])
        self.shares.total = self.total - _COPIES * largest

    def took(self, record: _Record) -> bool:
        """Take the memory for a step's copies; if there is none, the sequence goes on once there is."""
        if record.copied:
            return True
        if not self._waiting and self._fits(record):
            self._take(record)
            return True
        if not record.waits:
            record.waits = True
            self._waiting.append(record)
        return False

    def give(self, size_bytes: int) -> None:
        """Give back what a step took."""
        self.copied -= size_bytes
        if self._waiting:
            self._schedule()

    def _fits(self, record: _Record) -> bool:
        size = _COPIES * record.kept.each_bytes
        return not self.copied or self.shares.taken + self.copied + size <= self.total

    def _take(self, record: _Record) -> None:
        record.copied = True
        self.copied += _COPIES * record.kept.each_bytes

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._let_in)

    def _let_in(self) -> None:
        """Let sequences go on that wait, as far as there is room; after one that is answered at once, later."""
        self._scheduled = False
        while self._waiting and (not self._waiting[0].line or self._fits(self._waiting[0])):
            record = self._waiting.popleft()
            record.waits = False
            if not record.line:
                continue
            self._take(record)
            record.kept._next(record)
            if not record.copied:
                break


class KeptSequences:
    """The sequences of one served model; used on the event loop's thread only.

    Requests of one sequence run one after another, in the order of arrival; those of different
    sequences run side by side and may share a batch. A request that gets an error leaves the states
    as they were, so it may be sent again. After a start that failed, none of the id's requests is answered
    from older states, until another start succeeds.

    Args:
        model: Model that steps are sent to.
        loaded: Open bundle, which says what states there are.
        sequences: States that the model carries.
        most: Largest number of sequences at once; 0 where none may be kept.
        states: Memory that the states share with those of other models.
        idle_ns: Time without a request after which a sequence's states go.
        loop: Event loop of the server.
        clock_ns: Monotonic clock, in nanoseconds.
        deadline_ns: Deadline of a request that states none, from its arrival; 0 for none.
        most_wait_ns: Longest wait of a request for those of its sequence that came before.
    """

    def __init__(
        self,
        model: Asked,
        loaded: Loaded,
        sequences: Sequences,
        *,
        most: int,
        states: StateBytes,
        idle_ns: int,
        loop: asyncio.AbstractEventLoop,
        clock_ns: Callable[[], int],
        deadline_ns: int,
        most_wait_ns: int,
    ) -> None:
        self.model = model
        self._deadline_ns, self._most_wait_ns = deadline_ns, most_wait_ns
        self.idle_ns = idle_ns
        self._sequences = sequences
        self._carrier = carrier = Carrier(loaded, sequences)
        self.each_bytes = sum(state.nbytes for state in carrier.states.values())
        self.most, self._memory = most, states
        states.kept.add(self)
        self._start = carrier.states
        self._answers = tuple(spec.name for spec in carrier.outputs)
        self._names = frozenset(carrier.specs)
        self._loop, self._clock_ns = loop, clock_ns
        self._records: Records = OrderedDict()
        self._shares = Shares(self.most, clock_ns=clock_ns)
        self._gone: OrderedDict[_Key, str] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._pending = 0

    def __len__(self) -> int:
        return len(self._records)

    @property
    def states(self) -> Pairs:
        """States that are carried, as pairs of input and output."""
        return self._sequences.states

    @property
    def size_bytes(self) -> int:
        """Size of the states of all sequences."""
        return len(self._records) * self.each_bytes

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return not self._pending

    def submit(self, query: Query, done: Done) -> StepTicket:
        """Accept a step of a sequence; `done` gets its answer, maybe before this returns.

        Raises:
            ProtocolError: the sequence isn't known, there are too many, or the request doesn't fit.
        """
        try:
            record = self._record(query)
        except ProtocolError as failure:
            self.model.refused(query, failure)
            raise
        ticket = StepTicket(self, record, query, done)
        record.line.append(ticket)
        self._pending += 1
        self._none_left.clear()
        self._next(record)
        if not ticket.over and record.running is not ticket:
            self._wait(record, ticket, self._clock_ns())
        return ticket

    def _wait(self, record: _Record, ticket: StepTicket, queued_ns: int) -> None:
        """Refuse a step in its sequence's line once its deadline passes, or it has waited for too long."""
        query, now_ns = ticket.query, self._clock_ns()
        timeout_ns = query.timeout_ns or self._deadline_ns
        late_ns = query.arrived_ns + timeout_ns if timeout_ns else math.inf
        end_ns = min(late_ns, queued_ns + self._most_wait_ns)
        if now_ns < end_ns:  # the loop's timers round to milliseconds, so one may come early
            left_s = (end_ns - now_ns) / 1e9
            ticket.timer = self._loop.call_later(left_s, self._wait, record, ticket, queued_ns)
            return
        of = "of other sequences" if record.running is None else "of the sequence"
        failure = ProtocolError(
            Kind.OVERLOADED,
            f"overloaded: earlier requests {of} took all the time; retry later",
            retry_s=1.0,
        )
        if late_ns <= now_ns:
            why = f"the deadline passed while earlier requests {of} ran"
            failure = ProtocolError(Kind.LATE, why)
        self.model.refused(query, failure)
        with handed_over():
            ticket.tell(failure)
        self.left(record, ticket)

    def _record(self, query: Query) -> _Record:
        """Return the sequence that a request belongs to, which it may begin."""
        step = query.sequence
        assert step is not None
        if self.most < 1:
            raise ProtocolError(
                Kind.INVALID,
                f"{self.model.name!r} keeps no sequences here, because there are several "
                "servers, and none of them knows which one has a state: send the states as "
                f"inputs ({', '.join(sorted(self._names))})",
            )
        if held := sorted(self._names & query.inputs.keys()):
            raise ProtocolError(
                Kind.INVALID,
                f"the server carries the state {held[0]!r} of a sequence: leave it out, or leave out "
                "sequence_id",
            )
        self.model.check_outputs(query)
        now_ns = self._clock_ns()
        self._expire(now_ns)
        key = query.name, step.id
        record = self._records.get(key)
        if record is None:
            if not step.start:
                raise ProtocolError(Kind.INVALID, self._unknown(key, None))
            self._take_place(query.client)
            record = self._records[key] = _Record(self, key, query.client, now_ns)
            self._gone.pop(key, None)
            self._sweep_later()
        if len(record.line) >= _MOST_WAITING:
            raise ProtocolError(
                Kind.OVERLOADED,
                f"{_MOST_WAITING} requests of the sequence {step.id!r:.100} are already waiting: "
                "wait for their answers",
                retry_s=1.0,
            )
        record.used_ns = now_ns
        self._records.move_to_end(key)
        return record

    def _take_place(self, client: str) -> None:
        """Count a sequence that begins, and its states; where there is no room, the client with the most loses some.

        Raises:
            ProtocolError: there is no room, or too much is this client's while others are there.
        """
        places, memory = self._shares, self._memory.shares
        least = (1 + _COPIES) * self.each_bytes
        if least > self._memory.total:
            raise ProtocolError(
                Kind.INVALID,
                f"a sequence of {self.model.name!r} has a state of {self.each_bytes:,} bytes, with {_COPIES} copies of "
                f"it in a step, and the server has {self._memory.total:,} bytes for states: start it with "
                f"--sequence-bytes {least} or more",
            )
        self._memory.reserve(self.each_bytes)
        if not self._took(places, client, 1, (self,)):
            raise _crowded(places, client, "sequences", "open")
        if not self._took(memory, client, self.each_bytes, self._memory.kept):
            places.give(client, 1)
            raise _crowded(memory, client, "bytes of states", "kept")

    def _took(self, shares: Shares, client: str, size: int, kept: Iterable[KeptSequences]) -> bool:
        """Count what a sequence takes; where all is taken, end sequences of the client that has most.

        It must have at least twice that more than the client that needs it, so that no two clients end each other's
        sequences again and again.

        Args:
            shares: Bytes that each client has.
            client: Client whose sequence begins.
            size: Bytes that it takes.
            kept: Models whose sequences may be ended, the least recently used one first.

        Returns:
            Whether it is counted.
        """
        if shares.took(client, size):
            return True
        greedy = shares.greediest()
        if shares.taken + size <= shares.total or shares.of(greedy) < shares.of(client) + 2 * size:
            return False
        while shares.taken + size > shares.total:
            oldest = [one for each in kept if (one := each._oldest(greedy)) is not None]
            if not oldest:
                return False
            record = min(oldest, key=lambda one: one.used_ns)
            record.kept._end(record, "it was ended because another client needed its place")
        shares.take(client, size)
        return True

    def _oldest(self, client: str) -> _Record | None:
        """Return the least recently used sequence of a client; None if it has none that could end now."""
        records = self._records.values()
        return next((one for one in records if one.client == client and one.idle), None)

    def _unknown(self, key: _Key, why: str | None) -> str:
        why = why or self._gone.get(key, "it was not started here")
        return f"there is no sequence {key[1]!r:.100}: {why}; start it with a request that sets sequence_start"

    def _next(self, record: _Record) -> None:
        """Send the sequence's next steps to the engine, one after another, as there is memory for their copies."""
        if record.looping:  # a step was answered at once: the loop below goes on
            return
        record.looping = True
        try:
            while record.running is None and record.line and self._memory.took(record):
                self._run(record, record.line.popleft())
        finally:
            record.looping = False
        if record.idle and not record.begun:
            self._end(record, record.over)

    def _run(self, record: _Record, ticket: StepTicket) -> None:
        record.running = ticket
        ticket.rest()
        step = ticket.query.sequence
        assert step is not None
        if step.start:
            record.over, record.unavailable = _FAILED, ""  # unless it is answered
        elif not record.begun or ticket.begins != record.begun:
            failure = self._unstarted(record, step.id)
            self.model.refused(ticket.query, failure)
            with handed_over():
                ticket.tell(failure)
            self.left(record, ticket)
            return
        carried = None if step.start else record.carrier
        states = self._start if carried is None else carried.states
        part: list[Any] = []
        answered = partial(self._answered, record, ticket, part)
        try:
            inner = self.model.submit(_with_states(ticket.query, states, part), answered)
        except ProtocolError as failure:  # the model has counted it
            answered(failure)
            return
        if not ticket.over:
            ticket.inner = inner

    def _unstarted(self, record: _Record, id_: SequenceId) -> ProtocolError:
        """Return the error of a step behind a start that wasn't answered: that of the start if it was no fault of its."""
        if record.unavailable:
            return ProtocolError(Kind.UNAVAILABLE, record.unavailable, 1.0)
        why = self._unknown(record.key, record.over)
        if record.begun:
            why = (
                f"the sequence {id_!r:.100} didn't begin anew, since the request with sequence_start "
                "failed: send that again before this one"
            )
        return ProtocolError(Kind.INVALID, why)

    def _answered(
        self,
        record: _Record,
        ticket: StepTicket,
        part: list[Any],
        answer: Answer | ProtocolError,
    ) -> None:
        """Keep the states of a step's answer, and pass the rest on; a step that failed changes none."""
        counted = tuple(part)
        part.clear()  # else it and the step at the engine would keep each other in memory
        if ticket.over:
            return
        told, step, inner = answer, ticket.query.sequence, None
        assert step is not None
        if isinstance(answer, Answer):
            try:
                carrier = record.carrier
                if step.start or carrier is None:  # older states are kept until this succeeded
                    carrier = copy.copy(self._carrier)
                carrier.take(_owned(answer.outputs, self._sequences))
                told = self._chosen(answer, ticket.query)
                record.carrier, record.begun = carrier, ticket.begins
                if step.end:
                    record.begun, record.over = 0, "it has ended"
                _, step_ticket = counted
                self.model.answered(ticket.query, step_ticket.rows, counted)
            except CandidateError as error:
                told = ProtocolError(Kind.INVALID, str(error))
                self.model.refused(ticket.query, told)
            except Exception:  # otherwise the sequence's later steps would wait for ever, too
                log.exception("the answer to a step of %s couldn't be made", self.model.name)
                told = unmade()
                self.model.refused(ticket.query, told)
        else:
            inner = ticket.inner
            if step.start and answer.kind is Kind.UNAVAILABLE:
                record.unavailable = str(answer)
        with handed_over():
            ticket.tell(told)
        self.left(record, ticket, inner)

    def _chosen(self, answer: Answer, query: Query) -> Answer:
        """Return an answer with the outputs that were asked for; without the states by default."""
        names = [each.name for each in query.outputs] or self._answers
        answer.outputs = {name: answer.outputs[name] for name in names}
        assert query.sequence is not None
        answer.parameters = {**answer.parameters, **query.sequence.parameters()}
        return answer

    def left(self, record: _Record, ticket: StepTicket, inner: Cancellable | None = None) -> None:
        """Go on with a sequence after a request that is answered or given up.

        Args:
            record: Sequence.
            ticket: Request.
            inner: Step at the engine if a thread may still run it, which then keeps the copies; else None.
        """
        if record.running is ticket:
            record.running, record.copied = None, False
            size_bytes = _COPIES * self.each_bytes
            if inner is None:
                self._memory.give(size_bytes)
            else:
                self.model.after(inner, partial(self._memory.give, size_bytes))
        else:
            try:
                record.line.remove(ticket)
            except ValueError:
                return
        record.used_ns = self._clock_ns()
        self._pending -= 1
        if not self._pending:
            self._none_left.set()
        self._next(record)

    def _end(self, record: _Record, why: str) -> None:
        if self._records.get(record.key) is record:
            del self._records[record.key]
            self._give_back(record)
            self._gone[record.key] = why
            while len(self._gone) > _MOST_GONE:
                self._gone.popitem(last=False)

    def _give_back(self, record: _Record) -> None:
        self._shares.give(record.client, 1)
        self._memory.shares.give(record.client, self.each_bytes)

    def _expire(self, now_ns: int) -> None:
        """Forget the sequences that were idle for too long; the least recently used come first."""
        seconds = self.idle_ns / 1e9
        for record in list(self._records.values()):
            if now_ns - record.used_ns <= self.idle_ns:
                return
            if record.idle:
                self._end(record, f"it had no request for {seconds:g} s, so its state is gone")

    def _sweep_later(self) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(max(0.05, self.idle_ns / 2e9), self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        self._expire(self._clock_ns())
        if self._records:
            self._sweep_later()

    # -- its end

    def learn_from(self, old: KeptSequences) -> None:
        """Remember the sequences of a model that this one replaces, to explain that they are gone.

        Those that rest end now: the older model may answer others for long, and their states would take memory.
        """
        why = "the model was replaced, and the state belonged to the old model"
        for key, record in list(old._records.items()):
            self._gone[key] = why
            if record.idle:
                old._end(record, why)

    async def drained(self) -> None:
        """Wait until every accepted request is answered."""
        await self._none_left.wait()

    def close(self) -> None:
        """Refuse the requests that wait, and free the states."""
        self._loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        records, self._records = list(self._records.values()), OrderedDict()
        for record in records:
            self._give_back(record)
            line, record.line = list(record.line), deque()
            for ticket in line:
                self._pending -= 1
                failure = ProtocolError(Kind.UNAVAILABLE, "the model was unloaded", 1.0)
                self.model.refused(ticket.query, failure)
                with handed_over():
                    ticket.tell(failure)


def _crowded(shares: Shares, client: str, what: str, state: str) -> ProtocolError:
    """Return the error for a sequence for which there is no room."""
    said = f"{shares.taken:,} {what} are {state}, which is the limit"
    if (own := shares.of(client)) and shares.others(client):
        said = (
            f"this client has {own:,} of the {shares.total:,} {what} that may be {state}, and other "
            "clients have some too"
        )
    return ProtocolError(
        Kind.OVERLOADED, f"{said}: end some with sequence_end, or retry later", retry_s=1.0
    )


def _with_states(query: Query, states: Mapping[str, np.ndarray], part: list[Any]) -> Query:
    """Return a step as a request to the model: with the states, and for all outputs.

    Args:
        query: Step as the client asks for it.
        states: States by input name.
        part: List that gets the record of the answer.
    """
    return Query(
        query.model,
        query.version,
        query.id,
        {**query.inputs, **states},
        (),
        query.binary,
        query.priority,
        query.timeout_ns,
        query.arrived_ns,
        query.parsed_ns,
        query.trace,
        query.source,
        client=query.client,
        name=query.name,
        part=part,
    )


def _owned(outputs: Mapping[str, np.ndarray], sequences: Sequences) -> dict[str, np.ndarray]:
    """Return outputs whose states are copies: they may be rows of a whole batch's."""
    states = {name for _, name in sequences.states}
    return {n: np.array(a) if n in states else a for n, a in outputs.items()}
