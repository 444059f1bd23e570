"""What a toolchain says of an artifact that nothing has run on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Source: TypeAlias = Literal["measured", "place-and-route", "compiler estimate", "none"]
"""Where a figure comes from. Unlike sources are never ranked together; only the first two are ever
shown as a latency."""
TIMED: frozenset[Source] = frozenset({"measured", "place-and-route"})
"""Of these there are latencies."""


def check_latency(source: Source, latency_ns: float | None) -> None:
    """Check that a latency comes from where there are any.

    Raises:
        ValueError: it doesn't; in a record from disk, that makes it a damaged one.
    """
    if latency_ns is not None and source not in TIMED:
        raise ValueError(
            f"only what was measured or placed and routed has a latency: got {latency_ns:g} ns of the "
            f"source {source!r}; leave it out"
        )


@dataclass(frozen=True)
class Estimate:
    """What can be known beforehand of an artifact on its device.

    Attributes:
        source: Where the figures come from.
        latency_ns: Of one request, in nanoseconds, where the source is "place-and-route"; else None.
        rank: What candidates for one device are compared by, less is faster; None where the
            toolchain says nothing of the kind.
        unit: Of `rank`: "ns", "cycles".
        figures: What else it says, by name: areas, clocks, sizes, with units in the names.
        limits: Of a figure's name, how much of it the device has.
    """

    source: Source
    latency_ns: float | None = None
    rank: float | None = None
    unit: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the latency's source."""
        check_latency(self.source, self.latency_ns)
