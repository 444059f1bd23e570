"""A result as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from hasten.measure.intervals import Quantile
from hasten.result import Result, Row

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .4rem .8rem; border-bottom: 1px solid #8884; }
.figure { font-size: 1.4rem; }
"""


def _latency(value_ns: float, *bounds_ns: float) -> str:
    """Write a latency for people: three significant digits, in µs or ms, as "1.99 ms (1.97 to 2.02)"."""
    unit, unit_ns = ("µs", 1e3) if value_ns < 1e5 else ("ms", 1e6)
    value, *bounds = (f"{float(f'{ns / unit_ns:.3g}'):g}" for ns in (value_ns, *bounds_ns))
    return f"{value} {unit} ({' to '.join(bounds)})" if bounds else f"{value} {unit}"


def _claimed(quantile: Quantile) -> str:
    """Write a quantile with its interval; without one it isn't claimed."""
    if quantile.high_ns is None:
        return "not established"
    return _latency(quantile.value_ns, quantile.low_ns, quantile.high_ns)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def cells(row: Row) -> tuple[str, ...]:
    """A row's cells for a table: role, model, speed, p50 and p99 with intervals, mean, size."""
    faster = f"{1 / row.ratio.estimate:.2f}x ({1 / row.ratio.high:.2f} to {1 / row.ratio.low:.2f})"
    return (
        row.role,
        row.label,
        faster,
        _claimed(row.p50),
        _claimed(row.p99),
        _latency(row.mean_ns),
        "-" if row.size_bytes is None else f"{row.size_bytes / 1e6:.1f} MB",
    )


HEAD = ("", "model", "faster", "p50", "p99", "mean", "size")
_P99 = HEAD.index("p99")


def columns(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Return a table's head and rows; p99 only where one is established."""
    table = [HEAD, *map(cells, rows)]
    if any(row.p99.high_ns is not None for row in rows):
        return table
    return [line[:_P99] + line[_P99 + 1 :] for line in table]


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
