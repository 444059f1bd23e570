"""What a run was asked for."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.certificate.verdict import Guard
from hasten.inputs.metrics.base import Metric
from hasten.measure.intervals import Statistic


@dataclass(frozen=True)
class Order:
    """What was asked for.

    Attributes:
        metric: What is scored (agreement under the guard `changed`).
        guard: What is bounded.
        max_drop: The limit, in absolute share.
        confidence: Of the certificate.
        seed: Of all orders.
        keep_float: Nodes that no pass may quantize.
        deadline: `time.monotonic()` by which the run should end; None for no limit.
        objective: What of the latency is to be small.
    """

    metric: Metric
    guard: Guard
    max_drop: float
    confidence: float
    seed: int
    keep_float: tuple[str, ...] = ()
    deadline: float | None = None
    objective: Statistic = "p50"
