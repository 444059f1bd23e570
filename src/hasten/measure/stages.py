"""Stages of the way from a file's bytes to the decision, and their share of its time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hasten.engines.end_to_end import STAGES


@dataclass(frozen=True)
class Stage:
    """Part of the way from a file's bytes to the decision.

    Attributes:
        name: Name of the pipeline's step, or "model"; for a chain, name of the node and of its part.
        p50_ns: Median latency, in nanoseconds.
        p99_ns: 99th percentile of the latencies, in nanoseconds.
        share: Share of the whole way's time.
    """

    name: str
    p50_ns: float
    p99_ns: float
    share: float


def stages_in(spans_ns: Mapping[str, Sequence[int]]) -> tuple[Stage, ...]:
    """Return the stages of some requests.

    Args:
        spans_ns: Stage -> latencies in nanoseconds, one per request.
    """
    whole = sum(map(sum, spans_ns.values()))
    return tuple(
        Stage(
            name,
            float(np.median(spans)),
            float(np.quantile(spans, 0.99)),
            sum(spans) / max(1, whole),
        )
        for name, spans in spans_ns.items()
    )


def reported(properties: Mapping[str, str]) -> tuple[Stage, ...]:
    """Return the stages that a session reports among its properties, in order; none where it has none."""
    return stages_in(json.loads(properties.get(STAGES, "{}")))


WAYS = "stages.json"
"""Name of the file of ways among a bundle's evidence."""


@dataclass(frozen=True)
class Ways:
    """Where the time goes from a file's bytes to the decision, before and after a run.

    Attributes:
        before: Stages of the model as it was given, on the default engine.
        after: Stages of what ships.
        files: Number of files.
        threads: Number of threads of each.
    """

    before: tuple[Stage, ...]
    after: tuple[Stage, ...]
    files: int
    threads: int
