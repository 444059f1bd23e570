"""A result as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

from hasten.result import Result, Row

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .4rem .8rem; border-bottom: 1px solid #8884; }
.figure { font-size: 1.4rem; }
"""


def milliseconds(nanoseconds: float) -> str:
    """Write a latency for people: three significant digits, in ms or µs."""
    if nanoseconds < 1e5:
        return f"{nanoseconds / 1e3:.3g} µs"
    return f"{nanoseconds / 1e6:.3g} ms"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def cells(row: Row) -> tuple[str, ...]:
    """A row's cells for a table: role, model, speed with interval, p50, p99, mean, size."""
    faster = f"{1 / row.ratio.estimate:.2f}x ({1 / row.ratio.high:.2f} to {1 / row.ratio.low:.2f})"
    tail = milliseconds(row.p99.value_ns) if row.p99.high_ns is not None else "not established"
    return (
        row.role,
        row.label,
        faster,
        milliseconds(row.p50.value_ns),
        tail,
        milliseconds(row.mean_ns),
        f"{row.size_bytes / 1e6:.1f} MB",
    )


HEAD = ("", "model", "faster", "p50", "p99", "mean", "size")


def render(result: Result, environment: Mapping[str, str]) -> bytes:
    """Write a result as HTML: how much faster, how sure, what was tried, and where."""
    winner = result.winner
    parts = [
        f"<h1>{winner.speedup:.2f}x faster</h1>",
        f'<p class="figure">{escape(result.why)}</p>',
        f"<p>For {escape(result.population)}. {result.threads} thread(s), batch 1.</p>",
        _table(HEAD, map(cells, result.rows)),
        f"<p>The same model against itself came out within {100 * result.spread:.1f}% of 1: no smaller "
        "difference is called a speed-up.</p>",
        "<h2>What was tried</h2>",
        _table(("candidate", "outcome"), result.tried.items()),
        "<h2>Where</h2>",
        _table(("fact", "value"), environment.items()),
    ]
    if result.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in result.notes)
        parts.insert(5, f"<h2>Notes</h2><ul>{items}</ul>")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>hasten: {winner.speedup:.2f}x</title><style>{_STYLE}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    ).encode()
