"""Two models in turns: how they are raced against each other, and the rows that come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hasten.core.target import Target
from hasten.core.workers import Worker
from hasten.engines.base import Artifact, Engine
from hasten.engines.end_to_end import EndToEnd
from hasten.engines.python_function import PythonFunction
from hasten.inputs.data.spool import Spool
from hasten.measure.effort import Effort
from hasten.measure.journal import Journal
from hasten.measure.probe import disturbance, on_one_thread, probe_of, usable_threads
from hasten.measure.race import AGAIN, BASELINE, NotEstablished, Rules, Standings, race
from hasten.measure.workbench import Bench
from hasten.reporting.result import Row, row

CANDIDATE = "bundle"
"""Name of what is compared with the baseline in the race."""
_LIMIT_S = 60.0


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
            standings, facts = _race(other, winner, samples, desk, effort, seed, probe)
            return standings, [*notes, *filter(None, [disturbance(probe)])], facts
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
) -> tuple[Standings, dict[str, dict[str, str]]]:
    entrants: dict[str, Worker] = {}
    try:
        for name, rival in ((BASELINE, other), (AGAIN, other), (CANDIDATE, winner)):
            entrants[name] = desk.open_built(rival.engine, rival.artifact).worker
        standings = race(
            f"bench/{desk.target.threads}",
            entrants,
            samples,
            Journal(desk.folder / "journal.jsonl"),
            Rules(
                threads=desk.target.threads,
                count=effort.final_rounds,
                pace=effort.pace("p50"),
                seed=seed,
                settle=effort.settle,
                uneven={
                    name
                    for name, rival in ((AGAIN, other), (CANDIDATE, winner))
                    if rival.uneven or samples.ragged
                },
            ),
            own_samples={}
            if other.samples is None
            else dict.fromkeys((BASELINE, AGAIN), other.samples),
            probe=probe,
        )
        return standings, {
            name: worker.ask("properties", limit_s=_LIMIT_S) for name, worker in entrants.items()
        }
    finally:
        for worker in entrants.values():
            worker.kill()


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
    )


def _inner(engine: Engine) -> Engine:
    return engine.inner if isinstance(engine, EndToEnd) else engine
