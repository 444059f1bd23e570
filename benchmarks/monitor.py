"""How often the monitor raises a false alarm, and how soon it raises a true one.

    python benchmarks/monitor.py [--quick] [--part alarms|long|ordinary|delays] [--out results.json]

False alarms: streams of audited answers whose share of changed ones never exceeds the limit, by several
kinds of traffic, one of which sees the evidence and does its worst. Counted is whether the evidence ever
reaches the alarm, looked at after every single answer. The interval is Clopper and Pearson's, 95%. `long`
has streams of up to ten million answers each; it takes some minutes.

Ordinary traffic: a model of which 3% of the answers change is certified on sealed data for a drop of at most
2 points, and serves traffic like these data. Counted is how often the monitor of that certificate raises an
alarm: the limit is the one that a server takes from the record. Beside it stands how often it would if the
promise itself were the limit.

Delay: audited answers from the moment at which the share rises until the alarm, beside a binomial test on
windows of 400 answers. That test's k-th window has the level 5% x 6 / (pi k)^2, so that it, too, raises at
most 5% false alarms for all time; without that correction its false alarms are sure to come.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scipy import stats

from hasten.certificate.changed import changed_share
from hasten.certificate.monitor import _FIRST, _PATIENCE, ALPHA, Null
from hasten.core.records import to_record
from hasten.inputs.metrics.auroc import Auroc
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.brier import Brier
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.iou import Iou
from hasten.inputs.metrics.top_k import Top1
from hasten.serving.monitoring.judging import Judging

WINDOW = 400
_BLOCK = 400
"""Largest number of answers whose capitals are reckoned at once."""
_LOWEST = math.log(1e-200)
"""Logarithm of the lowest product of factors that is reckoned with."""


class Streams:
    """Evidence of many streams at once, after every single answer.

    Args:
        nulls: Hypothesis that is tested in each stream; all net, or none.
        alphas: Largest chance of a false alarm of each stream, `(count,)`.

    Attributes:
        n: Number of answers in each stream.
        ever: Whether each stream has raised the alarm, `(count,)`.
        value: Evidence of each stream now, `(count,)`.
    """

    def __init__(self, nulls: Sequence[Null], alphas: np.ndarray | float = ALPHA) -> None:
        count, self.n = len(nulls), 0
        self.limits = np.array([null.limit for null in nulls])
        self.stakes = np.stack([null.bets[0] for null in nulls])
        self.shares = nulls[0].bets[1]
        least = float(np.min(1 - self.stakes * self.limits[:, None]))
        self.block = min(_BLOCK, int(_LOWEST / math.log(least)))
        self.alarm = np.broadcast_to(1 / np.asarray(alphas), (count,))[:, None]
        self.capital = np.zeros((count, len(self.shares)))
        self.ever = np.zeros(count, bool)
        self.value = np.ones(count)

    def add(self, values: np.ndarray) -> np.ndarray:
        """Add answers, `(count, answers)`; return after which, from 1, each alarm first came, or 0."""
        first = np.zeros(len(values), int)
        for start in range(0, values.shape[1], self.block):
            some = values[:, start : start + self.block]
            due = _begun_by(self.n + np.arange(some.shape[1]))
            before = _begun_by(np.array(self.n - 1)) if self.n else 0.0
            fresh = np.diff(due, prepend=before)
            apart = some - self.limits[:, None]
            factors = 1 + self.stakes[:, :, None] * apart[:, None, :]
            grown = np.cumprod(factors, axis=2)
            earlier = np.concatenate([np.ones((*grown.shape[:2], 1)), grown[:, :, :-1]], axis=2)
            capital = grown * (self.capital[:, :, None] + np.cumsum(fresh / earlier, axis=2))
            value = np.einsum("rkb,k->rb", capital, self.shares) + 1 - due
            over = value >= self.alarm
            new = over.any(axis=1) & ~self.ever
            first[new] = start + 1 + over.argmax(axis=1)[new]
            self.ever |= new
            self.capital, self.value = capital[:, :, -1], value[:, -1]
            self.n += some.shape[1]
        return first


def _begun_by(n: np.ndarray) -> np.ndarray:
    """Return the share of the capital that bets at the n-th answer, from 0."""
    return 1 - (1 - _FIRST) * math.log(_PATIENCE) / np.log(_PATIENCE + n)


# -- traffic that keeps the limit


def at_the_limit(limit: float, n: int) -> np.ndarray:
    """Share of each moment: the limit."""
    return np.full(n, limit)


def bursts(limit: float, n: int) -> np.ndarray:
    """Share of each moment: nothing, then the limit, in turns of random length."""
    rng = np.random.default_rng(5)
    turns = np.cumsum(rng.geometric(1 / 300, size=n // 100))
    return np.where(np.searchsorted(turns, np.arange(n)) % 2, limit, 0.0)


def swinging(limit: float, n: int) -> np.ndarray:
    """Share of each moment: by day and night, up to the limit."""
    return limit * (0.5 + 0.5 * np.sin(np.arange(n) / 1700))


Shares = Callable[[float, int], np.ndarray]
TRAFFIC: dict[str, Shares] = {
    "always at the limit": at_the_limit,
    "bursts up to the limit": bursts,
    "swinging up to the limit": swinging,
}


def false_alarms(streams: int, answers: int, limit: float) -> Iterator[dict[str, Any]]:
    """Simulate each kind of traffic; yield how many streams ever raised an alarm."""
    rng = np.random.default_rng(0)
    at_once = max(1, 4_000_000 // answers)
    for name, shares in TRAFFIC.items():
        share, alarms = shares(limit, answers), 0
        for start in range(0, streams, at_once):
            some = Streams([Null(limit)] * min(at_once, streams - start))
            for place in range(0, answers, 10_000):
                part = share[place : place + 10_000]
                some.add((rng.random((len(some.ever), len(part))) < part).astype(float))
            alarms += int(some.ever.sum())
        yield _row(name, limit, streams, answers, alarms)
    yield _row("chases its evidence", limit, streams, answers, chasing(streams, answers, limit))
    yield _row("a net loss", limit, streams, answers, net(streams, answers, limit))
    yield _row("fractions of a loss", limit, streams, answers, fractions(streams, answers, limit))


def chasing(streams: int, answers: int, limit: float) -> int:
    """Adversary: the limit while the evidence is above its beginning, in bursts else."""
    rng, some = np.random.default_rng(1), Streams([Null(limit)] * streams)
    for place in range(0, answers, 50):
        hot = (some.value > 1) | (place // 50 % 2 == 0)
        share = np.where(hot, limit, 0.0)[:, None]
        some.add((rng.random((streams, 50)) < share).astype(float))
    return int(some.ever.sum())


def net(streams: int, answers: int, limit: float) -> int:
    """Losses and gains whose difference is the limit exactly, at 1% gains."""
    rng, some = np.random.default_rng(2), Streams([Null(limit, net=True)] * streams)
    for place in range(0, answers, 1000):
        drawn = rng.random((streams, min(1000, answers - place)))
        some.add(np.where(drawn < 0.01 + limit, 1.0, np.where(drawn > 0.99, -1.0, 0.0)))
    return int(some.ever.sum())


def fractions(streams: int, answers: int, limit: float) -> int:
    """Losses of a random part of the score, whose mean is the limit."""
    rng, some = np.random.default_rng(3), Streams([Null(limit)] * streams)
    for place in range(0, answers, 1000):
        shape = streams, min(1000, answers - place)
        lost = rng.random(shape) < 2 * limit
        some.add(np.where(lost, rng.random(shape), 0.0))
    return int(some.ever.sum())


def _row(name: str, limit: float, streams: int, answers: int, alarms: int) -> dict[str, Any]:
    found = stats.binomtest(alarms, streams).proportion_ci(method="exact")
    print(
        f"{name:28} limit {100 * limit:.3g}%  {streams} x {answers:,} answers  "
        f"{100 * alarms / streams:.2f}% ({100 * found.low:.2f} to {100 * found.high:.2f})",
        flush=True,
    )
    row = {"traffic": name, "limit": limit, "streams": streams, "answers": answers}
    return {**row, "alarms": alarms, "low": found.low, "high": found.high}


def long(streams: int, answers: int) -> dict[str, Any]:
    """Return how many of some long streams, always at the limit, ever raised an alarm."""
    alarms, at_once, rng = 0, min(streams, 50), np.random.default_rng(9)
    for start in range(0, streams, at_once):
        some = Streams([Null(0.01)] * min(at_once, streams - start))
        for place in range(0, answers, 10_000):
            drawn = rng.random((len(some.ever), min(10_000, answers - place)))
            some.add((drawn < 0.01).astype(float))
        alarms += int(some.ever.sum())
    return _row("always at the limit", 0.01, streams, answers, alarms)


# -- traffic like the sealed data

PROMISE, CHANGED = 0.02, 0.03
"""Drop that the certificate allows, and share of the answers that change, so that no label is needed."""
GROUPS = np.repeat((1, 2, 4, 16), (120, 60, 30, 8))
"""Numbers of samples in the groups of unequal size."""


def alone(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 1,000 samples that stand alone: how much each changes, its group, and all groups' sizes."""
    return (rng.random(1000) < CHANGED) * 1.0, np.arange(1000), np.ones(1, int)


def equal_groups(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 300 groups of 4 samples that change together."""
    units = np.arange(1200) // 4
    return (rng.random(300) < CHANGED)[units] * 1.0, units, np.full(1, 4)


def unequal_groups(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 436 groups of 1 to 16 samples, of which only the largest change."""
    sizes = rng.choice(GROUPS, 2 * len(GROUPS))
    chance = CHANGED * GROUPS.sum() / GROUPS[GROUPS == 16].sum()
    bad = (sizes == 16) & (rng.random(len(sizes)) < chance)
    units = np.repeat(np.arange(len(sizes)), sizes)
    return bad[units] * 1.0, units, np.append(sizes, 16)


def in_part(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return 1,000 samples of which a tenth changes in part, as where a metric compares boxes."""
    parts = rng.choice((0.1, 0.5), 1000)
    return (rng.random(1000) < 0.1) * parts, np.arange(1000), np.ones(1, int)


_OVER_PAIRS = {"groups": 450, "over": "groups"}
Samples = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray, np.ndarray]]
ORDINARY: dict[str, tuple[Samples, Metric, dict[str, Any]]] = {
    "counts": (alone, Top1(), {}),
    "groups of equal size": (equal_groups, Top1(), {"groups": 300}),
    "groups of unequal size": (unequal_groups, Top1(), {"groups": 436}),
    "a mean over groups": (unequal_groups, Top1(), {"groups": 436, "over": "groups"}),
    "scores in part, no labels": (in_part, Iou(), {}),
    "scores in part, of labels": (alone, Brier(), {}),
    "AUROC": (alone, Auroc(), _OVER_PAIRS),
    "a function of one's own": (alone, Custom("my.py:score"), {}),
}


def ordinary(name: str, runs: int, answers: int) -> dict[str, Any]:
    """Return how often traffic like the sealed data raises an alarm, by the record and by the promise."""
    samples, metric, judged = ORDINARY[name]
    rng, found = np.random.default_rng(11), []
    judgement = {"guard": "net", "max_drop": PROMISE, "groups": None, "over": "samples", **judged}
    for _ in range(runs):
        changed, units, sizes = samples(rng)
        share = changed_share(metric, changed, units, sizes, max_drop=PROMISE, models=1)
        certificate = {"judgement": judgement, "changed": to_record(share)}
        manifest: Any = SimpleNamespace(
            metric=to_record(metric), certificate=certificate, varying=()
        )
        found.append(Judging(manifest, 0.0).answers)
    watched = [each for each in found if each is not None]
    by_record = Streams([each.null for each in watched], np.array([each.alpha for each in watched]))
    by_promise = Streams([Null(PROMISE)] * len(watched))
    in_parts = samples is in_part
    for place in range(0, answers, 1000):
        shape = len(watched), min(1000, answers - place)
        values = (rng.random(shape) < (0.1 if in_parts else CHANGED)).astype(float)
        if in_parts:
            values *= rng.choice((0.1, 0.5), shape)
        by_record.add(values)
        by_promise.add(values)
    limit = float(np.median(by_record.limits))
    row = _row(name, limit, len(watched), answers, int(by_record.ever.sum()))
    print(f"{'':28} by the promise: {100 * by_promise.ever.mean():.1f}%", flush=True)
    return {**row, "by_promise": float(by_promise.ever.mean())}


# -- traffic that breaks it


def delays(streams: int, limit: float, share: float, before: int) -> dict[str, Any]:
    """Return the answers from the rise until the alarm: the monitor's, and the windows'."""
    rng, most = np.random.default_rng(7), 4000
    some = Streams([Null(limit)] * streams)
    if before:
        for place in range(0, before, 10_000):
            calm = rng.random((streams, min(10_000, before - place))) < limit / 2
            some.add(calm.astype(float))
    fit = ~some.ever  # an alarm before the rise is a false one
    changed = rng.random((streams, most)) < share
    first = some.add(changed.astype(float))[fit].astype(float)
    first[first == 0] = np.inf
    windows = _windowed(changed[fit], limit, before, rng)
    found = {"limit": limit, "share": share, "before": before, "streams": int(fit.sum())}
    found["wald"] = math.log(1 / ALPHA) / _divergence(share, limit)
    for name, each in (("monitor", first), ("windows", windows)):
        within = stats.binomtest(int((each <= WINDOW).sum()), len(each)).proportion_ci()
        found[name] = {
            "median": float(np.median(each)),
            "quartiles": [float(np.quantile(each, q, method="nearest")) for q in (0.25, 0.75)],
            "within_400": float((each <= WINDOW).mean()),
            "interval": [within.low, within.high],
        }
    one, other = found["monitor"], found["windows"]
    print(
        f"limit {100 * limit:g}%, {100 * share:g}% after {before:>7,}: "
        f"monitor {one['median']:.0f} ({one['quartiles'][0]:.0f} to {one['quartiles'][1]:.0f}), "
        f"{100 * one['within_400']:.0f}% within 400 "
        f"({100 * within_of(one)[0]:.0f} to {100 * within_of(one)[1]:.0f}); "
        f"windows {other['median']:.0f} ({other['quartiles'][0]:.0f} to "
        f"{other['quartiles'][1]:.0f}), {100 * other['within_400']:.0f}%; no test: "
        f"{found['wald']:.0f}",
        flush=True,
    )
    return found


def within_of(row: dict[str, Any]) -> tuple[float, float]:
    """Return the interval of the share seen within 400."""
    return row["interval"][0], row["interval"][1]


def _windowed(
    changed: np.ndarray, limit: float, before: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the answers until a level-corrected binomial test on windows of 400 refuses, or inf.

    A rise at the first answer is at a window's beginning; a later one is anywhere in a window.
    """
    streams = len(changed)
    phase = rng.integers(0, WINDOW, streams) if before else np.zeros(streams, int)
    calm = rng.random((streams, WINDOW)) < limit / 2
    whole = np.concatenate([calm, changed], axis=1)
    # The window that holds the rise begins `phase` answers before it.
    places = WINDOW - phase[:, None] + np.arange(changed.shape[1])
    counts = np.take_along_axis(whole, places, axis=1).reshape(streams, -1, WINDOW).sum(axis=2)
    numbers = before // WINDOW + 1 + np.arange(counts.shape[1])
    levels = ALPHA * 6 / (np.pi * numbers) ** 2
    over = stats.binom.sf(counts - 1, WINDOW, limit) <= levels
    ends = (over.argmax(axis=1) + 1.0) * WINDOW - phase
    return np.where(over.any(axis=1), ends, np.inf)


def _divergence(share: float, limit: float) -> float:
    """Return Kullback and Leibler's divergence of two coins."""
    return share * math.log(share / limit) + (1 - share) * math.log((1 - share) / (1 - limit))


def main() -> None:
    """Run the simulation, and print its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="A hundredth of the streams.")
    parser.add_argument(
        "--part", choices=["alarms", "long", "ordinary", "delays"], help="By default all."
    )
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rows, like, seen = [], [], []
    if given.part in (None, "alarms"):
        rows += false_alarms(20 if given.quick else 2000, 20_000, 0.01)
        rows += () if given.quick else false_alarms(200, 100_000, 0.002)
    if given.part in (None, "long"):
        rows.append(long(20 if given.quick else 2000, 100_000))
        rows += () if given.quick else (long(200, 10_000_000),)
    if given.part in (None, "ordinary"):
        like = [ordinary(name, 10 if given.quick else 500, 20_000) for name in ORDINARY]
    if given.part in (None, "delays"):
        for limit, share, before in (
            *((0.01, share, 0) for share in (0.02, 0.03, 0.04, 0.06)),
            *((0.005, share, 0) for share in (0.02, 0.03, 0.04)),
            *((0.01, 0.04, before) for before in (2000, 20_000, 100_000)),
        ):
            seen.append(delays(20 if given.quick else 400, limit, share, before))
    if given.out:
        found = {"false_alarms": rows, "ordinary": like, "delays": seen}
        given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
