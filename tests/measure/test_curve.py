"""What a batch curve says."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import IntegrityError
from hasten.measure.closed_loop import Block
from hasten.measure.curve import CurvePoint, curve_record, points_of


def point(batch: int, p50_ns: int, *, sessions: int = 1, requests: int = 4) -> CurvePoint:
    """Sessions that are never idle."""
    block = Block((p50_ns,) * requests * sessions, p50_ns * requests)
    return CurvePoint(batch, 1, sessions, {0: block, 1: block})


def test_figures_are_derived_of_raw_rounds() -> None:
    calm, disturbed = Block((10, 20, 30), 60), Block((90, 100, 110), 300)
    found = CurvePoint(4, 2, 1, {0: calm, 3: calm, 5: disturbed})
    assert found.p50_ns == 30
    assert found.throughput_per_s == pytest.approx(4 * 3 / 60e-9)  # the median round's


def test_sessions_side_by_side_add_up() -> None:
    assert point(1, 1000, sessions=3).throughput_per_s == pytest.approx(3e6)


POINTS = st.builds(point, st.integers(1, 64), st.integers(1, 10**9), sessions=st.integers(1, 8))


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
        {"rounds": {"0": {"latency_ns": [5, 0], "elapsed_ns": 5}}},
        {"rounds": {"0": {"latency_ns": [2**60], "elapsed_ns": 5}}},
        {"rounds": {"0": {"latency_ns": [5], "elapsed_ns": 2**60}}},
    ],
)
def test_a_curve_that_can_not_be_is_refused(change: dict[str, Any]) -> None:
    record = json.loads(json.dumps(curve_record([point(2, 1500)])))
    with pytest.raises(IntegrityError) as error:
        points_of([{**record[0], **change}])
    assert str(error.value) == "a point has no requests, or they took no time"
