"""A bundle under load, in MLCommons' scenarios."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from hasten.bundle import artifact_of, engine_of, kept_requests, read, unpacked
from hasten.core.devices import at_hand, check_measurable
from hasten.errors import InputError
from hasten.inputs.chains import is_chain
from hasten.inputs.data.requests import first_requests, telling
from hasten.inputs.data.spool import write_spool
from hasten.measure.probe import usable_threads
from hasten.measure.scenario import Load, LoadTest, Scenario, check_bound, in_words
from hasten.measure.sharing import Sharing, on_share
from hasten.measure.under_load import Generator
from hasten.measure.workbench import Bench

__all__ = ["LoadTest", "in_words", "load_test", "try_in_words"]


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
        bundle: Folder of the bundle.
        scenario: "single-stream", one request after another; "server", requests at random times
            (a Poisson process), at the highest rate at which 99% stay under a bound; "offline",
            all at once.
        latency_bound_s: Bound on the latency in the server scenario, in seconds.
        data: Requests, in any form that `optimize` takes. By default those that the bundle keeps;
            where it keeps none, made-up ones, which the result says.
        sessions: Number of parallel sessions, which share the bundle's threads.
        duration_s: Shortest duration of each run, in seconds.
        seed: Seed of the arrivals and of made-up requests.
        custom_ops: Paths of libraries with the model's own operators.
        listen: Callback that receives each run's result.

    Returns:
        Each run under load, with its throughput and latencies.

    Raises:
        InputError: the bundle or an option can't be used.
        CandidateError: the model failed.
    """
    _check(scenario, latency_bound_s, duration_s, sessions)
    if is_chain(bundle):
        raise InputError(
            f"{os.fspath(bundle)} is a chain, which runs under load in a server: start hasten serve "
            "CHAIN, and ask it by hasten loadtest URL --model NAME --data FOLDER"
        )
    folder = unpacked(bundle)
    manifest = read(folder)
    target = at_hand(manifest.target)
    check_measurable(target)
    threads = max(1, min(manifest.target.threads, target.threads))
    if not 1 <= sessions <= threads:
        raise InputError(
            f"the sessions share {threads} threads, and each needs at least one: got {sessions}"
        )
    share = Sharing(threads // sessions, sessions)
    engine = engine_of(manifest.winner, threads, manifest.environment)
    if sessions > 1:
        engine = on_share(engine, share, threads)
    artifact = artifact_of(folder, manifest.winner, manifest, custom_ops)
    with tempfile.TemporaryDirectory(prefix="hasten-load-") as work:
        place = Path(work)
        requests, said = first_requests(
            data,
            artifact.inputs,
            artifact.request,
            manifest.pipeline,
            kept_requests(folder, manifest),
            seed,
        )
        spool = write_spool(requests, place / "requests")
        bench = Bench(place, target.with_threads(share.threads))
        notes = [] if usable_threads(share.busy) == share.busy else [_busy(share)]
        worker = bench.open_built(engine, artifact, sessions).worker
        with worker, telling(said):
            generator = Generator(worker, spool, scenario, duration_s, listen)
            load = (
                generator.once(seed)
                if latency_bound_s is None
                else generator.best(max(1, round(1e9 * latency_bound_s)), seed)
            )
    return LoadTest(
        scenario=scenario,
        load=load,
        tries=tuple(generator.tries),
        threads=share.threads if sessions > 1 else engine.threads or threads,
        sessions=sessions,
        requests=said,
        notes=tuple(notes),
    )


def _check(scenario: str, latency_bound_s: float | None, duration_s: float, sessions: int) -> None:
    if scenario not in get_args(Scenario):
        raise InputError(f"the scenario is single-stream, server or offline: got {scenario!r}")
    if scenario == "server" and latency_bound_s is None:
        raise InputError("the server scenario needs a latency bound: give latency_bound_s=")
    if scenario != "server" and latency_bound_s is not None:
        raise InputError(f"the scenario {scenario} has no latency bound: leave it out")
    check_bound(latency_bound_s)
    check_bound(duration_s, "duration")
    if scenario == "single-stream" and sessions > 1:
        raise InputError(f"the scenario single-stream uses one session: got {sessions}")


def _busy(share: Sharing) -> str:
    return f"figures are doubtful: the host did not run {share.busy} threads at once"


def try_in_words(load: Load) -> str:
    """Describe one run while others are still to come."""
    offer = load.offer
    if offer.scenario != "server":
        return f"{offer.scenario}: {load.requests:,} requests"
    held = "held" if load.holds else "not held"
    return (
        f"server: {offer.rate_per_s:,.4g}/s, {load.over_bound} of {load.requests:,} over "
        f"{offer.bound_ns / 1e6:g} ms: {held}"
    )
