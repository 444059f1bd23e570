"""Keep the registered models by name and version; load, unload and replace them."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Set
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar
from weakref import WeakSet

from hasten.bundle import Manifest, read, unpacked
from hasten.bundle.signatures import PublicKey
from hasten.core.tensors import Tensors
from hasten.core.varying import of_one_size
from hasten.core.words import amount
from hasten.errors import CandidateError, DeviceLost, HastenError, InputError, named
from hasten.inputs.metrics.changes import disagreeing_rows
from hasten.serving.models.caching import Cache
from hasten.serving.models.chained import ServedChain
from hasten.serving.models.clients import Clients
from hasten.serving.models.comparison import is_broken
from hasten.serving.models.opening import ModelSettings, OpenBundle, open_bundle
from hasten.serving.models.pace import BackgroundPace
from hasten.serving.models.places import ChainPlace
from hasten.serving.models.sequences import StateBytes
from hasten.serving.models.served import ServedModel, Shared, Watcher
from hasten.serving.models.thread_priority import lowered_priority
from hasten.serving.models.trial import COMPARED, answers_of, check_interface, compare, inputs_of
from hasten.serving.models.watched import check_unreplaced, digest_at, held, watch_of
from hasten.serving.protocol.errors import Kind, ProtocolError

log = logging.getLogger("hasten.serving")

UNLOADED = "unloaded"
_GIVEN_UP = "it was unloaded while it was being loaded"
QUEUED = "queued: models are loaded one after another, and others are first"
_PATIENCE_S = 30.0
_TURN_S = 10.0
"""Time after which a version that is still being opened lets the next one begin."""
_LOOK_S = 0.1
_OVERDUE_S = 60.0
"""Time after which the server counts as ready without a version that is still being opened."""
T = TypeVar("T")
State: TypeAlias = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]
Marker: TypeAlias = Callable[["Registered"], Callable[[], contextlib.AbstractContextManager[None]]]


class GivenUpError(HastenError):
    """A version was unloaded while it was being loaded."""


@dataclass
class Registered:
    """A version of a model that may be served.

    Attributes:
        name: Name of the model for clients.
        version: Version number, as text.
        path: Folder of the bundle.
        settings: Settings that the model is served with.
        state: State in the protocol's terms.
        tried: Whether loading has been tried, with success or without.
        overdue: Whether loading takes so long that the other versions don't wait for it.
        reason: Reason why the version isn't ready, such as that its turn to be loaded comes; "" if it
            is ready.
        served: Open model; None if the version isn't ready.
        chain: Chain that this is; None for a bundle.
        opening: Bundle that is being opened; None if none is.
        given_up: Event that is set when the version is unloaded while it is being opened.
        manifest: Manifest of the bundle that was served last; None if none was.
    """

    name: str
    version: str
    path: Path
    settings: ModelSettings
    state: State = "UNAVAILABLE"
    tried: bool = False
    overdue: bool = False
    reason: str = QUEUED
    served: ServedModel | None = None
    chain: ChainPlace | None = None
    opening: asyncio.Future[OpenBundle] | None = None
    given_up: asyncio.Event = field(default_factory=asyncio.Event)
    manifest: Manifest | None = None


class Repository:
    """Repository of the registered models; used on the event loop's thread, except for the loading.

    Args:
        registered: Versions of models that may be served.
        loop: Event loop of the server.
        marker: Function that returns the context to enter while a version's engine runs.
        tracing: Sender of spans; None if tracing is off.

    Attributes:
        clients: Record of which client of the server is active.
        cache: Cache that all models share; None if none is to cache anything.
        states: Memory that the states of all models' sequences share.
        forgiven: Callback that is told of a version whose exact model answered, or was left out, after a
            crash, until its bundle was replaced.
        lost: Callback that is told that a device answers nothing more in this process.
        opening_begins: Callback that is called before a bundle is opened.
        warned: Callback that is told each model that is ready to be served, and returns a warning to log, or "".
    """

    def __init__(
        self,
        registered: list[Registered],
        loop: asyncio.AbstractEventLoop,
        marker: Marker = lambda one: contextlib.nullcontext,
        tracing: Watcher | None = None,
    ) -> None:
        self._loop, self._marker, self._tracing = loop, marker, tracing
        self.clients = Clients()
        cache_bytes = max((one.settings.cache_bytes for one in registered), default=0)
        self.cache = Cache(cache_bytes) if cache_bytes else None
        sequence_bytes = max((one.settings.sequence_bytes for one in registered), default=0)
        self.states = StateBytes(sequence_bytes)
        self.forgiven: Callable[[Registered], None] = lambda one: None
        self.lost: Callable[[DeviceLost], None] = lambda error: None
        self.opening_begins: Callable[[], None] = lambda: None
        self.warned: Callable[[ServedModel], str] = lambda model: ""
        self._versions: dict[str, dict[str, Registered]] = {}
        for one in registered:
            self._versions.setdefault(one.name, {})[one.version] = one
        self._busy: dict[str, asyncio.Lock] = {}
        self._loading, self._replacing = asyncio.Semaphore(), asyncio.Semaphore()
        self._under_way: dict[asyncio.Task[None], tuple[Registered, float]] = {}
        self._ending: WeakSet[ServedChain] = WeakSet()
        """Chains that get no more requests, and may still answer what they have accepted."""

    def __iter__(self) -> Iterator[Registered]:
        for versions in self._versions.values():
            yield from versions.values()

    def served(self) -> Iterator[ServedModel]:
        """Yield every version that is ready."""
        for one in self:
            if one.served is not None:
                yield one.served

    def trust(self, keys: tuple[PublicKey, ...]) -> None:
        """Open bundles from now on only if one of these keys has signed them; those that are open stay."""
        for one in self:
            if one.settings.trusted != keys:
                one.settings = replace(one.settings, trusted=keys)
                if one.served is not None:
                    one.served.settings = replace(one.served.settings, trusted=keys)

    @property
    def ready(self) -> bool:
        """Whether at least one version is ready, and none is loading but overdue ones."""
        loading = any(not one.tried or (one.state == "LOADING" and not one.overdue) for one in self)
        return not loading and any(self.served())

    @property
    def opening(self) -> bool:
        """Whether a bundle is being opened, wanted or not."""
        return any(one.opening is not None and not one.opening.done() for one in self)

    def find(self, name: str, version: str = "") -> ServedModel:
        """Return a version, by default the newest that is ready.

        Raises:
            ProtocolError: there is no such model or version, or it isn't ready.
        """
        versions = self._versions.get(name)
        if versions is None:
            raise ProtocolError(
                Kind.NOT_FOUND, f"unknown model {name!r:.200}; see v2/repository/index"
            )
        if not version:
            for one in reversed(versions.values()):
                if one.served is not None:
                    return one.served
            version = next(reversed(versions))
        elif version not in versions:
            raise ProtocolError(
                Kind.NOT_FOUND,
                f"the model {name!r} has no version {version!r:.40}; it has {', '.join(versions)}",
            )
        one = versions[version]
        if one.served is not None:
            return one.served
        raise ProtocolError(Kind.UNAVAILABLE, f"the model {name!r} isn't ready: {one.reason}", 1.0)

    def versions(self, name: str) -> list[str]:
        """Return the versions of a model that are ready, oldest first."""
        return [one.version for one in self._versions.get(name, {}).values() if one.served]

    def registered(self, name: str) -> list[Registered]:
        """Return every version that is registered under a name, for control requests.

        Raises:
            ProtocolError: no model has this name; the message says what can be loaded.
        """
        if name not in self._versions:
            raise ProtocolError(
                Kind.NOT_FOUND,
                f"no bundle is registered as {name!r:.200}: only the bundles that the server was "
                "started with can be loaded",
            )
        return list(self._versions[name].values())

    def registered_or_unknown(self, name: str) -> list[Registered]:
        """Return every version of a model of which one is ready, for other requests.

        Raises:
            ProtocolError: no model has this name, or none of its versions is ready.
        """
        self.find(name)
        return list(self._versions[name].values())

    async def load_all(self) -> None:
        """Load every version; one that fails is logged and doesn't stop the others.

        One that takes too long doesn't stop them either: unless no other is ready, it is left to end
        by itself.

        Raises:
            InputError: no version could be loaded.
        """
        for one in self:
            if one.chain is not None:  # its models may take longer than their turns
                await self._settled(set(one.chain.members.values()))
            await self._load_in_turn(one)
        await self._settled(self._versions.keys())
        while self._under_way and not any(self.served()):
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        while not any(self.served()) and (busy := [e for e in self._busy.values() if e.locked()]):
            async with busy[0]:  # a client's load may succeed, as where it replaced the bundle
                pass
        failed = [one for one in self if one.served is None]
        if len(failed) == len(list(self)):
            raise InputError("; ".join(f"{one.name}: {one.reason}" for one in failed))

    async def _load_in_turn(self, one: Registered) -> None:
        """Load a version, and wait for it no longer than its turn lasts; a failure is logged."""
        loading = self._begun(one)
        await asyncio.wait({loading}, timeout=_TURN_S)
        if loading.done():
            loading.result()

    def _begun(self, one: Registered) -> asyncio.Task[None]:
        """Begin to load a version."""
        loading = self._loop.create_task(self._load_or_log(one))
        self._under_way[loading] = one, self._loop.time()
        loading.add_done_callback(self._ended)
        return loading

    async def _settled(self, names: Set[str]) -> None:
        """Wait until no version of these models is being loaded any more, but for overdue ones."""
        while left := [
            loading
            for loading, (one, begun_s) in self._under_way.items()
            if one.name in names and not self._overdue(one, begun_s)
        ]:
            await asyncio.wait(left, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)

    def _overdue(self, one: Registered, begun_s: float) -> bool:
        """Whether nothing waits for a version any more, however far its load has come."""
        one.overdue = one.overdue or self._loop.time() - begun_s > _OVERDUE_S
        return one.overdue

    def _ended(self, loading: asyncio.Task[None]) -> None:
        one, _ = self._under_way.pop(loading)
        if not loading.cancelled() and (error := loading.exception()) is not None:
            log.error("the server's own code failed", exc_info=error, extra={"model": one.name})
            if one.served is None:
                one.state, one.reason = "UNAVAILABLE", "the server's own code failed: see its log"

    async def _load_or_log(self, one: Registered) -> None:
        with contextlib.suppress(HastenError):
            await self.load(one)

    async def load(self, one: Registered) -> None:
        """Load a version, or replace the served model by the bundle that is at its path now.

        The new model is opened, warmed up in every batch shape and compared before it gets requests.
        The old one answers until then, and finishes the requests that it has accepted. No request is
        lost, and none gets an answer from a mix of both.

        Raises:
            HastenError: the bundle can't be loaded; the old model stays in service.
        """
        async with self._busy.setdefault(f"{one.name}/{one.version}", asyncio.Lock()):
            old = one.served
            if old is None:
                one.state, one.reason = "LOADING", "loading"
            one.tried, one.overdue = True, False
            try:
                if one.chain is not None:
                    chain = self._chained(one, one.chain, old)
                else:
                    opened = await self._opened_in_turn(one, old)
                    try:
                        chains = self._chains_to_renew(one, opened)
                        model = self._served(one, opened, old)
                    except Exception:
                        await _on_a_thread(opened.close)
                        raise
            except GivenUpError:
                log.info(_GIVEN_UP, extra={"model": one.name, "version": one.version})
                raise
            except Exception as error:
                if old is None:
                    one.state, one.reason = "UNAVAILABLE", str(error)
                log.error("%s", error, extra={"model": one.name, "version": one.version})
                if isinstance(error, HastenError):
                    raise
                raise CandidateError(f"{one.path}: {named(error)}") from error
            if one.chain is not None:
                self._let_end(old)
                one.served = chain
                one.state, one.reason = "READY", ""
                await self._find_certificate(
                    chain
                )  # a model that is replaced finds the chain by now
                if old is not None:
                    await self._retire(old)
                return
            one.served, one.manifest = model, opened.manifest
            if old is not None:
                one.served.learn_from(old)
            one.state, one.reason = "READY", ""
            for note in filter(None, (*opened.notes, self.warned(model))):
                log.warning("%s", note, extra={"model": one.name, "version": one.version})
            if opened.agreed:
                log.info("%s", opened.agreed, extra={"model": one.name, "version": one.version})
            what = "" if old is None else ", in place of the model served before"
            log.info(
                "ready (%s)%s",
                opened.signed,
                what,
                extra={"model": one.name, "version": one.version},
            )
            left = [self._renewed(each, one.name, old) for each in chains]
            for other in list(self.served()):  # its certificate may be of the old model
                if isinstance(other, ServedChain) and other.asks(one.name, one.version):
                    await self._find_certificate(other)
            for each in [*left, old]:
                if each is not None:
                    await self._retire(each)

    async def _opened_in_turn(self, one: Registered, old: ServedModel | None) -> OpenBundle:
        """Open a version's bundle, one at a time unless another's turn has lasted too long.

        Raises:
            HastenError: the bundle can't be opened, or the version was unloaded meanwhile.
        """
        one.given_up.clear()
        given_up = self._loop.create_task(one.given_up.wait())
        try:
            async with self._loading if old is None else self._replacing:
                if one.given_up.is_set():
                    raise GivenUpError(_GIVEN_UP)
                if one.opening is not None and not one.opening.done():
                    raise CandidateError(
                        f"{one.path} is still being opened for an earlier load that was given "
                        "up: load it again when that has ended, or restart the server"
                    )
                self.opening_begins()
                opening = one.opening = _on_a_thread(functools.partial(self._opened, one, old))
                await _first_of(opening, given_up, _TURN_S)
            await _first_of(opening, given_up, _OVERDUE_S - _TURN_S)
            if not opening.done() and not given_up.done():
                one.overdue = True
                late = f"still loading after {_OVERDUE_S:g} s: other models don't wait for this one"
                one.reason = late if old is None else one.reason
                log.warning("%s", late, extra={"model": one.name, "version": one.version})
                await _first_of(opening, given_up)
        finally:
            given_up.cancel()
        if one.given_up.is_set():
            opening.add_done_callback(_close_unasked)
            raise GivenUpError(_GIVEN_UP)
        try:
            return await opening
        finally:
            one.opening = None
            del opening  # its error keeps this frame

    def _served(
        self, one: Registered, opened: OpenBundle, old: ServedModel | ServedChain | None
    ) -> ServedModel:
        """Return what answers with an opened bundle.

        Raises:
            HastenError: it can't be made.
        """
        if opened.in_place_of_crashed:
            one.settings = replace(one.settings, which="winner", alone=False)
            self.forgiven(one)
        return ServedModel(
            one.name,
            one.version,
            opened,
            one.settings,
            self._loop,
            Shared(self.clients, self.cache, self.states),
            old.statistics if old is not None else None,
            self._marker(one),
            tracing=self._tracing,
            lost=self.lost,
        )

    def _chained(self, one: Registered, chain: ChainPlace, old: ServedModel | None) -> ServedChain:
        """Return a chain of models that are loaded already.

        Raises:
            HastenError: one of its models isn't ready, or they don't fit each other.
        """
        served = ServedChain(
            one.name,
            one.version,
            chain,
            self.find,
            one.settings,
            self._loop,
            old.statistics if old is not None else None,
            tracing=self._tracing,
            cache=self.cache,
        )
        extra = {"model": one.name, "version": one.version}
        log.info("ready: a chain of %s", ", ".join(chain.members.values()), extra=extra)
        return served

    def _chains_to_renew(self, one: Registered, opened: OpenBundle) -> list[Registered]:
        """Return the chains that must be made again for a model's new bundle, as its pipeline is another one.

        Raises:
            CandidateError: one of them can't be made.
        """
        found = []
        for each in self:
            chain = each.served
            if isinstance(chain, ServedChain) and chain.asks(one.name, one.version):
                try:
                    if not chain.suits(one.name, opened):
                        found.append(each)
                except HastenError as error:
                    raise CandidateError(
                        f"{one.path} doesn't fit the chain {each.name!r}: {error}; unload the chain first, or "
                        "give another bundle"
                    ) from error
        return found

    def _renewed(self, one: Registered, name: str, model: ServedModel | None) -> ServedChain:
        """Make a chain again, since one of its models was replaced; return the old chain.

        Args:
            one: The chain.
            name: Name of the model that was replaced.
            model: The model that was replaced; None if it was unloaded.
        """
        old = one.served
        assert isinstance(old, ServedChain)
        assert one.chain is not None
        self._let_end(old, name, model)
        one.served = self._chained(one, one.chain, old)
        return old

    def _let_end(
        self, old: ServedModel | None, name: str = "", model: ServedModel | None = None
    ) -> None:
        """Let a chain that gets no more requests end with the models that it has; do nothing for other models.

        Args:
            old: The chain.
            name: Name of a model of it that was replaced just now; "" if none was.
            model: The model that was replaced; None if it was unloaded before.
        """
        if isinstance(old, ServedChain):
            old.end_with(name, model)
            self._ending.add(old)

    async def _find_certificate(self, chain: ServedChain) -> None:
        """Let a chain state its certificate, unless one of its models isn't ready."""
        with contextlib.suppress(ProtocolError):
            lapse = await _on_a_thread(chain.find_certificate())
            if lapse:
                log.warning("%s", lapse, extra={"model": chain.name, "version": chain.version})

    def _opened(self, one: Registered, old: ServedModel | None) -> OpenBundle:
        """Open and compare a version's bundle, on a loading thread."""
        asked = settings = one.settings
        before = one.manifest  # also of a bundle that was unloaded
        crashed = before is not None and (asked.which == "exact" or asked.alone)
        renewed = crashed and differs(one.path, asked.trusted, before)
        if renewed:  # the old bundle crashed, not this one
            asked = settings = replace(asked, which="winner", alone=False)
        folder = unpacked(one.path, settings.trusted)
        bundle = digest_at(folder)
        kept = held(folder, bundle, settings)
        if kept:
            settings = replace(settings, which="exact")
        others = any(self.served())
        pace = BackgroundPace(self._idle if others else None)
        with lowered_priority() if others else contextlib.nullcontext():
            opened = open_bundle(one.path, settings, running=self._marker(one), pace=pace)
            opened.in_place_of_crashed = renewed
            try:
                with self._marker(one)():
                    check_interface(opened, old)
                    broken = compare(opened, pace)
                    if old is not None:
                        self._compare_with(opened, old, broken, pace)
                opened.broken = broken
                check_unreplaced(opened, bundle, settings.trusted)
                opened.watch = watch_of(one.name, one.version, bundle, opened, asked)
            except BaseException:
                opened.close()
                raise
        if kept:
            opened.notes.insert(0, kept)
        return opened

    def _idle(self) -> bool:
        """Whether no request waits or runs."""
        return all(model.idle for model in list(self.served()))

    def _compare_with(
        self, opened: OpenBundle, old: ServedModel, broken: bool, pace: BackgroundPace
    ) -> None:
        """Compare a new model with the one that it replaces, and note how often they disagree.

        Raises:
            CandidateError: the new model answers NaN where the old one, or its exact model, doesn't.
        """
        disagreed = compared = 0
        for request in opened.asked(COMPARED, seed=2) if opened.timed else ():
            answers = answers_of(opened, opened.first, request, pace)
            if answers is None:
                continue
            before = self._answer_of(old, request)
            if before is None:
                continue
            if broken or (is_broken(answers) and not is_broken(before)):
                raise CandidateError(
                    f"{opened.path} answers NaN here, but its exact model or the served one doesn't"
                )
            rows = disagreeing_rows(answers, of_one_size(before, opened.manifest.varying))
            compared += len(rows)
            disagreed += int(rows.sum())
        if opened.batched and opened.most_rows < old.most_rows:
            opened.notes.append(
                f"requests may have at most {amount(opened.most_rows, 'row')} from now on, instead of "
                f"{old.most_rows}"
            )
        if not compared:
            opened.notes.append(
                "it replaces the model served before, but their answers weren't compared: no request of the "
                "server's own was answered by both"
            )
            return
        said = (
            f"it replaces the model served before: on {inputs_of(opened)}, {disagreed} of {compared} "
            "answers differ"
        )
        if disagreed:
            opened.notes.append(said)
        else:
            opened.agreed = said

    def _answer_of(self, served: ServedModel, request: Tensors) -> Tensors | None:
        """Ask a served model from another thread than the loop's; return None if it gives no answer.

        It gives none while it is overloaded or being unloaded, or once the server has ended.
        """
        asking = served.ask(request)
        try:
            return asyncio.run_coroutine_threadsafe(asking, self._loop).result(_PATIENCE_S)
        except (ProtocolError, TimeoutError, CancelledError):
            return None
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            return None
        finally:
            if self._loop.is_closed():
                asking.close()  # else it warns that nobody ever began it

    async def unload(self, one: Registered) -> None:
        """Unload a version after it has answered the requests that it accepted.

        A load of it that is under way is given up: what it opens is closed, whenever that is there.
        """
        one.given_up.set()
        old, one.served = one.served, None
        self._let_end(old)
        one.state, one.reason = "UNAVAILABLE", UNLOADED
        if old is not None:
            one.state = "UNLOADING"
            await self._retire(old)
            if one.state == "UNLOADING":
                one.state = "UNAVAILABLE"

    async def _retire(self, old: ServedModel) -> None:
        """Close a model, or a chain, once it and the chains that end with it have answered."""
        for chain in [one for one in list(self._ending) if one.ends_with(old)]:
            await chain.drained()
        await old.drained()
        await _on_a_thread(old.close)

    async def reload_changed(self) -> None:
        """Load every version whose bundle was replaced on disk, or which failed to load before."""
        for one in self:
            served = one.served
            if served is None and one.reason == UNLOADED:
                continue  # a client unloaded it on purpose
            if isinstance(served, ServedChain):  # its models are versions of their own
                await self._find_certificate(served)
                continue
            if served is None or await _on_a_thread(functools.partial(_stale, served)):
                await self._load_in_turn(one)
            else:
                extra = {"model": one.name, "version": one.version}
                log.info("its bundle hasn't changed: nothing to load", extra=extra)

    def load_in_background(self, name: str, version: str) -> None:
        """Begin to load a version again, unless it is being loaded; a failure is logged."""
        one = self._versions[name][version]
        if all(one is not other for other, _ in self._under_way.values()):
            self._begun(one)

    async def drained(self) -> None:
        """Wait until every request of every model is answered."""
        await asyncio.gather(*(served.drained() for served in self.served()))

    def close(self) -> None:
        """Close every model, and free its engines."""
        for one in self:
            if one.served is not None:
                one.served.close()
                one.served = None


def _on_a_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """Do work on a thread of its own, so that work which never ends holds up neither other work nor exit."""
    ended: Future[T] = Future()
    ended.set_running_or_notify_cancel()

    def run(work: Callable[[], T], ended: Future[T]) -> None:
        try:
            ended.set_result(work())
        except BaseException as error:
            ended.set_exception(error)
        finally:
            del work, ended  # an error keeps this frame, and all that opening had

    _begin_thread(run, work, ended)
    return asyncio.wrap_future(ended)


def _begin_thread(work: Callable[..., object], *args: object) -> None:
    """Begin work on a thread of its own, without waiting until it has begun.

    `threading.Thread.start` waits for ever for a thread that dies of too little memory as it begins.
    """
    _thread.start_new_thread(work, args)


async def _first_of(
    opening: asyncio.Future[OpenBundle], given_up: asyncio.Task[Any], most_s: float | None = None
) -> None:
    """Wait until a bundle is open, or isn't wanted any more, or the time is over."""
    await asyncio.wait({opening, given_up}, timeout=most_s, return_when=asyncio.FIRST_COMPLETED)


def _close_unasked(opening: asyncio.Future[OpenBundle]) -> None:
    """Close a bundle that was opened though nobody wants it any more."""
    if not opening.cancelled() and opening.exception() is None:
        _begin_thread(opening.result().close)


def changed(served: ServedModel) -> bool:
    """Whether the bundle at a served one's path differs from it, is gone, or isn't trusted any more."""
    opened = served.opened
    return differs(opened.path, served.settings.trusted, opened.manifest)


def differs(path: Path, trusted: tuple[PublicKey, ...], manifest: Manifest | None) -> bool:
    """Whether the bundle at a path has another manifest, is gone, or isn't trusted any more."""
    try:
        return read(unpacked(path, trusted), trusted) != manifest
    except InputError:
        return True


def _stale(served: ServedModel) -> bool:
    """Whether a bundle differs from the open one, or a person has cleared the alarm that held it."""
    held_back = served.watch is not None and served.watch.keeps_exact
    if served.watch is not None:
        served.watch.looked_again()
        held_back = held_back and not served.watch.keeps_exact
    return held_back or changed(served)
