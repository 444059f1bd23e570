"""Stages of a chain for the samples of its requests, from the door to the decision.

What lies between the models (decoding, cutting, preparing, deciding) runs on threads; `ChainPlan` says what
comes next. Crops of several requests share batches, since each is a request like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from hasten.bundle.chains.plan import Ask, ChainPlan
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.chains.nodes import SOURCE
from hasten.serving.models.batching import handed_over
from hasten.serving.models.caching import ChainInputs, steps_key
from hasten.serving.models.chain_counts import ChainCounts, uncount_begun
from hasten.serving.models.chain_tickets import ChainTicket, priority_of
from hasten.serving.models.chain_times import passed
from hasten.serving.models.deciding import Deciding, Done, RawTicket, longest_of
from hasten.serving.models.decisions import as_json
from hasten.serving.models.door import Door
from hasten.serving.models.prepared import parts_of, row_bytes
from hasten.serving.models.room import COPIES, NoRoomError
from hasten.serving.models.scheduling import ACCEPTED_WAITS, level_of
from hasten.serving.models.served import ServedModel
from hasten.serving.models.statistics import NOT_RUN, Served
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import Answer, Query, is_named

if TYPE_CHECKING:
    from hasten.serving.models.chained import ServedChain

_BATCHES = 2
"""Batches of its slowest model that a chain's samples have left when further ones begin."""
_LEAST_WATCH_S = 0.01
"""Least time between two looks at a sample that waits, however short the longest wait is."""
_ASKED_BYTES = 4 << 20
"""Size of the samples that a model is asked about at a time, unless one alone is larger, or the request's own
bytes pay for more."""


class ChainDeciding(Deciding):
    """Takes requests to a chain through its stages.

    Args:
        model: The served chain.
        plan: Its stages.
        loop: Event loop on whose thread all methods are called, unless they say that a thread calls them.
    """

    model: ServedChain

    def __init__(
        self, model: ServedChain, plan: ChainPlan, loop: asyncio.AbstractEventLoop
    ) -> None:
        pipeline = next(iter(plan.members.values())).pipeline
        waits_ns = model.settings.deadline_ns, model._clock_ns, model.settings.most_wait_ns
        super().__init__(model, pipeline, loop, *waits_ns)
        self._plan = plan
        self._counts = ChainCounts(plan.members)
        self._door: Door[ChainTicket] = Door()
        self._letting_in = False
        allowed = [
            member.decode.memory_per_byte for member in plan.members.values() if member.decode
        ]
        if allowed:
            self._per_byte = 0 if 0 in allowed else max(allowed)
        self._longest = longest_of(*(member.pipeline for member in plan.members.values()))
        self._repeatable = all(one.pipeline.deterministic for one in plan.members.values())
        self._asked_bytes = max(_asked_bytes(plan, node) for node in plan.members)
        self._keys = {
            node: steps_key(plan.steps_before(node), keeps_text=member.pipeline.reads_text)
            for node, member in plan.members.items()
        }

    def ticket(self, query: Query, done: Done, rows: int) -> RawTicket:
        ticket = ChainTicket(self, query, done, rows)
        ticket.asked, ticket.answers, ticket.run, ticket.stages = [], {}, None, []
        ticket.level = level_of(priority_of(ticket), named=is_named(query))
        ticket.asked_rows, ticket.line = dict.fromkeys(self._plan.members, 0), None
        ticket.left, ticket.prepare = {}, None
        return ticket

    def _check_wait(self, ticket: RawTicket) -> None:
        """Refuse a sample that would wait too long for its models, before any work on it is done.

        A model refuses nothing of a sample that was accepted, since what its other models did would be lost; unless
        higher priorities keep it waiting for far too long.

        Raises:
            ProtocolError: the sample is refused.
        """
        assert isinstance(ticket, ChainTicket)
        wait_ns = self._wait_of(ticket)
        if wait_ns > self._most_wait_ns:
            raise ProtocolError(
                Kind.OVERLOADED,
                f"overloaded: the request would wait {wait_ns / 1e6:,.0f} ms for the chain's models, but at most "
                f"{self._most_wait_ns / 1e6:,.0f} ms are allowed; retry later",
                retry_s=(wait_ns - self._most_wait_ns) / 1e9,
            )
        self._counts.enter(ticket)

    @property
    def wait_ns(self) -> float:
        """Expected wait of a sample that arrives now, in nanoseconds."""
        asked = Query(self.model.name, self.model.version, "", {})
        ticket = self.ticket(asked, lambda _: None, 1)
        assert isinstance(ticket, ChainTicket)
        return self._wait_of(ticket)

    def _wait_of(self, ticket: ChainTicket) -> float:
        """Predict how long a new sample waits for its models, and for those before it, in nanoseconds."""
        models = dict[str, ServedModel]()
        for node in self._plan.members:
            with contextlib.suppress(
                ProtocolError
            ):  # it isn't ready, which is told when it is asked
                models[node] = self.model.member(node)
        queues_ns = sum(
            model.wait_of(ticket.query) * self._counts.share(model, models)
            for model in set(models.values())
        )
        return queues_ns + self._counts.ahead_ns(ticket, models)

    # -- at the door

    @property
    def waiting(self) -> int:
        """Number of samples that were accepted and haven't begun."""
        return self._counts.waiting

    def _begin(self, ticket: RawTicket, prepare: Callable[[], Any]) -> None:
        """Let a sample wait until those before it leave the models little to do.

        Else new samples would take the processors from those that have begun, and make these the later the more
        come. As many samples as there are processors always begin.
        """
        assert isinstance(ticket, ChainTicket)
        ticket.prepare = prepare
        self._door.enter(ticket, ticket.level, ticket.query.client, priority_of(ticket))
        self._watch(ticket)
        self._let_in()

    def _watch(self, ticket: ChainTicket) -> None:
        """Look at a sample again once it has waited for far too long."""
        if self._most_wait_ns:
            most_s = max(_LEAST_WATCH_S, ACCEPTED_WAITS * self._most_wait_ns / 1e9)
            ticket.timer = self._loop.call_later(most_s, self._overtaken, ticket)

    def _let_in(self) -> None:
        """Begin the samples that there is room for."""
        self._letting_in = False
        while (ticket := self._door.first()) is not None and self._is_room(ticket):
            self._door.pop()
            prepare, ticket.prepare = ticket.prepare, None
            assert prepare is not None
            if ticket.timer is not None:
                ticket.timer.cancel()
                ticket.timer = None
            self._counts.count_begun(ticket)
            with handed_over():  # it may fail at once, and another request may have let it in
                self._run(ticket, prepare, self._ask)

    def _waits(self, ticket: RawTicket) -> None:
        assert isinstance(ticket, ChainTicket)
        super()._waits(ticket)
        if ticket.line is not None and not any(ticket.asked_rows.values()):
            uncount_begun(
                ticket, ticket.line
            )  # else few large pictures would keep all others at the door
            self._let_in_soon()

    def _let_in_soon(self) -> None:
        """Begin the samples that there is room for, after what happens now."""
        if not self._letting_in:
            self._letting_in = True
            self._loop.call_soon(self._let_in)

    def _is_room(self, ticket: ChainTicket) -> bool:
        """Whether a sample may begin: the models would soon have nothing to do but for new samples.

        The longer other requests to the models make a sample wait, the more samples may begin: more must be under
        way to get the chain's share of the models.
        """
        lines = [line for level, line in self._counts.lines.items() if level <= ticket.level]
        if sum(line.begun for line in lines) < self._at_once:
            return True
        try:
            models = {node: self.model.member(node) for node in self._plan.members}
        except ProtocolError:  # which the sample is told when it asks the model
            return True
        left_ns = sum(
            model.cost_of(1) * sum(line.left[node] for line in lines)
            for node, model in models.items()
        )
        enough_ns = _BATCHES * max(model.batch_ns for model in models.values())
        if left_ns <= enough_ns:
            return True
        queues_ns = sum(model.wait_of(ticket.query) for model in set(models.values()))
        return left_ns <= enough_ns + max(0.0, queues_ns - left_ns)

    def _overtaken(self, ticket: ChainTicket) -> None:
        """Refuse a sample that has waited at the door for far too long, if more urgent ones go before it."""
        ticket.timer = None
        query, line = ticket.query, ticket.line
        urgent = any(level < ticket.level for level in self._counts.lines)
        if line is not None and is_named(query):
            urgent |= any(one < priority_of(ticket) for one in line.clients[query.client])
        if not urgent:
            self._watch(ticket)
            return
        failure = ProtocolError(
            Kind.OVERLOADED,
            "overloaded: requests of higher priority took all the time; retry later",
            retry_s=0.0,
        )
        self.model.refused(ticket.query, failure)
        ticket.tell(failure)

    def leave(self, ticket: RawTicket) -> None:
        assert isinstance(ticket, ChainTicket)
        if not ticket.place.working:
            ticket.run = None  # its picture would stay until the client has read the answer
        self._counts.uncount(ticket)
        if ticket.prepare is not None:
            ticket.prepare = None
            self._door.left(ticket.level, ticket.query.client)
        super().leave(ticket)
        ticket.drop()
        self._let_in_soon()

    def close(self) -> None:
        for ticket in list(self._under_way):
            assert isinstance(ticket, ChainTicket)
            ticket.drop()
        super().close()

    # -- between the models

    def _prepared(self, ticket: RawTicket, samples: list[bytes]) -> Any:
        """Begin the stages of a sample; return what to ask first, or the decision. On a thread."""
        assert isinstance(ticket, ChainTicket)
        self._check_sent(ticket.query, samples)
        (sample,) = samples
        place = ticket.place
        # What the request's own bytes pay for is used by its picture and its crops.
        most = max(_ASKED_BYTES, place.paid_bytes // (4 * COPIES))
        place.hold(max(COPIES * self._asked_bytes, place.paid_bytes // 4))
        ticket.stages, ticket.kept = [], []
        kept = None
        if self.model.cache is not None:
            ticket.kept = [self.model.cache.prepared(sample)]
            kept = ChainInputs(ticket.kept[0], self._keys)
        ticket.run = self._plan.run(
            sample, partial(self._check, ticket), ticket.stages, self._clock_ns, most, kept
        )
        found = _next(partial(next, ticket.run), Kind.INVALID)
        if isinstance(found, Ask) and found.size_bytes > self._asked_bytes:
            try:
                place.hold(COPIES * found.size_bytes)
            except NoRoomError:
                ticket.run = None
                raise
        return found  # all that is reserved stays so, for the picture and its crops

    def _note(self, stage: str, span_ns: int) -> None:
        """Nothing yet: what comes between two models is both; `_tell` records what the stages took."""

    def _check(self, ticket: ChainTicket) -> None:
        """Check that there is still someone to answer, and time.

        Raises:
            ProtocolError: the request was given up, or its deadline passed.
        """
        if ticket.over:
            raise ProtocolError(Kind.GONE, "the client went away")
        if self._clock_ns() > ticket.deadline_ns:
            raise ProtocolError(Kind.LATE, "the deadline passed before the chain's decision")

    def _ask(self, ticket: RawTicket, result: Any) -> None:
        """Ask the model whose turn it is, or tell the decision."""
        assert isinstance(ticket, ChainTicket)
        if isinstance(result, list):
            self._tell(ticket, result)
            return
        assert isinstance(result, Ask)
        ticket.asked, ticket.answers = [], {}
        try:
            model = self.model.member(result.model)
            parts = parts_of(result.requests, max(1, model.most_rows))
            self._counts.asks(ticket, result.model, len(result.requests))
            for place, part in enumerate(parts):
                done = partial(self._came, ticket, result.model, place, len(parts))
                asked = model.submit(self._query(ticket, model, part), done)
                if ticket.over:  # an answer that came at once was an error
                    ticket.drop()
                    return
                ticket.inner = asked
                ticket.asked.append(asked)
        except ProtocolError as failure:
            self._fail(ticket, result.model, failure)

    def _query(self, ticket: ChainTicket, model: ServedModel, inputs: dict[str, Array]) -> Query:
        query = ticket.query
        left_ns = 0
        if ticket.deadline_ns != math.inf:
            left_ns = max(1, round(ticket.deadline_ns - query.arrived_ns))
        now_ns = self._clock_ns()
        return Query(
            model.name,
            model.version,
            query.id,
            inputs,
            priority=query.priority,
            timeout_ns=left_ns,
            arrived_ns=query.arrived_ns if left_ns else now_ns,
            parsed_ns=now_ns,
            trace=query.trace,
            source=query.source,
            client=query.client,
            name=query.name,
            accepted=True,
        )

    def _came(
        self,
        ticket: ChainTicket,
        node: str,
        place: int,
        parts: int,
        answer: Answer | ProtocolError,
    ) -> None:
        """Note a model's answer; with the last one, go on."""
        if ticket.over:
            return
        if isinstance(answer, ProtocolError):
            self._fail(ticket, node, answer)
            return
        ticket.answers[place] = answer.outputs
        if len(ticket.answers) == parts:
            answers = [ticket.answers[n] for n in range(parts)]
            self._counts.got(ticket, node)
            self._let_in_soon()
            if not self._plan.members[node].varying:  # else each has one sample
                answers = [row for one in answers for row in _rows(one)]
            assert ticket.run is not None
            work = partial(_next, partial(ticket.run.send, answers))
            self._run(ticket, work, self._ask, later=True)

    def _fail(self, ticket: ChainTicket, node: str, failure: ProtocolError) -> None:
        """Answer with a model's error, which names its node, and give up what else was asked."""
        named = ProtocolError(failure.kind, f"{node}: {failure}", failure.retry_s)
        self.model.refused(ticket.query, named)
        ticket.tell(named)
        ticket.drop()

    def _tell(self, ticket: RawTicket, decisions: list[bytes]) -> None:
        assert isinstance(ticket, ChainTicket)
        ticket.drop()
        query, now_ns = ticket.query, self._clock_ns()
        self._counts.answered(ticket)
        statistics, parse_ns = self.model.statistics, query.parsed_ns - query.arrived_ns
        statistics.answered(Served(now_ns, now_ns - query.arrived_ns, parse_ns, 1, *NOT_RUN))
        statistics.staged("prepare", sum(stage.prepare_ns for stage in ticket.stages))
        statistics.staged("decide", sum(stage.decide_ns for stage in ticket.stages))
        statistics.passed(passed(self._plan.chain, ticket.stages, now_ns - query.parsed_ns))
        if self.model.tracing is not None:
            self.model.tracing.finished(
                self.model, query, now_ns, stages=ticket.stages, rows=ticket.rows
            )
        super()._tell(ticket, decisions)


def _next(go_on: Callable[[], Ask], kind: Kind = Kind.INTERNAL) -> Ask | list[bytes]:
    """Return what a chain asks next, or its decision as JSON.

    Args:
        go_on: Function that runs the stages up to the next model.
        kind: Kind of an error in them.

    Raises:
        ProtocolError: a stage failed.
    """
    try:
        return go_on()
    except StopIteration as end:
        try:
            return [as_json(end.value)]
        except InputError as error:
            raise ProtocolError(Kind.INTERNAL, str(error)) from error
    except InputError as error:
        raise ProtocolError(kind, str(error)) from error


def _asked_bytes(plan: ChainPlan, node: str) -> int:
    """Return the most bytes that a model is asked about at a time, as far as its shapes are fixed."""
    member = plan.members[node]
    each = row_bytes(member.inputs)
    if plan.chain.stream[node] == SOURCE:
        return each
    fixed = all(isinstance(size, int) for spec in member.inputs for size in spec.shape[1:])
    return min(each * member.most_rows, max(each, _ASKED_BYTES)) if fixed else _ASKED_BYTES


def _rows(outputs: Tensors) -> list[Tensors]:
    """Return the outputs of each row of an answer."""
    count = min((len(array) for array in outputs.values() if array.ndim), default=1)
    return [{n: a[row : row + 1] for n, a in outputs.items()} for row in range(count)]
