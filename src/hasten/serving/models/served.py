"""Serve a version of a model: check its requests, run them and answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import logging
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from hasten.bundle import Loaded
from hasten.bundle.batch_mates import share_batch_axis
from hasten.bundle.chains.plan import Stage
from hasten.bundle.covered import joined
from hasten.bundle.rows import most_json_bytes
from hasten.core.growth import RowsTogether
from hasten.core.shapes import check_alike, shared_sizes
from hasten.core.tensors import Array, Tensors
from hasten.core.words import amount
from hasten.errors import BeyondRange, CandidateError, DeviceLost, InputError
from hasten.inputs.pipeline.row_arrays import RowArrays
from hasten.serving.models.answer_sizes import are_told
from hasten.serving.models.batching import (
    Batching,
    InsteadAnswer,
    ServerTask,
    Timing,
    check_rows,
    handed_over,
    tell_unmade,
)
from hasten.serving.models.caching import AnswerCache, Cache, content_key
from hasten.serving.models.clients import Clients
from hasten.serving.models.comparison import broken_of_its_own, is_broken
from hasten.serving.models.deciding import Deciding, RawTicket
from hasten.serving.models.input_specs import InputSpec, Lengths, Parts, datatype_of_array
from hasten.serving.models.opening import ModelSettings, OpenBundle
from hasten.serving.models.quick_rows import QuickRows
from hasten.serving.models.scheduling import USUAL_PRIORITY, Pending, Scheduler
from hasten.serving.models.sequences import KeptSequences, StateBytes, StepTicket
from hasten.serving.models.shadow import Shadow
from hasten.serving.models.statistics import NOT_RUN, Statistics
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import RAW, Answer, Query, is_named
from hasten.serving.wire.message_plans import MessagePlan, MessagePlans
from hasten.serving.wire.plans import Plans, RequestPlan

Done: TypeAlias = Callable[[Answer | ProtocolError], None]
Running: TypeAlias = Callable[..., contextlib.AbstractContextManager[None]]
"""Function that makes the context for one engine thread; its argument `True` stands for the standby."""

log = logging.getLogger("hasten.serving")
_NUMBERS = itertools.count()


class Watcher(Protocol):
    """Interface of an observer of finished requests, such as the sender of their spans."""

    def finished(
        self,
        model: ServedModel,
        query: Query,
        now_ns: int,
        failure: ProtocolError | None = None,
        ticket: Ticket | None = None,
        stages: Sequence[Stage] = (),
        rows: int = 0,
    ) -> None:
        """Record a request that was answered, failed or was refused.

        Args:
            model: Model that the request was sent to.
            query: Request as it was parsed.
            now_ns: Time when the request was answered, on the monotonic clock.
            failure: Error that the request got; None if it succeeded.
            ticket: Ticket of the request; None if it has none, as one that was refused.
            stages: Stages that an answered request passed in a chain.
            rows: Samples of a request without a ticket; 0 if they weren't counted.
        """


class Step(NamedTuple):
    """Model that a chain asks.

    Attributes:
        model: Name under which the model is served.
        node: Name of the model in the chain, and of its decision there.
        source: Name of the input, crop or condition that gives the model its samples.
    """

    model: str
    node: str
    source: str


class Shared(NamedTuple):
    """Things that the models of a server share.

    Attributes:
        clients: Record of which client of the server is active.
        cache: Cache of answers and samples; None for a cache of each model's own, if its settings want one.
        states: Memory for the states of sequences.
    """

    clients: Clients
    cache: Cache | None
    states: StateBytes


class ServedModel:
    """Version of a model that is open and answers requests.

    Args:
        name: Name of the model for clients.
        version: Version number, as text.
        opened: Bundle that is open and warmed up.
        settings: Settings that the model is served with.
        loop: Event loop on whose thread everything but the engines runs.
        shared: Things that the models of the server share.
        statistics: Statistics of the model that this one replaces; None to begin new ones.
        running: Context to enter while an engine runs, so that a crash can be traced to it.
        clock_ns: Monotonic clock, in nanoseconds.
        tracing: Observer of finished requests; None if tracing is off.
        lost: Function that is told, on an engine's thread, that the device answers nothing more in
            this process and that nothing else can answer; it may end the process.

    Attributes:
        inputs: Inputs of a request.
        outputs: Outputs of an answer.
        varying: Names of outputs whose size depends on a sample's values.
        most_rows: Largest number of rows in a request; 0 if requests have no batch axis.
        number: Number that no other served model of this process ever has.
        fell_back: Whether the exact model answers because the fast one failed or answered NaN.
        deciding: Preparation of raw samples, and decision on them; None for a bundle without a pipeline.
        sequences: Sequences whose states are kept; None for a bundle without states.
        quick_rows: Path that answers single rows at once; None where they wait in line.
        watch: Monitor of the answers; None where the bundle isn't watched.
        messages: Plans by which repeated gRPC messages to the model are read.
    """

    def __init__(
        self,
        name: str,
        version: str,
        opened: OpenBundle,
        settings: ModelSettings,
        loop: asyncio.AbstractEventLoop,
        shared: Shared,
        statistics: Statistics | None = None,
        running: Running = contextlib.nullcontext,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        tracing: Watcher | None = None,
        lost: Callable[[DeviceLost], None] = lambda error: None,
    ) -> None:
        self.name, self.version, self.number = name, version, next(_NUMBERS)
        self._lost = lost
        self.tracing = tracing
        self.opened, self.settings = opened, settings
        self.statistics = statistics or Statistics()
        self.inputs, self.outputs = opened.first.inputs, opened.first.outputs
        self.varying = opened.manifest.varying
        self.most_rows = opened.most_rows if opened.batched else 0
        self.fell_back = opened.broken
        self.cache = AnswerCache.of(shared.cache, settings.cache_bytes)
        self._plans, self.messages = Plans(), MessagePlans()
        self._running = running
        self._clock_ns = clock_ns
        together = _rows_together(opened, settings.most_length)
        self._specs = _input_specs(opened, settings.most_length, together)
        self._parts = Parts(self._specs, opened.sizes, together) if opened.batched else None
        self._shared = shared_sizes(self.inputs, opened.first.request)
        self._padder = opened.first.padder if opened.batched else None
        self._names = [spec.name for spec in self.outputs]
        self._exact_lock = threading.Lock()
        self._exact_mark = running(True)
        self._flights: dict[bytes, deque[Ticket]] = {}
        """Hash of a content and of what answers -> request that is being run, then equal requests that wait for its answer."""
        self._stalled: deque[bytes] = deque()
        """Contents whose request got no answer, so that the next equal one has to run."""
        self._going_on = False
        self._marks = [running() for _ in opened.sessions]
        self._batching = Batching(
            [
                self._runner(session, mark)
                for session, mark in zip(opened.sessions, self._marks, strict=True)
            ],
            Scheduler(opened.latencies, settings.most_wait_ns, len(opened.sessions)),
            self.statistics,
            loop,
            shared.clients,
            clock_ns,
            self._padder,
            self._timed(),
            told=are_told(self.inputs, self.outputs),
        )
        if self.fell_back:
            self._batching.stay_away()
        pipeline = opened.manifest.pipeline
        self._row_arrays = RowArrays.of(pipeline, self.inputs)
        self._numbers = opened.first.numbers
        waits_ns = settings.deadline_ns, clock_ns, settings.most_wait_ns
        winners = opened.manifest.pipeline_of(opened.which)
        smaller = None if winners == pipeline else winners
        self.deciding = Deciding(self, pipeline, loop, *waits_ns, smaller) if pipeline else None
        carried = opened.manifest.sequences
        self.sequences = (
            KeptSequences(
                self,
                opened.first,
                carried,
                most=settings.most_sequences,
                states=shared.states,
                idle_ns=settings.sequence_idle_ns,
                loop=loop,
                clock_ns=clock_ns,
                deadline_ns=settings.deadline_ns,
                most_wait_ns=settings.most_wait_ns,
            )
            if carried is not None
            else None
        )
        self.quick_rows = QuickRows.of(self)
        self._shadow: Shadow | None = None
        self.watch = opened.watch
        if settings.shadow and opened.standby is not None and self.watch is not None:
            self._shadow = Shadow(
                self._ask_exact_raw, loop, self.statistics, lambda: self.idle, self.watch
            )
            self.watch.alarmed = self.take_over
            if self.watch.keeps_exact:
                self.take_over()
        self._random = random.Random()

    # -- what clients ask about it

    @property
    def platform(self) -> str:
        """Name of what runs the model, for the protocol's metadata."""
        part = self.opened.manifest.winner if self.answers == "winner" else None
        part = part or self.opened.manifest.exact or self.opened.manifest.winner
        return f"hasten_{part.engine['type']}"

    @property
    def answers(self) -> str:
        """Model that answers: "winner" or "exact"."""
        return "exact" if self.fell_back else self.opened.which

    @property
    def answering(self) -> str:
        """Name of what answers, for the keys of cached answers; "" while it isn't known.

        What was asked before it changes is never found afterwards, whichever model answered then.
        """
        return self.answers

    @property
    def steps(self) -> Sequence[Step]:
        """Models that this one asks, in their order; none unless it is a chain."""
        return ()

    def learn_from(self, old: ServedModel) -> None:
        """Take over what the scheduler of the replaced model has learned."""
        self._batching.scheduler.learn_from(old._batching.scheduler)
        if self.sequences is not None and old.sequences is not None:
            self.sequences.learn_from(old.sequences)

    def _timed(self) -> dict[str, tuple[int, ...]] | None:
        """Return the sizes of the inputs that the warm-up timed, for `Batching`."""
        axes = 1 if self.opened.batched else 0
        fixed = all(isinstance(n, int) for spec in self.inputs for n in spec.shape[axes:])
        if fixed and self.opened.timed:
            return None
        return {name: shape[axes:] for name, shape in self.opened.timed.items()}

    @property
    def scheduler(self) -> Scheduler[ServerTask]:
        """Scheduler of the model's queue."""
        return self._batching.scheduler

    @property
    def mark(self) -> contextlib.AbstractContextManager[None]:
        """Context to enter while the engine runs on the loop's thread and nothing else of it does."""
        return self._marks[0]

    @property
    def clock_ns(self) -> Callable[[], int]:
        """Monotonic clock, in nanoseconds."""
        return self._clock_ns

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        resting = (self.deciding is None or self.deciding.idle) and (
            self.sequences is None or self.sequences.idle
        )
        return resting and self._batching.scheduler.idle

    @property
    def queued_rows(self) -> int:
        """Number of samples that wait in the queue."""
        return self._batching.scheduler.queued_rows

    @property
    def wait_ns(self) -> float:
        """Expected wait of a request that arrives now, in nanoseconds."""
        return self._batching.scheduler.wait_ns(self._clock_ns())

    def wait_of(self, query: Query) -> float:
        """Return the expected wait of a request of one row without a deadline, in nanoseconds."""
        row = Pending(1, None, query.priority or USUAL_PRIORITY, math.inf, query.arrived_ns)
        row.client, row.named = query.client, is_named(query)
        return self._batching.scheduler.wait_of(row, self._clock_ns())

    @property
    def batch_ns(self) -> float:
        """Expected time of a batch of the size that has the highest throughput, in nanoseconds."""
        latencies = self._batching.scheduler.latencies
        return latencies.expected_ns(latencies.best)

    def cost_of(self, rows: int) -> float:
        """Return what rows add to the wait of those behind them at the machine's present speed, in nanoseconds."""
        scheduler = self._batching.scheduler
        return 1e9 * rows / scheduler.latencies.capacity_per_s / scheduler.sessions

    def properties(self) -> Mapping[str, str]:
        """Return what the engine reports about itself; see `Loaded.properties`."""
        return self.opened.first.properties()

    # -- a request

    def accept(self, query: Query, done: Done) -> Ticket | RawTicket | StepTicket:
        """Accept a client's request, with tensors or with raw samples; see `submit`.

        Raises:
            ProtocolError: the request doesn't fit the model, or can't be answered in time.
        """
        if query.sequence is not None and self.sequences is not None:
            return self.sequences.submit(query, done)
        if RAW in query.inputs and self.takes_raw:
            assert self.deciding is not None
            return self.deciding.submit(query, done)
        return self.submit(query, done)

    @functools.cached_property
    def most_rows_bytes(self) -> int:
        """Largest number of bytes of JSON that is a list of rows; 0 if JSON without `inputs` is no row here."""
        if self.deciding is None or not self.takes_raw:
            return 0
        return (1 + max(1, self.most_rows)) * most_json_bytes(self.deciding.pipeline)

    @functools.cached_property
    def takes_raw(self) -> bool:
        """Whether the input of raw samples is one, and not an input of the model's own."""
        return self.deciding is not None and all(spec.name != RAW for spec in self.inputs)

    def submit(self, query: Query, done: Done) -> Ticket:
        """Accept a request; `done` gets its answer on the loop's thread, maybe before this returns.

        Raises:
            ProtocolError: the request doesn't fit the model, or can't be answered in time.
        """
        plan: RequestPlan | MessagePlan | None = query.plan
        if plan is not None:
            rows, key = plan.rows, plan.key
        else:
            rows, key = self._looked_at(query)
        if self._row_arrays is not None or self._numbers is not None:
            self._check_numbers(query)
        if self.cache is not None:  # copied: clients may change shared memory after it was hashed
            query.inputs = {name: np.array(array) for name, array in query.inputs.items()}
        timeout_ns = query.timeout_ns or self.settings.deadline_ns
        deadline_ns = query.arrived_ns + timeout_ns if timeout_ns else math.inf
        ticket = Ticket(self, query, done, rows, key, deadline_ns, query.inputs)
        if self.cache is not None and not query.own and self._known(ticket):
            return ticket
        self._enqueue(ticket)
        return ticket

    def _looked_at(self, query: Query) -> tuple[int, Any]:
        try:
            found = self._checked(query)
            self.check_outputs(query)
            return found
        except ProtocolError as failure:
            self.refused(query, failure)
            raise

    def _check_numbers(self, query: Query) -> None:
        """Check the numbers of a request, before it shares a batch with others.

        Raises:
            ProtocolError: the step `row` refuses one, or it is no row of a table that the model looks it up in.
        """
        try:
            if self._row_arrays is not None:
                ((name, array),) = query.inputs.items()
                self._row_arrays.check(name, array)
            if self._numbers is not None:
                self._numbers(query.inputs)
        except InputError as error:
            failure = ProtocolError(Kind.INVALID, str(error))
            self.refused(query, failure)
            raise failure from error

    def planned(self, body: Any, header_bytes: int | None) -> Query | None:
        """Decode a body whose JSON was seen before; None if it wasn't."""
        return self._plans.find(body, header_bytes)

    def plan(self, query: Query, body: Any, header_bytes: int | None, ticket: Ticket) -> None:
        """Remember how a request's JSON was decoded, for later requests with the same JSON."""
        self._plans.note(query, body, header_bytes, ticket.rows, ticket.key)

    def _enqueue(self, ticket: Ticket) -> None:
        try:
            self._batching.submit(ticket)
        except ProtocolError as failure:
            self.refused(ticket.query, failure)
            if ticket.content is not None:
                self._flights.pop(ticket.content, None)
            raise

    def answered(self, query: Query, rows: int, part: Sequence[Any] = ()) -> None:
        """Count a request with raw samples that is answered now.

        Args:
            query: The request.
            rows: Number of its samples.
            part: Record and ticket of the model's answer; none for a decision that was in the cache.
        """
        now_ns = self._clock_ns()
        record, ticket = part or (NOT_RUN, None)
        whole_ns, parse_ns = now_ns - query.arrived_ns, query.parsed_ns - query.arrived_ns
        self.statistics.answered((now_ns, whole_ns, parse_ns, rows, *record[-len(NOT_RUN) :]))
        instead = self.answering == "exact" if ticket is None else ticket.instead
        if instead:
            self.statistics.replaced += 1
        if self.tracing is not None:
            self.tracing.finished(self, query, now_ns, ticket=ticket, rows=rows)

    def unread(self, failure: ProtocolError, arrived_ns: int, trace: str) -> None:
        """Count a request that couldn't be decoded."""
        query = Query(self.name, self.version, "", {}, arrived_ns=arrived_ns, trace=trace)
        self.refused(query, failure)

    def refused(self, query: Query, failure: ProtocolError) -> None:
        """Count a client's request that got an error, or whose client went away."""
        if query.own:
            return
        now_ns = self._clock_ns()
        if failure.kind is Kind.GONE:
            self.statistics.cancel.add(now_ns - query.arrived_ns)
        else:
            self.statistics.refused(failure.kind.name, query.arrived_ns, now_ns)
        if self.tracing is not None:
            self.tracing.finished(self, query, now_ns, failure)

    def after(self, ticket: Any, done: Callable[[], None]) -> None:
        """Call a function once no thread runs a request, whether that is over or not; at once if none does."""
        self._batching.after(ticket, done)

    def cancel(self, ticket: Ticket) -> None:
        """Give up a request whose client went away."""
        if ticket.over:
            return
        ticket.over = True
        if not ticket.query.own:
            now_ns = self._clock_ns()
            self.statistics.cancel.add(now_ns - ticket.query.arrived_ns)
            if self.tracing is not None:
                gone = ProtocolError(Kind.GONE, "the client went away")
                self.tracing.finished(self, ticket.query, now_ns, gone, ticket)
        self._batching.cancel(ticket)
        self._fly_on(ticket)

    def _checked(self, query: Query) -> tuple[int, Any]:
        """Check a request against the model; return its rows, and its key for sharing a batch."""
        inputs = query.inputs
        if len(inputs) != len(self._specs):
            raise self._unfit(inputs)
        rows = 0
        sizes: tuple[tuple[int, ...], ...] = ()
        for spec in self._specs:
            array = inputs.get(spec.name)
            if array is None:
                raise self._unfit(inputs)
            if array.dtype != spec.dtype or not spec.fits(array.shape):
                raise spec.mismatch(datatype_of_array(array), array.shape)
            spec.check_lengths(array.shape)
            if spec.batched:
                if rows and array.shape[0] != rows:
                    raise ProtocolError(
                        Kind.INVALID,
                        f"the inputs have different batch sizes: {rows} and {array.shape[0]}",
                    )
                rows = array.shape[0]
                if rows == 0:
                    raise ProtocolError(
                        Kind.INVALID, f"input {spec.name!r} has no rows; send at least 1"
                    )
            sizes += (array.shape[1:] if spec.batched else array.shape,)
            if not array.flags.c_contiguous:
                inputs[spec.name] = np.ascontiguousarray(array)
        try:
            check_alike(inputs, self._shared)
        except InputError as error:
            raise ProtocolError(Kind.INVALID, str(error)) from error
        self._check_rows(rows)
        return rows or 1, self._batch_key(inputs, sizes)

    def _batch_key(self, inputs: Tensors, sizes: tuple[tuple[int, ...], ...]) -> Any:
        """Return a key that requests share which can share a batch: of one bucket, else of one shape."""
        if self._padder is None:
            return sizes
        own = self._padder.sizes({name: array.shape for name, array in inputs.items()})
        number = self._padder.bucket(own)
        return sizes if number < 0 else number

    def check_input(self, name: str, datatype: str, shape: tuple[int, ...]) -> None:
        """Check the stated datatype and shape of an input before it is decoded.

        Raises:
            ProtocolError: the model doesn't take such an input.
        """
        if name == RAW and self.takes_raw:
            assert self.deciding is not None
            self.deciding.check(datatype, shape)
            return
        for spec in self._specs:
            if spec.name == name:
                break
        else:
            raise self._unfit([name])
        if datatype != spec.datatype or not spec.fits(shape):
            raise spec.mismatch(datatype, shape)
        spec.check_lengths(shape)
        if spec.batched:
            self._check_rows(shape[0])

    def _check_rows(self, rows: int) -> None:
        if self.most_rows and rows > self.most_rows:
            raise ProtocolError(
                Kind.INVALID,
                f"a request to {self.name!r} has at most {amount(self.most_rows, 'row')}; got {rows}: send "
                "several requests",
            )

    def _unfit(self, inputs: Iterable[str]) -> ProtocolError:
        names = ", ".join(spec.name for spec in self.inputs)
        got = ", ".join(inputs) or "none"
        return ProtocolError(
            Kind.INVALID, f"the model {self.name!r} takes the inputs {names:.400}; got {got:.400}"
        )

    def check_outputs(self, query: Query) -> None:
        """Check that the model has the outputs that are asked for.

        Raises:
            ProtocolError: it has no such output.
        """
        for wanted in query.outputs:
            if wanted.name not in self._names:
                raise ProtocolError(
                    Kind.INVALID,
                    f"the model {self.name!r} has no output {wanted.name!r:.100}; it has "
                    f"{', '.join(self._names):.400}",
                )

    # -- the cache, and equal requests at the same time

    def _known(self, ticket: Ticket) -> bool:
        """Answer from the cache, or wait for an equal request that runs; False if neither is possible."""
        assert self.cache is not None
        began_ns = self._clock_ns()
        answering = self.answering
        ticket.instead = answering == "exact"
        key = ticket.content = content_key(ticket.inputs, answering)
        outputs = self.cache.get(key)
        now_ns = self._clock_ns()
        if outputs is not None:
            self.statistics.cache_hit.add(now_ns - began_ns)
            ticket.state = "done"
            ticket.reply(outputs, None)
            return True
        if key in self._flights:
            self.statistics.cache_hit.add(now_ns - began_ns)
            self._flights[key].append(ticket)
            ticket.join(now_ns)
            self._batching.promote(self._flights[key][0], ticket)
            return True
        self.statistics.cache_miss.add(now_ns - began_ns)
        self._flights[key] = deque((ticket,))
        return False

    def _fly_on(self, ticket: Ticket, outputs: Tensors | None = None) -> None:
        """Share an answer with equal requests that wait for it; without one, run the next of them."""
        if ticket.content is None or ticket.follows:
            return
        if outputs is None:
            self._stalled.append(ticket.content)
            if not self._going_on:  # else the next one failed at once: the loop below goes on
                self._go_on()
            return
        if self.cache is not None:
            self.cache.put(ticket.content, outputs)
        for other in self._flights.pop(ticket.content, ()):
            if other is ticket or other.over:
                continue
            other.leave()
            other.instead = ticket.instead
            with handed_over():
                other.reply(outputs, None)
            if not other.over:
                tell_unmade(other)

    def _go_on(self) -> None:
        """Run the next of the equal requests behind each one that got no answer, which may fail at once, too."""
        self._going_on = True
        try:
            while self._stalled:
                self._run_next(self._stalled.popleft())
        finally:
            self._going_on = False

    def _run_next(self, content: bytes) -> None:
        """Run the first of the equal requests that still wait; it stands first among them meanwhile."""
        while flight := self._flights.get(content):
            first = flight[0]
            if first.over:
                flight.popleft()
                continue
            first.leave()
            first.follows = False
            try:
                self._batching.submit(first)
                return
            except ProtocolError as failure:
                self.refused(first.query, failure)
                with handed_over():
                    first.tell(failure)
        self._flights.pop(content, None)

    # -- the engine

    def _runner(
        self, session: Loaded, mark: contextlib.AbstractContextManager[None]
    ) -> Callable[[Tensors], dict[str, Array]]:
        """Return the function that runs a batch on a session, with the exact model as a fallback."""
        standby, run = self.opened.standby, self._in_parts(session)
        instead = self.opened.which == "exact"

        def plain(inputs: Tensors) -> dict[str, Array]:
            with mark:
                try:
                    return InsteadAnswer(run(inputs)) if instead else run(inputs)
                except DeviceLost as error:
                    self._lost(error)
                    raise

        def guarded(inputs: Tensors) -> dict[str, Array]:
            if self.fell_back:
                try:
                    return InsteadAnswer(self._ask_exact(inputs))
                except DeviceLost as error:
                    self._lost(error)
                    raise
            try:
                with mark:
                    outputs = run(inputs)
                if not is_broken(outputs):
                    return outputs
                why = "an answer contains NaN"
            except BeyondRange:  # the request's numbers are to blame, not the model
                return InsteadAnswer(self._ask_exact(inputs))
            except CandidateError as error:
                outputs, why = None, str(error)
            if outputs is not None and not broken_of_its_own(inputs, outputs):
                return outputs  # NaN in a request's row may give NaN in the answer's row
            return self._instead(inputs, outputs, why, mark)

        return plain if standby is None else guarded

    def _in_parts(self, session: Loaded) -> Callable[[Tensors], dict[str, Array]]:
        """Return the function that runs a batch on a session; in parts if its samples are larger than in the data."""
        parts_of, run = self._parts, session.run
        if parts_of is None or all(
            isinstance(n, int) for spec in self.inputs for n in spec.shape[1:]
        ):
            return run

        def run_parts(inputs: Tensors) -> dict[str, Array]:
            parts = parts_of.of(inputs)
            if not parts:
                return run(inputs)
            answers = [run(part) for part in parts]
            for part, answer in zip(parts, answers, strict=True):
                check_rows(answer, len(next(iter(part.values()))))
            return joined(answers)

        return run_parts

    def _instead(
        self,
        inputs: Tensors,
        outputs: dict[str, Array] | None,
        why: str,
        mark: contextlib.AbstractContextManager[None],
    ) -> dict[str, Array]:
        """Answer with the exact model; if it does better, let it answer from now on."""
        try:
            exact = self._ask_exact(inputs)
        except CandidateError as error:
            if isinstance(error, DeviceLost):
                with mark:  # the engine that failed first
                    self._lost(error)
            raise CandidateError(why) from error
        if outputs is not None and not broken_of_its_own(exact, outputs):
            return outputs  # the exact model answers NaN too
        self.fell_back = True
        self._batching.stay_away()
        log.error(
            "the exact model answers from now on: %s",
            why,
            extra={"model": self.name, "version": self.version},
        )
        return InsteadAnswer(exact)

    def _ask_exact(self, inputs: Tensors) -> dict[str, Array]:
        assert self.opened.standby is not None
        with self._exact_lock, self._exact_mark:
            return self._in_parts(self.opened.standby)(inputs)

    def _ask_exact_raw(self, inputs: Tensors, sample: bytes | None) -> dict[str, Array]:
        """Answer with the exact model; a sample is prepared for it first, where one is given.

        Raises:
            InputError: the sample can't be prepared for the exact model.
            CandidateError: the engine failed.
        """
        if sample is not None and self.deciding is not None:
            inputs = self.deciding.as_given(sample)
        return self._ask_exact(inputs)

    async def ask(self, inputs: Tensors) -> Tensors:
        """Answer a request of the server's own, which is queued like any other, and isn't counted.

        Raises:
            ProtocolError: the request got no answer.
        """
        future: asyncio.Future[Answer | ProtocolError] = asyncio.get_running_loop().create_future()
        now_ns = self._clock_ns()
        query = Query(self.name, self.version, "", dict(inputs), own=True, part=[])
        query.arrived_ns = query.parsed_ns = now_ns
        self.submit(query, future.set_result)
        answer = await future
        if isinstance(answer, ProtocolError):
            try:
                raise answer
            finally:
                del answer, future  # they keep this frame
        return answer.outputs

    def take_over(self) -> None:
        """Let the exact model answer from now on; what runs or waits is answered. On any thread."""
        if self.fell_back or self.opened.standby is None:
            return
        self.fell_back = True
        self._batching.stay_away()

    @property
    def shadows(self) -> bool:
        """Whether a share of the answers is compared with the exact model's."""
        return self._shadow is not None

    def shadowed(
        self,
        inputs: Tensors,
        outputs: Tensors,
        rows: int,
        name: str = "",
        raw: Sequence[bytes] = (),
        client: str = "",
    ) -> None:
        """Hand a random share of the answers to the shadow for comparison with the exact model.

        Of a request with several rows it is one row, so that no sample stands for its neighbours;
        each row is as likely as any other.

        Args:
            inputs: Inputs of the request.
            outputs: Answer that goes out.
            rows: Rows of the request.
            name: Id of the request; "" for none.
            raw: Samples that the rows were made from, where the exact model takes them prepared otherwise.
            client: Name of the client, where the server can tell several; else "".
        """
        share = self.settings.shadow * rows
        if self._shadow is None or self.fell_back or self._random.random() >= share:
            return
        batched = rows if self.opened.batched else 0
        row = self._random.randrange(rows)
        sample = raw[row] if raw else None
        self._shadow.look(inputs, outputs, name, batched, row, sample, client)

    # -- its end

    async def drained(self) -> None:
        """Wait until every accepted request is answered."""
        if self.deciding is not None:
            await self.deciding.drained()
        if self.sequences is not None:
            await self.sequences.drained()
        await self._batching.drained()

    def close(self) -> None:
        """Refuse the queued requests, and free the engines."""
        self._batching.close()  # first: it counts what it refuses of raw samples and sequences
        if self.deciding is not None:
            self.deciding.close()
        if self.sequences is not None:
            self.sequences.close()
        if self._shadow is not None:
            self._shadow.close()
        if self.watch is not None:
            self.watch.close()
        if self.cache is not None:
            self.cache.clear()
        self.opened.close()


class Ticket(ServerTask):
    """A request to a served model, from its acceptance to its answer.

    Attributes:
        model: Model that the request was sent to.
        query: Request as it was parsed.
        content: Hash of the request's content and of what answers; None if there is no cache.
        follows: Whether the request waits for an equal request's answer.
        instead: Whether the exact model answered it in the fast one's place; known once it is answered.
        timing: Times of the request's stages; None if it wasn't run.
    """

    __slots__ = ("_done", "content", "follows", "instead", "model", "query", "timing")

    def __init__(
        self,
        model: ServedModel,
        query: Query,
        done: Done,
        rows: int,
        key: Any,
        deadline_ns: float,
        inputs: Tensors,
    ) -> None:
        self.rows, self.key, self.deadline_ns, self.inputs = rows, key, deadline_ns, inputs
        self.priority = query.priority or USUAL_PRIORITY
        self.source, self.client = query.source, query.client
        self.named = is_named(query)
        self.arrived_ns, self.accepted = query.arrived_ns, query.accepted
        self.state, self.queued_ns, self.order, self.tried = "new", 0, (0, 0, 0), False
        self.model, self.query, self._done = model, query, done
        self.content: bytes | None = None
        self.follows = self.over = self.instead = False
        self.timing: Timing | None = None
        self.timer = None

    def cancel(self) -> None:
        """Give up the request, whose client went away."""
        self.model.cancel(self)

    def withdraw(self) -> bool:
        """Give up the request, uncounted, while it waits; return whether it did, or False if it runs or is over."""
        if self.over or not (self.state == "queued" or self.follows):
            return False
        self.query.own = True
        self.model.cancel(self)
        return True

    def join(self, now_ns: int) -> None:
        """Wait for an equal request's answer, but only until this request's own deadline."""
        self.follows = True
        if self.deadline_ns != math.inf:
            delay_s = max(0.0, (self.deadline_ns - now_ns) / 1e9)
            self.timer = asyncio.get_running_loop().call_later(delay_s, self._late)

    def _late(self) -> None:
        """Fail at the deadline; wait again if the loop's timer, rounded to milliseconds, was early."""
        now_ns = self.model._clock_ns()
        if now_ns < self.deadline_ns:
            self.join(now_ns)
            return
        late = "the deadline passed while an equal request was computed"
        self.fail(ProtocolError(Kind.LATE, late))
        self.forget()

    def forget(self) -> None:
        super().forget()
        self.query.inputs, self.query.raw = {}, ()
        self._done = _nobody  # else a request that asks for several models' answers, or has raw samples, stays

    def leave(self) -> None:
        """Stop waiting for the equal request."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def tell(self, failure: ProtocolError) -> None:
        """Answer with an error that was counted already."""
        self.over = True
        self._done(failure)

    def fail(self, failure: ProtocolError) -> None:
        """Answer with an error, and count it."""
        self.reply(failure, None)

    def reply(self, outputs: Tensors | ProtocolError, timing: Timing | None) -> None:
        """Answer with outputs or an error, and count it; further calls have no effect."""
        if self.over:
            return
        model, query = self.model, self.query
        wanted = query.outputs
        chosen: Any = outputs
        if (
            wanted
            and not isinstance(outputs, ProtocolError)
            and (len(wanted) > 1 or len(outputs) > 1)
        ):
            chosen = {each.name: outputs[each.name] for each in wanted}
        self.over = True
        statistics = model.statistics
        now_ns = model._clock_ns()
        self.timing = timing
        if timing is not None:
            self.instead = timing.instead
        if model.tracing is not None:
            failure = outputs if isinstance(outputs, ProtocolError) else None
            if query.part is None or not (failure is None or query.own):
                model.tracing.finished(model, query, now_ns, failure, self)
        if isinstance(outputs, ProtocolError):
            if not query.own:
                statistics.refused(outputs.kind.name, query.arrived_ns, now_ns)
            try:
                self._done(outputs)
            finally:
                model._fly_on(self)
            return
        arrived_ns = query.arrived_ns
        record = (  # not `Served`, which takes longer to make
            now_ns,
            now_ns - arrived_ns,
            query.parsed_ns - arrived_ns,
            self.rows,
            *(timing.since(self.queued_ns, now_ns) if timing is not None else NOT_RUN),
        )
        if query.part is None:
            statistics.answered(record)
            if self.instead:
                statistics.replaced += 1
        else:
            part, query.part = query.part, None  # else the two would keep each other in memory
            part += record, self
        try:
            self._done(Answer(model.name, model.version, query.id, chosen))
        finally:  # equal requests must go on
            if self.content is not None:
                model._fly_on(self, outputs)
        if model._shadow is not None and not query.own:
            model.shadowed(self.inputs, outputs, self.rows, query.id, query.raw, query.name)


def _rows_together(opened: OpenBundle, most_length: int | None) -> RowsTogether | None:
    """Return how many rows may run together by their size; None where the bundle doesn't tell, or the operator says."""
    growth = opened.manifest.growth
    if most_length is not None or not growth:
        return None
    return RowsTogether(growth, opened.own_batch if opened.batched else 1)


def _input_specs(
    opened: OpenBundle, most_length: int | None, together: RowsTogether | None
) -> list[InputSpec]:
    """Return the specs that a bundle's requests are checked against.

    Args:
        opened: The bundle.
        most_length: Largest size of an open dimension; None for the one that follows from the bundle's data.
        together: Rows that may run together by their size; None where nothing tells.
    """
    inputs, batched = opened.first.inputs, opened.batched
    request, extents = {spec.name: spec for spec in opened.first.request}, opened.manifest.shapes
    lone = all(spec.shape[:1] == (1,) for spec in opened.first.request)
    alike = not any(one.axis == 0 for one in extents)
    rows = lone and alike and share_batch_axis(inputs, ())
    alone = all(isinstance(size, int) for spec in inputs for size in spec.shape[1:])
    return [
        InputSpec(
            spec,
            batched,
            Lengths.of(
                spec,
                request[spec.name],
                extents,
                batched=batched,
                rows=rows,
                alone=alone,
                given=most_length,
                together=together,
            ),
        )
        for spec in inputs
    ]


def _nobody(answer: Answer | ProtocolError) -> None:
    """Take no answer: the request is over."""
