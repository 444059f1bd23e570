"""The effort of a run: its rounds, how far it searches, and what else it measures at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from hasten.errors import InputError
from hasten.measure.intervals import Statistic
from hasten.measure.latency import Pace

Depth: TypeAlias = Literal["engines", "first", "all"]
_P99_WIDER = 3.0
"""Factor on the A/A spread where p99s are compared; a finer spread would take hours."""


@dataclass(frozen=True)
class Effort:
    """Effort of a run: the rounds and processes of its timings, and the depth of its search.

    Attributes:
        depth: Extent of the search. "engines": the untouched model on each engine. "first": each
            pass's likeliest settings too, and for samples that differ in shape one set of buckets on
            the fastest engine, and of the likeliest inexact form on engines of one shape. "all": also further settings and buckets, mixtures of precisions,
            cascades and the neighbors of the best.
        race_rounds: Fewest rounds in which the last candidates race.
        final_rounds: Fewest fresh rounds that the final figures come from.
        p99_rounds: Fewest fresh rounds where the p99 is the objective, which takes far more.
        processes: Number of processes of each finalist, one after another, that share the fresh
            rounds; up to twice as many, with as many rounds each, where the twins differ by more
            than `settle`. At least three, as their interval is over processes.
        p99_by_time: Whether rounds weigh alike in a p99, as they do for requests at random times,
            rather than requests: a closed loop sends fewer of them while it is slow.
        settle: A/A spread that the final rounds wait for.
        race_settle: A/A spread that the race, which only has to find the faster, waits for.
        warmup_ns: Untimed time at the beginning of each turn, in nanoseconds.
        block_ns: Timed time of each turn, in nanoseconds.
        at_least: Fewest timed requests in a turn.
        ceilings: Whether latencies are compared with the least that the machine could take.
        curve_s: Longest time for the batch curve, in seconds; 0 for none.
        load_s: Shortest time of each load scenario, in seconds; 0 for none.
        stages_s: Longest time for the stages from a file's bytes to the decision, in a run with
            `end_to_end`, in seconds; 0 for none, and for no race between ways to decode pictures.
        starts: Number of cold starts that are timed of each model; 0 for none.
    """

    depth: Depth = "all"
    race_rounds: int = 24
    final_rounds: int = 40
    p99_rounds: int = 1200
    processes: int = 5
    p99_by_time: bool = False
    settle: float = 0.03
    race_settle: float = 0.1
    warmup_ns: int = Pace.warmup_ns
    block_ns: int = Pace.block_ns
    at_least: int = Pace.at_least
    ceilings: bool = True
    curve_s: float = 15.0
    load_s: float = 1.0
    stages_s: float = 4.0
    starts: int = 3

    def fresh_rounds(self, objective: Statistic) -> int:
        """Return the number of fresh rounds for an objective.

        Args:
            objective: Statistic that latencies are compared by.
        """
        return max(self.final_rounds, self.p99_rounds if objective == "p99" else 0)

    def pace(self, objective: Statistic, limit_s: float = Pace.limit_s) -> Pace:
        """Return the lengths of the turns for an objective.

        A p99 takes hundreds of rounds. More requests of a very fast model in one round would only
        tell more about that round, so a turn has 12 to 200 of them.

        Args:
            objective: Statistic that latencies are compared by.
            limit_s: Time without an answer after which a worker is killed, in seconds.
        """
        least, most = (12, 200) if objective == "p99" else (3, Pace.at_most)
        return Pace(self.warmup_ns, self.block_ns, max(least, self.at_least), most, limit_s)

    def settled(self, objective: Statistic, *, final: bool) -> float:
        """Return the A/A spread to wait for.

        Args:
            objective: Statistic that latencies are compared by.
            final: Whether it is for the final rounds; else for the race.
        """
        wider = _P99_WIDER if objective == "p99" else 1.0
        return wider * (self.settle if final else self.race_settle)

    @property
    def omissions(self) -> tuple[str, ...]:
        """Return, in words, what a normal run does and this one leaves out."""
        return self.omissions_for(ragged=False)

    def omissions_for(self, *, ragged: bool) -> tuple[str, ...]:
        """Return the omissions of a run on samples that may differ in shape.

        Args:
            ragged: Whether they do, so that buckets are worth trying.
        """
        said = {"engines": "buckets", "first": "further buckets", "all": ""}[self.depth]
        buckets = (said,) if ragged and said else ()
        return (*self._omitted_candidates, *buckets, *self._omitted_figures)

    @property
    def _omitted_candidates(self) -> tuple[str, ...]:
        left = []
        if self.depth == "engines":
            left.append("every pass")
        if self.depth != "all":
            left.append("further settings, mixtures of precisions and cascades")
        return tuple(left)

    @property
    def _omitted_figures(self) -> tuple[str, ...]:
        left = []
        if not self.ceilings:
            left.append("profiles and the distance from the machine's limit")
        if not self.curve_s:
            left.append("the batch curve")
        if not self.load_s:
            left.append("load scenarios")
        if not self.starts:
            left.append("cold starts")
        return tuple(left)


EFFORTS = {
    "quick": Effort(
        depth="first",
        race_rounds=12,
        final_rounds=16,
        p99_rounds=0,
        processes=3,
        settle=0.1,
        race_settle=0.2,
        warmup_ns=6_000_000,
        block_ns=15_000_000,
        ceilings=False,
        curve_s=0.0,
        load_s=0.0,
        stages_s=0.0,
        starts=0,
    ),
    "normal": Effort(),
    "thorough": Effort(race_rounds=48, final_rounds=120, settle=0.015, curve_s=60.0, load_s=10.0),
}
"""Efforts by the names that people give them."""


def effort_of(effort: str | Effort) -> Effort:
    """Return an effort by its name, or as it was given.

    Raises:
        InputError: no effort has that name.
    """
    if isinstance(effort, Effort):
        return effort
    if effort not in EFFORTS:
        raise InputError(f"the effort is {', '.join(EFFORTS)}, or an Effort: got {effort!r}")
    return EFFORTS[effort]
