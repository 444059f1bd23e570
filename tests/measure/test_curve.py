"""What a batch curve says, and which point a server should take."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import IntegrityError
from hasten.measure.closed_loop import Block
from hasten.measure.curve import CurvePoint, best_batch, curve_record, points_of


def point(batch: int, p50_ns: int, *, sessions: int = 1, requests: int = 4) -> CurvePoint:
    """Sessions that are never idle."""
    block = Block((p50_ns,) * requests * sessions, p50_ns * requests)
    return CurvePoint(batch, 1, sessions, {0: block, 1: block})


CURVE = [point(1, 1000), point(2, 1500), point(4, 2500), point(8, 6000)]


def test_figures_are_derived_of_raw_rounds() -> None:
    calm, disturbed = Block((10, 20, 30), 60), Block((90, 100, 110), 300)
    found = CurvePoint(4, 2, 1, {0: calm, 3: calm, 5: disturbed})
    assert found.p50_ns == 30
    assert found.throughput_per_s == pytest.approx(4 * 3 / 60e-9)  # the median round's


def test_sessions_side_by_side_add_up() -> None:
    assert point(1, 1000, sessions=3).throughput_per_s == pytest.approx(3e6)


@pytest.mark.parametrize(
    ("deadline_ns", "batch"), [(1000, None), (1001, 1), (2501, 4), (6001, 4), (10**9, 4)]
)
def test_the_best_batch_has_the_most_throughput_under_the_deadline(
    deadline_ns: int, batch: int | None
) -> None:
    found = best_batch(CURVE, deadline_ns)
    assert (found.batch if found else None) == batch


def test_of_equals_the_smaller_batch_is_best() -> None:
    found = best_batch([point(2, 2000), point(1, 1000), point(1, 2000, sessions=2)], 10**9)
    assert found is not None
    assert (found.batch, found.sessions) == (1, 1)


def test_nothing_is_best_of_nothing() -> None:
    assert best_batch([], 10**9) is None


POINTS = st.builds(point, st.integers(1, 64), st.integers(1, 10**9), sessions=st.integers(1, 8))


@given(st.lists(POINTS), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_later_deadline_never_gives_less_throughput(
    points: list[CurvePoint], deadline_ns: int, later_ns: int
) -> None:
    soon, late = best_batch(points, deadline_ns), best_batch(points, deadline_ns + later_ns)
    if soon is not None:
        assert soon.p50_ns < deadline_ns
        assert late is not None
        assert late.throughput_per_s >= soon.throughput_per_s


@given(st.lists(POINTS))
def test_a_curve_is_the_same_after_json(points: list[CurvePoint]) -> None:
    assert list(points_of(json.loads(json.dumps(curve_record(points))))) == points


def test_a_kept_curve_has_its_figures_beside_the_raw_rounds() -> None:
    (record,) = curve_record([point(2, 1500)])
    assert list(record) == ["batch", "threads", "sessions", "p50_ns", "throughput_per_s", "rounds"]
    assert (record["p50_ns"], record["throughput_per_s"]) == (1500, pytest.approx(2 / 1500e-9))
    assert record["rounds"]["0"] == {"latency_ns": [1500] * 4, "elapsed_ns": 6000}


def test_derived_figures_are_not_believed() -> None:
    (record,) = curve_record([point(2, 1500)])
    (found,) = points_of(json.loads(json.dumps([{**record, "p50_ns": 1, "throughput_per_s": 9e9}])))
    assert found.p50_ns == 1500


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 0},
        {"sessions": -1},
        {"threads": 2**60},
        {"rounds": {}},
        {"rounds": {"0": {"latency_ns": [], "elapsed_ns": 5}}},
        {"rounds": {"0": {"latency_ns": [5], "elapsed_ns": 0}}},
        {"rounds": {"0": {"latency_ns": [-5], "elapsed_ns": 5}}},
        {"rounds": {"0": {"latency_ns": [2**60], "elapsed_ns": 5}}},
        {"rounds": {"0": {"latency_ns": [5], "elapsed_ns": 2**60}}},
    ],
)
def test_a_curve_that_can_not_be_is_refused(change: dict[str, Any]) -> None:
    record = json.loads(json.dumps(curve_record([point(2, 1500)])))
    with pytest.raises(IntegrityError) as error:
        points_of([{**record[0], **change}])
    assert str(error.value) == "a point has no requests, or they took no time"
