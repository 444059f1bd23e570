"""What each stage of a command may spend, so that the whole keeps its time limit."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.desk import Desk
from tests.support.faults import Faulty

from hasten.engines.onnxruntime.engine import OnnxRuntime
from hasten.errors import CandidateError, OutOfTime
from hasten.measure import deadline as module
from hasten.measure.deadline import STAGES, Deadline, Need

LIMIT_S = 100.0


class Clock:
    """A clock that stands still unless it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_without_a_limit_nothing_ends(clock: Clock) -> None:
    deadline = Deadline()
    deadline.enter("search")
    clock.now += 1e9
    assert not deadline.late
    assert not deadline.broken
    assert deadline.left_s() == deadline.most_s() == float("inf")
    assert deadline.step_s(300.0) == 300.0


def test_the_search_leaves_what_later_stages_wish_where_there_is_plenty(clock: Clock) -> None:
    deadline = Deadline(LIMIT_S)
    deadline.follow(lambda: {"race": Need(0, 10), "certify": Need(5, 5), "deliver": Need(2, 5)})
    deadline.enter("search")
    assert deadline.left_s() == pytest.approx(LIMIT_S - 20)
    clock.now += 85
    assert deadline.late
    assert deadline.most_s() == pytest.approx(LIMIT_S - 85 - 7)


def test_where_wishes_exceed_the_time_the_search_has_half_of_what_nobody_needs(
    clock: Clock,
) -> None:
    deadline = Deadline(LIMIT_S)
    deadline.follow(
        lambda: {"certify": Need(20, 20), "figures": Need(0, 500), "race": Need(0, 500)}
    )
    deadline.enter("search")
    assert deadline.left_s() == pytest.approx((LIMIT_S - 20) / 2)
    clock.now += 40
    deadline.enter("race")  # it shares what is left with the figures, which wish as much
    assert deadline.left_s() == pytest.approx((60 - 20) / 2)


def test_a_need_that_is_learnt_later_counts_at_once(clock: Clock) -> None:
    deadline = Deadline(LIMIT_S)
    deadline.follow(lambda: {"certify": Need(s := 50 * deadline.seen("answer", 0.1), s)})
    deadline.enter("search")
    assert deadline.left_s() == pytest.approx(LIMIT_S - 5)
    deadline.saw("answer", 1.0)
    assert deadline.left_s() == pytest.approx(LIMIT_S - 50)


@given(
    st.lists(st.tuples(st.floats(0, 30), st.floats(0, 60)), min_size=7, max_size=7),
    st.floats(1, 300),
)
def test_stages_that_spend_all_that_they_may_end_in_time(
    needs: list[tuple[float, float]], limit_s: float
) -> None:
    plan = {
        stage: Need(least, least + more) for stage, (least, more) in zip(STAGES, needs, strict=True)
    }
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "time", clock)
        deadline = Deadline(limit_s)
        deadline.follow(lambda: plan)
        fits = sum(need.least_s for need in plan.values()) <= limit_s
        for stage in STAGES[1:]:
            deadline.enter(stage)
            spends_s = deadline.left_s()
            assert not fits or spends_s >= plan[stage].least_s - 1e-6
            clock.now += max(0.0, spends_s if fits else min(spends_s, plan[stage].least_s))
        assert not fits or deadline.elapsed_s <= limit_s + 1e-6


def test_once_the_time_is_up_no_stage_has_its_least(clock: Clock) -> None:
    deadline = Deadline(LIMIT_S)
    deadline.follow(lambda: {"figures": Need(30, 60), "deliver": Need(5, 5)})
    clock.now += 90
    deadline.enter("figures")
    assert deadline.left_s() == pytest.approx(5)
    clock.now += 6
    assert deadline.late


def test_the_time_that_a_person_is_waited_for_does_not_count(clock: Clock) -> None:
    deadline = Deadline(LIMIT_S)
    deadline.enter("certify")
    with deadline.paused():
        clock.now += 1e6
    assert deadline.left_s() == pytest.approx(LIMIT_S)


def test_a_tenth_more_is_within_the_promise(clock: Clock) -> None:
    deadline = Deadline(LIMIT_S)
    clock.now += 109
    assert not deadline.broken
    clock.now += 2
    assert deadline.broken
    short = Deadline(1.0)
    clock.now += 5.9
    assert not short.broken


def test_what_must_be_done_is_not_cut_and_the_search_is(clock: Clock) -> None:
    deadline = Deadline(LIMIT_S)
    clock.now += 2 * LIMIT_S
    cut = []
    for stage in STAGES:
        deadline.enter(stage)
        cut.append(deadline.step_s(300.0) < 300.0)
    assert cut == [False, True, True, True, True, True, False]


def test_a_step_is_ended_with_its_process_when_the_time_is_up(tmp_path: Path) -> None:
    with Desk(tmp_path) as desk:
        deadline = Deadline(1e-3)
        deadline.enter("search")
        desk.bench.deadline = deadline
        engine = Faulty(OnnxRuntime(), "hang", on_run=0)
        with pytest.raises(OutOfTime, match=r"^the time limit ended it$"):
            desk.open(engine)


def test_a_step_that_fails_by_itself_is_no_lack_of_time(tmp_path: Path) -> None:
    with Desk(tmp_path) as desk:
        deadline = Deadline(1e6)
        deadline.enter("search")
        desk.bench.deadline = deadline
        with pytest.raises(CandidateError) as failed:
            desk.open(Faulty(OnnxRuntime(), "kill", on_run=0))
        assert not isinstance(failed.value, OutOfTime)
