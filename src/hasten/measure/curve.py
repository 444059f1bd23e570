"""Speed by batch, threads and parallel sessions, as a record.

The curve is about speed alone. A certificate covers the batch sizes that it names. Where it names
1, a point with a larger batch says how fast the model would be, not that its answers hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hasten.core.records import from_record, to_record
from hasten.errors import IntegrityError
from hasten.measure.closed_loop import Block

CURVE = "curve.json"
"""Name of the curve's file among a bundle's evidence."""
_MOST_NS = 2**53
"""Longest time, about a hundred days; beyond that a float can't count nanoseconds."""


@dataclass(frozen=True)
class CurvePoint:
    """One combination of batch, threads and sessions, timed in turns with the others.

    Attributes:
        batch: Number of samples in each request.
        threads: Number of threads of each session's engine.
        sessions: Number of sessions that answered in parallel, in one process.
        rounds: Round -> block of its turn.
    """

    batch: int
    threads: int
    sessions: int
    rounds: dict[int, Block]

    @property
    def p50_ns(self) -> float:
        """Return the median latency of one request with the whole batch, in nanoseconds."""
        return float(np.median(np.concatenate([b.latency_ns for b in self.rounds.values()])))

    @property
    def throughput_per_s(self) -> float:
        """Return the samples per second of all sessions together, as the median over rounds."""
        rates = [len(b.latency_ns) / b.elapsed_ns for b in self.rounds.values()]
        return 1e9 * self.batch * float(np.median(rates))


def curve_record(points: Sequence[CurvePoint]) -> list[dict[str, Any]]:
    """Return a curve as a bundle keeps it: raw rounds, and the figures derived from them."""
    return [
        {
            "batch": point.batch,
            "threads": point.threads,
            "sessions": point.sessions,
            "p50_ns": point.p50_ns,
            "throughput_per_s": point.throughput_per_s,
            "rounds": to_record(point.rounds),
        }
        for point in points
    ]


def points_of(record: Any) -> tuple[CurvePoint, ...]:
    """Read a curve back; derived figures are computed again.

    Args:
        record: Record from `curve_record`, after JSON; it may come from anyone who makes a bundle.

    Raises:
        IntegrityError: the record is no curve.
    """
    points = from_record(tuple[CurvePoint, ...], record)
    if not all(map(_possible, points)):
        raise IntegrityError("a point has no requests, or they took no time")
    return points


def _possible(point: CurvePoint) -> bool:
    """Whether figures can be derived from a point."""
    counts = (point.batch, point.threads, point.sessions, len(point.rounds))
    return all(1 <= count <= _MOST_NS for count in counts) and all(
        block.latency_ns
        and min(block.latency_ns) >= 1
        and max(block.latency_ns) <= _MOST_NS
        and 1 <= block.elapsed_ns <= _MOST_NS
        for block in point.rounds.values()
    )
