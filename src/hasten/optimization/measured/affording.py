"""Races and fresh rounds that a run has time for, by how long their parts took so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from hasten.measure.candidate import Candidate
from hasten.measure.effort import Effort
from hasten.measure.latency import Pace
from hasten.measure.race import Standings
from hasten.measure.workbench import Workbench
from hasten.optimization.job import Job
from hasten.optimization.measured.screening import Screening

_OPEN_S, _START_S = 1.2, 1.0
"""First guesses: opening a model in a fresh process, and what that takes beyond a forked one."""
FEWEST_ROUNDS = 4
"""Rounds of a race that there must be time for, or it doesn't begin."""


class Affording:
    """Derives from the deadline of a run how many candidates, processes and rounds there is time for.

    Attributes:
        job: The run at work, with its deadline.
        effort: Effort of the run, with its numbers of rounds.
        pace: Lengths of the turns.
        trials: Trials of the candidates.
    """

    job: Job
    effort: Effort
    pace: Pace
    trials: Screening

    @property
    def open_s(self) -> float:
        """Return the time to open a model in a fresh process, in seconds."""
        return self.job.deadline.seen("open", self.open_forked_s + _START_S)

    @property
    def open_forked_s(self) -> float:
        """Return the time to open a model in a forked process, as in a race, in seconds."""
        return self.job.deadline.seen("open forked", _OPEN_S - _START_S)

    @property
    def turn_s(self) -> float:
        """Return the time of one model's turn in a round, in seconds."""
        return self.job.deadline.seen("turn", 1.5e-9 * (self.pace.warmup_ns + self.pace.block_ns))

    @property
    def slow(self) -> float:
        """Return about how many times as long as on a quiet machine things take, from 1 to 4."""
        return min(4.0, max(1.0, self.open_s / _OPEN_S))

    def affordable(self, field: Sequence[Candidate]) -> list[Candidate]:
        """Return the entrants for whom there is time: the exact ones, the safest, the fastest."""
        deadline = self.job.deadline
        if not deadline.limited:
            return list(field)
        each_s = self.open_forked_s + FEWEST_ROUNDS * self.turn_s
        count = max(0, int(deadline.left_s() / each_s) - 2)
        if count >= len(field):
            return list(field)
        exact = [c for c in field if self.trials.done[c.key].exact]
        lossy = [c for c in field if not self.trials.done[c.key].exact]
        first = [*exact[:1], *lossy[:1], *lossy[-1:], *exact[1:], *lossy[1:-1]]
        if count:
            self.job.notes.append(
                f"the time limit left {len(field) - count} of {len(field)} candidates out of the race"
            )
        return list(dict.fromkeys(first))[:count]

    def stop(self, bench: Workbench, until: float | None = None) -> Callable[[Standings], bool]:
        """Return the predicate that ends a race in time, for the next round to be within it.

        Rounds on several threads that don't count may take half of the stage's time; the rest is kept
        for one thread.

        Args:
            bench: Workbench with the threads of the race.
            until: `time.monotonic()` by which it must end; by default the stage's own end.
        """
        deadline = self.job.deadline

        def stop(standings: Standings) -> bool:
            lacks = bench.target.threads > 1 and standings.refused and standings.counted < 2
            left_s = deadline.left_s(0.5 if lacks else 1.0)
            if until is not None:
                left_s = min(left_s, until - time.monotonic())
            return left_s < self.turn_s * len(standings.rounds or (1, 2))

        return stop

    def timed_again(
        self, needed: Sequence[Candidate], wanted: Sequence[Candidate]
    ) -> list[Candidate]:
        """Return the candidates for whose fresh rounds there is time.

        Args:
            needed: Candidates of which one ships, if it is faster in fresh rounds too.
            wanted: These, and others that would be shown beside them.
        """
        deadline = self.job.deadline
        each_s = self.open_s + 2 * self.turn_s
        if deadline.left_s() >= self.effort.processes * (2 + len(wanted)) * each_s:
            return list(wanted)
        if deadline.most_s() >= (2 + len(needed)) * each_s or not needed:
            if len(needed) < len(wanted):
                names = ", ".join(one.label for one in wanted if one not in needed)
                self.job.notes.append(f"the time limit left no time for fresh rounds of {names}")
            return list(needed)
        self.job.notes.append(
            "the time limit left no time for fresh rounds of what might ship, and only a "
            "candidate that is faster in fresh rounds may ship: the original ships"
        )
        return []

    def sets_in_time(self, candidates: Sequence[Candidate]) -> tuple[int, float]:
        """Return how many sets of processes there is time for, at least one, and the least time of each.

        Two sets would show less than one, so where there is no time for three it is one.
        """
        set_s = (2 + len(candidates)) * (self.open_s + 2 * self.turn_s)
        usual = self.effort.processes
        left_s = self.job.deadline.left_s()
        fitting = usual if left_s >= usual * set_s else int(left_s / set_s)
        return (fitting if fitting >= 3 else 1), set_s
