"""Time networks on this machine before training them: latency doesn't depend on the weights."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hasten.core.model import Model
from hasten.core.progress import Listener, Progress, nobody
from hasten.core.target import Target
from hasten.core.workers import Worker
from hasten.engines.base import Artifact, Engine
from hasten.engines.installed import engine_kinds
from hasten.errors import CandidateError
from hasten.lightening.making import AT_ONCE, Makers, Subject, subject_of
from hasten.measure.candidate import Single
from hasten.measure.latency import Pace, rounds
from hasten.measure.workbench import Bench
from hasten.passes.base import Pass

ROUNDS = 6
"""Number of rounds; the true median lies between the fastest and slowest of 6 in 97% of cases."""
PACE = Pace(warmup_ns=6_000_000, block_ns=14_000_000, limit_s=60.0)
_FIRST_LOOK = Pace(warmup_ns=3_000_000, block_ns=7_000_000, limit_s=60.0)
_OPEN_AT_ONCE = 16
_MOST_ROUNDS = 2 * ROUNDS


@dataclass(frozen=True)
class Prospect:
    """Latency of a network by the fastest candidate that was tried.

    Attributes:
        label: Fastest candidate's label for people, such as "int8 (NNCF), OpenVINO".
        precision: Precision of the fastest candidate: "int8", or the engine's, such as "f32".
        latency_ns: Median of the rounds' medians, in nanoseconds.
        low_ns: Median of the fastest round, in nanoseconds.
        high_ns: Median of the slowest round, in nanoseconds.
        size_bytes: Size of the artifact that the engine opens, in bytes.
        engine: Engine of the fastest candidate.
        passes: Passes of the fastest candidate, with their usual settings.
        calm: Whether the host gave the threads their cores in enough rounds.
        others: First timings of the other candidates, in nanoseconds, by label.
        left_out: Reasons, of one line each, why candidates can't run the network, by label.
    """

    label: str
    precision: str
    latency_ns: float
    low_ns: float
    high_ns: float
    size_bytes: int
    engine: Engine
    passes: tuple[Pass, ...]
    calm: bool = True
    others: dict[str, float] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def ways(
    model: Model, target: Target, engines: Sequence[str] = (), *, int8: bool = True
) -> list[Single]:
    """Return the candidates worth timing for a model: each engine's exact form and its int8 form.

    Args:
        model: Model with its request settled.
        target: Device that runs the model.
        engines: Names of the engines to try; those that aren't installed are left out.
        int8: Whether to include int8 forms.

    Raises:
        InputError: an engine's name is unknown, or none is installed.
    """
    kinds = engine_kinds(engines)
    found = [Single((), next(iter(kind.variants(target)))) for kind in kinds]
    if not int8:
        return found
    steps = []
    for kind in _quantizers():
        with contextlib.suppress(StopIteration, ImportError):
            steps.append(next(iter(kind.variants(model, target))))
    for step in steps:
        for engine in [way.engine for way in found if not way.passes]:
            takes = step.gives in engine.formats
            if takes and not (step.gives == "onnx" and (engine.float_only or _own(engine, steps))):
                found.append(Single((step,), engine))
    return found


def fastest(
    models: Mapping[str, Model] | Iterable[tuple[str, Model]],
    target: Target,
    folder: Path,
    *,
    engines: Sequence[str] = (),
    int8: bool = True,
    only: Callable[[Single], bool] = lambda way: True,
    seed: int = 0,
    makers: Makers | None = None,
    listen: Listener = nobody,
) -> dict[str, Prospect]:
    """Find each network's fastest candidate and its latency.

    Every candidate is timed briefly first. Each network's finalists are then timed in turns with
    those of all networks, in random order, so that a noisy host slows them alike.

    Args:
        models: ONNX models by name, each with its request settled. If an iterator yields them, each
            is built while the next one is awaited.
        target: Device that runs the models.
        folder: Work folder; it is made, and what is written there is removed.
        engines: Names of the engines to try.
        int8: Whether to include int8 forms.
        only: Predicate that selects candidates; all are timed by default.
        seed: Seed of the random orders and requests.
        makers: Processes for this folder and target that earlier calls left, with their libraries
            imported; new ones by default.
        listen: Callback that is told of each network, in the stage "prospects".

    Returns:
        Prospects by the networks' names; a network that no candidate can run is missing.

    Raises:
        InputError: an engine's name is unknown or none is installed, or a model isn't settled.
        CandidateError: no candidate can run any network; gives the reasons for the first network.
    """
    engine_kinds(engines)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("samples-*"):
        shutil.rmtree(left)
    subjects: dict[str, Subject] = {}
    try:
        with contextlib.ExitStack() as closing, ThreadPoolExecutor(AT_ONCE) as pool:
            if makers is None:
                makers = closing.enter_context(Makers(folder, target))
            entries = models.items() if isinstance(models, Mapping) else models
            makers.start(len(models) if isinstance(models, Mapping) else AT_ONCE)
            try:
                made = []
                for name, model in entries:
                    subject = subjects[name] = subject_of(name, model, folder, len(subjects), seed)
                    chosen = list(filter(only, ways(model, target, engines, int8=int8)))
                    made.append(pool.submit(makers.make, subject, chosen))
                for one in made:
                    one.result()
            except BaseException:
                makers.close()  # else the pool would wait for tasks under way
                raise
            makers.rest()
        bench = makers.bench
        _look(bench, subjects, listen)
        found = _in_turns(bench, subjects, seed)
    finally:
        for subject in subjects.values():
            shutil.rmtree(subject.folder, ignore_errors=True)
    for number, name in enumerate(subjects):
        best = found.get(name)
        outcome = f"{best.latency_ns / 1e6:.3g} ms, {best.label}" if best else "no engine runs it"
        listen(Progress("prospects", name, number + 1, len(subjects), f"{name}: {outcome}"))
    return found


def _quantizers() -> list[type[Pass]]:
    """Return the passes that can draft a model in int8: as fast as the final one, uncalibrated."""
    kinds = [k for k in Pass.members().values() if k.stage == "lossy" and k.has_draft()]
    # Passes for a single engine come first: their output is never slower there.
    return sorted(kinds, key=lambda kind: (kind.gives == "onnx", kind.rank))


def _own(engine: Engine, steps: Sequence[Pass]) -> bool:
    """Return whether a pass makes this engine's own format, which is never slower there."""
    return any(step.gives != "onnx" and step.gives in engine.formats for step in steps)


def _look(bench: Bench, subjects: Mapping[str, Subject], listen: Listener) -> None:
    """Time a network's candidates briefly if it has several, in one process until that crashes."""
    with contextlib.ExitStack() as closing:
        worker: Worker | None = None
        for number, (name, subject) in enumerate(subjects.items()):
            listen(Progress("prospects", name, number, len(subjects)))
            if len(subject.built) < 2:
                subject.looks = dict.fromkeys(subject.built, 0.0)
                continue
            for way, artifact in subject.built.items():
                if worker is None or not worker.alive:
                    worker = Worker(bench.log, bench.memory_bytes)
                    closing.callback(worker.kill)
                try:
                    _open(worker, bench, way, artifact)
                    subject.looks[way] = float(np.median(_time(worker, subject.samples)))
                except CandidateError as error:
                    subject.left_out[way.label] = str(error)


def _open(worker: Worker, bench: Bench, way: Single, artifact: Artifact) -> None:
    worker.ask(
        "open",
        limit_s=bench.limit_s,
        engine=way.engine,
        artifact=artifact,
        target=bench.target,
    )


def _time(worker: Worker, samples: Path) -> list[int]:
    latencies: list[int] = worker.ask(
        "time",
        limit_s=_FIRST_LOOK.limit_s,
        samples=samples,
        first=0,
        warmup_ns=_FIRST_LOOK.warmup_ns,
        block_ns=_FIRST_LOOK.block_ns,
        at_least=_FIRST_LOOK.at_least,
        at_most=_FIRST_LOOK.at_most,
    )
    return latencies


def _in_turns(bench: Bench, subjects: Mapping[str, Subject], seed: int) -> dict[str, Prospect]:
    """Time every network's finalists in turns, as many at once as memory is expected to hold."""
    entries = [(name, way) for name, one in subjects.items() for way in one.finalists]
    entries.sort(key=lambda entry: str(subjects[entry[0]].samples))
    medians: dict[tuple[str, Single], tuple[list[float], bool]] = {}
    for samples, group in itertools.groupby(entries, lambda entry: subjects[entry[0]].samples):
        members = list(group)
        for first in range(0, len(members), _OPEN_AT_ONCE):
            batch = members[first : first + _OPEN_AT_ONCE]
            medians |= _race(bench, subjects, samples, batch, seed)
    found = {}
    for name, subject in subjects.items():
        own = {way: medians[name, way] for way in subject.finalists if (name, way) in medians}
        if own:
            best = min(own, key=lambda way: float(np.median(own[way][0])))
            found[name] = _prospect(subject, best, *own[best])
    if subjects and not found:
        name, subject = next(iter(subjects.items()))
        reasons = "; ".join(f"{label}: {why}" for label, why in subject.left_out.items())
        raise CandidateError(f"no engine runs {name}: {reasons or 'none is installed'}")
    return found


def _race(
    bench: Bench,
    subjects: Mapping[str, Subject],
    samples: Path,
    entries: Sequence[tuple[str, Single]],
    seed: int,
) -> dict[tuple[str, Single], tuple[list[float], bool]]:
    """Return each entry's median of each round, in ns, and whether the rounds were calm.

    An entry that fails is recorded in `left_out`.
    """
    entrants: dict[str, Worker] = {}
    try:
        for number in range(len(entries)):
            entrants[str(number)] = Worker(bench.log, bench.memory_bytes, fresh=True)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            opened = [
                pool.submit(_open, entrants[str(number)], bench, way, subjects[name].built[way])
                for number, (name, way) in enumerate(entries)
            ]
            try:
                for number, (name, way) in enumerate(entries):
                    try:
                        opened[number].result()
                        entrants[str(number)].sleep()
                    except CandidateError as error:
                        entrants.pop(str(number)).kill()
                        subjects[name].left_out[way.label] = str(error)
            except BaseException:
                for worker in entrants.values():
                    worker.kill()  # else the pool would wait for their replies
                raise
        turns = rounds(entrants, samples, threads=bench.target.threads, pace=PACE, seed=seed)
        taken = []
        for turn in turns:
            for key, why in turn.failed.items():
                name, way = entries[int(key)]
                subjects[name].left_out[way.label] = why
                entrants.pop(key).kill()
            taken.append(turn)
            if sum(one.counts for one in taken) >= ROUNDS or len(taken) >= _MOST_ROUNDS:
                break
    finally:
        for worker in entrants.values():
            worker.kill()
    counted = [turn for turn in taken if turn.counts]
    calm = len(counted) >= ROUNDS
    if not calm:
        counted = taken  # the network will run on this host, which is never calm
    return {
        entries[int(key)]: ([float(np.median(turn.latency_ns[key])) for turn in counted], calm)
        for key in entrants
    }


def _prospect(subject: Subject, way: Single, medians: Sequence[float], calm: bool) -> Prospect:
    lossy = any(not step.exact for step in way.passes)
    return Prospect(
        label=way.label,
        precision="int8" if lossy else way.engine.precision or "f32",
        latency_ns=float(np.median(medians)),
        low_ns=min(medians),
        high_ns=max(medians),
        size_bytes=subject.built[way].size_bytes,
        engine=way.engine,
        passes=way.passes,
        calm=calm,
        others={one.label: ns for one, ns in subject.looks.items() if one != way},
        left_out=dict(subject.left_out),
    )
