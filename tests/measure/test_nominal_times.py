"""Latencies that settings say: everything is as ever but the clock."""

from typing import Any

import pytest
from tests.support.desk import Desk
from tests.support.faults import STALL_NS, Faulty
from tests.support.nominal_times import (
    BASE_NS,
    Asked,
    nominal_times,
    only_hanging_engines_are_limited,
)
from tests.support.scripted_races import Entrant

from hasten.core.records import to_record
from hasten.engines.base import Engine
from hasten.engines.null import Null
from hasten.errors import CandidateError
from hasten.inputs.data.spool import Spool


def timed(desk: Desk, spool: Spool, engine: Engine, limit_s: float = 60.0) -> list[int]:
    lengths: dict[str, Any] = {"warmup_ns": 0, "block_ns": 0, "at_least": 8, "at_most": 8}
    taken: list[int] = desk.worker(engine).ask(
        "time", limit_s=limit_s, samples=str(spool.folder), first=0, **lengths
    )
    return taken


def test_an_engine_that_is_busy_on_purpose_takes_that_long_and_another_as_long_as_it_took(
    desk: Desk, spool: Spool
) -> None:
    with nominal_times():
        busy, stalling = Faulty(Null(), busy_ns=500_000), Faulty(Null(), stall_every=4)
        assert timed(desk, spool, busy) == pytest.approx([BASE_NS + 500_000] * 8, rel=0.02)
        each = [BASE_NS] * 3 + [BASE_NS + STALL_NS]
        assert timed(desk, spool, stalling) == pytest.approx(each * 2, rel=0.02)
        assert set(timed(desk, spool, Null())) != {BASE_NS * 98 // 100}  # its own


def test_an_engine_whose_latencies_are_known_is_timed_without_being_busy(
    desk: Desk, spool: Spool
) -> None:
    busy = Faulty(Null(), busy_ns=1_000_000_000_000)
    with nominal_times():
        assert timed(desk, spool, busy, limit_s=60.0)[0] > busy.busy_ns // 2
        worker = desk.worker(busy)
        with pytest.raises(CandidateError, match="no answer within"):  # nothing else is hurried
            worker.ask("look", limit_s=0.5, samples=str(spool.folder), batch=1)
    with pytest.raises(CandidateError, match="no answer within"):
        timed(desk, spool, busy, limit_s=0.5)


def test_latencies_may_be_those_of_what_was_opened(desk: Desk, spool: Spool) -> None:
    asked: list[Asked] = []

    def latencies_of(one: Asked) -> tuple[int, ...]:
        asked.append(one)
        return (1000, 9000)

    with nominal_times(latencies_of):
        assert timed(desk, spool, Null()) == pytest.approx([1000, 9000] * 4, rel=0.02)
    assert asked[0]["engine"] == {"type": "null"}
    assert "path" in asked[0]["artifact"]


def test_an_entrant_without_a_process_takes_as_long_as_one_with_it(
    desk: Desk, spool: Spool
) -> None:
    engine = Faulty(Null(), stall_every=4)
    with nominal_times():
        scripted = Entrant({"engine": to_record(engine)}).ask("time", first=0, at_least=8)
        assert scripted == timed(desk, spool, engine)


def test_what_dies_dies_as_ever(desk: Desk, spool: Spool) -> None:
    with nominal_times(), pytest.raises(CandidateError, match="killed by SIGKILL during 'time'"):
        timed(desk, spool, Faulty(Null(), "kill"))


def test_a_limit_ends_what_hangs_and_not_what_is_slow(desk: Desk, spool: Spool) -> None:
    with only_hanging_engines_are_limited():
        assert len(timed(desk, spool, Faulty(Null(), busy_ns=50_000_000), limit_s=0.1)) == 8
        with pytest.raises(CandidateError, match="hung: no answer within 0 s, killed"):
            timed(desk, spool, Faulty(Null(), "hang"), limit_s=0.1)
