"""The result of a run on a card: a few short lines, and under it what a reader must know to trust it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from hasten.measure.intervals import Ratio
from hasten.reporting import estimate_rows, sizes
from hasten.reporting.result import Result, Row
from hasten.reporting.rows import latency, size, won
from hasten.reporting.summary import (
    UNJUDGED,
    first_comparison,
    headline,
    next_steps,
    nothing_faster,
    other_rows,
    whole_way,
)

_AT = {"p50": "at the median", "p99": "at the 99th percentile", "mean": "on average"}
_QUIET = (
    "images were prepared by ",
    "sounds were prepared by ",
    "left out at this effort: ",
    "the search ended early: ",
    "no cascade was tried: ",
)
"""Beginnings of notes that say nothing against a result; they stand with the details."""


@dataclass(frozen=True)
class Bar:
    """One of two latencies to draw beside each other.

    Attributes:
        name: Name of what has the latency.
        text: Latency in words.
        share: Share of the longer one.
    """

    name: str
    text: str
    share: float


@dataclass(frozen=True)
class Card:
    """A result in a few lines.

    Attributes:
        title: Result in a few words.
        good: Whether what was asked for came out: something faster ships, or a limit holds.
        rows: Lines, each with a name of one word.
        notes: Sentences that matter for trust, to be shown right under the card.
        bars: Latencies before and after, to be drawn where there is room for it; else empty.
    """

    title: str
    good: bool
    rows: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()
    bars: tuple[Bar, ...] = ()


def card(result: Result) -> Card:
    """Return the card of a run's result."""
    if result.estimates is not None:
        return _of_estimates(result)
    if result.sizes is not None:
        return _of_sizes(result)
    return Card(
        headline(result),
        good=result.status != "uncertified" and not nothing_faster(result),
        rows=tuple(_measured(result)),
        notes=tuple(_notes(result)),
        bars=() if _as_fast(result) else latency_bars(result.rows[0], result.winner),
    )


def _as_fast(result: Result) -> bool:
    """Whether two latencies would show noise alone: the model that ships is as fast as the default engine."""
    return _original(result) or whole_way(result) is not None


def _original(result: Result) -> bool:
    """Whether the original ships on the default engine, with pictures decoded as the pipeline states."""
    return result.winner.label == result.rows[0].label


def latency_bars(before: Row, after: Row) -> tuple[Bar, ...]:
    """Return the latencies of two rows to draw, by the statistic that compares them."""
    values = [_value_ns(row, after) for row in (before, after)]
    return tuple(
        Bar(row.label, latency(value), value / max(values))
        for row, value in zip((before, after), values, strict=True)
    )


def times(ratio: Ratio, whose: str) -> str:
    """Write a speed with its interval: "2.38x the default engine's (95% interval 2.33 to 2.44)".

    Args:
        ratio: Latency divided by that of another model.
        whose: Speed of the other model, in words.
    """
    interval = f"95% interval {1 / ratio.high:.2f} to {1 / ratio.low:.2f}"
    return f"{1 / ratio.estimate:.2f}x {whose} ({interval})"


def _measured(result: Result) -> Iterator[tuple[str, str]]:
    winner, default = result.winner, result.rows[0]
    yield "ships", winner.label
    if nothing_faster(result):
        yield "speed", "same as the default engine, because nothing faster may ship"
    elif (whole := whole_way(result)) is not None:
        yield "speed", times(whole, "today's from bytes to decision")
    else:
        yield "speed", times(first_comparison(result), f"the default engine's{_on(result)}")
    if result.decoded:
        yield "pictures", result.decoded
    yield "latency", _takes(result) if _original(result) else _before_and_after(result)
    yield _sure(result)
    if winner.size_bytes is not None and default.size_bytes is not None:
        yield "size", f"{size(default.size_bytes)} before, {size(winner.size_bytes)} after"
    if best := won(result):
        yield "methods", best
    elif result.budget_ns is not None:
        within = "within" if result.within_budget else "OVER"
        yield (
            "budget",
            f"{latency(result.step_ns)}, {within} the budget of {latency(result.budget_ns)}",
        )
    yield from _ends(result)


def _takes(result: Result) -> str:
    return f"{latency(_value_ns(result.winner, result.winner))} {_how(result)}"


def _before_and_after(result: Result) -> str:
    rows = (result.rows[0], result.winner)
    before, after = (latency(_value_ns(row, result.winner)) for row in rows)
    return f"{before} before, {after} after, {_how(result)}"


def _how(result: Result) -> str:
    """Say which statistic of the latency is told, and on how many threads."""
    threads = f"{result.threads} thread{'' if result.threads == 1 else 's'}"
    return f"{_AT[result.winner.statistic]}, with {threads}"


def _on(result: Result) -> str:
    """Say on which threads the speed-up was measured, where these aren't those of the latencies."""
    if result.on_all is not None:
        return f" on its {result.default_threads} threads"
    if result.default_threads not in (0, result.threads):
        return f", both on {result.threads} of its {result.default_threads} threads"
    return ""


def _value_ns(row: Row, compared: Row) -> float:
    """Return a row's latency in the statistic by which another one is compared."""
    if compared.statistic == "mean":
        return row.mean_ns
    return (row.p50 if compared.statistic == "p50" else row.p99).value_ns


def _sure(result: Result) -> tuple[str, str]:
    """Return what was certified, in plain words."""
    if result.status == "certified":
        return "certified", f"{result.why}, for {result.population}"
    if result.status == "uncertified":
        return "NOT certified", result.why
    asked = result.asked
    if _original(result):
        return "exact", "the original model, so it needs no certificate"
    if result.inexact == UNJUDGED or asked is None:
        return "exact", "it keeps the original's precision, so it needs no certificate"
    count = asked.searched + asked.sealed
    return "exact", f"no answer changed on {count:,} samples, so it needs no certificate"


def _ends(result: Result) -> Iterator[tuple[str, str]]:
    """Yield where the bundle is, and what to do with it."""
    bundle = shlex.quote(str(result.bundle))
    yield "bundle", f"{result.bundle}, made in {result.seconds:.0f} s"
    yield "report", f"hasten open {bundle}"
    yield "serve", f"hasten serve {bundle}"


def _notes(result: Result) -> Iterator[str]:
    """Yield what matters for trust: what isn't certified, a busy host, too little data, what was cut."""
    if result.inexact and result.status == "exact":
        yield _sentence(f"no inexact form, such as int8, ships: {result.inexact}")
    others = (line for line in other_rows(result) if line.startswith("Fastest uncertified"))
    yield from map(_sentence, others)
    yield from loud(result.notes)
    yield from _compared(result)
    yield from (_sentence(step) for step in next_steps(result) if "data" in step)


def _compared(result: Result) -> list[str]:
    """Return figures and decisions before and after, as sentences."""
    found = result.comparison
    if found is None:
        return []
    seen = f"on {found.rows:,} rows that the search never saw"
    return [_sentence(f"{line}, {seen}") for line in found.in_words()]


def loud(notes: tuple[str, ...]) -> Iterator[str]:
    """Yield the notes that may matter for trust: all but those that are known not to."""
    for note in notes:
        sound = note.startswith("the original's own ") and "if you expected more" not in note
        if not sound and not note.startswith(_QUIET):
            yield _sentence(note)


def _sentence(note: str) -> str:
    ended = note if note.endswith((".", "!", "?")) else f"{note}."
    return f"{ended[0].upper()}{ended[1:]}"


def _of_estimates(result: Result) -> Card:
    """Return the card of a run for a device that isn't here."""
    estimates, shipped = result.estimates, result.shipped
    assert estimates is not None
    device = f"{estimates.device} ({estimates.noun})"
    rows = [("ships", f"nothing for {device}; the bundle holds the original, for this host")]
    if shipped is not None:
        known = estimate_rows.latency_of(shipped)
        timed = f"{known} for a request, by {shipped.source}; the device isn't here"
        unknown = f"not known before it runs on {estimates.device}, which isn't here"
        rows = [
            ("ships", f"{shipped.label}, for {device}"),
            ("latency", unknown if known == "none" else timed),
        ]
    if budget := estimate_rows.within(result):
        rows.append(("budget", budget))
    sure = {"certified": "certified", "exact": "exact", "uncertified": "NOT certified"}
    rows.append((sure[result.status], result.why))
    if estimates.compared:
        rows.append(("compared", estimates.compared))
    notes = [
        _sentence(f"{label} {'failed' if fate == 'failed' else 'was skipped'}: {reason}")
        for label, fate, reason in estimate_rows.gone(result)
    ]
    bundle = shlex.quote(str(result.bundle))
    ends = list(_ends(result))[:2]
    if shipped is not None:
        ends.append(
            (
                "next",
                f"where the device is: hasten certify {bundle} --data NEW_DATA, hasten bench {bundle}",
            )
        )
    return Card(
        estimate_rows.headline(result),
        good=shipped is not None and result.status != "uncertified",
        rows=(*rows, *ends),
        notes=(*notes, *_compared(result), *loud(result.notes)),
    )


def _of_sizes(result: Result) -> Card:
    """Return the card of a run that compared packed sizes."""
    found = result.sizes
    assert found is not None
    packed = sizes.size_in_words(found.weights_bytes / found.times_smaller)
    sure = "certified" if result.status == "certified" and found.shipped else "NOT certified"
    return Card(
        sizes.headline(result),
        good=found.shipped is not None,
        rows=(
            ("ships", found.winner),
            ("size", f"{sizes.size_in_words(found.weights_bytes)} before, {packed} after"),
            (sure, f"{result.why}, for {result.population}"),
            *list(_ends(result))[:2],
        ),
        notes=(_sentence(sizes.STEADY), *_compared(result), *loud(result.notes)),
    )
