"""Write tables in aligned columns for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hasten.bundle.cold import Starts
    from hasten.measure.curve import CurvePoint


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Align cells in columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def curve_table(points: Sequence[CurvePoint]) -> str:
    """Write a batch curve: samples per request, threads per session, sessions in parallel."""
    lines = [("batch", "threads", "sessions", "p50", "samples a second")]
    for point in points:
        counts = (str(point.batch), str(point.threads), str(point.sessions))
        lines.append(
            (*counts, f"{_figure(point.p50_ns / 1e6)} ms", _figure(point.throughput_per_s))
        )
    return aligned(lines)


def starts_table(rows: Sequence[Starts]) -> str:
    """Write the medians of starts by stage, and their ratio to the first row."""
    from hasten.bundle.cold import STAGES

    lines: list[tuple[str, ...]] = [("", *STAGES, "total", "of the first", "processors")]
    for row in rows:
        stages = (f"{row.stage_ns(stage) / 1e6:,.0f} ms" for stage in STAGES)
        ratio = f"{row.total_ns / rows[0].total_ns:.0%}"
        total, spent = (
            f"{span_ns / 1e6:,.0f} ms" for span_ns in (row.total_ns, median(row.processor_ns))
        )
        lines.append((row.label, *stages, total, ratio, spent))
    return aligned(lines)


def _figure(value: float) -> str:
    """Format a number with three significant digits and thousands separators."""
    return f"{float(f'{value:.3g}'):,.10g}"
