"""Engines for whole runs: each brings a slow exact baseline, and rivals that are good or bad.

A run takes one by its import path: `engines=("tests.support.rivals:WrongAndFast",)`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
from tests.support.faults import Fault, Faulty

from hasten.core.target import Target
from hasten.core.tensors import Array, Tensors
from hasten.core.words import listed
from hasten.engines.base import Artifact, Session
from hasten.engines.onnxruntime.engine import OnnxRuntime

BUSY_NS = 400_000


@dataclass(frozen=True)
class Rival(Faulty):
    """ONNX Runtime with a fault; its own variants are the slow baseline and one quick rival.

    Attributes:
        lossy: Whether it is judged like a quantized model, though its answers are right.
    """

    lossy: bool = False

    @property
    def exact(self) -> bool:
        """As the faulty engine, unless it says that it isn't."""
        return super().exact and not self.lossy

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield the baseline, which takes 0.4 ms longer than it must, and the rivals."""
        yield cls(OnnxRuntime(), busy_ns=BUSY_NS)
        yield from cls.rivals()

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield one that is right and quick."""
        yield cls(OnnxRuntime(), lossy=True)

    def words(self) -> str:
        """Say too whether it is judged."""
        return listed(super().words(), "judged" if self.lossy else "")


@dataclass(frozen=True)
class WrongAndFast(Rival):
    """One rival answers at once, and wrong."""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield it."""
        yield cls(OnnxRuntime(), "wrong")


@dataclass(frozen=True)
class ExactAndQuick(Rival):
    """One rival answers at once, bit for bit as the baseline does."""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield it."""
        yield cls(OnnxRuntime())


@dataclass(frozen=True)
class ExactAndWrong(Rival):
    """One rival answers at once and wrong, and says that it is exact."""

    @property
    def exact(self) -> bool:
        """Always, it says."""
        return True

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield it."""
        yield cls(OnnxRuntime(), "wrong")


@dataclass(frozen=True)
class ExactButForTies(Rival):
    """One rival answers at once, within rounding of the baseline, and decides near ties otherwise."""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield it."""
        yield cls(OnnxRuntime(), "tie")


@dataclass(frozen=True)
class Unlucky(Rival):
    """Rivals that die in every way, and one that is right and quick, last."""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield them."""
        faults: tuple[Fault, ...] = ("kill", "hang", "nan", "build")
        for fault in faults:
            yield cls(OnnxRuntime(), fault, lossy=True)
        yield cls(OnnxRuntime(), lossy=True)


@dataclass(frozen=True)
class Stalling(Rival):
    """One rival answers at once, but for every fourth request, which takes far longer than any."""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield it."""
        yield cls(OnnxRuntime(), stall_every=4, lossy=True)


@dataclass(frozen=True)
class Greedy(Rival):
    """One rival takes far too much memory."""

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield it."""
        yield cls(OnnxRuntime(), "allocate", lossy=True)


@dataclass(frozen=True)
class BadAnswers(Rival):
    """Even the baseline answers NaN."""

    @property
    def exact(self) -> bool:
        """Whatever it answers, it says so."""
        return True

    @classmethod
    def variants(cls, target: Target) -> Iterator[Self]:
        """Yield it."""
        yield cls(OnnxRuntime(), "nan")


@dataclass(frozen=True)
class Coarse(Rival):
    """One rival answers at once, from inputs that it rounds to a few steps, so that some answers change.

    Attributes:
        steps: Number of steps between 0 and 1; 0 for none, so that nothing is rounded.
    """

    steps: int = 0

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield it."""
        yield cls(OnnxRuntime(), lossy=True, steps=6)

    @contextmanager
    def open(self, artifact: Artifact, target: Target) -> Iterator[Session]:
        """Open as the inner engine does."""
        with super().open(artifact, target) as session:
            yield _Rounding(session, self.steps) if self.steps else session

    def words(self) -> str:
        """Say too how coarse the inputs are."""
        return listed(super().words(), f"{self.steps} steps" if self.steps else "")


@dataclass(frozen=True)
class ExactAndImprecise(Coarse):
    """One rival answers at once and less precisely than rounding explains, and says that it is exact."""

    @property
    def exact(self) -> bool:
        """Always, it says."""
        return True

    @classmethod
    def rivals(cls) -> Iterator[Self]:
        """Yield it."""
        yield cls(OnnxRuntime(), steps=60)


class _Rounding(Session):
    """Another session, with inputs that are rounded."""

    def __init__(self, inner: Session, steps: int) -> None:
        self.inputs, self.outputs, self.batch_sizes = inner.inputs, inner.outputs, inner.batch_sizes
        self._inner, self._steps = inner, steps

    def run(self, inputs: Tensors) -> dict[str, Array]:
        """Answer to rounded inputs."""
        steps = np.float32(self._steps)
        return self._inner.run({n: np.round(a * steps) / steps for n, a in inputs.items()})

    def properties(self) -> Mapping[str, str]:
        """The inner session's."""
        return self._inner.properties()
