"""Numbers of samples and labels that a promise takes, before anyone collects them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from scipy import special

from hasten.certificate.draws import BETTING, EXACT, ONE_SHARE, Method
from hasten.certificate.exact import clopper_pearson_upper, paired_certifies
from hasten.certificate.planning import samples_needed
from hasten.certificate.verdict import Guard
from hasten.core.words import amount, points
from hasten.errors import InputError

SEARCHED = 0.3
"""Share of the data beside calibration that the search sees, as `split` has it."""
_SHARES = (0.25, 0.5, 1.0, 2.0, 4.0)
_SIZES = (0.5, 0.75, 1.0, 1.5, 2.0)
_COUNTED_UP_TO = 120
"""Largest number of changed answers, on average, for which the paired test's power is counted, which takes seconds."""
_TAIL = 1e-4
_STEPS = 3


@dataclass(frozen=True)
class Point:
    """Result of one assumption, or of one size of the data.

    Attributes:
        flips: Share of answers expected to change.
        samples: Number of sealed samples (or groups).
        in_all: Number of samples (or groups) in all, with those to search and to calibrate by.
        labels: Number of labels that are expected to be asked for, if those alone are labelled on
            which answers differ; 0 where no label matters.
        power: Chance of a certificate.
        exact: Whether the power was counted; else it is a normal approximation's.
    """

    flips: float
    samples: int
    in_all: int
    labels: int
    power: float
    exact: bool


@dataclass(frozen=True)
class SamplePlan:
    """Samples and labels that a promise takes.

    Attributes:
        guard: Quantity that is bounded.
        max_drop: Limit on it, as an absolute share.
        confidence: Confidence of the certificate.
        expect_drop: Drop in accuracy that is expected.
        method: Method that will judge.
        needed: Samples and labels that give the asked chance of a certificate, if all is as expected.
        by_size: Chances of a certificate by the number of samples, from fewer to more.
        by_flips: Samples by the share of answers that change; a share for which nothing certifies is
            left out.
    """

    guard: Guard
    max_drop: float
    confidence: float
    expect_drop: float
    method: Method
    needed: Point
    by_size: tuple[Point, ...]
    by_flips: tuple[Point, ...]


@dataclass(frozen=True)
class _Asked:
    """Question to `plan`, with the shares that follow from it."""

    guard: Guard
    max_drop: float
    confidence: float
    drop: float
    method: Method
    calibration: int
    power: float

    def share(self, flips: float) -> float:
        """Return the share of samples that count against the limit, or flip, as the test sees it."""
        return (flips + self.drop) / 2 if self.guard == "lost" else flips

    def power_at(self, samples: int, flips: float) -> float | None:
        """Return the exact chance of a certificate; None where counting it takes too long."""
        alpha = 1 - self.confidence
        if self.method == ONE_SHARE:
            most = _most_lost(samples, self.max_drop, alpha)
            return 0.0 if most < 0 else float(special.bdtr(most, samples, self.share(flips)))
        if self.method == BETTING or samples * flips > _COUNTED_UP_TO:
            return None
        lost, gained = (flips + self.drop) / 2, (flips - self.drop) / 2
        return paired_power(samples, lost, gained, self.max_drop, alpha)

    def approximate(self, flips: float) -> int:
        """Return the samples that a normal approximation asks for.

        Raises:
            InputError: nothing certifies under these shares, or one is out of its range.
        """
        share = self.share(flips)
        drop = self.drop if self.guard == "net" else share
        return samples_needed(
            share, drop, self.max_drop, self.confidence, self.power, method=self.method
        )

    def point(self, samples: int, flips: float, power: float | None) -> Point:
        """Return a point; without an exact power, the one that was asked for."""
        in_all = samples / (1 - SEARCHED)
        labels = 0 if self.guard == "changed" else math.ceil(samples * flips - 1e-9)
        return Point(
            flips=flips,
            samples=samples,
            in_all=math.ceil(in_all + min(self.calibration, in_all / 2) - 1e-9),
            labels=labels,
            power=self.power if power is None else power,
            exact=power is not None,
        )

    def needed(self, flips: float) -> Point:
        """Return the samples for the asked power: counted where that is quick.

        Raises:
            InputError: nothing certifies under these shares, or one is out of its range.
        """
        samples = self.approximate(flips)
        power = self.power_at(samples, flips)
        if power is None:
            return self.point(samples, flips, None)
        enough = (samples, power) if power >= self.power else None
        short = samples if power < self.power else 1
        for _ in range(_STEPS):
            if enough is None:
                tried = math.ceil(short * 1.1)
            elif enough[0] - short > max(1, short // 50):
                tried = (max(short, enough[0] * 9 // 10) + enough[0]) // 2
            else:
                break
            found = self.power_at(tried, flips)
            if found is None:
                break
            if found >= self.power:
                enough = (tried, found)
            else:
                short = tried
        return self.point(*(enough or (samples, power))[:1], flips, (enough or (0, power))[1])


def plan_for(
    *,
    max_drop: float = 0.01,
    expect_flips: float = 0.02,
    expect_drop: float = 0.0,
    guard: Guard = "net",
    confidence: float = 0.95,
    power: float = 0.8,
    groups: bool = False,
    calibration: int = 300,
    training: bool = False,
) -> SamplePlan:
    """Return how many samples and labels a promise takes.

    Args:
        max_drop: Limit on the drop, as an absolute share.
        expect_flips: Share of answers that are expected to change, lost and mended together.
        expect_drop: Drop in accuracy that is expected: lost less mended.
        guard: Quantity that is bounded.
        confidence: Confidence of the certificate.
        power: Chance of a certificate that is wanted.
        groups: Whether data comes in groups, or scores lie between 0 and 1, so that betting judges.
        calibration: Largest number of samples of this data that calibrate.
        training: Whether other data calibrates.

    Raises:
        InputError: a share is out of its range, or no number of samples certifies what is expected.
    """
    method: Method = BETTING if groups else EXACT if guard == "net" else ONE_SHARE
    if not 0 <= expect_flips <= 1 or abs(expect_drop) > expect_flips:
        raise InputError(
            "expect_flips is at most 1, and at least the size of expect_drop: got "
            f"expect_flips={expect_flips} "
            f"and expect_drop={expect_drop}"
        )
    asked = _Asked(
        guard, max_drop, confidence, expect_drop, method, 0 if training else calibration, power
    )
    needed = asked.needed(expect_flips)
    sizes = dict.fromkeys(max(1, round(needed.samples * size)) for size in _SIZES)
    by_size = (
        asked.point(n, expect_flips, found)
        for n in sizes
        if needed.exact and (found := _known_power(asked, needed, n)) is not None
    )
    return SamplePlan(
        guard=guard,
        max_drop=max_drop,
        confidence=confidence,
        expect_drop=expect_drop,
        method=method,
        needed=needed,
        by_size=tuple(by_size),
        by_flips=tuple(_by_flips(asked, expect_flips, needed)),
    )


def _known_power(asked: _Asked, needed: Point, samples: int) -> float | None:
    """Return the power at a size, without counting that of `needed` again."""
    if samples == needed.samples:
        return needed.power
    return asked.power_at(samples, needed.flips)


def _by_flips(asked: _Asked, flips: float, needed: Point) -> Iterable[Point]:
    """Yield what other shares of changed answers take, where anything certifies."""
    for share in _SHARES:
        if share == 1.0:
            yield needed
            continue
        other = flips * share
        if flips == 0 or other > 1 or abs(asked.drop) > other:
            continue
        try:
            samples = asked.approximate(other)
        except InputError:
            continue
        if asked.method == ONE_SHARE:
            yield asked.needed(other)
        else:
            yield asked.point(samples, other, None)


def paired_power(samples: int, lost: float, gained: float, max_drop: float, alpha: float) -> float:
    """Return the exact chance that the paired test certifies, but for tails of 0.0002.

    Outcomes that certify lie under a staircase: one more gained allows as many lost, or more. So the
    staircase is walked once, over all but the rarest numbers of gained.

    Args:
        samples: Number of samples.
        lost: Share of samples that become wrong.
        gained: Share of samples that become right.
        max_drop: Limit on the drop.
        alpha: Level of the test.
    """
    power, most = 0.0, -1
    for count in range(samples + 1):
        below = float(special.bdtr(count, samples, gained))
        if below < _TAIL:
            continue
        while most + 1 + count <= samples and paired_certifies(
            most + 1, count, samples, max_drop, alpha
        ):
            most += 1
        if most >= 0:
            own = below - (float(special.bdtr(count - 1, samples, gained)) if count else 0.0)
            # Of the samples that aren't gained, each is lost with this chance.
            power += own * float(special.bdtr(most, samples - count, lost / (1 - gained)))
        if below > 1 - _TAIL:
            break
    return min(power, 1.0)


def _most_lost(samples: int, limit: float, alpha: float) -> int:
    """Return the largest count whose upper bound is within the limit; -1 where there is none."""
    low, high = -1, samples
    while high - low > 1:
        middle = (low + high) // 2
        if clopper_pearson_upper(middle, samples, alpha) <= limit:
            low = middle
        else:
            high = middle
    return low


def in_words(plan: SamplePlan) -> list[str]:
    """Return a plan in lines for people, with its tables."""
    noun = "group" if plan.method == BETTING else "sample"
    what = {
        "net": "that accuracy falls by at most",
        "lost": "that losses are at most",
        "changed": "that changed answers are at most",
    }[plan.guard]
    needed = plan.needed
    lines = [
        f"to show {what} {points(f'{100 * plan.max_drop:.6g}')} with {100 * plan.confidence:.6g}% confidence, where "
        f"{100 * needed.flips:.6g}% of answers change and accuracy falls by "
        f"{points(f'{100 * plan.expect_drop:.6g}')}:",
        f"{amount(needed.samples, f'sealed {noun}')}, {needed.in_all:,} in all, and {_labels(plan, needed)}: "
        f"{_chance(needed)} of a certificate",
        "",
        f"{'of answers change':>17}  {'sealed':>9}  {'in all':>9}  {'labels':>8}",
    ]
    lines += [
        f"{100 * p.flips:>16.4g}%  {p.samples:>9,}  {p.in_all:>9,}  {p.labels:>8,}"
        for p in plan.by_flips
    ]
    if plan.by_size:
        lines += ["", f"{'sealed':>9}  {'in all':>9}  {'labels':>8}  {'certificate':>11}"]
        lines += [
            f"{p.samples:>9,}  {p.in_all:>9,}  {p.labels:>8,}  {100 * p.power:>10.0f}%"
            for p in plan.by_size
        ]
    lines += [
        "",
        "sizes for other shares are approximate" if needed.exact else "sizes are approximate",
    ]
    if plan.guard != "changed":
        lines.append(
            "labels: those of the sealed samples alone on which answers differ, as optimize --ask-labels asks "
            "for them"
        )
    return lines


def _labels(plan: SamplePlan, point: Point) -> str:
    if plan.guard == "changed":
        return "no labels"
    return f"about {amount(point.labels, 'label')}"


def _chance(point: Point) -> str:
    percent = f"{100 * point.power:.0f}%"
    article = "an" if percent.startswith(("8", "11%", "18%")) else "a"
    return f"{'' if point.exact else 'about '}{article} {percent} chance"
