"""Ceilings of a machine, measured: arithmetic by precision, bandwidth by level, an empty call."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from hasten.core.records import digest, from_record, read_json, write_json
from hasten.core.target import Target
from hasten.core.workers import Worker
from hasten.engines.base import Engine
from hasten.engines.installed import tried_on
from hasten.errors import CandidateError, InputError, IntegrityError, OutOfTime
from hasten.measure.bandwidth import Bandwidth, Level
from hasten.measure.deadline import Deadline
from hasten.measure.environment import versions
from hasten.measure.kernels import EMPTY_CALL, Kernel, kernels
from hasten.measure.latency import Pace
from hasten.measure.roofline import Ceilings

TURNS = 3
PACE = Pace(block_ns=45_000_000)
FILE = "ceilings.json"


def measure(
    target: Target, folder: Path, engines: Sequence[str] = (), deadline: Deadline | None = None
) -> Ceilings:
    """Measure a machine's ceilings, or read those that were measured for this folder.

    Each figure is the best of the medians of short blocks, which are timed in turns. Nothing else
    should run meanwhile. Measuring takes a few seconds.

    Args:
        target: Device with its threads.
        folder: Existing folder that keeps the figures, with what they were measured on.
        engines: Names of the engines to use; by default those that are tried on a host.
        deadline: End of the command that asks; never by default.

    Raises:
        OutOfTime: the deadline came first.
        InputError: none of the engines can be used, or onnx isn't installed.
    """
    engines = engines or tried_on("host")
    file = folder / FILE
    taken_on = digest([target, versions(), list(engines)])
    try:
        kept = read_json(file)
        if kept["taken_on"] == taken_on:
            return from_record(Ceilings, kept["ceilings"])
    except (IntegrityError, KeyError, TypeError):
        pass  # missing or incomplete
    place = folder / "ceilings"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    try:
        ceilings = _measured(target, place, engines, deadline or Deadline())
    finally:
        shutil.rmtree(place, ignore_errors=True)
    write_json(file, {"taken_on": taken_on, "ceilings": ceilings})
    return ceilings


def _measured(target: Target, folder: Path, engines: Sequence[str], deadline: Deadline) -> Ceilings:
    work = kernels(folder, target.threads)
    reached: tuple[Level, ...] = ()
    with ExitStack() as end:
        rigs = [end.enter_context(rig) for rig in _rigs(target, folder, engines, deadline)]
        for rig in rigs:
            rig.build(work)
        bandwidth = Bandwidth(target)
        for _ in range(TURNS):
            for rig in rigs:
                rig.turn()
            taken = bandwidth.turn()
            reached = tuple(map(Level.better, reached or taken, taken))
    return _best(rigs, reached, target.threads)


def _check(deadline: Deadline) -> None:
    """Check that there is time for another step.

    Raises:
        OutOfTime: there isn't.
    """
    if deadline.late:
        raise OutOfTime("the time limit left no time to measure what the machine can do")


def _best(rigs: Sequence[_Rig], reached: tuple[Level, ...], threads: int) -> Ceilings:
    """Combine the best figures of all engines.

    Raises:
        InputError: no engine ran both a kernel in f32 and the empty call.
    """
    arithmetic: dict[str, tuple[float, str]] = {}
    calls_ns = []
    for rig in rigs:
        for kernel, block_ns in rig.best_ns.items():
            if kernel.name == EMPTY_CALL:
                calls_ns.append(block_ns)
                continue
            seen = (kernel.operations * 1e9 / block_ns, f"{rig.engine.words()}, {kernel.name}")
            precision = rig.precision_of(kernel)
            arithmetic[precision] = max(arithmetic.get(precision, seen), seen)
    if "f32" not in arithmetic or not calls_ns:
        reasons = (
            "; ".join(rig.failure for rig in rigs if rig.failure)
            or "none that is exact is installed"
        )
        raise InputError(f"no engine can show what this machine can do: {reasons}")
    return Ceilings(
        threads=threads,
        operations_per_s={precision: rate for precision, (rate, _) in arithmetic.items()},
        reached_by={precision: name for precision, (_, name) in arithmetic.items()},
        levels=reached,
        empty_call_ns=min(calls_ns),
    )


def _rigs(target: Target, folder: Path, names: Sequence[str], deadline: Deadline) -> Iterator[_Rig]:
    """Yield every installed engine, once for each precision that it can be set to."""
    for name in names:
        kind = Engine.member(name, trusted=True)
        try:
            kind.version()
        except InputError:
            continue
        for engine in kind.variants(target):
            if engine.precision is not None:
                _check(deadline)
                yield _Rig(engine, target, folder, deadline)


class _Rig:
    """An engine in a process of its own, with the best blocks that it has shown.

    Attributes:
        engine: Engine with its settings.
        best_ns: Kernel -> least median of its blocks, per request, in nanoseconds.
        failure: Reason why the first kernel failed; "" where none did.
    """

    def __init__(self, engine: Engine, target: Target, folder: Path, deadline: Deadline) -> None:
        self.engine, self._deadline = engine, deadline
        self.best_ns: dict[Kernel, float] = {}
        self.failure = ""
        self._folder = folder
        self._settings = {"engine": engine, "target": target}
        self._built: dict[Kernel, Any] = {}
        self._worker = Worker(folder / "workers.log", target.memory_bytes // 2, fresh=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.kill()

    def precision_of(self, kernel: Kernel) -> str:
        """Return the precision in which the engine computes a kernel."""
        return kernel.precision if self.engine.exact else str(self.engine.precision)

    def build(self, work: Sequence[Kernel]) -> None:
        """Build each kernel, without those that fail; a lower precision takes only those in f32."""
        for number, kernel in enumerate(work):
            if not self.engine.exact and (kernel.precision != "f32" or kernel.name == EMPTY_CALL):
                continue
            workdir = (
                self._folder / f"{type(self.engine).__name__}-{self.precision_of(kernel)}-{number}"
            )
            _check(self._deadline)
            with self._losing():
                self._built[kernel] = self._ask(
                    "build", model=kernel.model, workdir=workdir, **self._settings
                )
        self._worker.sleep()

    def turn(self) -> None:
        """Time a block of each kernel."""
        for kernel, artifact in self._built.items():
            _check(self._deadline)
            with self._losing():
                self._ask("open", artifact=artifact, **self._settings)
                latency_ns = self._ask(
                    "time",
                    samples=kernel.samples,
                    first=0,
                    warmup_ns=PACE.warmup_ns,
                    block_ns=PACE.block_ns,
                    at_least=PACE.at_least,
                    at_most=PACE.at_most,
                )
                block_ns = float(np.median(latency_ns))
                self.best_ns[kernel] = min(block_ns, self.best_ns.get(kernel, block_ns))
        self._worker.sleep()

    def _ask(self, do: str, **command: Any) -> Any:
        return self._worker.ask(do, limit_s=self._deadline.step_s(PACE.limit_s), **command)

    @contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except CandidateError as error:
            self.failure = self.failure or str(error)
