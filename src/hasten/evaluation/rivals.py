"""Two models in turns: how they are raced against each other, and the rows that come of it."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hasten.core.target import Target
from hasten.core.workers import Worker
from hasten.engines.base import Artifact, Engine
from hasten.engines.end_to_end import EndToEnd
from hasten.engines.python_function import PythonFunction
from hasten.inputs.data.spool import Spool
from hasten.measure.deadline import Deadline
from hasten.measure.effort import Effort
from hasten.measure.journal import Journal
from hasten.measure.probe import disturbance, on_one_thread, probe_of, usable_threads
from hasten.measure.race import AGAIN, BASELINE, NotEstablished, Rules, Standings, race
from hasten.measure.workbench import Bench
from hasten.reporting.result import Row, row

CANDIDATE = "bundle"
"""Name of what is compared with the baseline in the race."""
_LIMIT_S = 60.0
_FEWEST_SETS = 3
"""Fewest processes of each model that an interval is taken over."""
_OPENING = 1.0
"""Largest time to open a set of processes, as a multiple of the time of its rounds."""
ALONE = (
    "each model ran in one process: the interval covers these processes, and two of one model may differ by a few "
    "percent more"
)
"""Note on an interval over the rounds of one process of each model."""
_TOO_SHORT = (
    "the time limit of {:g} s was too short for what every comparison needs (reading the bundle, opening both models, two "
    "rounds): this took {:.0f} s"
)
"""Note on a comparison that took longer than was asked for."""


@dataclass(frozen=True)
class Rival:
    """One of the two models that are compared.

    Attributes:
        label: Label of the model, for people.
        engine: Engine that runs the model.
        artifact: Artifact that the engine opens; for a function the bundle's, which has the inputs
            and outputs.
        uneven: Whether requests differ so much in cost that only the mean tells.
        samples: Requests in the form that the model takes, where it isn't the bundle's.
    """

    label: str
    engine: Engine
    artifact: Artifact
    uneven: bool = False
    samples: Spool | None = None


def raced(
    other: Rival,
    winner: Rival,
    samples: Spool,
    place: Path,
    effort: Effort,
    seed: int,
    deadline: Deadline,
    target: Target,
) -> tuple[Standings, list[str], dict[str, dict[str, str]]]:
    """Take turns on as many threads as the host provides.

    Returns:
        The rounds, notes on them, and what each entrant's engine reports after them.
    """
    asked = target.threads
    usable = usable_threads(asked)
    notes = []
    if usable < asked:
        notes.append(on_one_thread(asked, "the host is too busy for more"))
    for threads in dict.fromkeys((usable, 1)):
        desk = Bench(place, target.with_threads(threads))
        try:
            probe = probe_of(target)
            standings, facts = _race(other, winner, samples, desk, effort, seed, probe, deadline)
            alone = ALONE if standings.several is None else ""
            notes += [
                *filter(None, [disturbance(probe), alone]),
                *standings.cut_short("comparison"),
            ]
            if deadline.broken:
                notes.append(_TOO_SHORT.format(deadline.limit_s, deadline.elapsed_s))
            return standings, notes, facts
        except NotEstablished as why:
            notes.append(on_one_thread(threads, str(why)))
    raise AssertionError("one thread needs no probe")


def _race(
    other: Rival,
    winner: Rival,
    samples: Spool,
    desk: Bench,
    effort: Effort,
    seed: int,
    probe: Callable[[int], bool],
    deadline: Deadline,
) -> tuple[Standings, dict[str, dict[str, str]]]:
    """Race in one set of processes after another, or in one alone where opening takes longer than its rounds.

    Two processes of one model differ lastingly, which the rounds of a single one never show.
    """
    sets = min(effort.processes, effort.final_rounds // 2)
    whole = _rules(other, winner, samples, desk, effort, seed)
    journal = Journal(desk.folder / "journal.jsonl")

    def raced_by(entrants: dict[str, Worker], rules: Rules) -> Standings:
        return race(
            f"bench/{desk.target.threads}",
            entrants,
            samples,
            journal,
            rules,
            own_samples={}
            if other.samples is None
            else dict.fromkeys((BASELINE, AGAIN), other.samples),
            probe=probe,
            stop=_without_time(deadline),
        )

    for process in itertools.count():
        began = time.monotonic()
        with _entrants(desk, other, winner) as entrants:
            opened = time.monotonic()
            part = replace(whole, count=-(-effort.final_rounds // sets), process=process)
            several = sets >= _FEWEST_SETS
            standings = raced_by(entrants, part if several else whole)
            if several and process == 0 and not standings.cut:
                several = opened - began <= _OPENING * (time.monotonic() - opened)
                standings = standings if several else raced_by(entrants, whole)
            facts = {
                name: worker.ask("properties", limit_s=_LIMIT_S)
                for name, worker in entrants.items()
            }
        settled = process + 1 >= sets and standings.width <= effort.settle
        if not several or settled or process + 1 >= 2 * sets or not standings.stands(CANDIDATE):
            return standings, facts
        if standings.cut or deadline.left_s() < time.monotonic() - began:
            standings.cut = True
            return standings, facts
    raise AssertionError("sets of processes are counted without an end")


def _rules(
    other: Rival, winner: Rival, samples: Spool, desk: Bench, effort: Effort, seed: int
) -> Rules:
    """Return the rules of a race in a single set of processes."""
    uneven = {
        name
        for name, rival in ((AGAIN, other), (CANDIDATE, winner))
        if rival.uneven or samples.ragged
    }
    return Rules(
        threads=desk.target.threads,
        count=effort.final_rounds,
        pace=effort.pace("p50"),
        seed=seed,
        settle=effort.settle,
        uneven=uneven,
    )


@contextlib.contextmanager
def _entrants(desk: Bench, other: Rival, winner: Rival) -> Iterator[dict[str, Worker]]:
    """Open the baseline twice and the candidate once, and end their processes after the block."""
    entrants: dict[str, Worker] = {}
    try:
        for name, rival in ((BASELINE, other), (AGAIN, other), (CANDIDATE, winner)):
            entrants[name] = desk.open_built(rival.engine, rival.artifact).worker
        yield entrants
    finally:
        for worker in entrants.values():
            worker.kill()


def _without_time(deadline: Deadline) -> Callable[[Standings], bool]:
    """Return a predicate that is called after each round: would another one like it end too late?"""
    last = time.monotonic()

    def without(standings: Standings) -> bool:
        nonlocal last
        began, last = last, time.monotonic()
        return deadline.left_s() < last - began

    return without


def row_of(role: str, rival: Rival, standings: Standings, name: str) -> Row:
    return row(
        role,
        rival.label,
        standings.rounds[name],
        standings.rounds[BASELINE],
        size_bytes=None
        if isinstance(_inner(rival.engine), PythonFunction)
        else rival.artifact.size_bytes,
        accuracy="",
        statistic=standings.statistic_of(name),
        processes=standings.several,
    )


def _inner(engine: Engine) -> Engine:
    return engine.inner if isinstance(engine, EndToEnd) else engine
