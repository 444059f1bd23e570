"""Serve a chain as one model: each of its models answers in its own queue, beside other requests."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from hasten.bundle.chains.certificate import kept_certificate
from hasten.bundle.chains.opened import pipeline_of
from hasten.bundle.chains.plan import ChainPlan, Member
from hasten.bundle.manifest import Status
from hasten.core.tensors import TensorSpec
from hasten.errors import CandidateError
from hasten.inputs.chains.nodes import SOURCE
from hasten.serving.models.caching import AnswerCache, Cache
from hasten.serving.models.chain_deciding import ChainDeciding
from hasten.serving.models.chain_times import chain_parts
from hasten.serving.models.deciding import Done
from hasten.serving.models.opening import ModelSettings, OpenBundle
from hasten.serving.models.places import ChainPlace
from hasten.serving.models.served import ServedModel, Step, Ticket, Watcher
from hasten.serving.models.statistics import Statistics
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.requests import DECISION, RAW, Query
from hasten.serving.wire.message_plans import MessagePlans
from hasten.serving.wire.plans import Plans

Find = Callable[[str, str], ServedModel]
_WHY = (
    "a chain: its models' certificates don't add up to a certificate of the whole; hasten "
    "certify tests the chain's own decisions"
)


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
        self.statistics.follow(chain_parts(place.chain))
        self._plan = ChainPlan(place.chain, members)
        self.deciding = ChainDeciding(self, self._plan, loop)
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
        return self.deciding.waiting if isinstance(self.deciding, ChainDeciding) else 0

    @property
    def wait_ns(self) -> float:
        """Expected wait of a sample that arrives now, at its door and for its models, in nanoseconds."""
        return self.deciding.wait_ns if isinstance(self.deciding, ChainDeciding) else 0.0

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
