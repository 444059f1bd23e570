"""An engine that fails on purpose, to test what is made of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, Self, TypeAlias

import numpy as np

from hasten.core.model import Format, Model
from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.core.words import listed
from hasten.engines.base import Artifact, Engine, Session
from hasten.engines.null import Null
from hasten.errors import CandidateError

Fault: TypeAlias = Literal[
    "none", "kill", "hang", "wait", "allocate", "nan", "wrong", "tie", "slow", "build"
]
SLOW_NS = 10_000_000
STALL_NS = 4_000_000
HURRIED = "HASTEN_TEST_HURRIED"
"""Environment variable with the folder that holds a file for each process that is hurried, by its number."""
_STEP_BYTES = 64 * 2**20
_MOST_BYTES = 2 * 2**30
"""Far more than a test lets a worker hold, and less than the machine has: a parent on a busy machine may look late."""


@dataclass(frozen=True)
class Faulty(Engine):
    """Another engine with a fault. In no registry: records name it by its import path.

    Attributes:
        inner: Engine that answers where the fault doesn't strike.
        fault: "kill" ends the process by SIGKILL, "hang" sleeps for ever, "wait" waits for a
            program that doesn't end, "allocate" takes 2 GiB of memory and hangs, "nan" puts a NaN into
            every float output, "wrong" gives the first answer's negative to every request, at
            once, "tie" swaps the two highest scores where they are nearly equal, "slow" spins for `busy_ns`, or 10 ms where that is 0, "build" can't build.
        busy_ns: Time to spin in each run, whatever the fault.
        on_run: The run, from 1, at which "kill", "hang", "wait" and "allocate" strike; 0 is `open`.
        stall_every: Spin for 4 ms in every run of that number, whatever the fault; 0 for never.
    """

    inner: Engine
    fault: Fault = "none"
    busy_ns: int = 0
    on_run: int = 1
    stall_every: int = 0

    @property
    def formats(self) -> frozenset[Format]:  # type: ignore[override]
        """The inner engine's."""
        return self.inner.formats

    @property
    def exact(self) -> bool:
        """As the inner engine, unless the answers are bad."""
        return self.inner.exact and self.fault not in ("nan", "wrong")

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """One without a fault, around no runtime."""
        yield cls(Null())

    @classmethod
    def version(cls) -> str:
        """There is nothing that could be of another version."""
        return "1"

    def build(self, model: Model, target: Target, workdir: Path) -> Artifact:
        """Build as the inner engine does.

        Raises:
            CandidateError: the inner engine can't, or the fault is "build".
        """
        if self.fault == "build":
            raise CandidateError("the faulty engine can't build, as it was told")
        return self.inner.build(model, target, workdir)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Open as the inner engine does."""
        if self.on_run == 0:
            strike(self.fault)
        with self.inner.open(artifact, target) as session:
            yield FaultySession(self, session)

    def words(self) -> str:
        """Say what answers, and every fault."""
        return listed(
            self.inner.words(),
            "" if self.fault == "none" else f"fault {self.fault} at run {self.on_run}",
            f"{self.busy_ns} ns busy" if self.busy_ns else "",
            f"a stall every {self.stall_every}" if self.stall_every else "",
        )


class FaultySession(Session):
    """The inner engine's session, and the fault."""

    def __init__(self, engine: Faulty, inner: Session) -> None:
        self.inputs, self.outputs, self.batch_sizes = inner.inputs, inner.outputs, inner.batch_sizes
        self._engine = engine
        self._inner = inner
        self._runs = 0
        self._wrong: dict[tuple[tuple[int, ...], ...], dict[str, Array]] = {}

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer, or fail."""
        self._runs += 1
        fault = self._engine.fault
        if self._runs == self._engine.on_run:
            strike(fault)
        spin(self._engine.busy_ns or (SLOW_NS if fault == "slow" else 0))
        if self._engine.stall_every and self._runs % self._engine.stall_every == 0:
            spin(STALL_NS)
        if fault == "wrong":
            return self._wrong_answer(inputs)
        outputs = self._inner.run(inputs)
        if fault == "nan":
            for output in outputs.values():
                if output.dtype.kind == "f":
                    output.flat[0] = np.nan
        if fault == "tie":
            return {name: without_ties(array) for name, array in outputs.items()}
        return outputs

    def _wrong_answer(self, inputs: Tensors) -> dict[str, Array]:
        """Give the negative of the first answer to a request of these shapes."""
        shapes = tuple(array.shape for array in inputs.values())
        if shapes not in self._wrong:
            answer = self._inner.run(inputs)
            self._wrong[shapes] = {name: _negative(array) for name, array in answer.items()}
        return {name: array.copy() for name, array in self._wrong[shapes].items()}

    def properties(self) -> Mapping[str, str]:
        """The inner session's, and the fault."""
        return {**self._inner.properties(), "fault": self._engine.fault}


def strike(fault: Fault) -> None:
    """Do what takes the process down, where the fault is one of those."""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "hang":
        _hang()
    elif fault == "wait":
        subprocess.run(["sleep", "600"])
    elif fault == "allocate":
        _allocate()


def spin(busy_ns: int) -> None:
    """Keep the processor busy for so long, as a slow operator would, unless this process is hurried."""
    if not busy_ns or is_hurried():
        return
    end = time.perf_counter_ns() + busy_ns
    while time.perf_counter_ns() < end:
        pass


@contextmanager
def hurried(pid: int) -> Iterator[None]:
    """Let engines in a process be busy for no time at all, where `HURRIED` names a folder."""
    folder = os.environ.get(HURRIED)
    if folder is None:
        yield
        return
    note = Path(folder, str(pid))
    note.touch()
    try:
        yield
    finally:
        note.unlink(missing_ok=True)


def is_hurried() -> bool:
    """Whether some process has hurried this one."""
    folder = os.environ.get(HURRIED)
    return folder is not None and Path(folder, str(os.getpid())).exists()


def _hang() -> NoReturn:
    while True:
        time.sleep(60)


def _allocate() -> NoReturn:
    taken: list[Array] = []
    while len(taken) * _STEP_BYTES < _MOST_BYTES:
        taken.append(np.ones(_STEP_BYTES, np.uint8))  # Ones, not zeros: each page is touched.
    _hang()


def without_ties(scores: Array) -> Array:
    """Swap the two highest scores of each row where they differ by less than a thousandth of the highest."""
    swapped = scores.copy()
    rows = np.arange(len(scores))
    second, first = np.argsort(scores, axis=1)[:, -2:].T
    near = scores[rows, first] - scores[rows, second] < 1e-3 * np.abs(scores[rows, first])
    swapped[rows[near], first[near]] = scores[rows[near], second[near]]
    swapped[rows[near], second[near]] = scores[rows[near], first[near]]
    return swapped


def _negative(array: Array) -> Array:
    """Return other numbers of the same kind: negated, or moved by one where there is no sign."""
    return -array if array.dtype.kind in "fi" else np.roll(array, 1)
