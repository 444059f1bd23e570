"""The promise of a certificate, as one value."""

from __future__ import annotations

from dataclasses import dataclass

from hasten.certificate.draws import Over
from hasten.certificate.verdict import Guard
from hasten.inputs.metrics.base import Metric


@dataclass(frozen=True)
class Promise:
    """The promise that a candidate must keep before it may ship.

    Attributes:
        metric: Score of each answer; agreement with the original under the guard "changed".
        guard: Quantity that is bounded: the net drop, the share lost, or the share changed.
        max_drop: Largest drop that is allowed, as an absolute share: 0.01 is one point.
        over: "samples" where groups count by their size in a mean, "groups" where each counts once.
        confidence: Probability with which the limit holds, for the whole ladder of candidates.
    """

    metric: Metric
    guard: Guard = "net"
    max_drop: float = 0.01
    confidence: float = 0.95
    over: Over = "samples"

    @property
    def mean_over(self) -> Over:
        """Units of a mean; a metric that draws by itself counts each of its draws once."""
        return "groups" if self.metric.draw else self.over
