"""Figures that a toolchain gives of an artifact without running it on its device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Source: TypeAlias = Literal["measured", "place-and-route", "compiler estimate", "none"]
"""Origin of a figure. Figures of different origins are never ranked together, and only the first
two origins give figures that are shown as a latency."""
TIMED: frozenset[Source] = frozenset({"measured", "place-and-route"})
"""Sources that give latencies."""


def check_latency(source: Source, latency_ns: float | None) -> None:
    """Check that a latency has a source that gives latencies.

    Raises:
        ValueError: the source gives none; a record from disk with such a latency is damaged.
    """
    if latency_ns is not None and source not in TIMED:
        raise ValueError(
            f"only a measurement or place-and-route gives a latency: got {latency_ns:g} ns of the "
            f"source {source!r}; leave it out"
        )


@dataclass(frozen=True)
class Estimate:
    """Figures of an artifact on its device that are known without running it.

    Attributes:
        source: Origin of the figures.
        latency_ns: Latency of one request in nanoseconds where the source is "place-and-route";
            else None.
        rank: Number by which candidates for one device are compared, less being faster; None where
            the toolchain gives none.
        unit: Unit of `rank`: "ns", "cycles".
        figures: Further figures by name, with units in the names: areas, clocks, sizes.
        limits: Amounts that the device has, by the name of the figure they limit.
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
