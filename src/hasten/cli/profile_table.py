"""Write a profile as a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hasten.cli.tables import aligned
from hasten.core.words import amount
from hasten.engines.layers import Breakdown, Portion, summarize
from hasten.errors import visible
from hasten.evaluation.profiling import Profile, remarks

_WIDTH = 8
"""Width of the first column, a time in microseconds, in characters."""


def profile_table(profile: Profile, top: int) -> str:
    """Show where a request's time goes in microseconds: by kind, by precision and by longest step.

    Args:
        profile: Profile of one model on one engine.
        top: Number of steps to list.
    """
    title = f"{profile.role}: {profile.label}"
    if profile.failed:
        return f"{title}: failed: {profile.failed}"
    breakdown = summarize(profile.layers)
    request_ms, steps_ms = np.median(profile.latency_ns) / 1e6, breakdown.latency_ns / 1e6
    lines = [
        f"{title}; {amount(profile.threads, 'thread')}, batch 1, requests: {profile.requests}",
        f"{request_ms:.3g} ms a request; its {amount(len(profile.layers), 'step')}, timed one by one, take "
        f"{steps_ms:.3g} ms together",
        *(f"note: {visible(remark)}" for remark in remarks(profile.layers)),
        "",
        aligned(_portions(breakdown)),
        "",
        aligned(_steps(breakdown, top)),
    ]
    if rest := breakdown.slowest[top:]:
        rest_ns = sum(layer.median_ns for layer in rest)
        lines.append(f"{_microseconds(rest_ns)}  in {len(rest)} more: --top lists them")
    return "\n".join(lines)


def _portions(breakdown: Breakdown) -> list[tuple[str, ...]]:
    groups: list[tuple[str, Mapping[Any, Portion]]] = [
        ("by kind", breakdown.kinds),
        ("arithmetic by precision", breakdown.arithmetic),
        ("all by precision", breakdown.precisions),
    ]
    lines: list[tuple[str, ...]] = []
    for heading, portions in groups:
        lines.append((f"{'µs':>{_WIDTH}}", "share", heading, "steps"))
        lines += [
            (_microseconds(p.latency_ns), f"{p.share:>5.0%}", visible(str(name)), str(p.steps))
            for name, p in portions.items()
        ]
    return lines


def _steps(breakdown: Breakdown, top: int) -> list[tuple[str, ...]]:
    return [
        (f"{'µs':>{_WIDTH}}", "share", "step", "precision", "kernel", "nodes"),
        *(
            (
                _microseconds(layer.median_ns),
                f"{layer.median_ns / max(1.0, breakdown.latency_ns):>5.0%}",
                visible(layer.operator),
                layer.precision,
                visible(layer.kernel),
                visible(" + ".join(layer.sources) or f"({layer.name})"),
            )
            for layer in breakdown.slowest[:top]
        ),
    ]


def _microseconds(time_ns: float) -> str:
    return f"{time_ns / 1e3:>{_WIDTH},.0f}"
