from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from tests.support.desk import Desk
from tests.support.faults import Faulty
from tests.support.nominal_times import nominal_times

from hasten.core.workers import Worker
from hasten.engines.null import Null
from hasten.errors import InputError
from hasten.inputs.data.spool import Spool
from hasten.measure.journal import Journal
from hasten.measure.latency import Pace
from hasten.measure.race import (
    AGAIN,
    BASELINE,
    NotEstablished,
    Rules,
    Standings,
    journaled,
    race,
)

PACE = Pace(warmup_ns=0, block_ns=0, at_least=3, at_most=3)
BUSY_NS = 300_000


def busy(times: int) -> Faulty:
    return Faulty(Null(), busy_ns=BUSY_NS * times)


def entrants(desk: Desk, **others: Faulty) -> dict[str, Worker]:
    field = {BASELINE: busy(3), AGAIN: busy(3), **others}
    return {name: desk.worker(engine) for name, engine in field.items()}


def run(
    field: dict[str, Worker],
    spool: Spool,
    journal: Journal,
    count: int = 8,
    risks: dict[str, float] | None = None,
    **settings: object,
) -> Standings:
    stated = {one.name for one in fields(Rules)}
    own = {name: settings.pop(name) for name in stated & settings.keys()}
    rules = replace(Rules(threads=1, count=count, pace=PACE, seed=0), **own)  # type: ignore[arg-type]
    return race("race/1", field, spool, journal, rules, risks=risks, **settings)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def nominal() -> Iterator[None]:
    with nominal_times():
        yield


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def test_an_artificially_slowed_candidate_is_dropped_early(
    desk: Desk, spool: Spool, journal: Journal
) -> None:
    field = entrants(desk, fast=busy(1), slow=busy(40))
    slow = field["slow"]
    standings = run(field, spool, journal, count=12, risks={"fast": 0.0, "slow": 0.0})
    assert len(standings.rounds["slow"]) == 6
    assert len(standings.rounds["fast"]) == 12
    assert (standings.stands("slow"), standings.stands("fast")) == (False, True)
    assert standings.ratio("fast").high < 1
    assert "slow" not in field
    assert not slow.alive


def test_a_slower_but_safer_candidate_stays(desk: Desk, spool: Spool, journal: Journal) -> None:
    field = entrants(desk, fast=busy(1), safe=busy(40))
    standings = run(field, spool, journal, risks={"fast": 0.005, "safe": 0.001})
    assert "safe" in field
    assert standings.stands("safe")


def test_the_twins_are_never_dropped(desk: Desk, spool: Spool, journal: Journal) -> None:
    field = entrants(desk, fast=busy(1))
    standings = run(field, spool, journal, risks={"fast": 0.0})
    assert len(standings.rounds[BASELINE]) == len(standings.rounds[AGAIN]) == standings.counted == 8


def test_a_candidate_that_dies_leaves_the_race_going(
    desk: Desk, spool: Spool, journal: Journal
) -> None:
    bad = desk.worker(Faulty(Null(), "kill", on_run=6))
    field = {**entrants(desk), "bad": bad}
    standings = run(field, spool, journal, count=4)
    assert standings.failed == {"bad": "its process was killed by SIGKILL during 'time'"}
    assert standings.counted == 4
    assert set(field) == {BASELINE, AGAIN}


@pytest.mark.parametrize("on_run", [1, 6, 9, 12])
def test_a_candidate_that_dies_in_any_round_does_not_stand(
    desk: Desk, spool: Spool, journal: Journal, on_run: int
) -> None:
    field = {**entrants(desk, good=busy(1)), "bad": desk.worker(Faulty(Null(), "kill", 0, on_run))}
    standings = run(field, spool, journal, count=3)
    assert [name for name in ("good", "bad", "never there") if standings.stands(name)] == ["good"]


def test_one_round_is_too_few_to_stand() -> None:
    standings, block = Standings("race/1", 1), {BASELINE: (1,), "fast": (1,)}
    found = []
    for number in range(2):
        standings.add(number, block, {}, counts=True)
        found.append(standings.stands("fast"))
    assert found == [False, True]


def test_who_died_in_a_round_that_did_not_count_stays_out_of_the_resumed_race(
    desk: Desk, spool: Spool, journal: Journal
) -> None:
    why = "its process was killed by SIGKILL during 'time'"
    field = entrants(desk, dead=busy(1))
    both = {BASELINE: [1, 1, 1], AGAIN: [1, 1, 1]}
    entry: dict[str, Any] = {"race": "race/1", "latency_ns": both, "counts": False}
    journal.append("round", number=0, failed={"dead": why}, **entry)
    dead = field["dead"]
    standings = run(field, spool, Journal(journal.path), count=2)
    assert standings.failed == {"dead": why}
    assert not standings.stands("dead")
    assert set(field) == {BASELINE, AGAIN}
    assert not dead.alive


def test_who_missed_rounds_before_the_race_was_resumed_does_not_stand(
    desk: Desk, spool: Spool, journal: Journal
) -> None:
    run(entrants(desk), spool, journal, count=2)
    standings = run(entrants(desk, late=busy(1)), spool, Journal(journal.path), count=4)
    assert len(standings.rounds["late"]) == 2
    assert not standings.stands("late")


def test_a_baseline_that_dies_ends_the_race(desk: Desk, spool: Spool, journal: Journal) -> None:
    field = entrants(desk)
    field[AGAIN].kill()
    with pytest.raises(InputError) as error:
        run(field, spool, journal)
    assert str(error.value) == (
        "the baseline failed: its process was killed by SIGKILL during 'time'"
    )


def test_a_race_that_the_time_limit_ends_has_two_rounds_that_count(
    desk: Desk, spool: Spool, journal: Journal
) -> None:
    calm: Any = {"threads": 2, "probe": lambda _: True}
    standings = run(entrants(desk), spool, journal, count=8, stop=lambda _: True, **calm)
    assert standings.cut
    assert standings.counted == 2
    assert run(entrants(desk), spool, journal, count=2, stop=lambda _: True).counted == 2


def test_where_rounds_are_refused_until_the_time_is_up_that_is_said(
    desk: Desk, spool: Spool, journal: Journal
) -> None:
    with pytest.raises(NotEstablished) as error:
        run(
            entrants(desk),
            spool,
            journal,
            count=8,
            threads=2,
            stop=lambda s: s.refused == 3,
            probe=lambda _: False,
        )
    assert str(error.value) == (
        "3 of 3 rounds didn't count, and the time limit left no time to wait until the host "
        "runs 2 threads "
        "at once"
    )


def test_too_many_refused_rounds_establish_nothing(
    desk: Desk, spool: Spool, journal: Journal
) -> None:
    heard = []
    with pytest.raises(NotEstablished) as error:
        run(
            entrants(desk),
            spool,
            journal,
            count=2,
            threads=2,
            probe=lambda threads: False,
            listen=lambda standings: heard.append(standings.refused),
        )
    assert str(error.value) == (
        "7 of 7 rounds didn't count, since the host did not run 2 threads at once"
    )
    assert heard == [1, 2, 3, 4, 5, 6, 7]


def test_refused_rounds_do_not_count(desk: Desk, spool: Spool, journal: Journal) -> None:
    looks = iter([False, True, True, True, False])
    standings = run(
        entrants(desk), spool, journal, count=2, threads=2, probe=lambda threads: next(looks, True)
    )
    assert (standings.counted, standings.refused) == (2, 2)
    assert set(standings.rounds[BASELINE]) == {1, 3}
    assert [event["counts"] for event in journal.events("round")] == [False, True, False, True]


def test_a_resumed_race_takes_in_the_rounds_that_were_journaled(
    desk: Desk, spool: Spool, journal: Journal
) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    def stop(standings: Standings) -> None:
        if standings.counted == 3:
            raise Killed

    field = entrants(desk, fast=busy(1))
    with pytest.raises(Killed):
        run(field, spool, journal, count=5, listen=stop)
    before = [event["latency_ns"] for event in journal.events("round")]
    resumed = run(field, spool, Journal(journal.path), count=5)
    assert sorted(resumed.rounds["fast"]) == [0, 1, 2, 3, 4]
    assert [list(resumed.rounds["fast"][i]) for i in range(3)] == [r["fast"] for r in before]
    # All of them are there now: nothing is asked of anybody, not even of the dead.
    for worker in field.values():
        worker.kill()
    assert run(field, spool, Journal(journal.path), count=5).rounds == resumed.rounds


def test_rounds_of_another_race_are_left_alone(desk: Desk, spool: Spool, journal: Journal) -> None:
    journal.append("round", race="race/2", number=5, latency_ns={BASELINE: [1]}, counts=True)
    standings = run(entrants(desk), spool, journal, count=2)
    assert set(standings.rounds[BASELINE]) == {0, 1}


def test_each_process_has_its_rounds_and_the_journal_says_whose_they_are(
    desk: Desk, spool: Spool, journal: Journal
) -> None:
    for process in range(3):
        field = entrants(desk, fast=busy(1))
        standings = run(field, spool, Journal(journal.path), count=2, process=process, settle=0.0)
        for worker in field.values():
            worker.kill()
    assert standings.processes == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: 2}
    assert standings.counted == 6
    assert standings.stands("fast")
    assert standings.several == standings.processes
    again, following = journaled("race/1", 1, "p50", Journal(journal.path))
    assert (again.processes, again.rounds, following) == (standings.processes, standings.rounds, 6)


def test_a_journal_of_an_older_version_has_one_process(journal: Journal) -> None:
    for number in range(2):
        block = {BASELINE: [1, 2], AGAIN: [2, 1]}
        entry: dict[str, Any] = {"latency_ns": block, "failed": {}, "counts": True}
        journal.append("round", race="race/1", number=number, **entry)
    standings, _ = journaled("race/1", 1, "p50", Journal(journal.path))
    assert standings.counted == 2
    assert standings.several is None


def test_refused_rounds_are_kept_beside_those_that_count(journal: Journal) -> None:
    block = {BASELINE: [1], AGAIN: [2]}
    for number, counts in enumerate([True, False, True]):
        entry: dict[str, Any] = {"latency_ns": block, "failed": {}, "counts": counts}
        journal.append("round", race="race/2", number=number, **entry)
    standings, _ = journaled("race/2", 2, "p50", journal)
    assert standings.busy == {BASELINE: {1: (1,)}, AGAIN: {1: (2,)}}
    assert set(standings.rounds[AGAIN]) == {0, 2}
    whole, _ = journaled("race/2", 2, "p50", journal, all_count=True)
    assert set(whole.rounds[AGAIN]) == {0, 1, 2}
