"""The race of the last candidates: rounds in turns until their order is known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from hasten.core.records import to_record
from hasten.errors import HastenError, InputError
from hasten.inputs.data.spool import Spool
from hasten.measure.intervals import Ratio, Statistic, establishes, paired_ratio
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace, rounds
from hasten.measure.probe import scales
from hasten.measure.process import Worker

BASELINE, AGAIN = "baseline", "baseline again"
_BEFORE_DROPPING = 6
_REFUSED_PER_COUNTED = 3
_LONGEST = 4
"""Most rounds of a race that must settle, as a multiple of its rounds."""


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
    """

    name: str
    threads: int
    rounds: dict[str, dict[int, tuple[int, ...]]] = field(default_factory=dict)
    refused: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    objective: Statistic = "p50"
    uneven: Collection[str] = ()

    def add(
        self,
        number: int,
        latency_ns: Mapping[str, tuple[int, ...]],
        failed: Mapping[str, str],
        counts: bool,
    ) -> None:
        """Add one round."""
        self.failed.update(failed)
        if not counts:
            self.refused += 1
            return
        for name, block in latency_ns.items():
            self.rounds.setdefault(name, {})[number] = tuple(block)

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
        return all(
            establishes(self.rounds[n], self.objective) for n in self.rounds if self.stands(n)
        )

    @property
    def statistic(self) -> Statistic:
        """Return the statistic to compare: the mean where too few requests show a p99."""
        return self.objective if self.established else "mean"

    def statistic_of(self, name: str) -> Statistic:
        """Return the statistic of an entrant: the mean where its median hides its cost."""
        own = self.statistic
        return "mean" if own == "p50" and name in self.uneven else own

    def ratio(self, name: str) -> Ratio:
        """Return one entrant's latency divided by the baseline's."""
        return paired_ratio(self.rounds[name], self.rounds[BASELINE], self.statistic_of(name))

    @property
    def spread(self) -> float:
        """Return the baseline's distance from itself; no smaller difference is a speed-up."""
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
    *,
    own_samples: Mapping[str, Spool] = MappingProxyType({}),
    threads: int,
    count: int,
    pace: Pace,
    seed: int,
    settle: float = float("inf"),
    objective: Statistic = "p50",
    uneven: Collection[str] = (),
    risks: Mapping[str, float] | None = None,
    listen: Callable[[Standings], None] = lambda standings: None,
    probe: Callable[[int], bool] = scales,
) -> Standings:
    """Run rounds until `count` of them count, or more on a noisy host.

    Args:
        name: Name in the journal; rounds already there under this name are read first.
        entrants: Name -> worker, including BASELINE and AGAIN. An entrant that fails is removed;
            one that failed before the race was stopped doesn't run in the resumed race.
        samples: Samples that requests rotate through.
        journal: Journal, which has each round on disk before the next begins.
        own_samples: Entrant -> the same samples in the form that it takes, where that is another.
        threads: Number of threads of each engine.
        count: Fewest rounds.
        pace: Lengths of the turns.
        seed: Seed of the orders.
        settle: Largest A/A spread to stop at, unless the rounds are four times as many.
        objective: Statistic to compare; a p99 that isn't established is waited for as long.
        uneven: Entrants to compare by their mean.
        risks: Entrant -> risk, less is safer; with None, no entrant is dropped for being slower.
        listen: Callback after each round.
        probe: Predicate: can the host run this many threads now?

    Raises:
        NotEstablished: too many rounds were refused.
        InputError: the baseline failed.
    """
    standings, first = _journaled(name, threads, objective, journal)
    standings.uneven = uneven
    if _finished(standings, count, settle):
        return standings
    _leave(entrants, entrants.keys() & standings.failed)
    turns = rounds(
        entrants,
        samples.folder,
        own_samples={who: spool.folder for who, spool in own_samples.items()},
        threads=threads,
        pace=pace,
        seed=seed,
        first=first,
        probe=probe,
    )
    for turn in turns:
        for who, why in turn.failed.items():
            if who in (BASELINE, AGAIN):
                raise InputError(f"the baseline failed: {why}")
        _leave(entrants, turn.failed)
        entry = to_record(turn)
        journal.append("round", race=name, **entry)
        standings.add(**entry)
        if risks is not None and turn.counts and standings.counted >= _BEFORE_DROPPING:
            _leave(entrants, dominated(standings, entrants, risks))
        listen(standings)
        if _finished(standings, count, settle):
            return standings
        if standings.refused > _REFUSED_PER_COUNTED * count:
            raise NotEstablished(
                f"{standings.refused} of {turn.number + 1} rounds were refused: the host did not run "
                f"{threads} threads at once"
            )
    raise AssertionError("rounds never end")


def _journaled(
    name: str, threads: int, objective: Statistic, journal: Journal
) -> tuple[Standings, int]:
    """Return the standings of a race that was stopped, and the number of its next round."""
    standings, number = Standings(name, threads, objective=objective), 0
    for event in journal.events("round"):
        if event["race"] == name:
            standings.add(event["number"], event["latency_ns"], event["failed"], event["counts"])
            number = max(number, event["number"] + 1)
    return standings, number


def _finished(standings: Standings, count: int, settle: float) -> bool:
    """Whether enough rounds count, and the twins agree or have had rounds enough to."""
    if standings.counted < max(count, 2):
        return False
    if AGAIN not in standings.rounds:
        return True
    return standings.counted >= _LONGEST * count or (
        standings.counted % 8 == count % 8 and standings.established and standings.spread <= settle
    )


def _leave(entrants: dict[str, Worker], leaving: Iterable[str]) -> None:
    for who in leaving:
        entrants.pop(who).kill()
