"""Whether what is said about latencies is true, by simulation with known figures.

    python benchmarks/latency_statistics.py [--runs 1000] [--seed 0] [--only p99|processes|mean]
        [--rounds 40 160 1200] [--case NAME]

Prints three Markdown tables, each share with its exact 95% interval (Clopper and Pearson). The first:
how often the upper bound of a p99 is given, and given and false, under hosts that slow requests in
bursts, drift, refuse rounds or leave them alone; beside it the rule that was used before, and a stricter
one that would state a p99 only after three slowdowns, as if each were known. The second:
how often a candidate that is as fast as the original ships where processes of one model differ, and
how often one that is faster does. The third: how often one ships whose median is lower and whose mean
isn't.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.certificate.betting import BettingPrior
from hasten.certificate.exact import clopper_pearson_upper
from hasten.certificate.verdict import Judgement, judge
from hasten.measure.effort import EFFORTS
from hasten.measure.intervals import (
    Rounds,
    binomial_cdf,
    effective_samples,
    paired_ratio,
    quantile,
)
from hasten.measure.race import AGAIN, BASELINE, Standings
from hasten.optimization.judge import Ladder
from hasten.optimization.measured.choice import decide

Floats = NDArray[np.float64]
Host = Callable[[np.random.Generator, int], Floats]
"""Function of the number of rounds that returns by how much the host slows each of them."""

REQUESTS = 30
COUNTS = (40, 160, 1200)
LONG = 40_000
"""Number of rounds whose p99 stands for the long run's."""


def rate(hits: int, runs: int) -> str:
    """Write a share with its exact 95% interval."""
    low = 1 - clopper_pearson_upper(runs - hits, runs, 0.025)
    high = clopper_pearson_upper(hits, runs, 0.025)
    return f"{100 * hits / runs:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


# The p99.


def bursts(share: float, length: float, level: float | None = None) -> Host:
    """Return a host that slows some of the time, for so many rounds on average.

    Args:
        share: Share of the time in which it is slow.
        length: Mean number of rounds of a burst, of a geometric distribution.
        level: Factor by which a burst slows; None for another in each round.
    """
    ends, begins = 1 / length, share / ((1 - share) * length)

    def host(rng: np.random.Generator, rounds: int) -> Floats:
        draws, slow, now = rng.random(rounds), np.empty(rounds, bool), bool(rng.random() < share)
        for number in range(rounds):
            slow[number] = now
            now = bool(draws[number] >= ends) if now else bool(draws[number] < begins)
        factor = 1 + rng.exponential(2, rounds) if level is None else level
        return np.where(slow, factor, 1.0)

    return host


def periodic(every: int, length: int) -> Host:
    """Return a host that slows so many rounds of every so many, from any of them on."""

    def host(rng: np.random.Generator, rounds: int) -> Floats:
        place = (np.arange(rounds) + rng.integers(every)) % every
        return np.where(place < length, 3.0, 1.0)

    return host


def drifting(rng: np.random.Generator, rounds: int) -> Floats:
    """Slow down evenly, by half in all."""
    return np.linspace(1, 1.5, rounds)


def steady(rng: np.random.Generator, rounds: int) -> Floats:
    """Slow nothing."""
    return np.ones(rounds)


def small_tail(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Return independent latencies on a quiet host, with a small tail."""
    return 1 + 0.1 * rng.exponential(1, shape)


def heavy_tail(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Return independent latencies without a variance."""
    return 1 + 0.1 * rng.pareto(1.1, shape)


def short_bursts(rng: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Return latencies of which five in a row are slow now and then, 3% in all."""
    slow = rng.random(shape) < 0.03 / 5
    for shift in range(1, 5):
        slow[:, shift:] |= slow[:, : shape[1] - shift] & (rng.random(shape) < 0.95)[:, shift:]
    return small_tail(rng, shape) * np.where(slow, 4.0, 1.0)


@dataclass(frozen=True)
class Case:
    """A kind of host and latencies.

    Attributes:
        name: Name for people.
        host: By how much each round is slowed.
        latencies: Latencies of an undisturbed host.
        refused: Chance that a slowed round is refused.
        by_time: Whether slow rounds have fewer requests, and time is what weighs.
        rarer: Whether slowdowns begin less than three times in the longest measurement, so that no
            bound can hold them.
    """

    name: str
    host: Host = steady
    latencies: Callable[[np.random.Generator, tuple[int, int]], Floats] = small_tail
    refused: float = 0.0
    by_time: bool = False
    rarer: bool = False

    def draw(
        self, rng: np.random.Generator, rounds: int, requests: int = REQUESTS
    ) -> tuple[Floats, Floats]:
        """Return latencies of rounds, shape `(rounds, requests)`, and how slow the host was."""
        slowed = self.host(rng, rounds)
        return 1e6 * slowed[:, None] * self.latencies(rng, (rounds, requests)), slowed

    def p99(self, rng: np.random.Generator) -> float:
        """Return the p99 of the long run; of the measured time where the host drifts."""
        return float(np.quantile(self.draw(rng, LONG)[0], 0.99))

    def measured(self, rng: np.random.Generator, count: int) -> tuple[Rounds, Rounds, Floats]:
        """Return rounds until so many count, the refused ones, and how slow the host was."""
        latencies, slowed = self.draw(rng, 2 * count)
        out = (slowed > 1) & (rng.random(2 * count) < self.refused)
        last = int(np.flatnonzero(np.cumsum(~out) == count)[0]) + 1
        kept: dict[int, tuple[int, ...]] = {}
        lost: dict[int, tuple[int, ...]] = {}
        if self.host is drifting:
            latencies, slowed = self.draw(rng, count)
        for number in range(last):
            most = math.ceil(REQUESTS / slowed[number]) if self.by_time else REQUESTS
            block = tuple(latencies[number, :most].astype(int).tolist())
            (lost if out[number] else kept)[number] = block
        return kept, lost, slowed[:last]


CASES = (
    Case("quiet, independent"),
    Case("quiet, heavy tail", latencies=heavy_tail),
    Case("bursts of 5 requests, 3%", latencies=short_bursts),
    Case("bursts of a round, 2%", bursts(0.02, 1.02)),
    Case("bursts of a round, 10%", bursts(0.1, 1.12)),
    Case("bursts of 3 rounds, 10%", bursts(0.1, 3)),
    Case("bursts of 5 rounds, 5%", bursts(0.05, 5)),
    Case("bursts of 10 rounds, 10%", bursts(0.1, 10)),
    Case("bursts of 10 rounds, 10%, all alike", bursts(0.1, 10, 3.0)),
    Case("bursts of 60 rounds, 30%", bursts(0.3, 60)),
    Case("3 rounds of every 25 slow", periodic(25, 3)),
    Case("drift by half", drifting),
    Case("bursts of 3 rounds, 10%, nine in ten refused", bursts(0.1, 3), refused=0.9),
    Case("bursts of a round, 2%, all refused", bursts(0.02, 1.02), refused=1.0),
    Case("bursts of 3 rounds, 10%, by time", bursts(0.1, 3, 8.0), by_time=True),
    Case("rarer: bursts of 20 rounds, 5%", bursts(0.05, 20), rarer=True),
)


def before(rounds: Rounds) -> float | None:
    """Return the upper bound as it was made: by order statistics of 299 independent requests' worth."""
    values = np.sort(np.concatenate([np.asarray(block, np.float64) for block in rounds.values()]))
    effective = effective_samples(rounds, 0.99)
    upper = int(np.searchsorted(binomial_cdf(effective, 0.99), 0.95)) + 1
    if upper > effective or 0.9 ** len(rounds) > 0.05:
        return None
    return float(values[min(len(values), math.ceil(upper * len(values) / effective)) - 1])


def tails(
    runs: int,
    rng: np.random.Generator,
    counts: Sequence[int] = COUNTS,
    cases: Sequence[Case] = CASES,
) -> None:
    """Print how often a p99's upper bound is given, how often it is false, and how far off it is."""
    print(
        "| host | rounds | before: given and false | bound / true | given | given and false | "
        "false, after a slowdown was met | bound / true | false for the time measured | "
        "three slowdowns demanded: given |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for case in cases:
        true = case.p99(rng)
        for count in counts:
            old: list[float | None] = []
            new: list[float | None] = []
            here, met, strict = 0, 0, 0
            for _ in range(runs):
                kept, lost, slowed = case.measured(rng, count)
                old.append(before(kept))
                high = quantile(kept, 0.99, refused=lost, by_time=case.by_time).high_ns
                new.append(high)
                if high is None:
                    continue
                dense = slowed[:, None] * case.latencies(rng, (len(slowed), REQUESTS))
                here += high < 1e6 * float(np.quantile(dense, 0.99))
                met += high < true and bool((slowed > 1).any())
                strict += begun(slowed) >= 3
            cells = (
                _false(old, true),
                _wide(old, true),
                rate(sum(one is not None for one in new), runs),
                _false(new, true),
                rate(met, runs),
                _wide(new, true),
                rate(here, runs),
                rate(strict, runs),
            )
            print(f"| {case.name} | {count} | {' | '.join(cells)} |", flush=True)


def begun(slowed: Floats) -> int:
    """Return the number of slowdowns that a measurement met."""
    slow = slowed > 1
    return int(slow[0]) + int(np.sum(slow[1:] & ~slow[:-1]))


def _false(bounds: list[float | None], true: float) -> str:
    return rate(sum(one is not None and one < true for one in bounds), len(bounds))


def _wide(bounds: list[float | None], true: float) -> str:
    known = [one / true for one in bounds if one is not None]
    return f"{np.median(known):.2f}" if known else "-"


# Processes, and means.

CERTIFIED = judge(
    np.ones(400),
    np.ones(400),
    guard="net",
    max_drop=0.02,
    confidence=0.95,
    metric="top1",
    prior=BettingPrior(),
)
JUDGED: list[tuple[str, Judgement | str]] = [("fast", CERTIFIED)]


def ships(final: Standings) -> bool:
    """Whether a certified candidate ships by these fresh rounds, against the default engine."""
    return decide(Ladder("default", ()), JUDGED, final, baseline="default").winner == "fast"


@dataclass(frozen=True)
class Field:
    """The models of fresh rounds, whose processes differ.

    Attributes:
        differ: Standard deviation of the lasting effect of a process, on a log scale.
        noise: Scale of the noise of a round, of Student's t with 4 degrees of freedom.
        ratio: Latency of the candidate, as a multiple of the baseline's.
        candidates: Standard deviation for the candidate; None where it is as for the baseline.
    """

    differ: float
    noise: float = 0.02
    ratio: float = 1.0
    candidates: float | None = None

    def more(self, rng: np.random.Generator, final: Standings, process: int, count: int) -> None:
        """Add rounds of another process of each model."""
        first = len(final.processes)
        own = self.differ if self.candidates is None else self.candidates
        for name, ratio, differ in (
            (BASELINE, 1.0, self.differ),
            (AGAIN, 1.0, self.differ),
            ("fast", self.ratio, own),
        ):
            lasting = rng.normal(0, differ)
            logs = lasting + self.noise * rng.standard_t(4, count)
            blocks = (1e7 * ratio * np.exp(logs)).astype(int).tolist()
            known = final.rounds.setdefault(name, {})
            known.update({first + place: (value,) for place, value in enumerate(blocks)})
        final.processes.update(dict.fromkeys(range(first, first + count), process))

    def run(self, rng: np.random.Generator, effort: str, processes: int | None = None) -> Standings:
        """Return fresh rounds as a run takes them, until the twins agree or it has enough."""
        asked = EFFORTS[effort]
        wanted, final = processes or asked.processes, Standings("figures/1", 1)
        each = max(2, -(-asked.final_rounds // wanted))
        for process in range(2 * wanted):
            self.more(rng, final, process, each)
            if wanted == 1 or (process + 1 >= wanted and final.width <= asked.settle):
                break
        return final


def replicates(runs: int, rng: np.random.Generator) -> None:
    """Print how often candidates ship that are as fast, 3% and 5% faster, by how often they run."""
    print(
        "\n| processes differ by | measured in | as fast: ships | 3% faster: ships | 5% faster: ships |"
        "\n|---|---|---|---|---|"
    )
    ways = (
        ("1 process", "normal", 1),
        ("3 (quick)", "quick", None),
        ("5 (normal)", "normal", None),
    )
    fields = [(f"{100 * sd:g}%", {"differ": sd}) for sd in (0.005, 0.01, 0.02)]
    fields.append(("0.3%, the candidate's by 2%", {"differ": 0.003, "candidates": 0.02}))
    for differ, given in fields:
        for way, effort, count in ways:
            cells = []
            for ratio, repeats in ((1.0, runs), (0.97, runs // 2), (0.95, runs // 2)):
                field = Field(**given, ratio=ratio)
                cells.append(
                    rate(sum(ships(field.run(rng, effort, count)) for _ in range(repeats)), repeats)
                )
            print(f"| {differ} | {way} | {' | '.join(cells)} |", flush=True)
    hierarchical(runs, rng)


def hierarchical(runs: int, rng: np.random.Generator) -> None:
    """Print how often each interval of a ratio holds 1, where processes differ by 3%."""
    print("\n| interval | 3 processes | 5 processes |\n|---|---|---|")
    held = {name: [0, 0] for name in ("rounds alone", "hierarchical bootstrap", "Student's t")}
    for place, count in enumerate((3, 5)):
        for _ in range(runs):
            final = Standings("figures/1", 1)
            for process in range(count):
                Field(0.03).more(rng, final, process, 40 // count)
            own, other = final.rounds["fast"], final.rounds[BASELINE]
            alone, over = paired_ratio(own, other), final.ratio("fast")
            logs = np.array([math.log(own[r][0] / other[r][0]) for r in final.processes])
            split = np.stack(np.split(logs[: count * (40 // count)], count))
            picks = rng.integers(0, count, (1000, count))
            inner = rng.integers(0, split.shape[1], (1000, count, split.shape[1]))
            draws = np.median(split[picks[:, :, None], inner], axis=2).mean(axis=1)
            low, high = np.quantile(draws, [0.025, 0.975])
            held["rounds alone"][place] += alone.low <= 1 <= alone.high
            held["hierarchical bootstrap"][place] += low <= 0 <= high
            held["Student's t"][place] += over.low <= 1 <= over.high
    for name, counts in held.items():
        print(f"| {name} | {' | '.join(rate(hits, runs) for hits in counts)} |", flush=True)


def means(runs: int, rng: np.random.Generator) -> None:
    """Print how often a candidate ships whose median is 0.81 of the original's, by its mean."""
    print("\n| mean | p99 | paired medians alone: ships | now: ships |\n|---|---|---|---|")
    for stalls, factor in ((0.0, 1.0), (0.01, 20.0), (0.03, 15.0), (0.05, 17.0), (0.1, 9.0)):
        alone = now = 0
        shape = (40, 30)
        mean = 0.81 * (1 + stalls * (factor - 1))
        for _ in range(runs):
            final = Standings("figures/1", 1)
            final.processes = {number: number // 8 for number in range(40)}
            for name, ratio in ((BASELINE, 1.0), (AGAIN, 1.0), ("fast", 0.81)):
                values = 1e6 * ratio * rng.gamma(400, 1 / 400, shape)
                values *= np.exp(np.repeat(rng.normal(0, 0.01, 5), 8))[:, None]
                if name == "fast":
                    values = np.where(rng.random(shape) < stalls, factor * values, values)
                final.rounds[name] = {
                    r: tuple(b) for r, b in enumerate(values.astype(int).tolist())
                }
            alone += final.ratio("fast").high < 1
            now += ships(final)
        p99 = 0.81 * (factor if stalls > 0.01 else 1.1)
        cells = (f"{mean:.2f}", f"about {p99:.1f}", rate(alone, runs), rate(now, runs))
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs of a cell")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("p99", "processes", "mean"))
    parser.add_argument("--rounds", type=int, nargs="+", default=COUNTS, help="rounds of a p99")
    parser.add_argument("--case", default="", help="part of the name of the hosts of a p99")
    given = parser.parse_args()
    if given.only in (None, "p99"):
        cases = [case for case in CASES if given.case in case.name]
        tails(given.runs, np.random.default_rng(given.seed), given.rounds, cases)
    for name, table in {"processes": replicates, "mean": means}.items():
        if given.only in (None, name):
            table(given.runs, np.random.default_rng(given.seed))


if __name__ == "__main__":
    main()
