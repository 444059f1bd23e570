"""Serve a chain as one model: each of its models answers in its own queue, beside other requests.

What lies between the models (decoding, cutting, preparing, deciding) runs on threads; `ChainPlan` says what
comes next. Crops of several requests share batches, since each is a request like any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hasten.bundle.chains.certificate import kept_certificate
from hasten.bundle.chains.opened import pipeline_of
from hasten.bundle.chains.plan import Ask, ChainPlan, Member, Run, Stage, parts_of
from hasten.bundle.manifest import Status
from hasten.core.tensors import Array, Tensors, TensorSpec
from hasten.errors import CandidateError, InputError
from hasten.inputs.chains import Chain
from hasten.inputs.chains.nodes import SOURCE, Crop, Model
from hasten.inputs.pipeline.base import Origin
from hasten.serving.models.batching import handed_over
from hasten.serving.models.caching import AnswerCache, Cache, PreparedSample, steps_key
from hasten.serving.models.deciding import Cancellable, Deciding, Done, RawTicket, longest_of
from hasten.serving.models.decisions import as_json
from hasten.serving.models.door import Door
from hasten.serving.models.opening import ModelSettings, OpenBundle
from hasten.serving.models.prepared import row_bytes
from hasten.serving.models.room import COPIES, NoRoomError
from hasten.serving.models.scheduling import ACCEPTED_WAITS, USUAL_PRIORITY, level_of
from hasten.serving.models.served import ServedModel, Step, Ticket, Watcher, is_named
from hasten.serving.models.statistics import NOT_RUN, Served, Statistics
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import DECISION, RAW, Answer, Query
from hasten.serving.wire.message_plans import MessagePlans
from hasten.serving.wire.plans import Plans

_WEIGHT = 1 / 16
"""Weight of a sample in the average of what recent ones asked of the models."""
_BATCHES = 2
"""Batches of its slowest model that a chain's samples have left when further ones begin."""
_LEAST_WATCH_S = 0.01
"""Least time between two looks at a sample that waits, however short the longest wait is."""
_ASKED_BYTES = 4 << 20
"""Size of the samples that a model is asked about at a time, unless one alone is larger, or the request's own
bytes pay for more."""
Find = Callable[[str, str], ServedModel]
_WHY = (
    "a chain: its models' certificates don't add up to a certificate of the whole; hasten "
    "certify tests the chain's own decisions"
)


@dataclass(frozen=True)
class ChainPlace:
    """A chain to serve.

    Attributes:
        chain: The chain.
        members: Names under which its models are served, by their nodes' names.
        certificate: File in which the chain's certificate is kept, if it was tested; None for no place.
    """

    chain: Chain
    members: dict[str, str]
    certificate: Path | None = None


class ServedChain(ServedModel):
    """A chain of models that are served too; it answers raw samples, one per request.

    Args:
        name: Name of the chain for clients.
        version: Version number, as text, of the chain and its models.
        place: The chain, and the names of its models.
        find: Function that returns a served model by name and version.
        settings: Settings that the chain is served with.
        loop: Event loop on whose thread everything but the steps between the models runs.
        statistics: Statistics of the chain that this one replaces; None to begin new ones.
        clock_ns: Monotonic clock, in nanoseconds.
        tracing: Observer of finished requests; None if tracing is off.
        cache: Cache that the models of the server share; None for a cache of the chain's own, if its
            settings want one.

    Raises:
        CandidateError: one of the models isn't ready.
        InputError: the models don't give what the chain's nodes need.
    """

    def __init__(
        self,
        name: str,
        version: str,
        place: ChainPlace,
        find: Find,
        settings: ModelSettings,
        loop: asyncio.AbstractEventLoop,
        statistics: Statistics | None = None,
        clock_ns: Callable[[], int] = time.perf_counter_ns,
        tracing: Watcher | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.name, self.version, self.settings, self.tracing = name, version, settings, tracing
        self.statistics = statistics or Statistics()
        self.inputs = (TensorSpec(RAW, "object", ("samples",)),)
        self.outputs = (TensorSpec(DECISION, "object", ("samples",)),)
        self.varying, self.most_rows, self.fell_back = (), 0, False
        self.cache = AnswerCache.of(cache, settings.cache_bytes)
        self._clock_ns, self._plans, self.messages = clock_ns, Plans(), MessagePlans()
        self._specs = []
        self._place, self._find = place, find
        self._kept: dict[str, ServedModel] = {}
        """Models to ask for what was accepted before the chain was made again, by name."""
        try:
            models = {node: self.member(node) for node in place.members}
        except ProtocolError as error:
            raise CandidateError(str(error)) from error
        members = {node: _member(node, model.opened) for node, model in models.items()}
        self._state(models[place.chain.roots[0].name].opened, "uncertified", _WHY)
        self.statistics.follow(_parts_of(place.chain))
        self._plan = ChainPlan(place.chain, members)
        self.deciding = _ChainDeciding(self, self._plan, loop)
        self._shadow = self.quick_rows = self.sequences = self.watch = None

    def member(self, node: str) -> ServedModel:
        """Return the served model of a node.

        Raises:
            ProtocolError: it isn't ready.
        """
        return self._find(self._place.members[node], self.version)

    def _state(self, root: OpenBundle, status: Status, why: str) -> None:
        """State for clients and operators what is known of the chain's decisions."""
        manifest = replace(
            root.manifest,
            status=status,
            why=why,
            certificate=None,
            winner=replace(root.manifest.winner, label=f"chain: {self._place.chain.in_words()}"),
        )
        self._stated = replace(
            root, manifest=manifest, notes=[], standby=None, instead="", watch=None
        )

    @property
    def opened(self) -> OpenBundle:  # type: ignore[override]
        """The bundle of the chain's root, which states what is known of the whole chain's decisions."""
        if self._stated.manifest.status != "certified":
            return self._stated
        with contextlib.suppress(ProtocolError):
            others = [one for one in self._place.members if self.member(one).answers != "winner"]
            if others:
                why = f"{_WHY}; not certified now: the exact model of {', '.join(others)} answers"
                stated = replace(self._stated.manifest, status="uncertified", why=why)
                return replace(self._stated, manifest=stated)
        return self._stated

    def asks(self, name: str, version: str) -> bool:
        """Whether a served model is one of the chain's."""
        return version == self.version and name in self._place.members.values()

    def suits(self, name: str, opened: OpenBundle) -> bool:
        """Whether a bundle can take the place of one of the models as the chain is; else it is made again.

        Args:
            name: Name under which the model is served.
            opened: The bundle.

        Raises:
            InputError: no chain can be made with the bundle.
            CandidateError: the chain would have to be made again, but another of its models isn't ready.
        """
        members = dict(self._plan.members) | {
            node: _member(node, opened) for node, one in self._place.members.items() if one == name
        }
        if members == self._plan.members:
            return True
        ChainPlan(self._place.chain, members)
        try:
            for node, one in self._place.members.items():
                if one != name:
                    self.member(node)
        except ProtocolError as error:
            raise CandidateError(str(error)) from error
        return False

    def end_with(self, name: str, old: ServedModel | None) -> None:
        """Ask the models as they are for the requests that the chain has accepted, whatever replaces them.

        Args:
            name: Name under which the model is served that was replaced just now.
            old: Model that is asked in its place; None if it was unloaded before, so that such requests fail.
        """
        for one in self._place.members.values():
            with contextlib.suppress(ProtocolError):
                model = old if one == name else self._find(one, self.version)
                if model is not None:
                    self._kept[one] = model

        def find(name: str, version: str) -> ServedModel:
            if name not in self._kept:
                raise ProtocolError(Kind.UNAVAILABLE, "the model was unloaded", 1.0)
            return self._kept[name]

        self._find = find

    def ends_with(self, model: ServedModel) -> bool:
        """Whether the chain ends with this model."""
        return self._kept.get(model.name) is model

    def find_certificate(self) -> Callable[[], str]:
        """Return what reads the chain's certificate, for a thread, and states it if it holds.

        It returns why a certificate that is there doesn't hold; "" otherwise.

        Raises:
            ProtocolError: one of the models isn't ready.
        """
        place = self._place
        models = {node: self.member(node).opened for node in place.members}
        root = models[place.chain.roots[0].name]
        manifests = {node: one.manifest for node, one in models.items()}
        instead = [f"{node}: {one.instead}" for node, one in models.items() if one.instead]

        def find() -> str:
            kept, lapse = kept_certificate(place.certificate, place.chain, manifests)
            with contextlib.suppress(ProtocolError):
                if any(self.member(n).opened.manifest is not manifests[n] for n in manifests):
                    return ""  # a model was replaced meanwhile, after which the chain is looked at again
            if kept is not None and self.settings.trusted:
                kept, lapse = None, "its certificate isn't signed, but bundles must be"
            if kept is not None and self.settings.any_batch:
                kept, lapse = None, "not certified for batches of any size (any_batch)"
            if kept is not None and instead:
                kept, lapse = None, f"not certified here: {'; '.join(instead)}"
            if kept is not None:
                self._state(root, "certified", kept.claim)
            else:
                self._state(root, "uncertified", f"{_WHY}; {lapse}" if lapse else _WHY)
            return lapse

        return find

    @property
    def platform(self) -> str:
        return "hasten_chain"

    @property
    def answering(self) -> str:
        """Which models answer, as each may be replaced, or leave its requests to its exact model."""
        try:
            models = [self.member(node) for node in self._place.members]
        except ProtocolError:
            return ""
        return ", ".join(f"{model.number} {model.answers}" for model in models)

    @property
    def steps(self) -> Sequence[Step]:
        names = {SOURCE: RAW}
        return [
            Step(self._place.members[one.name], one.name, names.get(one.source, one.source))
            for one in self._place.chain.models
        ]

    @property
    def idle(self) -> bool:
        return self.deciding is None or self.deciding.idle

    @property
    def queued_rows(self) -> int:
        """Samples that were accepted and haven't begun."""
        return self.deciding.waiting if isinstance(self.deciding, _ChainDeciding) else 0

    @property
    def wait_ns(self) -> float:
        """Expected wait of a sample that arrives now, at its door and for its models, in nanoseconds."""
        return self.deciding.wait_ns if isinstance(self.deciding, _ChainDeciding) else 0.0

    @functools.cached_property
    def takes_raw(self) -> bool:
        return True

    def submit(self, query: Query, done: Done) -> Ticket:
        """Refuse a request with tensors.

        Raises:
            ProtocolError: always; the message names the input that a chain takes.
        """
        failure = self._unfit(query.inputs)
        try:
            self.refused(query, failure)
            raise failure
        finally:
            del failure  # it keeps this frame

    async def drained(self) -> None:
        if self.deciding is not None:
            await self.deciding.drained()

    def close(self) -> None:
        """Refuse the requests under way; the models stay open."""
        if self.deciding is not None:
            self.deciding.close()
        if self.cache is not None:
            self.cache.clear()


def _member(node: str, opened: OpenBundle) -> Member:
    """Return what a chain's plan needs to know of a node's bundle.

    Raises:
        InputError: the bundle has no pipeline.
    """
    most_rows = max(1, opened.most_rows) if opened.batched else 1
    manifest = opened.manifest
    return Member(pipeline_of(node, manifest), opened.first.inputs, most_rows, manifest.varying)


@dataclass
class _Line:
    """Samples of one level that are under way, counted so that none has to be looked at for another.

    Attributes:
        asked: Rows that they have asked of each node's model, of each sample at most the average.
        left: Rows that those that have begun will still get from each node's model, by the average.
        count: Number of samples.
        begun: Number of those that have begun.
        clients: Client -> its priorities, and the number of its samples of each.
    """

    asked: dict[str, float]
    left: dict[str, float]
    count: int = 0
    begun: int = 0
    clients: dict[str, dict[int, int]] = field(default_factory=dict)


class _ChainTicket(RawTicket):
    """A request to a chain, from its acceptance to its answer.

    Attributes:
        run: The chain's stages for the sample.
        deadline_ns: Time after which nothing more is begun.
        asked: Requests to the model whose turn it is.
        asking: Rows of these requests.
        answers: Their outputs, as far as they came.
        stages: Times of the stages that are done.
        level: Level of its requests in the models' queues.
        asked_rows: Rows that the models were asked about so far, by their nodes.
        line: Line in which it is counted; None if it isn't.
        counted: Rows of these that the line counts.
        prepare: Function that begins its stages, while it waits at the door; else None.
        left: Rows that it will still get from each node's model, by the average; empty before it has begun.
    """

    __slots__ = (
        "answers",
        "asked",
        "asked_rows",
        "asking",
        "counted",
        "left",
        "level",
        "line",
        "prepare",
        "run",
        "stages",
    )

    run: Run | None
    stages: list[Stage]
    asked: list[Cancellable]
    answers: dict[int, Tensors]
    asked_rows: dict[str, int]
    asking: int
    counted: dict[str, float]
    left: dict[str, float]
    level: int
    line: _Line | None
    prepare: Callable[[], Any] | None

    def cancel(self) -> None:
        if self.over:
            return
        self._deciding.leave(self)
        self.drop()
        self.model.refused(self.query, ProtocolError(Kind.GONE, "the client went away"))

    def drop(self) -> None:
        """Give up what the models were asked."""
        for each in self.asked:
            if not each.over:
                each.cancel()
        self.asked, self.answers = [], {}


class _ChainDeciding(Deciding):
    """Takes requests to a chain through its stages."""

    model: ServedChain

    def __init__(
        self, model: ServedChain, plan: ChainPlan, loop: asyncio.AbstractEventLoop
    ) -> None:
        pipeline = next(iter(plan.members.values())).pipeline
        waits_ns = model.settings.deadline_ns, model._clock_ns, model.settings.most_wait_ns
        super().__init__(model, pipeline, loop, *waits_ns)
        self._plan = plan
        self._rows, self._finished = dict.fromkeys(plan.members, 1.0), 0
        """Rows that a recent sample asked of each node's model on average; one before the first answer."""
        self._lines: dict[int, _Line] = {}
        """Level -> accepted samples of it that are under way."""
        self._door: Door[_ChainTicket] = Door()
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
        ticket = _ChainTicket(self, query, done, rows)
        ticket.asked, ticket.answers, ticket.run, ticket.stages = [], {}, None, []
        ticket.level = level_of(_priority(ticket), named=is_named(query))
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
        assert isinstance(ticket, _ChainTicket)
        wait_ns = self._wait_of(ticket)
        if wait_ns > self._most_wait_ns:
            raise ProtocolError(
                Kind.OVERLOADED,
                f"overloaded: the request would wait {wait_ns / 1e6:,.0f} ms for the chain's models, but at most "
                f"{self._most_wait_ns / 1e6:,.0f} ms are allowed; retry later",
                retry_s=(wait_ns - self._most_wait_ns) / 1e9,
            )
        self._enter(ticket)

    @property
    def wait_ns(self) -> float:
        """Expected wait of a sample that arrives now, in nanoseconds."""
        asked = Query(self.model.name, self.model.version, "", {})
        ticket = self.ticket(asked, lambda _: None, 1)
        assert isinstance(ticket, _ChainTicket)
        return self._wait_of(ticket)

    def _wait_of(self, ticket: _ChainTicket) -> float:
        """Predict how long a new sample waits for its models, and for those before it, in nanoseconds."""
        models = dict[str, ServedModel]()
        for node in self._plan.members:
            with contextlib.suppress(
                ProtocolError
            ):  # it isn't ready, which is told when it is asked
                models[node] = self.model.member(node)
        queues_ns = sum(
            model.wait_of(ticket.query) * self._share(model, models)
            for model in set(models.values())
        )
        return queues_ns + self._ahead_ns(ticket, models)

    def _share(self, asked: ServedModel, models: Mapping[str, ServedModel]) -> float:
        """Return the most of recent samples that can have asked a model, as a share."""
        return min(1.0, sum(self._rows[node] for node, model in models.items() if model is asked))

    def _ahead_ns(self, ticket: _ChainTicket, models: Mapping[str, ServedModel]) -> float:
        """Predict how long the models take for what samples before a new one haven't asked yet, in nanoseconds."""
        lines = [line for level, line in self._lines.items() if level <= ticket.level]
        count = sum(line.count for line in lines)
        client, left_ns = ticket.query.client, 0.0
        mine = [of for line in lines for of in line.clients.get(client, {}).items()]
        lower = 0
        if is_named(ticket.query):  # the models let its more urgent samples go first
            lower = sum(of for priority, of in mine if priority > _priority(ticket))
        before = count - lower
        if not before:
            return 0.0
        clients = {client}.union(*(line.clients for line in lines))
        own = 1 + sum(of for _, of in mine) - lower
        for node, model in models.items():
            rows = self._rows[node] * count - sum(line.asked[node] for line in lines)
            left_ns += max(0.0, rows) * model.cost_of(1)
        # Clients take turns: of each, no more samples come before than are this client's.
        return left_ns / count * min(before, len(clients) * own)

    def _enter(self, ticket: _ChainTicket) -> None:
        """Count a sample that was accepted among those that others come after."""
        asked, left = (dict.fromkeys(self._plan.members, 0.0) for _ in range(2))
        line = self._lines.setdefault(ticket.level, _Line(asked, left))
        line.count += 1
        own, priority = line.clients.setdefault(ticket.query.client, {}), _priority(ticket)
        own[priority] = own.get(priority, 0) + 1
        ticket.line, ticket.counted = line, dict.fromkeys(self._plan.members, 0.0)

    def _asks(self, ticket: _ChainTicket, node: str, rows: int) -> None:
        """Count what a sample asks of a model: up to the average, which was foreseen."""
        self._count_begun(ticket)
        ticket.asked_rows[node] += rows
        ticket.asking = rows
        if ticket.line is not None:
            counted = min(float(ticket.asked_rows[node]), self._rows[node])
            ticket.line.asked[node] += counted - ticket.counted[node]
            ticket.counted[node] = counted

    def _uncount(self, ticket: _ChainTicket) -> None:
        """Count a sample no more that is over."""
        line, client = ticket.line, ticket.query.client
        if line is None:
            return
        ticket.line = None
        line.count -= 1
        if not line.count:
            del self._lines[ticket.level]
        own, priority = line.clients[client], _priority(ticket)
        own[priority] -= 1
        if not own[priority]:
            del own[priority]
        if not own:
            del line.clients[client]
        for node, rows in ticket.counted.items():
            line.asked[node] -= rows
        _uncount_begun(ticket, line)

    # -- at the door

    @property
    def waiting(self) -> int:
        """Number of samples that were accepted and haven't begun."""
        return sum(line.count - line.begun for line in self._lines.values())

    def _begin(self, ticket: RawTicket, prepare: Callable[[], Any]) -> None:
        """Let a sample wait until those before it leave the models little to do.

        Else new samples would take the processors from those that have begun, and make these the later the more
        come. As many samples as there are processors always begin.
        """
        assert isinstance(ticket, _ChainTicket)
        ticket.prepare = prepare
        self._door.enter(ticket, ticket.level, ticket.query.client, _priority(ticket))
        self._watch(ticket)
        self._let_in()

    def _watch(self, ticket: _ChainTicket) -> None:
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
            self._count_begun(ticket)
            with handed_over():  # it may fail at once, and another request may have let it in
                self._run(ticket, prepare, self._ask)

    def _count_begun(self, ticket: _ChainTicket) -> None:
        """Count a sample among those that have begun."""
        if ticket.line is not None and not ticket.left:
            ticket.line.begun += 1
            ticket.left = dict(self._rows)
            for node, rows in ticket.left.items():
                ticket.line.left[node] += rows

    def _waits(self, ticket: RawTicket) -> None:
        assert isinstance(ticket, _ChainTicket)
        super()._waits(ticket)
        if ticket.line is not None and not any(ticket.asked_rows.values()):
            _uncount_begun(
                ticket, ticket.line
            )  # else few large pictures would keep all others at the door
            self._let_in_soon()

    def _let_in_soon(self) -> None:
        """Begin the samples that there is room for, after what happens now."""
        if not self._letting_in:
            self._letting_in = True
            self._loop.call_soon(self._let_in)

    def _is_room(self, ticket: _ChainTicket) -> bool:
        """Whether a sample may begin: the models would soon have nothing to do but for new samples.

        The longer other requests to the models make a sample wait, the more samples may begin: more must be under
        way to get the chain's share of the models.
        """
        lines = [line for level, line in self._lines.items() if level <= ticket.level]
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

    def _got(self, ticket: _ChainTicket, node: str) -> None:
        """Count the rows that a sample got from a model."""
        if ticket.line is not None and ticket.left:
            got = min(float(ticket.asking), ticket.left[node])
            ticket.left[node] -= got
            ticket.line.left[node] -= got
        self._let_in_soon()

    def _overtaken(self, ticket: _ChainTicket) -> None:
        """Refuse a sample that has waited at the door for far too long, if more urgent ones go before it."""
        ticket.timer = None
        query, line = ticket.query, ticket.line
        urgent = any(level < ticket.level for level in self._lines)
        if line is not None and is_named(query):
            urgent |= any(one < _priority(ticket) for one in line.clients[query.client])
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
        assert isinstance(ticket, _ChainTicket)
        if not ticket.place.working:
            ticket.run = None  # its picture would stay until the client has read the answer
        self._uncount(ticket)
        if ticket.prepare is not None:
            ticket.prepare = None
            self._door.left(ticket.level, ticket.query.client)
        super().leave(ticket)
        ticket.drop()
        self._let_in_soon()

    def close(self) -> None:
        for ticket in list(self._under_way):
            assert isinstance(ticket, _ChainTicket)
            ticket.drop()
        super().close()

    def _prepared(self, ticket: RawTicket, samples: list[bytes]) -> Any:
        """Begin the stages of a sample; return what to ask first, or the decision. On a thread."""
        assert isinstance(ticket, _ChainTicket)
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
            kept = _Inputs(ticket.kept[0], self._keys)
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

    def _check(self, ticket: _ChainTicket) -> None:
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
        assert isinstance(ticket, _ChainTicket)
        if isinstance(result, list):
            self._tell(ticket, result)
            return
        assert isinstance(result, Ask)
        ticket.asked, ticket.answers = [], {}
        try:
            model = self.model.member(result.model)
            parts = _parts(result.requests, max(1, model.most_rows))
            self._asks(ticket, result.model, len(result.requests))
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

    def _query(self, ticket: _ChainTicket, model: ServedModel, inputs: dict[str, Array]) -> Query:
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
        ticket: _ChainTicket,
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
            self._got(ticket, node)
            if not self._plan.members[node].varying:  # else each has one sample
                answers = [row for one in answers for row in _rows(one)]
            assert ticket.run is not None
            work = partial(_next, partial(ticket.run.send, answers))
            self._run(ticket, work, self._ask, later=True)

    def _fail(self, ticket: _ChainTicket, node: str, failure: ProtocolError) -> None:
        """Answer with a model's error, which names its node, and give up what else was asked."""
        named = ProtocolError(failure.kind, f"{node}: {failure}", failure.retry_s)
        self.model.refused(ticket.query, named)
        ticket.tell(named)
        ticket.drop()

    def _tell(self, ticket: RawTicket, decisions: list[bytes]) -> None:
        assert isinstance(ticket, _ChainTicket)
        ticket.drop()
        query, now_ns = ticket.query, self._clock_ns()
        self._finished += 1
        for node, rows in ticket.asked_rows.items():
            self._rows[node] += max(_WEIGHT, 1 / self._finished) * (rows - self._rows[node])
        statistics, parse_ns = self.model.statistics, query.parsed_ns - query.arrived_ns
        statistics.answered(Served(now_ns, now_ns - query.arrived_ns, parse_ns, 1, *NOT_RUN))
        statistics.staged("prepare", sum(stage.prepare_ns for stage in ticket.stages))
        statistics.staged("decide", sum(stage.decide_ns for stage in ticket.stages))
        statistics.passed(_passed(self._plan.chain, ticket.stages, now_ns - query.parsed_ns))
        if self.model.tracing is not None:
            self.model.tracing.finished(
                self.model, query, now_ns, stages=ticket.stages, rows=ticket.rows
            )
        super()._tell(ticket, decisions)


def _uncount_begun(ticket: _ChainTicket, line: _Line) -> None:
    """Count a sample no more among those that have begun, if it is."""
    line.begun -= bool(ticket.left)
    for node, rows in ticket.left.items():
        line.left[node] -= rows
    ticket.left = {}


def _priority(ticket: RawTicket) -> int:
    return ticket.query.priority or USUAL_PRIORITY


class _Inputs:
    """Cached forms of a sample, as the models of a chain take it.

    Args:
        kept: Cached forms of the sample.
        keys: Hash of the steps before each model; None for one whose samples aren't kept.
    """

    def __init__(self, kept: PreparedSample, keys: Mapping[str, bytes | None]) -> None:
        self._kept, self._keys = kept, keys

    def find(self, node: str) -> tuple[Any, Origin] | None:
        """Return the sample as a model takes it, and where it comes from; None if it isn't there."""
        key = self._keys[node]
        return None if key is None else self._kept.get(key)

    def used(self, node: str) -> None:
        """Count that a model is asked about what `find` returned."""
        self._kept.hits += 1

    def made(self, node: str, prepared: Any, origin: Origin) -> None:
        """Keep the sample as a model takes it, which was prepared now."""
        if (key := self._keys[node]) is not None:
            self._kept.misses += 1
            self._kept.put(key, prepared, origin)


def _parts_of(chain: Chain) -> list[tuple[str, str]]:
    """Return where the time of a chain's requests can go: nodes, and parts of them."""
    parts = [(SOURCE, "wait"), (SOURCE, "decode")]
    for node in chain.in_order:
        if isinstance(node, Model):
            parts += [(node.name, part) for part in ("prepare", "run", "decide")]
        else:
            parts.append((node.name, "cut" if isinstance(node, Crop) else "choose"))
    return parts


def _passed(chain: Chain, stages: Sequence[Stage], whole_ns: int) -> dict[tuple[str, str], int]:
    """Return what each part of a chain took of a request; without those that had nothing to do.

    Args:
        chain: The chain.
        stages: The stages' times.
        whole_ns: Time from the parsed request to the decision. What no stage took is the source's wait:
            for a thread, and for memory.
    """
    found = {(SOURCE, "wait"): max(0, whole_ns - sum(stage.total_ns for stage in stages))}
    found[SOURCE, "decode"] = stages[0].total_ns
    for node, stage in zip(chain.in_order, stages[1:], strict=True):
        if stage.asks or not isinstance(node, Model):
            found |= {(node.name, part): ns for part, ns in parts_of(node, stage).items()}
    return found


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


def _parts(requests: Sequence[dict[str, Array]], most: int) -> list[dict[str, Array]]:
    """Return requests of one row together, in requests of at most `most` rows of one shape."""
    parts: list[list[dict[str, Array]]] = []
    for request in requests:
        last = parts[-1] if parts else None
        if last is None or len(last) == most or _shapes(last[0]) != _shapes(request):
            parts.append([request])
        else:
            last.append(request)
    return [
        part[0]
        if len(part) == 1
        else {name: np.concatenate([one[name] for one in part]) for name in part[0]}
        for part in parts
    ]


def _shapes(request: Mapping[str, Array]) -> list[tuple[int, ...]]:
    return [array.shape for array in request.values()]


def _rows(outputs: Tensors) -> list[Tensors]:
    """Return the outputs of each row of an answer."""
    count = min((len(array) for array in outputs.values() if array.ndim), default=1)
    return [{n: a[row : row + 1] for n, a in outputs.items()} for row in range(count)]
