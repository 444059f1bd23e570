"""The race of the last candidates: rounds in turns until their order is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from hasten.core.records import to_record
from hasten.core.workers import Worker
from hasten.errors import HastenError, InputError
from hasten.inputs.data.spool import Spool
from hasten.measure.intervals import (
    Ratio,
    Statistic,
    establishes,
    paired_ratio,
    quantile,
    ratio_of_means,
)
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace, rounds
from hasten.measure.probe import disturbance, scales

BASELINE, AGAIN = "baseline", "baseline again"
_BEFORE_DROPPING = 6
_REFUSED_PER_COUNTED = 3
_LONGEST = 4
"""Largest number of rounds of a race that must settle, as a multiple of its rounds."""


@dataclass(frozen=True)
class Rules:
    """Rules of a race: how entrants run, and how many rounds show their order.

    Attributes:
        threads: Number of threads of each engine.
        count: Fewest rounds.
        pace: Lengths of the turns.
        seed: Seed of the orders.
        settle: Largest A/A spread to stop at, unless the rounds are four times as many.
        objective: Statistic to compare; a p99 that isn't established is waited for as long.
        uneven: Entrants to compare by their mean.
        process: Number of the workers among several that each entrant has, one after another. Then
            `count` rounds count of these, with no regard to `settle`.
    """

    threads: int
    count: int
    pace: Pace
    seed: int
    settle: float = float("inf")
    objective: Statistic = "p50"
    uneven: Collection[str] = ()
    process: int | None = None

    def over(self, standings: Standings) -> bool:
        """Whether enough rounds of these workers, or of the whole race, count."""
        if self.process is not None:
            return standings.counted_of(self.process) >= self.count
        return finished(standings, self.count, self.settle)


class NotEstablished(HastenError):  # noqa: N818 - an outcome, not an error
    """The host did not give several threads their cores often enough."""


@dataclass
class Standings:
    """Raw rounds of a race, and the entrants that failed in it.

    Attributes:
        name: Name of the race in the journal.
        threads: Number of threads of each engine.
        rounds: Entrant -> round -> latencies in nanoseconds.
        refused: Number of rounds that didn't count.
        failed: Entrant -> reason why it failed.
        objective: Statistic that latencies are to be compared by.
        uneven: Entrants to compare by their mean, since their median misleads: cascades.
        busy: Entrant -> round -> latencies of the rounds that didn't count, in nanoseconds.
        processes: Round -> number of the process of each entrant that took it.
        told: Whether a p99 that is compared is also told, for which it takes far more rounds.
        by_time: Whether rounds weigh alike in a p99 that is told, rather than requests.
        cut: Whether the time limit ended it before its rounds were done.
    """

    name: str
    threads: int
    rounds: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    refused: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    objective: Statistic = "p50"
    uneven: Collection[str] = ()
    busy: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    processes: dict[int, int] = field(default_factory=dict)
    told: bool = False
    by_time: bool = False
    cut: bool = False

    def add(
        self,
        number: int,
        latency_ns: Mapping[str, tuple[int, ...]],
        failed: Mapping[str, str],
        counts: bool,
        process: int = 0,
    ) -> None:
        """Add one round."""
        self.failed.update(failed)
        self.processes[number] = process
        self.refused += not counts
        for name, block in latency_ns.items():
            where = self.rounds if counts else self.busy
            where.setdefault(name, {})[number] = tuple(block)

    @property
    def counted(self) -> int:
        """Return the number of rounds that count."""
        return len(self.rounds.get(BASELINE, ()))

    def stands(self, name: str) -> bool:
        """Whether an entrant ran in every round that counts, at least two; a failed one didn't."""
        return len(self.rounds.get(name, ())) == self.counted >= 2

    @property
    def established(self) -> bool:
        """Whether the rounds show the objective for every entrant that stands."""
        standing = [name for name in self.rounds if self.stands(name)]
        if self.told and self.objective == "p99":
            return all(self.shows_p99(name) for name in standing)
        return all(establishes(self.rounds[name], self.objective) for name in standing)

    def shows_p99(self, name: str) -> bool:
        """Whether an entrant's p99 can be told, with all of its rounds, refused ones too."""
        busy = self.busy.get(name, {})
        found = quantile(self.rounds[name], 0.99, refused=busy, by_time=self.by_time)
        return found.high_ns is not None

    @property
    def statistic(self) -> Statistic:
        """Return the statistic to compare: the mean where too few requests show a p99."""
        return self.objective if self.established else "mean"

    def statistic_of(self, name: str) -> Statistic:
        """Return the statistic of an entrant: the mean where its median hides its cost."""
        own = self.statistic
        return "mean" if own == "p50" and name in self.uneven else own

    def cut_short(self, where: str) -> list[str]:
        """Return a note where the time limit ended the race before its rounds were done.

        Args:
            where: Name of the race for people.
        """
        if not self.cut:
            return []
        sets = len({*self.processes.values()})
        several = "" if sets == 1 else f" in {sets} processes of each model"
        return [f"the time limit cut the {where} short: {self.counted} rounds counted{several}"]

    @property
    def several(self) -> Mapping[int, int] | None:
        """Return the process of each round; None where each entrant had a single one."""
        return self.processes if len({*self.processes.values()}) > 1 else None

    def ratio(self, name: str, over: str = BASELINE) -> Ratio:
        """Return one entrant's latency divided by another's, by default the baseline's."""
        own, other, statistic = self.rounds[name], self.rounds[over], self.statistic_of(name)
        if statistic == "p99":  # of which busy rounds are a part
            own, other = own | self.busy.get(name, {}), other | self.busy.get(over, {})
        return paired_ratio(own, other, statistic, processes=self.several)

    def counted_of(self, process: int) -> int:
        """Return the number of rounds that count of one process of each entrant."""
        return sum(self.processes.get(n) == process for n in self.rounds.get(BASELINE, ()))

    def means(self, name: str, over: str = BASELINE) -> Ratio:
        """Return one entrant's mean latency divided by another's, over all that counts."""
        return ratio_of_means(self.rounds[name], self.rounds[over], processes=self.several)

    @property
    def spread(self) -> float:
        """Return the baseline's distance from itself; no smaller difference is a speed-up."""
        return self._noise(self.ratio(AGAIN))

    @property
    def spread_of_means(self) -> float:
        """Return the distance of the baseline's mean from itself."""
        return self._noise(self.means(AGAIN))

    def _noise(self, own: Ratio) -> float:
        """Return a twin's distance from 1: over processes, whose intervals hold the noise, its own.

        With one process each, it is that of the interval's farther end.
        """
        return own.spread if self.several is None else abs(1 - own.estimate)

    @property
    def width(self) -> float:
        """Return the farthest distance from itself that the baseline may have."""
        return self.ratio(AGAIN).spread


def dominated(
    standings: Standings, entrants: Mapping[str, Worker], risks: Mapping[str, float]
) -> set[str]:
    """Return entrants that are surely slower than one at least as safe, by the objective itself."""
    if not standings.established:
        return set()
    ratios = {
        name: standings.ratio(name)
        for name in entrants
        if name not in (BASELINE, AGAIN) and len(standings.rounds.get(name, ())) >= 2
    }
    return {
        name
        for name, own in ratios.items()
        if any(
            other.high < own.low and risks[rival] <= risks[name]
            for rival, other in ratios.items()
            if rival != name
        )
    }


def race(
    name: str,
    entrants: dict[str, Worker],
    samples: Spool,
    journal: Journal,
    rules: Rules,
    *,
    own_samples: Mapping[str, Spool] = MappingProxyType({}),
    risks: Mapping[str, float] | None = None,
    listen: Callable[[Standings], None] = lambda standings: None,
    probe: Callable[[int], bool] = scales,
    stop: Callable[[Standings], bool] = lambda standings: False,
) -> Standings:
    """Run rounds until as many count as the rules say, or more on a noisy host.

    Args:
        name: Name in the journal; rounds already there under this name are read first.
        entrants: Name -> worker, including BASELINE and AGAIN. An entrant that fails is removed;
            one that failed before the race was stopped doesn't run in the resumed race.
        samples: Samples that requests rotate through.
        journal: Journal, which has each round on disk before the next begins.
        rules: Rules of the race.
        own_samples: Entrant -> the same samples in the form that it takes, where that is another.
        risks: Entrant -> risk, less is safer; with None, no entrant is dropped for being slower.
        listen: Callback after each round.
        probe: Predicate: can the host run this many threads now?
        stop: Predicate: is there no time for another round? Two rounds count in any case.

    Raises:
        NotEstablished: too many rounds were refused, or there was no time for two that count.
        InputError: the baseline failed.
    """
    threads, process = rules.threads, rules.process or 0
    standings, first = journaled(name, threads, rules.objective, journal)
    standings.uneven = rules.uneven
    if rules.over(standings):
        return standings
    _leave(entrants, entrants.keys() & standings.failed)
    turns = rounds(
        entrants,
        samples.folder,
        own_samples={who: spool.folder for who, spool in own_samples.items()},
        threads=threads,
        pace=rules.pace,
        seed=rules.seed,
        first=first,
        probe=probe,
    )
    for turn in turns:
        for who, why in turn.failed.items():
            if who in (BASELINE, AGAIN):
                raise InputError(f"the baseline failed: {why}")
        _leave(entrants, turn.failed)
        entry = {**to_record(turn), "process": process}
        journal.append("round", race=name, **entry)
        standings.add(**entry)
        if risks is not None and turn.counts and standings.counted >= _BEFORE_DROPPING:
            _leave(entrants, dominated(standings, entrants, risks))
        listen(standings)
        if rules.over(standings):
            return standings
        if stop(standings):
            standings.cut = True
            if standings.counted >= 2:
                return standings
            if threads > 1 and standings.refused:
                raise NotEstablished(
                    f"{standings.refused} of {turn.number + 1} rounds didn't count, and the "
                    f"time limit left no time to wait until the host runs {threads} threads at once"
                )
        if standings.refused > _REFUSED_PER_COUNTED * rules.count * (1 + process):
            why = disturbance(probe) or f"the host did not run {threads} threads at once"
            raise NotEstablished(
                f"{standings.refused} of {turn.number + 1} rounds didn't count, since {why}"
            )
    raise AssertionError("rounds never end")


def journaled(
    name: str, threads: int, objective: Statistic, journal: Journal, *, all_count: bool = False
) -> tuple[Standings, int]:
    """Return the standings of a race that was stopped, and the number of its next round.

    Args:
        name: Name of the race in the journal.
        threads: Number of threads of each engine.
        objective: Statistic to compare.
        journal: Journal of the run.
        all_count: Whether rounds count that the host was too busy for.
    """
    standings, number = Standings(name, threads, objective=objective), 0
    for event in journal.events("round"):
        if event["race"] == name:
            standings.add(
                event["number"],
                event["latency_ns"],
                event["failed"],
                event["counts"] or all_count,
                event.get("process", 0),
            )
            number = max(number, event["number"] + 1)
    return standings, number


def finished(standings: Standings, count: int, settle: float) -> bool:
    """Whether enough rounds count, and the twins agree or have had rounds enough to."""
    if standings.counted < max(count, 2):
        return False
    if AGAIN not in standings.rounds:
        return True
    return standings.counted >= _LONGEST * count or (
        standings.counted % 8 == count % 8 and standings.established and standings.width <= settle
    )


def _leave(entrants: dict[str, Worker], leaving: Iterable[str]) -> None:
    for who in leaving:
        entrants.pop(who).kill()
