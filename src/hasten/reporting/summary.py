"""The result of a run in words: each line makes sense alone, and no two contradict each other.

What people have is the default engine on all the threads that it uses by default, so that is the first
comparison. All of it is made from records alone.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from hasten.certificate.verdict import Judgement, Verdict
from hasten.engines.cuda.torch import TorchCuda
from hasten.measure.exactness import unchanged_in_words
from hasten.measure.intervals import Ratio, Statistic
from hasten.reporting import estimate_rows, sizes
from hasten.reporting.result import Outcome, Result, Row
from hasten.reporting.rows import latency, per_step, won

_AT: dict[Statistic, str] = {
    "p50": "at the median",
    "p99": "at the 99th percentile",
    "mean": "on average",
}
_CLOSE = 1.1
"""Largest latency of what was close, as a multiple of the latency of what ships."""
_SHOWN = 2
"""Largest number of forms that are named as close from the search alone."""
_SURE = {"certified": "certified", "exact": "exact", "uncertified": "not certified"}
NO_FASTER = "none was both faster than the fastest exact form and accurate enough in the search to be likely to pass"
"""Reason why no inexact form ships where some ran, and none was worth testing on the sealed data."""
UNJUDGED = "without data none can be judged"
_BINDS = {"bytes": "reading memory", "overhead": "what the engine adds to each request"}


def summary(result: Result, *, report: bool = True) -> tuple[str, ...]:
    """Return a result in lines: what ships, how fast, how sure, what else was close, what to do next.

    Args:
        result: End of a run.
        report: Whether the bundle has its report.
    """
    made = f"Bundle: {result.bundle}, made in {result.seconds:.0f} s"
    end = f"{made}; its report: {result.bundle / 'report.html'}" if report else made
    if result.estimates is not None:
        return (*_elsewhere(result), end)
    if result.sizes is not None:
        return (*sizes.summary(result), *_compared(result), end)
    return (*_measured(result), end)


def headline(result: Result) -> str:
    """Write the result of a run that measured in a few words."""
    if nothing_faster(result):
        return "Nothing faster ships"
    way = "" if whole_way(result) is None else " from bytes to decision"
    speed = 1 / first_figure(result).estimate
    # Timed on one thread while the host was busy, it may be no faster on all threads.
    how = f"{speed:.2f}x faster" if round(speed, 2) > 1 else f"{speed:.2f} times as fast"
    return f"{how}{way}, {_SURE[result.status]}"


def first_figure(result: Result) -> Ratio:
    """Return the ratio that a result is known by: of latencies, or of the whole way where only that takes less time."""
    return whole_way(result) or first_comparison(result)


def whole_way(result: Result) -> Ratio | None:
    """Return the time from bytes to decision over today's, where only pictures that are decoded smaller save time."""
    as_fast = first_comparison(result).high >= 1 - result.spread
    return result.whole if as_fast else None


def nothing_faster(result: Result) -> bool:
    """Whether what ships is what people have, or an exact form that isn't surely faster."""
    within_noise = first_comparison(result).high >= 1 - result.spread
    return is_default(result) or (result.status == "exact" and within_noise)


def first_comparison(result: Result) -> Ratio:
    """Return the latency of what ships over the default engine's on its own threads, as far as known."""
    return result.winner.ratio if result.on_all is None else result.on_all


def what_ships(result: Result) -> str:
    """Say what the bundle serves, and whether that is what people have already."""
    label = result.winner.label
    if is_default(result):
        return f"{label}: the default engine, unchanged, because nothing faster may ship"
    if result.shipped_threads != result.default_threads:
        return f"{label}, on {_threads(result.shipped_threads)}"
    return label


def how_fast(result: Result) -> str:
    """Compare what ships with the default engine on all the threads that it uses by default."""
    winner, default = result.winner, result.rows[0]
    taking = f"a request takes {_takes(winner)} {_AT[winner.statistic]}"
    if is_default(result):
        return f"it is the default engine: {taking} with {_each(result)}"
    who = f"the default engine ({default.label})"
    if result.on_all is None and result.default_threads in (0, result.threads):
        return f"{faster(winner.ratio, who)}: {taking} instead of {_takes(default)}, both with {_each(result)}"
    if result.on_all is None:
        return (
            f"{faster(winner.ratio, who)} if both have {_threads(result.threads)}: {taking} instead of "
            f"{_takes(default)}; the host was too busy to compare them on the "
            f"{_threads(result.default_threads)} that the default engine uses by default"
        )
    return (
        f"{faster(result.on_all, who)} on the {_threads(result.default_threads)} that it uses by default; "
        f"the bundle runs on {_threads(result.shipped_threads)}; timed in {result.on_all.rounds} rounds while "
        "the host was busy"
    )


def on_fewer_threads(result: Result) -> str:
    """Say how fast both are on the threads that the table is about; empty where `how_fast` says it."""
    if result.on_all is None:
        return ""
    winner, default = result.winner, result.rows[0]
    return (
        f"with {_threads(result.threads)} each, what ships is "
        f"{faster(winner.ratio, 'the default engine')}: a request takes {_takes(winner)} "
        f"{_AT[winner.statistic]} instead of {_takes(default)}"
    )


def torch_in_half(result: Result) -> str:
    """Compare PyTorch's own half precision with the default engine; empty where it wasn't timed.

    The default engine of a GPU computes in strict float32, and a user of PyTorch has autocast already.
    """
    labels = {engine.label("") for engine in TorchCuda.in_half()}
    outcomes = (one for one in result.outcomes if one.label in labels)
    timed = [(one.ratio, one.label) for one in outcomes if one.ratio is not None]
    if not timed or result.winner.label in labels:
        return ""
    ratio, label = min(timed, key=lambda one: one[0].estimate)
    return (
        f"the default engine computes in strict float32; in the search, {label} was "
        f"{faster(ratio, 'it')}{_lost(result, label)}"
    )


def every_request(result: Result) -> str:
    """Compare the mean and the p99 of what ships with the default engine's; empty without figures."""
    winner = result.winner
    if winner.mean_ratio is None or is_default(result):
        return ""
    mean = f"the mean latency is {_times(winner.mean_ratio)} times the default engine's"
    if winner.p99_ratio is None:
        return f"{mean}; there were too few requests to establish the 99th percentile"
    return f"{mean}, the 99th percentile {_times(winner.p99_ratio)} times"


def noise(result: Result) -> str:
    """Say how far the default engine differed from itself."""
    return (
        f"the default engine, timed twice side by side, differed from itself by {100 * result.spread:.1f}%; "
        "no smaller difference is called faster"
    )


def how_sure(result: Result) -> str:
    """Say how sure it is that the answers are right."""
    if result.status == "exact" and result.inexact:
        asked = result.asked
        samples = 0 if asked is None else asked.searched + asked.sealed
        made_up = result.inexact == UNJUDGED
        how = kept(samples, default=_is_original(result), made_up=made_up)
        return f"exact: {how}, so no certificate is needed"
    return f"{_SURE[result.status]}: {result.why}"


def kept(samples: int, *, default: bool, made_up: bool = False) -> str:
    """Say that what ships is exact, and how that was seen.

    Args:
        samples: Number of samples on which it was compared with the original; 0 where it wasn't.
        default: Whether it is the original model on the default engine.
        made_up: Whether the samples were made up.
    """
    if default:
        return "what ships is the original model on the default engine"
    seen = f", and {unchanged_in_words(samples, made_up=made_up)}" if samples else ""
    return f"what ships keeps the original's precision{seen}"


def exact_why(reason: str, samples: int, *, default: bool) -> str:
    """Return the reason why an exact model ships; the arguments are those of `kept` and `no_inexact`."""
    how = kept(samples, default=default, made_up=reason == UNJUDGED)
    return f"{how}; {no_inexact(reason)}"


def no_inexact(reason: str) -> str:
    """Say why no inexact form ships."""
    return f"no inexact form (such as int8) ships: {reason}"


def allowed(reason: str) -> str:
    """Say that what ships has no certificate, and why."""
    return f"it ships without a certificate, as you allowed: {reason}"


def untested(tried: int, ran: int) -> str:
    """Say why no inexact form was tested on the sealed data.

    Args:
        tried: Number of inexact forms that were tried.
        ran: Number of those that could be made and ran.
    """
    if not tried:
        return "none was tried"
    return NO_FASTER if ran else f"none of the {tried} that were tried could be made and run here"


def refused(label: str, entry: Judgement | str) -> str:
    """Say of the safest inexact form that was tested on the sealed data why it wasn't certified.

    Args:
        label: Label of the form.
        entry: Its judgement, or the reason why it failed.
    """
    if isinstance(entry, str):
        return f"the safest one, {label}, failed and couldn't be tested: {entry}"
    return f"the safest one, {label}, isn't certified: {entry.in_words()}"


def faster(ratio: Ratio, than: str) -> str:
    """Write how many times faster a model is than another, with its interval.

    Args:
        ratio: Latency of the model divided by the other's.
        than: Other model, in words.
    """
    speed, interval = 1 / ratio.estimate, f"{1 / ratio.high:.2f} to {1 / ratio.low:.2f}"
    if round(speed, 2) > 1:
        return f"{speed:.2f}x faster (95% interval {interval}) than {than}"
    return f"{speed:.2f} times as fast (95% interval {interval}) as {than}"


def other_rows(result: Result) -> Iterator[str]:
    """Yield the other rows of the table with their roles, a line each."""
    default, than = result.rows[0], "the default engine"
    if result.on_all is not None:  # the first line compares with it on all of its threads
        than += f", with {_threads(result.threads)} each"
    for row in result.rows[1:]:
        if row is not result.winner and row.label != default.label:
            lost = "" if row.role == "fastest exact" else _lost(result, row.label)
            role = f"{row.role[0].upper()}{row.role[1:]}"
            yield f"{role}: {row.label} is {faster(row.ratio, than)}{lost}"


def close(result: Result) -> Iterator[str]:
    """Yield what else was close to what ships in the search, a line each."""
    winner = result.winner
    shown = {row.label for row in result.rows}
    own = _in_search(result, winner.label)
    if own is None:
        return
    near = (
        (outcome.ratio.estimate / own, outcome)
        for outcome in result.outcomes
        if outcome.ratio is not None and outcome.label not in shown and _may_ship(result, outcome)
    )
    ranked = sorted((one for one in near if 1 / _CLOSE <= one[0] <= _CLOSE), key=lambda one: one[0])
    for times, outcome in ranked[:_SHOWN]:
        how = (
            "which is exact" if outcome.fate == "exact" else "which lost less than the limit there"
        )
        yield f"in the search, {outcome.label}, {how}, took {times:.2f} times as long as what ships"


def next_steps(result: Result) -> Iterator[str]:
    """Yield what to do next, a line each."""
    bundle = shlex.quote(str(result.bundle))
    if result.status == "uncertified":
        limit = "" if result.asked is None else f" --max-drop {100 * result.asked.max_drop:.6g}%"
        yield f"certify it on data that no run has used: hasten certify {bundle} --data NEW_DATA{limit}"
    if is_default(result):
        yield "keep what you have: the bundle serves the same model"
    else:
        yield f"time it against what you run today: hasten bench {bundle} --against YOUR_DEPLOYMENT"
    if result.inexact == UNJUDGED:
        yield (
            "give data for a certified version that may be faster: hasten optimize MODEL --data DATA "
            "--max-drop 1% (hasten plan says how much data)"
        )
    yield from _for_more(result)


def _for_more(result: Result) -> tuple[str, ...]:
    """Return what may make more ship: more data, or a higher limit."""
    stopped = result.ladder[-1] if result.ladder else None
    if stopped is None or stopped.judgement is None or result.asked is None:
        return ()
    needed, found = stopped.judgement.about_needed, stopped.judgement
    if found.verdict is Verdict.NOT_ACCURATE_ENOUGH:
        return (
            "to let more forms pass, allow a larger fall by --max-drop, or calibrate on training data by "
            "--training",
        )
    if needed is None:
        return ()
    draws = "samples" if found.groups is None else "groups"
    return (
        f"for {stopped.label} give more data: about {needed:,} {draws} that the search never sees would "
        f"probably certify it, and this run had {found.n:,}",
    )


def _measured(result: Result) -> Iterator[str]:
    yield f"What ships: {what_ships(result)}."
    yield f"How fast: {how_fast(result)}."
    if result.decoded:
        yield f"Pictures: {result.decoded}."
    if fewer := on_fewer_threads(result):
        yield f"In the table: {fewer}."
    if half := torch_in_half(result):
        yield f"Also timed: {half}."
    if every := every_request(result):
        yield f"Over all requests: {every}."
    if steps := per_step(result):
        yield f"Steps: {steps}."
    yield f"Noise: {noise(result)}."
    yield f"How sure: {how_sure(result)}."
    if result.status == "exact" and result.inexact:
        yield f"Why no inexact form, such as int8, ships: {result.inexact}."
    yield f"Valid for: {result.population}."
    if result.batches:
        yield f"Certified for: {result.batches}."
    yield from _compared(result)
    yield from (f"{one}." for one in other_rows(result))
    yield from (f"Also close: {one}." for one in close(result))
    for limit in result.limits:
        who = "what ships" if limit.role == result.winner.role else f"the {limit.role}"
        yield (
            f"Left to gain: {who} takes {limit.ratio:.1f} times the least time that this machine could "
            f"need; most of that least time is {_BINDS.get(limit.binds, limit.binds)}."
        )
    if best := won(result):
        yield f"Methods: {best}."
    elif result.budget_ns is not None:
        within = "within" if result.within_budget else "OVER"
        yield f"Budget: {latency(result.step_ns)}, {within} the budget of {latency(result.budget_ns)}."
    yield from (f"Under load: {line}" for line in result.loads)
    yield from (f"Note: {note}" for note in result.notes)
    yield from (f"Next: {step}" for step in next_steps(result))


def _elsewhere(result: Result) -> Iterator[str]:
    """Yield the lines of a run for a device that isn't here."""
    estimates, shipped = result.estimates, result.shipped
    assert estimates is not None
    device = f"{estimates.device} ({estimates.noun})"
    if shipped is None:
        yield f"What ships: nothing for {device}: the bundle holds the original for this host ({estimates.winner})."
    else:
        yield f"What ships: {shipped.label}, for {device}."
        known = estimate_rows.latency_of(shipped)
        yield (
            f"How fast: {known} for a request, by {shipped.source} for the device, which isn't here."
            if known != "none"
            else f"How fast: not known before it runs there, since {device} isn't here."
        )
    if budget := estimate_rows.within(result):
        yield f"Budget: {budget}."
    yield f"How sure: {_SURE[result.status]}: {result.why}."
    if estimates.compared:
        yield f"Compared: {estimates.compared}."
    yield f"Valid for: {result.population}."
    yield from _compared(result)
    yield from (
        f"{fate.capitalize()}: {label}: {reason}"
        for label, fate, reason in estimate_rows.gone(result)
    )
    yield from (f"Note: {note}" for note in result.notes)
    if shipped is not None:
        bundle = shlex.quote(str(result.bundle))
        yield f"Next: on a machine with the device, time it and test it: hasten bench {bundle}; hasten certify {bundle} --data NEW_DATA"


def _compared(result: Result) -> list[str]:
    """State the figures, scores and decisions before and after, in a line each."""
    if result.comparison is None:
        return []
    return [
        f"Before and after, on {result.comparison.rows:,} rows that the search never saw: {line}"
        for line in result.comparison.in_words()
    ]


def _is_original(result: Result) -> bool:
    """Whether what ships is the original model on the default engine, on whatever threads."""
    return result.winner.label == result.rows[0].label


def is_default(result: Result) -> bool:
    """Whether what ships is just what people have."""
    return _is_original(result) and result.shipped_threads == result.default_threads


def _takes(row: Row) -> str:
    """Write the latency of a request in the statistic that rows are compared by."""
    if row.statistic == "mean":
        return latency(row.mean_ns)
    return latency((row.p50 if row.statistic == "p50" else row.p99).value_ns)


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _each(result: Result) -> str:
    return f"{_threads(result.threads)} and one sample in a request"


def _times(ratio: Ratio) -> str:
    return f"{ratio.estimate:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _outcome(result: Result, label: str) -> Outcome | None:
    return next((one for one in result.outcomes if one.label == label), None)


def _in_search(result: Result, label: str) -> float | None:
    """Return a form's latency over the default engine's in the search; None where it wasn't timed."""
    found = _outcome(result, label)
    if found is None:
        return None
    if found.fate == "baseline":
        return 1.0
    return None if found.ratio is None else found.ratio.estimate


def _may_ship(result: Result, outcome: Outcome) -> bool:
    """Whether nothing in the search spoke against an outcome's answers."""
    if outcome.fate == "exact":
        return True
    limit = 0.0 if result.asked is None else result.asked.max_drop
    return outcome.fate == "judged" and outcome.drop is not None and outcome.drop.estimate <= limit


def _lost(result: Result, label: str) -> str:
    """Say what a form lost in the search; empty where that isn't known."""
    found = _outcome(result, label)
    if found is None or found.drop is None or result.asked is None:
        return ""
    points, noun = 100 * found.drop.estimate, result.asked.noun
    if round(points, 2) < 0:
        return f"; in the search it gained {-points:.2f} points of {noun}"
    limit = f"{100 * result.asked.max_drop:.6g}"
    return f"; in the search it lost {points:.2f} points of {noun}, and the limit is {limit}"
