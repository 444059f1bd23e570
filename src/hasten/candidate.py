"""The records of a search: what was tried, and what was seen of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from hasten.engines.base import Artifact, Engine
from hasten.passes.base import Pass
from hasten.records import digest, to_record


@dataclass(frozen=True)
class Single:
    """One model on one engine: the passes that made it, in order, and the engine's settings."""

    passes: tuple[Pass, ...]
    engine: Engine

    @property
    def exact(self) -> bool:
        """Whether it keeps the model's own precision, by what its passes and engine state."""
        return self.engine.exact and all(step.exact for step in self.passes)

    @property
    def key(self) -> str:
        """A short stable name: the digest of its record."""
        return digest(to_record(self))[:12]


Candidate: TypeAlias = Single
Source: TypeAlias = Literal["measured", "place-and-route", "compiler estimate", "none"]


@dataclass(frozen=True)
class Measurement:
    """Raw latencies of one candidate, as they were taken.

    Attributes:
        source: Unlike sources are never ranked together.
        threads: How many threads the engine had.
        rounds: Round number -> latencies of that round's block, in nanoseconds, in order.
    """

    source: Source
    threads: int
    rounds: dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Trial:
    """All that was seen of one candidate on the search split.

    Attributes:
        candidate: What was tried.
        artifact: What was built; None where that failed.
        measurement: Latencies; None where it never ran.
        scores: One per search sample in order, `None` where it wasn't judged.
        failure: Why it fell out, in one line; None where it didn't.
        skipped: Why there was nothing to do; None where there was.
        properties: What the engine says that it does.
    """

    candidate: Candidate
    artifact: Artifact | None = None
    measurement: Measurement | None = None
    scores: tuple[float, ...] | None = None
    failure: str | None = None
    skipped: str | None = None
    properties: dict[str, str] | None = None
