"""The summary of each kind of result, from its records."""

from __future__ import annotations

from hasten.reporting import estimate_rows, sizes
from hasten.reporting.evidence import Report
from hasten.reporting.result import Estimates, Result, Row
from hasten.reporting.rows import latency
from hasten.reporting.sizes import Sizes, size_in_words
from hasten.reporting.slide import Bar, Number, Slide, bars, claim
from hasten.reporting.summary import first_figure, headline, whole_way
from hasten.reporting.svg import AFTER, BEFORE, EXACT
from hasten.reporting.words import points, role, sentence, times

_STATISTIC = {"p50": "at the median", "p99": "at the 99th percentile", "mean": "on average"}
_SURE = {"certified": "certified", "exact": "exact", "uncertified": "not certified"}


def slide(report: Report) -> Slide:
    """Sum a report up."""
    result = report.result
    if result.estimates is not None:
        return _of_estimates(report, result.estimates)
    if result.sizes is not None:
        return _of_sizes(report, result.sizes)
    count = result.shipped_threads or result.threads
    return Slide(
        bundle=result.bundle.name,
        headline=headline(result),
        about=f"{report.target.processor}, {_threads(count)}, one sample in a request",
        numbers=(_speed(result), _latency(result), _accuracy(result)),
        certificate=_certificate(result),
        chart=bars(*_latencies(result)),
    )


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _speed(result: Result) -> Number:
    way = "" if whole_way(result) is None else " from bytes to decision"
    return Number(f"{times(1 / first_figure(result).estimate)}x", f"as fast as today's model{way}")


def _latency(result: Result) -> Number:
    own, today = result.winner, result.rows[0]
    said = f"for a request {_STATISTIC[own.statistic]}"
    if whole_way(result) is not None:
        said += ", without decoding"
    if own is not today:
        said += f", instead of {latency(_typical(today))}"
    if result.on_all is not None:
        said += f", both on {_threads(result.threads)}"
    return Number(latency(_typical(own)), said)


def _typical(row: Row) -> float:
    """Return a row's latency in the statistic that rows are compared by, in nanoseconds."""
    if row.statistic == "mean":
        return row.mean_ns
    return (row.p50 if row.statistic == "p50" else row.p99).value_ns


def _accuracy(result: Result) -> Number:
    """Say what was lost on the sealed data, or that nothing can be lost."""
    found = result.judgement
    if result.status == "exact":
        return Number("exact", "the form that ships keeps the original's precision")
    if found is None or result.asked is None:
        return Number(_SURE[result.status], "no loss was measured on sealed data")
    draws = f"{found.n:,} {'samples' if found.groups is None else 'groups'}"
    way = "gained" if found.estimate < 0 else "lost"
    return Number(
        points(abs(found.estimate)),
        f"{way} on {draws} that the search never saw ({result.asked.noun}); {points(found.max_drop)} may be lost",
    )


def _certificate(result: Result) -> str:
    """Write the certificate, or why there is none, in one plain sentence."""
    if result.status == "certified":
        return f"{sentence(claim(result.why))} It holds for {result.population}."
    if result.status == "exact":
        return f"No certificate is needed: {result.why.partition(';')[0]}."
    return sentence(f"not certified: {result.why.partition(';')[0]}")


def _latencies(result: Result) -> tuple[str, list[Bar], str]:
    """Return the title, the bars and the axis of the chart of latencies."""
    if (whole := whole_way(result)) is not None:
        text = f"{whole.estimate:.2f}"
        measured = [
            Bar(role("default engine"), 1.0, "1", BEFORE),
            Bar(role("winner"), whole.estimate, text, AFTER),
        ]
        title = f"From bytes to decision, a file takes {text} times as long as today"
        return title, measured, "time from bytes to decision, over today's"
    own, today = result.winner, result.rows[0]
    tones = {"default engine": BEFORE, "fastest exact": EXACT, "winner": AFTER}
    # A form whose latency isn't told apart from today's is no news.
    shown = [row for row in result.rows if row is today or row is own]
    how = _STATISTIC[own.statistic]
    measured = [
        Bar(
            role("winner") if row is own and row is not today else role(row.role),
            _typical(row) / 1e6,
            latency(_typical(row)),
            AFTER if row is own and row is not today else tones.get(row.role, EXACT),
        )
        for row in shown
    ]
    title = f"A request takes {latency(_typical(own))} {how}"
    if own is not today:
        title += f", instead of {latency(_typical(today))}"
    return title, measured, f"latency {how}, ms"


def _of_sizes(report: Report, found: Sizes) -> Slide:
    result, shipped = report.result, found.shipped
    packed = found.lossless_bytes if shipped is None else shipped.packed_bytes
    measured = [
        Bar(
            "the weights today",
            found.weights_bytes / 1e6,
            size_in_words(found.weights_bytes),
            BEFORE,
        ),
        Bar(
            "packed without loss",
            found.lossless_bytes / 1e6,
            size_in_words(found.lossless_bytes),
            EXACT,
        ),
    ]
    if shipped is not None:
        measured.append(Bar("what ships", packed / 1e6, size_in_words(packed), AFTER))
    whole = size_in_words(found.weights_bytes)
    return Slide(
        bundle=result.bundle.name,
        headline=sizes.headline(result),
        about=sizes.STEADY,
        numbers=(
            Number(f"{times(found.times_smaller)}x", "smaller than the weights today"),
            Number(size_in_words(packed), f"to download, instead of {whole}"),
            _accuracy(result),
        ),
        certificate=_certificate(result),
        chart=bars(
            f"What ships has {size_in_words(packed)}, instead of {whole}", measured, "size, MB"
        ),
    )


def _of_estimates(report: Report, found: Estimates) -> Slide:
    result, shipped = report.result, found.shipped
    known = "none" if shipped is None else estimate_rows.latency_of(shipped)
    numbers = [
        Number(known, f"for a request, by {shipped.source}")
        if shipped is not None and known != "none"
        else Number("not known", "how long a request takes, before it runs on the device"),
        Number(f"{len(found.rows)}", "candidates were made for the device"),
        _accuracy(result),
    ]
    return Slide(
        bundle=result.bundle.name,
        headline=estimate_rows.headline(result),
        about=f"for {found.noun}, {found.device}; nothing in this report ran on it",
        numbers=tuple(numbers),
        certificate=_certificate(result),
    )
