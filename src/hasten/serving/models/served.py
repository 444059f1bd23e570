"""A version of a model that is being served: checks requests, runs them, answers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeAlias

import numpy as np

from hasten.bundle import Loaded
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import CandidateError, InputError
from hasten.serving.models.batching import Batching, ServerTask, Timing
from hasten.serving.models.caching import AnswerCache, content_key
from hasten.serving.models.clients import Clients
from hasten.serving.models.comparison import broken_rows, is_broken
from hasten.serving.models.opening import ModelSettings, OpenBundle
from hasten.serving.models.scheduling import USUAL_PRIORITY, Scheduler
from hasten.serving.models.shadow import Shadow
from hasten.serving.models.statistics import NOT_RUN, Served, Statistics
from hasten.serving.protocol.datatypes import datatype_of
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import Answer, Query
from hasten.serving.wire.plans import Plans, RequestPlan

Done: TypeAlias = Callable[[Answer | ProtocolError], None]
Running: TypeAlias = Callable[..., contextlib.AbstractContextManager[None]]
"""Makes a context for one engine thread; `True` for one of the exact model that stands by."""

log = logging.getLogger("hasten.serving")


class Watcher(Protocol):
    """Who is told of every request that ends: what sends its spans."""

    def finished(
        self,
        model: ServedModel,
        query: Query,
        now_ns: int,
        failure: ProtocolError | None = None,
        ticket: Ticket | None = None,
    ) -> None:
        """Note a request that was answered, failed or was refused.

        Args:
            model: Whose.
            query: What was asked.
            now_ns: When it was answered, on the monotonic clock.
            failure: Why it got an error.
            ticket: What was under way; None where it was refused before.
        """


class ServedModel:
    """One version of one model, open.

    Args:
        name: As clients call it.
        version: A number, as text.
        opened: Its sessions, warm.
        settings: How it is served.
        loop: The event loop; everything but the engines is on its thread.
        clients: Clients of the server, by their connections.
        statistics: Goes on where a bundle takes another's place.
        running: Entered while an engine works: who crashes in there is to blame.
        clock_ns: Monotonic clock, in nanoseconds.

    Attributes:
        inputs: What a request brings.
        outputs: What it gets back.
        most_rows: The rows that a request may bring; 0 where it has no batch axis.
        fell_back: Whether the exact model answers, since the fast one gave no numbers.
    """

    def __init__(
        self,
        name: str,
        version: str,
        opened: OpenBundle,
        settings: ModelSettings,
        loop: asyncio.AbstractEventLoop,
        clients: Clients,
        statistics: Statistics | None = None,
        running: Running = contextlib.nullcontext,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        tracing: Watcher | None = None,
    ) -> None:
        self.name, self.version = name, version
        self.tracing = tracing
        self.opened, self.settings = opened, settings
        self.statistics = statistics or Statistics()
        self.inputs, self.outputs = opened.first.inputs, opened.first.outputs
        self.most_rows = opened.sizes[-1] if opened.batched else 0
        self.fell_back = opened.broken
        self.cache = AnswerCache(settings.cache_bytes) if settings.cache_bytes else None
        self._plans = Plans()
        self._running = running
        self._clock_ns = clock_ns
        self._specs = [_Spec(spec, opened.batched) for spec in self.inputs]
        self._names = [spec.name for spec in self.outputs]
        self._exact_lock = threading.Lock()
        self._exact_mark = running(True)
        self._flights: dict[bytes, list[Ticket]] = {}
        """Content -> the request that is asked, and those that wait for its answer."""
        self._batching = Batching(
            [self._runner(session) for session in opened.sessions],
            Scheduler(opened.latencies, settings.most_wait_ns, len(opened.sessions)),
            self.statistics,
            loop,
            clients,
            clock_ns,
        )
        if self.fell_back:
            self._batching.stay_away()
        self._shadow: Shadow | None = None
        if settings.shadow and opened.standby is not None:
            self._shadow = Shadow(self._ask_exact, loop, self.statistics, lambda: self.idle)
        self._random = random.Random(0).random

    # -- what clients ask about it

    @property
    def platform(self) -> str:
        """What runs it, for the protocol's metadata."""
        part = self.opened.manifest.winner if self.answers == "winner" else None
        part = part or self.opened.manifest.exact or self.opened.manifest.winner
        return f"hasten_{part.engine['type']}"

    @property
    def answers(self) -> str:
        """Which model answers: "winner" or "exact"."""
        return "exact" if self.fell_back else self.opened.which

    def learn_from(self, old: ServedModel) -> None:
        """Go on with what was learned of a model whose place this one takes."""
        self._batching.scheduler.learn_from(old._batching.scheduler)

    @property
    def idle(self) -> bool:
        """Whether no request waits or runs."""
        return self._batching.scheduler.idle

    @property
    def queued_rows(self) -> int:
        """Samples that wait."""
        return self._batching.scheduler.queued_rows

    @property
    def wait_ns(self) -> float:
        """How long a request that came now would wait."""
        return self._batching.scheduler.wait_ns(self._clock_ns())

    def properties(self) -> Mapping[str, str]:
        """What the engine says of itself; of a cascade also how many answers were asked again."""
        return self.opened.first.properties()

    # -- a request

    def submit(self, query: Query, done: Done) -> Ticket:
        """Take a request in; `done` gets its answer on the loop's thread, maybe before this returns.

        Raises:
            ProtocolError: it doesn't fit the model, or can't be answered in time.
        """
        plan: RequestPlan | None = query.plan
        if plan is not None:
            rows, key = plan.rows, plan.key
        else:
            rows, key = self._looked_at(query)
        if self.cache is not None:  # what lies in shared memory may change under its hash
            query.inputs = {name: np.array(array) for name, array in query.inputs.items()}
        timeout_ns = query.timeout_ns or self.settings.deadline_ns
        deadline_ns = query.arrived_ns + timeout_ns if timeout_ns else math.inf
        ticket = Ticket(self, query, done, rows, key, deadline_ns, query.inputs)
        if self.cache is not None and self._known(ticket):
            return ticket
        self._enqueue(ticket)
        return ticket

    def _looked_at(self, query: Query) -> tuple[int, Any]:
        try:
            found = self._checked(query)
            self._check_outputs(query)
            return found
        except ProtocolError as failure:
            self._refused(query, failure)
            raise

    def planned(self, body: Any, header_bytes: int | None) -> Query | None:
        """Read a body whose JSON was seen before; None where it wasn't."""
        return self._plans.find(body, header_bytes)

    def plan(self, query: Query, body: Any, header_bytes: int | None, ticket: Ticket) -> None:
        """Keep what followed from a request's JSON."""
        self._plans.note(query, body, header_bytes, ticket.rows, ticket.key)

    def _enqueue(self, ticket: Ticket) -> None:
        try:
            self._batching.submit(ticket)
        except ProtocolError as failure:
            self._refused(ticket.query, failure)
            if ticket.content is not None:
                self._flights.pop(ticket.content, None)
            raise

    def unread(self, failure: ProtocolError, arrived_ns: int, trace: str) -> None:
        """Count a request that couldn't be read."""
        query = Query(self.name, self.version, "", {}, arrived_ns=arrived_ns, trace=trace)
        self._refused(query, failure)

    def _refused(self, query: Query, failure: ProtocolError) -> None:
        now_ns = self._clock_ns()
        self.statistics.refused(failure.kind.name, query.arrived_ns, now_ns)
        if self.tracing is not None:
            self.tracing.finished(self, query, now_ns, failure)

    def cancel(self, ticket: Ticket) -> None:
        """Its client went away."""
        if ticket.over:
            return
        ticket.over = True
        now_ns = self._clock_ns()
        self.statistics.cancel.add(now_ns - ticket.query.arrived_ns)
        if self.tracing is not None:
            gone = ProtocolError(Kind.GONE, "the client went away")
            self.tracing.finished(self, ticket.query, now_ns, gone, ticket)
        self._batching.cancel(ticket)
        self._fly_on(ticket)

    def _checked(self, query: Query) -> tuple[int, Any]:
        """Check a request against the model; its rows, and what can share a batch with it."""
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
                raise spec.mismatch(_datatype(array), array.shape)
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
        if self.most_rows and rows > self.most_rows:
            raise ProtocolError(
                Kind.INVALID,
                f"a request of {self.name!r} brings at most {self.most_rows} rows; got {rows}: send "
                "several requests",
            )
        return rows or 1, sizes

    def check_input(self, name: str, datatype: str, shape: tuple[int, ...]) -> None:
        """Check what a request states of an input, before it is decoded.

        Raises:
            ProtocolError: the model doesn't take it.
        """
        spec = next((spec for spec in self._specs if spec.name == name), None)
        if spec is None:
            raise self._unfit([name])
        if datatype != spec.datatype or not spec.fits(shape):
            raise spec.mismatch(datatype, shape)

    def _unfit(self, inputs: Iterable[str]) -> ProtocolError:
        names = ", ".join(spec.name for spec in self._specs)
        got = ", ".join(inputs) or "none"
        return ProtocolError(
            Kind.INVALID, f"the model {self.name!r} takes the inputs {names:.400}; got {got:.400}"
        )

    def _check_outputs(self, query: Query) -> None:
        for wanted in query.outputs:
            if wanted.name not in self._names:
                raise ProtocolError(
                    Kind.INVALID,
                    f"the model {self.name!r} has no output {wanted.name!r:.100}; it has "
                    f"{', '.join(self._names):.400}",
                )

    # -- the cache, and equal requests at the same time

    def _known(self, ticket: Ticket) -> bool:
        """Answer out of the cache, or with an equal request that is under way; False for neither."""
        assert self.cache is not None
        began_ns = self._clock_ns()
        key = ticket.content = content_key(ticket.inputs)
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
            self._batching.promote(self._flights[key][0], ticket.priority)
            return True
        self.statistics.cache_miss.add(now_ns - began_ns)
        self._flights[key] = [ticket]
        return False

    def _fly_on(self, ticket: Ticket, outputs: Tensors | None = None) -> None:
        """Share an answer with those who asked the same, or let one of them ask anew."""
        if ticket.content is None or ticket.follows:
            return
        flight = self._flights.pop(ticket.content, ())
        others = [each for each in flight if each is not ticket and not each.over]
        if outputs is not None and self.cache is not None:
            self.cache.put(ticket.content, outputs)
        for place, other in enumerate(others):
            if outputs is not None:
                other.leave()
                other.reply(outputs, None)
                continue
            other.leave()
            other.follows = False
            self._flights[ticket.content] = others[place:]
            try:
                self._enqueue(other)
            except ProtocolError as failure:
                other.tell(failure)  # it is counted already
                continue
            return

    # -- the engine

    def _runner(self, session: Loaded) -> Callable[[Tensors], dict[str, Array]]:
        """What a batch is run by: a session, and behind it the exact model."""
        standby, run, mark = self.opened.standby, session.run, self._running()

        def plain(inputs: Tensors) -> dict[str, Array]:
            with mark:
                return run(inputs)

        def guarded(inputs: Tensors) -> dict[str, Array]:
            if self.fell_back:
                return self._ask_exact(inputs)
            try:
                with mark:
                    outputs = run(inputs)
                if not is_broken(outputs):
                    return outputs
                why = "an answer has a NaN in it"
            except CandidateError as error:
                outputs, why = None, str(error)
            if outputs is not None and not _of_its_own(inputs, outputs):
                return outputs  # what is asked in no numbers is answered in none
            return self._instead(inputs, outputs, why)

        return plain if standby is None else guarded

    def _instead(
        self, inputs: Tensors, outputs: dict[str, Array] | None, why: str
    ) -> dict[str, Array]:
        """Ask the exact model; if it does better, it goes on answering."""
        try:
            exact = self._ask_exact(inputs)
        except CandidateError as error:
            raise CandidateError(why) from error
        if outputs is not None and not _of_its_own(exact, outputs):
            return outputs  # the model is like that
        self.fell_back = True
        self._batching.stay_away()
        log.error(
            "the exact model answers from now on: %s",
            why,
            extra={"model": self.name, "version": self.version},
        )
        return exact

    def _ask_exact(self, inputs: Tensors) -> dict[str, Array]:
        assert self.opened.standby is not None
        with self._exact_lock, self._exact_mark:
            return self.opened.standby.run(inputs)

    async def ask(self, inputs: Tensors) -> Tensors:
        """Answer a request of the server's own, in the queue like any other.

        Raises:
            ProtocolError: it got no answer.
        """
        future: asyncio.Future[Answer | ProtocolError] = asyncio.get_running_loop().create_future()
        now_ns = self._clock_ns()
        query = Query(
            self.name, self.version, "", dict(inputs), arrived_ns=now_ns, parsed_ns=now_ns
        )
        self.submit(query, future.set_result)
        answer = await future
        if isinstance(answer, ProtocolError):
            raise answer
        return answer.outputs

    def shadowed(self, inputs: Tensors, outputs: Tensors) -> None:
        """Maybe ask the exact model the same, once there is time."""
        looking = self._shadow is not None and not self.fell_back
        if looking and self._random() < self.settings.shadow:
            assert self._shadow is not None
            self._shadow.look(inputs, outputs)

    # -- its end

    async def drained(self) -> None:
        """Wait until every request that was taken in is answered."""
        await self._batching.drained()

    def close(self) -> None:
        """Refuse what is queued, and free the engines."""
        self._batching.close()
        if self._shadow is not None:
            self._shadow.close()
        self.opened.close()


def _of_its_own(others: Tensors, outputs: Tensors) -> bool:
    """Whether a row of an answer has NaN that isn't in what was asked, or in the exact answer."""
    asked, answered = broken_rows(others), broken_rows(outputs)
    if asked.shape != answered.shape:
        return bool(answered.any() and not asked.any())
    return bool((answered & ~asked).any())


class Ticket(ServerTask):
    """A request under way.

    Attributes:
        model: Whose.
        query: What is asked.
        content: Its content's hash, where answers are kept.
        follows: Whether it waits for an equal request's answer.
        over: Whether it is answered, refused or given up.
        timing: How far it got when, where it was run.
    """

    __slots__ = ("_done", "content", "follows", "model", "over", "query", "timing")

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
        self.source = query.source
        self.arrived_ns = query.arrived_ns
        self.state, self.queued_ns, self.order, self.tried = "new", 0, 0, False
        self.model, self.query, self._done = model, query, done
        self.content: bytes | None = None
        self.follows = self.over = False
        self.timing: Timing | None = None
        self.timer = None

    def join(self, now_ns: int) -> None:
        """Wait for an equal request's answer, no longer than its own deadline."""
        self.follows = True
        if self.deadline_ns != math.inf:
            delay_s = max(0.0, (self.deadline_ns - now_ns) / 1e9)
            self.timer = asyncio.get_running_loop().call_later(delay_s, self._late)

    def _late(self) -> None:
        """The deadline is now, or in a moment: the loop's timers go by whole milliseconds."""
        now_ns = self.model._clock_ns()
        if now_ns < self.deadline_ns:
            self.join(now_ns)
            return
        late = "the deadline passed while an equal request was computed"
        self.fail(ProtocolError(Kind.LATE, late))

    def leave(self) -> None:
        """Wait for it no more."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def tell(self, failure: ProtocolError) -> None:
        """Answer with a failure that is counted elsewhere."""
        self.over = True
        self._done(failure)

    def fail(self, failure: ProtocolError) -> None:
        """Answer with a failure."""
        self.reply(failure, None)

    def reply(self, outputs: Tensors | ProtocolError, timing: Timing | None) -> None:
        """Hand the answer on, once."""
        if self.over:
            return
        self.over = True
        model, query = self.model, self.query
        statistics = model.statistics
        now_ns = model._clock_ns()
        self.timing = timing
        if model.tracing is not None:
            failure = outputs if isinstance(outputs, ProtocolError) else None
            model.tracing.finished(model, query, now_ns, failure, self)
        if isinstance(outputs, ProtocolError):
            statistics.refused(outputs.kind.name, query.arrived_ns, now_ns)
            self._done(outputs)
            model._fly_on(self)
            return
        statistics.answered(
            Served(
                now_ns,
                now_ns - query.arrived_ns,
                query.parsed_ns - query.arrived_ns,
                self.rows,
                *(timing.since(self.queued_ns, now_ns) if timing is not None else NOT_RUN),
            )
        )
        if model.fell_back:
            statistics.replaced += 1
        wanted = query.outputs
        chosen = {each.name: outputs[each.name] for each in wanted} if wanted else outputs
        self._done(Answer(model.name, model.version, query.id, chosen))
        if self.content is not None:
            model._fly_on(self, outputs)
        if model._shadow is not None:
            model.shadowed(self.inputs, outputs)


class _Spec:
    """An input's spec, as a request is checked against it."""

    __slots__ = ("_shape", "batched", "datatype", "dtype", "name", "words")

    def __init__(self, spec: TensorSpec, batched: bool) -> None:
        self.name, self.batched = spec.name, batched
        self.dtype = np.dtype(spec.dtype)
        self._shape = tuple(size if isinstance(size, int) else None for size in spec.shape)
        shape = ", ".join(map(str, spec.shape))
        self.datatype = datatype_of(spec.dtype)
        self.words = f"{self.datatype}[{shape}]"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether a shape has this rank and every settled size."""
        return len(shape) == len(self._shape) and all(
            want is None or want == size for want, size in zip(self._shape, shape, strict=True)
        )

    def mismatch(self, datatype: str, shape: tuple[int, ...]) -> ProtocolError:
        """Say what the model takes, and what came."""
        return ProtocolError(
            Kind.INVALID,
            f"input {self.name!r}: the model takes {self.words}; got {datatype}{list(shape)}",
        )


def _datatype(array: Array) -> str:
    try:
        return datatype_of(array.dtype.name)
    except InputError:
        return array.dtype.name
