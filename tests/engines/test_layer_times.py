"""Where the time of a profile goes."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.engines.layers import Kind, LayerTime, summarize


def step(name: str, kind: Kind, precision: str, *latency_us: int, **fields: Any) -> LayerTime:
    times_ns = tuple(1000 * us for us in latency_us)
    facts = {"operator": "Any", "kernel": "", "sources": (name,), **fields}
    return LayerTime(name=name, kind=kind, precision=precision, latency_ns=times_ns, **facts)


STEPS = (
    step("a", "arithmetic", "f32", 10, 20, 90),
    step("b", "conversion", "i8", 50, 5, 5),
    step("c", "arithmetic", "i8", 40, 30, 50),
    step("d", "arithmetic", "f32", 10, 10, 10),
)


def test_each_step_counts_by_its_own_median_whichever_request_was_disturbed() -> None:
    assert summarize(STEPS).latency_ns == 75_000
    kinds = summarize(STEPS).kinds
    assert {kind: (part.steps, part.latency_ns) for kind, part in kinds.items()} == {
        "arithmetic": (3, 70_000),
        "conversion": (1, 5_000),
    }
    assert [round(part.share, 3) for part in kinds.values()] == [0.933, 0.067]


def test_precisions_come_longest_first_and_those_of_products_apart() -> None:
    breakdown = summarize(STEPS)
    assert [(p, part.latency_ns) for p, part in breakdown.precisions.items()] == [
        ("i8", 45_000),
        ("f32", 30_000),
    ]
    assert [(p, part.latency_ns) for p, part in breakdown.arithmetic.items()] == [
        ("i8", 40_000),
        ("f32", 30_000),
    ]
    assert breakdown.arithmetic["i8"].share == pytest.approx(40 / 75)


def test_the_slowest_step_is_the_one_with_the_longest_median() -> None:
    slowest = summarize(STEPS).slowest
    assert [(layer.name, layer.median_ns) for layer in slowest] == [
        ("c", 40_000),
        ("a", 20_000),
        ("d", 10_000),
        ("b", 5_000),
    ]


def test_nothing_takes_no_time() -> None:
    breakdown = summarize(())
    assert (breakdown.latency_ns, breakdown.kinds, breakdown.slowest) == (0, {}, ())
    idle = summarize((step("a", "movement", "f32", 0, 0),))
    assert idle.kinds["movement"].share == 0


KINDS: tuple[Kind, ...] = ("arithmetic", "elementwise", "conversion", "movement")


@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS),
            st.sampled_from(["f32", "i8"]),
            st.lists(st.integers(1, 10**6), min_size=3, max_size=3),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_shares_add_up_and_every_step_is_counted_once(
    drawn: list[tuple[Kind, str, list[int]]],
) -> None:
    breakdown = summarize([step("s", kind, precision, *us) for kind, precision, us in drawn])
    for portions in (breakdown.kinds, breakdown.precisions):
        assert sum(part.share for part in portions.values()) == pytest.approx(1)
        assert sum(part.steps for part in portions.values()) == len(drawn)
    medians = [layer.median_ns for layer in breakdown.slowest]
    assert medians == sorted(medians, reverse=True)
