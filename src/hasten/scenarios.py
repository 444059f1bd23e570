"""A bundle under load: MLCommons' scenarios, by its LoadGen where that is installed."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from hasten.bundle import artifact_of, engine_of, read
from hasten.data.requests import first_requests
from hasten.data.spool import Spool, write_spool
from hasten.errors import InputError
from hasten.measure import loadgen
from hasten.measure.closed_loop import Block
from hasten.measure.probe import usable_threads
from hasten.measure.process import Worker
from hasten.measure.scenario import Load, Offer, Scenario, highest_rate, shows_p99
from hasten.measure.sharing import Sharing, on_share
from hasten.measure.workbench import Bench
from hasten.records import from_record, to_record
from hasten.target import Target

_CAPACITY_NS = 1_000_000_000
_REQUESTS = {"single-stream": 100, "server": 1000, "offline": 100}
_LEAST = 500
"""Of a server's requests, where a thousand would take longer than half a minute: 459 show something."""
_LONGEST_S = 30.0
_SLOWEST_PER_S = 5.0
"""Lower rates aren't tried: they would take minutes each."""
_TRIES = 6
_LOWER = (1.0, 0.95, 0.9, 0.8)
"""What of the best rate is tried anew, until one holds: the best of a few tries was lucky too."""
_LONGEST_RUN_S = 600.0
_SLACK = 4.0
"""How many times as long as foretold a run may take before its worker counts as hung."""


@dataclass(frozen=True)
class LoadTest:
    """How a bundle did in a scenario.

    Attributes:
        scenario: Which.
        load: The figures, from a run of its own; None where no rate met the bound.
        tries: In a server's scenario the rates that were tried before, without raw latencies.
        threads: Of each session.
        sessions: How many answered side by side.
        requests: "samples of the data", or "random numbers" where none was given.
        notes: What the reader should know besides.
    """

    scenario: Scenario
    load: Load | None
    tries: tuple[Load, ...]
    threads: int
    sessions: int
    requests: str
    notes: tuple[str, ...] = ()


def load_test(
    bundle: str | os.PathLike[str],
    scenario: Scenario,
    *,
    latency_bound_s: float | None = None,
    data: Any = None,
    sessions: int = 1,
    duration_s: float = 5.0,
    seed: int = 0,
    custom_ops: Sequence[Path] = (),
    listen: Callable[[Load], None] = lambda load: None,
) -> LoadTest:
    """Put a bundle's model under load, one sample in a request.

    Args:
        bundle: Its folder.
        scenario: "single-stream", one request after another; "server", requests at random times
            (a Poisson process), at the highest rate at which 99% stay under a bound; "offline",
            all at once.
        latency_bound_s: Of the server's scenario, in seconds.
        data: Requests, as `optimize` takes them. Random numbers where None, and labelled so.
        sessions: How many answer side by side; they share the bundle's threads.
        duration_s: Of each run, at least.
        seed: Of the arrivals and of random requests.
        custom_ops: Libraries with operators of the model's own.
        listen: Told of each run.

    Raises:
        InputError: the bundle or an option can't be used.
        CandidateError: the model failed.
    """
    _check(scenario, latency_bound_s, duration_s)
    folder = Path(bundle)
    manifest = read(folder)
    target = Target.host()
    threads = max(1, min(manifest.target.threads, target.threads))
    if not 1 <= sessions <= threads:
        raise InputError(f"sessions share {threads} threads, at least one each: got {sessions}")
    if scenario == "single-stream" and sessions > 1:
        raise InputError(
            f"the scenario single-stream asks one session at a time: got {sessions} sessions"
        )
    share = Sharing(threads // sessions, sessions)
    engine = engine_of(manifest.winner, threads)
    if sessions > 1:
        engine = on_share(engine, share, threads)
    artifact = artifact_of(folder, manifest.winner, manifest, custom_ops)
    with tempfile.TemporaryDirectory(prefix="hasten-load-") as work:
        place = Path(work)
        requests = first_requests(data, artifact.inputs, artifact.request, manifest.pipeline, seed)
        spool = write_spool(requests, place / "requests")
        bench = Bench(place, target.with_threads(share.threads))
        notes = [] if usable_threads(share.busy) == share.busy else [_busy(share)]
        if not loadgen.installed():
            notes.append("MLCommons LoadGen isn't installed: pip install 'hasten[loadgen]'")
        worker = bench.open_built(engine, artifact, sessions).worker
        with worker:
            generator = _Generator(worker, spool, place, scenario, duration_s, listen)
            load = (
                generator.once(seed)
                if latency_bound_s is None
                else generator.best(max(1, round(1e9 * latency_bound_s)), seed)
            )
    return LoadTest(
        scenario=scenario,
        load=load,
        tries=tuple(generator.tries),
        threads=share.threads if sessions > 1 else getattr(engine, "threads", None) or threads,
        sessions=sessions,
        requests="random numbers" if data is None else "samples of the data",
        notes=tuple(notes),
    )


def _check(scenario: str, latency_bound_s: float | None, duration_s: float) -> None:
    if scenario not in get_args(Scenario):
        raise InputError(f"the scenario is single-stream, server or offline: got {scenario!r}")
    if scenario == "server" and latency_bound_s is None:
        raise InputError("the server's scenario needs a latency bound: --latency-bound 20ms")
    if scenario != "server" and latency_bound_s is not None:
        raise InputError(f"the scenario {scenario} has no latency bound: leave it out")
    for name, limit_s in (("latency bound", latency_bound_s), ("duration", duration_s)):
        if limit_s is not None and not 0 < limit_s < _LONGEST_RUN_S:
            raise InputError(
                f"the {name} is in seconds, above 0 and below {_LONGEST_RUN_S:.0f}: got {limit_s}"
            )


def _busy(share: Sharing) -> str:
    return f"{share.busy} threads: not established, the host did not run so many at once"


@dataclass
class _Generator:
    """Who asks one worker's sessions, run after run."""

    worker: Worker
    samples: Spool
    place: Path
    scenario: Scenario
    duration_s: float
    listen: Callable[[Load], None]

    def __post_init__(self) -> None:
        self.tries: list[Load] = []
        self._folders: Iterator[Path] = (self.place / f"load{n}" for n in itertools.count())
        self._capacity_per_s, self._quickest_ns = self._capacity()

    def once(self, seed: int) -> Load:
        """One run."""
        return self._run(
            Offer(
                self.scenario,
                _REQUESTS[self.scenario],
                self.duration_s,
                self._capacity_per_s,
                seed=seed,
            )
        )

    def best(self, bound_ns: int, seed: int) -> Load | None:
        """Find the highest rate at which a bound holds; take its figures from a fresh run."""
        seeds = itertools.count(seed)

        def offered(rate_per_s: float) -> Load:
            most = max(_LEAST, min(_REQUESTS[self.scenario], round(_LONGEST_S * rate_per_s)))
            offer = Offer(self.scenario, most, self.duration_s, rate_per_s, bound_ns, next(seeds))
            return self._run(offer)

        def holds(rate_per_s: float) -> bool:
            load = offered(rate_per_s)
            self.tries.append(replace(load, latency_ns=()))
            return load.holds

        tries = _TRIES if self._quickest_ns <= bound_ns else 1  # what none meets, one try shows
        least_per_s = min(_SLOWEST_PER_S, self._capacity_per_s / 2)  # one is always tried
        rate_per_s = highest_rate(self._capacity_per_s, holds, tries, least_per_s)
        if rate_per_s is None:
            return None
        for share in _LOWER:
            load = offered(share * rate_per_s)
            if load.holds:
                return load
            self.tries.append(replace(load, latency_ns=()))
        return None

    def _run(self, offer: Offer) -> Load:
        per_s = min(offer.rate_per_s, self._capacity_per_s)
        longest_s = max(offer.duration_s, offer.requests / per_s)
        record = self.worker.ask(
            "load",
            limit_s=_LONGEST_RUN_S + _SLACK * longest_s,
            offer=to_record(offer),
            samples=str(self.samples.folder),
            workdir=str(next(self._folders)),
            loadgen=loadgen.installed(),
        )
        load = from_record(Load, record)
        self.listen(load)
        return load

    def _capacity(self) -> tuple[float, int]:
        """How many requests all sessions answer in a second, where each asks again at once.

        Returns:
            That, and the shortest latency seen.
        """
        record = self.worker.ask(
            "drive",
            limit_s=_LONGEST_RUN_S,
            samples=str(self.samples.folder),
            batch=1,
            first=0,
            requests=len(self.samples),
            warmup_ns=_CAPACITY_NS // 4,
            block_ns=_CAPACITY_NS,
            at_least=3,
            at_most=2**63,
        )
        block = from_record(Block, record)
        return 1e9 * len(block.latency_ns) / block.elapsed_ns, min(block.latency_ns)


def in_words(test: LoadTest) -> list[str]:
    """What a load test came to, in a few lines; no line calls it an MLPerf result."""
    load = test.load
    if load is None:
        lowest = min(test.tries, key=lambda one: one.offer.rate_per_s)
        lines = [
            f"server: no rate down to {lowest.offer.rate_per_s:.3g}/s keeps 99% within "
            f"{lowest.offer.bound_ns / 1e6:g} ms"
        ]
        generator = lowest.generator
    else:
        lines, generator = [_figures(load)], load.generator
    each = f"{test.threads} thread{'s' if test.threads > 1 else ''}"
    sessions = f"{test.sessions} session{'s' if test.sessions > 1 else ''} of {each}"
    lines.append(f"{sessions}, batch 1, requests: {test.requests}")
    lines.append(f"taken with {generator}; not an MLPerf result")
    return lines + [f"note: {note}" for note in test.notes]


def try_in_words(load: Load) -> str:
    """One run, while others are still to come."""
    offer = load.offer
    if offer.scenario != "server":
        return f"{offer.scenario}: {load.requests:,} requests"
    held = "held" if load.holds else "not held"
    return (
        f"server: {offer.rate_per_s:,.4g}/s, {load.over_bound} of {load.requests:,} over "
        f"{offer.bound_ns / 1e6:g} ms: {held}"
    )


def _figures(load: Load) -> str:
    p50, p90, p99 = (f"{ns / 1e6:.3g} ms" for ns in (load.p50_ns, load.p90_ns, load.p99_ns))
    offer, n = load.offer, f"n={load.requests:,}"
    if offer.scenario == "offline":
        return f"offline: {load.throughput_per_s:,.4g} samples a second ({n})"
    if offer.scenario == "single-stream":
        shown = p99 if shows_p99(load) else "not established"
        return f"single-stream: p90 {p90}, p50 {p50}, p99 {shown} ({n})"
    return (
        f"server: {offer.rate_per_s:,.4g} requests a second, at random times, with 99% within "
        f"{offer.bound_ns / 1e6:g} ms (99% confident were they independent; {n}: "
        f"{load.over_bound} over); p50 {p50}, p99 {p99}"
    )
