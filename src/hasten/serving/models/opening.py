"""Open a bundle, warm up its sessions, and find the largest batch that keeps answers unchanged."""

from __future__ import annotations

import contextlib
import itertools
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from hasten.bundle import Loaded, Manifest, answers_as, load, unpacked
from hasten.bundle.batch_mates import (
    MOST_BYTES,
    made_up,
    mates,
    share_batch_axis,
    stacked,
    unlike_alone,
)
from hasten.bundle.covered import listed
from hasten.bundle.evidence import batch_curve
from hasten.bundle.folder import read_sizes
from hasten.bundle.signatures import PublicKey
from hasten.core.devices import at_hand
from hasten.core.tensors import BY_VALUE, Tensors
from hasten.core.varying import in_words, no_batches
from hasten.errors import CandidateError, InputError
from hasten.measure.curve import CurvePoint
from hasten.serving.models.latencies import MOST_RATIO, Latencies
from hasten.serving.models.pace import BackgroundPace
from hasten.serving.monitoring.watch import Watch

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Batch sizes that are used: each is warmed up, since an engine compiles for a shape at first use."""
_BUDGET_NS = 5e9
"""Longest engine time of the warm-up, after the first request of each session."""
_GUESSED_NS = 10_000_000
"""Time that a request is expected to take where no warm-up could time one, until some have run."""
_SLOWEST_NS = 1e9
_RUNS, _FEW_RUNS = 5, 2
"""Number of timed runs per batch shape; few if the curve already states its time."""
_TIMED_NS = 100_000_000
"""Time to spend on timing one batch shape; slower shapes get fewer runs."""
_ANSWERED_BY = ("answers", "answered_by", "runs_on", "device")
"""Properties of an engine that state what computes its answers."""
_ALIKE = 0.1
"""Share by which a p50 may exceed the least one and still count as equally good for one client."""


@dataclass(frozen=True)
class ModelSettings:
    """Settings that a model is served with.

    Attributes:
        deadline_ns: Deadline of a request that states none; 0 for no deadline.
        most_wait_ns: Longest wait in the queue; a request that would wait longer is refused.
        most_rows: Largest number of rows in one batch.
        sessions: Number of batches that run in parallel; None for what the batch curve suggests.
        cache_bytes: Size of the cache that all models share; 0 for no cache.
        compiled: Folder that keeps compiled models, or "off"; "" for the default one.
        shadow: Share of requests that the exact model answers too, to compare.
        standby: Whether to keep the exact model open as a fallback.
        which: Model to serve: "winner", or "exact" after a crash of the winner.
        custom_ops: Libraries with the user's own operators.
        any_batch: Whether batches are formed in sizes that the certificate doesn't cover, too.
        most_length: Largest size of a request's open dimensions other than the batch, or of the rows that run together
            where no other is open; None for the one that follows from the data that the bundle was made with.
        most_sequences: Largest number of sequences whose states are kept at once; 0 to keep none.
        sequence_bytes: Largest size of the states of all models' sequences together, with the copies of steps;
            the largest such setting of any model counts.
        sequence_idle_ns: Time without a request after which a sequence's states go.
        shadow_limit: Share of changed answers from which the monitor raises an alarm; 0 for the one
            that follows from the certificate.
        on_alarm: Effect of an alarm: "tell", or "exact" to let the exact model take over, too.
        webhook: Address that is told of alarms; "" for none.
        monitor_state: Folder that keeps the monitor's evidence, "off", or "" for the user's own.
        alone: Whether no exact model is kept open beside the winner, since its engine crashed the process.
        pooled: Secret of the door that adds up the evidence of several servers; "" for one alone.
        trusted: Keys, one of which must have signed the bundle, whenever it is opened; none where an
            unsigned one will do.
    """

    deadline_ns: int = 0
    most_wait_ns: int = 1_000_000_000
    most_rows: int = 32
    sessions: int | None = None
    cache_bytes: int = 0
    compiled: str = ""
    shadow: float = 0.0
    standby: bool = True
    which: Literal["winner", "exact"] = "winner"
    custom_ops: tuple[Path, ...] = ()
    any_batch: bool = False
    most_length: int | None = None
    most_sequences: int = 1024
    sequence_bytes: int = 60 << 20
    sequence_idle_ns: int = 60_000_000_000
    shadow_limit: float = 0.0
    on_alarm: Literal["tell", "exact"] = "tell"
    webhook: str = ""
    monitor_state: str = ""
    alone: bool = False
    pooled: str = ""
    trusted: tuple[PublicKey, ...] = ()


@dataclass
class OpenBundle:
    """A bundle that is open and warmed up.

    Attributes:
        path: The bundle as it is served: a folder, or a packed file.
        folder: Its folder, or the one that it was unpacked to.
        manifest: Manifest of the bundle.
        which: Model that answers: "winner" or "exact".
        sessions: Sessions that run in parallel, each on its own share of the threads.
        standby: Exact model as a fallback; None if it answers itself, is left out or isn't wanted.
        latencies: Expected times of the batches.
        sizes: Batch sizes to use.
        own_batch: Rows of the largest batch whose memory requests may take: of `sizes`, or larger if the batch curve
            says so, since a start on a busy machine may warm up fewer sizes than another.
        most_rows: Largest number of rows in a request; those of other sizes are answered in parts.
        batched: Whether requests have an open batch axis.
        notes: Notes for the people who serve the bundle.
        requests: Requests that the bundle keeps, to warm up with; cut to one row each if requests
            have a batch axis.
        instead: Sentence that names the absent device that the bundle was made for, and what answers
            in its place; "" if it answers as certified.
        timed: Input -> its shape in the request that the warm-up timed; empty if no request that was made
            up could be answered.
        broken: Whether the model answers NaN where the exact one doesn't.
        watch: Monitor of the answers; None where the bundle isn't watched.
        signed: Words on its signature: whether it has one, and whether that was checked.
        agreed: Sentence that says that it answers as the bundle that it replaces; "" if it doesn't, or
            replaces none.
        in_place_of_crashed: Whether it replaces a bundle that crashed, so that it is served as was first asked.
    """

    path: Path
    folder: Path
    manifest: Manifest
    which: Literal["winner", "exact"]
    sessions: list[Loaded]
    standby: Loaded | None
    latencies: Latencies
    sizes: tuple[int, ...]
    batched: bool
    notes: list[str] = field(default_factory=list)
    requests: tuple[Tensors, ...] = ()
    instead: str = ""
    timed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    broken: bool = False
    most_rows: int = 1
    own_batch: int = 1
    watch: Watch | None = None
    signed: str = "unsigned"
    agreed: str = ""
    in_place_of_crashed: bool = False

    @property
    def everything(self) -> Sequence[Loaded]:
        """All sessions, including the standby if there is one."""
        return self.sessions if self.standby is None else (*self.sessions, self.standby)

    @property
    def first(self) -> Loaded:
        """First of the sessions."""
        return self.sessions[0]

    def asked(self, count: int, seed: int) -> Iterator[Tensors]:
        """Yield requests to warm up with: those that the bundle keeps, or else `count` random ones.

        Raises:
            CandidateError: a random one would be too large.
        """
        rng = np.random.default_rng(seed)
        rows = 1 if self.batched else None
        for number in range(len(self.requests) or count):
            if self.requests:
                yield self.requests[number]
            else:
                yield made_up(self.first.request, rows, rng, numbers=self.first.numbers)

    def close(self) -> None:
        """Free the engines."""
        for session in self.everything:
            session.close()


def open_bundle(
    path: Path,
    settings: ModelSettings,
    *,
    running: Callable[..., contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    pace: BackgroundPace | None = None,
) -> OpenBundle:
    """Open a bundle, warm up every batch shape, and compare batches' answers with lone requests'.

    Args:
        path: Folder of the bundle, or a packed file.
        settings: Settings to serve the bundle with.
        running: Context to enter while an engine runs, so that a crash can be traced to it.
        pace: Runner of the warm-up's requests; None to run them at once.

    Raises:
        InputError: the bundle is missing or damaged, or an engine isn't installed.
        CandidateError: the engine can't open the model here, or fails on a request.
    """
    with contextlib.ExitStack() as undo, running():
        folder = unpacked(path, settings.trusted)
        first = undo.enter_context(_quiet_load(folder, settings))
        manifest = first.manifest
        stated = batch_curve(folder, manifest)
        curve = stated if settings.which == "winner" else ()
        threads, count = _sharing(curve, settings.sessions, manifest.target.threads)
        most = max(manifest.target.threads, len(os.sched_getaffinity(0)))
        if count > most:
            raise InputError(
                f"{count} parallel sessions were asked for, but {path} has threads for {most} here: "
                f"give sessions={most}"
            )
        sessions = [first]
        if threads != manifest.target.threads and count > 1:
            first.close()
            sessions = []
        while len(sessions) < count:
            sessions.append(undo.enter_context(_quiet_load(folder, settings, threads=threads)))
        shared = [p for p in curve if p.threads == threads and p.sessions == count]
        opened = OpenBundle(
            path=path,
            folder=folder,
            manifest=manifest,
            which=settings.which if manifest.exact is not None else "winner",
            sessions=sessions,
            standby=_standby(folder, settings, manifest, undo),
            latencies=Latencies({1: 1.0}),
            sizes=(1,),
            batched=_batched(sessions[0]),
            notes=list(sessions[0].not_certified),
        )
        opened.signed = sessions[0].signed
        if manifest.varying:
            opened.notes.append(f"served without batching: {no_batches(manifest.varying)}")
        if any(one.manifest != manifest for one in opened.everything):
            raise InputError(f"{path} was replaced while it was opened: load it again")
        opened.requests = tuple(
            {n: array[:1] if opened.batched else array for n, array in request.items()}
            for request in sessions[0].requests
        )
        opened.instead = _instead(manifest, opened.which, sessions[0].properties())
        if opened.instead:
            opened.notes.insert(0, opened.instead)
        if manifest.certified_early:
            opened.notes.append(manifest.why)
        most_rows = min(settings.most_rows, _largest(sessions[0]))
        quick = {point.batch for point in stated if point.p50_ns <= _SLOWEST_NS}
        _warm_up(opened, shared, quick, most_rows, pace or BackgroundPace())
        undo.pop_all()
        return opened


def _instead(
    manifest: Manifest, which: Literal["winner", "exact"], properties: Mapping[str, str]
) -> str:
    """Name the absent device that a model is for, and what answers instead; "" if it is present."""
    part = manifest.exact if which == "exact" and manifest.exact is not None else manifest.winner
    engine, here = part.engine["type"], at_hand(manifest.target)
    if here.kind != "compile-only" or not answers_as(here, part.engine):
        return ""
    said = (properties[name] for name in _ANSWERED_BY if name in properties)
    answers = next(said, f"what the engine {engine} has for this host")
    return f"{here.device} isn't available; {answers} answers in its place"


def _quiet_load(path: Path, settings: ModelSettings, threads: int | None = None) -> Loaded:
    """Open a bundle without warnings; their texts are in its `not_certified`."""
    which = settings.which
    if which == "exact" and read_sizes(path, settings.trusted).exact is None:
        which = "winner"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(
            path,
            which=which,
            custom_ops=settings.custom_ops,
            threads=threads,
            sessions=1,
            cache=settings.compiled or None,
            any_batch=settings.any_batch,
            trusted=settings.trusted or None,
            beside_others=True,
        )


def _standby(
    path: Path, settings: ModelSettings, manifest: Manifest, undo: contextlib.ExitStack
) -> Loaded | None:
    """Open the exact model as a standby; None if it isn't wanted or is the model that answers."""
    wanted = (settings.standby or settings.shadow > 0) and not settings.alone
    if not wanted or settings.which == "exact" or manifest.exact in (None, manifest.winner):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return undo.enter_context(
            load(
                path,
                which="exact",
                custom_ops=settings.custom_ops,
                sessions=1,
                cache=settings.compiled or None,
                trusted=settings.trusted or None,
                beside_others=True,
            )
        )


def _sharing(curve: Sequence[CurvePoint], sessions: int | None, threads: int) -> tuple[int, int]:
    """Choose the threads per session and the number of sessions.

    Among the settings whose latency for one client is about the least, choose the one of the highest
    throughput.
    """
    if sessions is not None:
        return max(1, threads // sessions), sessions
    ones = [point for point in curve if point.batch == 1]
    if not ones:
        return threads, 1
    least_ns = min(point.p50_ns for point in ones)
    good = [point for point in ones if point.p50_ns <= (1 + _ALIKE) * least_ns]
    best = max(good, key=lambda point: (point.throughput_per_s, -point.sessions))
    return best.threads, best.sessions


def _batched(session: Loaded) -> bool:
    """Whether all inputs share one open first axis, all outputs have axes, and batches can be run and divided."""
    # An answer may have as many rows as the batch and still not one for each of its requests.
    if session.manifest.varying:
        return False
    return share_batch_axis(session.inputs, session.outputs) and _largest(session) > 1


def _largest(session: Loaded) -> int:
    """Return the largest batch size below which a session takes any number of rows."""
    sizes = session.batch_sizes
    if sizes is None:
        return SIZES[-1]
    return len(sizes) if set(sizes) == set(range(1, len(sizes) + 1)) else 1


def _warm_up(
    opened: OpenBundle,
    curve: Sequence[CurvePoint],
    quick: Collection[int],
    most_rows: int,
    pace: BackgroundPace,
) -> None:
    """Run every batch shape on every session; find the sizes in which answers don't change.

    Args:
        opened: The bundle.
        curve: Points of the batch curve that were measured with such sessions.
        quick: Sizes of batches that took no longer than a start waits for, by all points of the curve.
        most_rows: Largest batch to form.
        pace: Runner of the requests.

    Raises:
        CandidateError: a request that the bundle keeps fails, so clients' requests will fail too.
        InputError: the model refuses such a request.
    """
    known = {point.batch: point.p50_ns for point in curve}
    try:
        lone, *others = opened.asked(1, seed=0)
        for session in opened.everything:
            for request in (lone, *others):
                pace.run(session, request)
        alone = pace.run(opened.first, lone)
        times = {1: _timed_ns(opened.sessions, lone, _RUNS, pace)}
    except (CandidateError, InputError) as error:
        if opened.requests:
            raise
        opened.notes.append(
            f"served without a warm-up: the bundle keeps no requests, and a random one failed: {error}"
        )
        opened.batched = False
        opened.latencies = Latencies({1: _GUESSED_NS}, guessed=True)
        return
    opened.timed = {name: array.shape for name, array in lone.items()}
    sizes, own_batch = [1], 1
    beside = mates(opened.requests, opened.first.request, opened.first.numbers)
    within = opened.first.keeps_to
    if within is not None:
        known = {size: p50_ns for size, p50_ns in known.items() if size in within}
    if opened.batched and all(array.shape[:1] == (1,) for array in alone.values()):
        each_bytes = sum(array.nbytes for array in lone.values())
        most_ns, enough = pace.spent_ns + _BUDGET_NS, False
        usable = [size for size in SIZES[1:] if within is None or size in within]
        for size in usable:
            expected_ns = size * times[sizes[-1]] / sizes[-1]
            if size > most_rows or size * each_bytes > MOST_BYTES:
                break
            if size in quick:
                own_batch = size
            enough |= expected_ns > _SLOWEST_NS or pace.spent_ns + 3 * expected_ns > most_ns
            if enough:
                continue
            batch = stacked([lone, *itertools.islice(beside, size - 1)])
            unlike = _unlike_alone(opened, batch, lone, alone, pace)
            if unlike:
                opened.notes.append(f"served without batching: {unlike}")
                sizes, own_batch = [1], 1
                break
            if pace.patient and {1, size} <= known.keys():  # spare live requests the timing runs
                for session in opened.sessions[1:]:
                    pace.run(session, batch)
                times[size] = known[size] * times[1] / known[1]
            else:
                runs = _FEW_RUNS if size in known else _RUNS
                times[size] = _timed_ns(opened.sessions, batch, runs, pace)
            sizes.append(size)
        opened.most_rows = sizes[-1]
        if within is not None:
            opened.most_rows = max(sizes[-1], min(most_rows, MOST_BYTES // max(1, each_bytes)))
    elif opened.batched:
        opened.batched = False
    opened.sizes, opened.own_batch = tuple(sizes), max(own_batch, sizes[-1])
    covered = opened.first.certified_batches
    if covered is not None and not set(sizes) <= set(covered):
        opened.notes.append(
            f"batches of up to {sizes[-1]} are formed, but only these batch sizes are certified: "
            f"{listed(covered)}; leave out --any-batch to form only these"
        )
    measured = {size: p50_ns for size, p50_ns in known.items() if size <= sizes[-1]}
    if 1 not in measured or times[1] > MOST_RATIO * measured[1]:
        # A curve that promises more than the scheduler can unlearn isn't of this model.
        measured = {size: times[size] for size in sizes}
    if opened.most_rows > sizes[-1]:  # such a request is answered in parts
        measured[opened.most_rows] = measured[max(measured)] * opened.most_rows / max(measured)
    opened.latencies = Latencies(measured, opened.sizes)
    _keep_apart(opened)
    for size in sizes if not pace.patient else (1,):  # live requests disturbed longer ones
        opened.latencies.observe(size, times[size])


def _keep_apart(opened: OpenBundle) -> None:
    """Let no requests share a batch if values size an output: all rows of a tensor have one size, the largest."""
    sized = [spec.name for spec in opened.first.outputs if BY_VALUE in spec.shape]
    if sized and len(opened.sizes) > 1:
        opened.latencies = opened.latencies.one_by_one()
        opened.notes.append(
            "each request runs alone: in a batch, the size of an answer could depend on the other requests in "
            f"{in_words(sized)}"
        )


def _timed_ns(
    sessions: Sequence[Loaded], request: Tensors, runs: int, pace: BackgroundPace
) -> float:
    """Return a request's typical time over all sessions, each run once untimed before."""
    times: list[int] = []
    for session in sessions:
        pace.run(session, request)
        most_ns = pace.spent_ns + _TIMED_NS
        for _ in range(runs):
            pace.run(session, request)
            times.append(pace.took_ns)
            if times[-1] + pace.spent_ns > most_ns:
                break
    return pace.typical_ns(times)


def _unlike_alone(
    opened: OpenBundle, batch: Tensors, lone: Tensors, alone: Tensors, pace: BackgroundPace
) -> str:
    """Say why the first row's answer in a batch differs from its answer alone; "" if it doesn't."""
    rows = len(next(iter(batch.values())))
    try:
        answers = pace.run(opened.first, batch)
    except CandidateError as error:
        return f"a batch of {rows} fails: {error}"
    return unlike_alone(answers, alone, rows, lambda: pace.run(opened.first, lone))
