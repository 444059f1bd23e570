import math
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.engines.layers import LayerTime
from hasten.optimization.measured.layers import (
    LayerCost,
    between_shares,
    kept_for,
    layer_costs,
    shares_for,
    slower_in_int8,
)

COSTS = st.lists(
    st.builds(
        LayerCost,
        node=st.just(""),
        noise=st.floats(1e-6, 1.0),
        float_ns=st.floats(1e3, 1e6),
        int8_ns=st.floats(1e3, 1e6),
        moved_ns=st.floats(0.0, 1e6),
    ),
    min_size=1,
    max_size=7,
).map(lambda costs: [replace(cost, node=f"n{i}") for i, cost in enumerate(costs)])


def step(name: str, *latency_ns: int, sources: tuple[str, ...] = ()) -> LayerTime:
    return LayerTime(name, "Convolution", "arithmetic", "f32", "", sources or (name,), latency_ns)


def remaining(costs: list[LayerCost], kept: tuple[str, ...]) -> float:
    return sum(cost.noise for cost in costs if cost.node not in kept)


def test_a_layer_has_the_median_of_its_requests_and_shares_a_step_with_others() -> None:
    noise = {"a": 0.1, "b": 0.2, "unseen": 0.3}
    floats = [step("a", 100, 900, 110), step("b", 50, 50, 50), step("relu", 7)]
    int8 = [step("a+b", 60, 60, 60, sources=("a", "b", "relu")), step("b/again", 10)]
    costs = layer_costs(noise, floats, int8)
    assert costs == (LayerCost("a", 0.1, 110.0, 30.0), LayerCost("b", 0.2, 50.0, 30.0))


def test_what_a_layer_reads_and_writes_is_converted_where_it_stands_alone_in_float() -> None:
    noise = {"a": 0.1}
    (cost,) = layer_costs(noise, [step("a", 50)], [step("a", 70)], {"a": 30.0})
    assert (cost.moved_ns, cost.price_ns, cost.slower) == (30.0, 30.0, False)
    assert replace(cost, int8_ns=90.0).slower


@given(COSTS, st.floats(0.0, 1.0))
def test_no_more_noise_is_left_than_asked_and_what_int8_slows_down_is_never_left_in_it(
    costs: list[LayerCost], share: float
) -> None:
    kept = kept_for(costs, share)
    assert remaining(costs, kept) <= share * remaining(costs, ()) * (1 + 1e-9) + 1e-12
    assert set(slower_in_int8(costs)) <= set(kept)


@given(COSTS, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_less_noise_keeps_no_fewer_layers(costs: list[LayerCost], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert set(kept_for(costs, low)) >= set(kept_for(costs, high))


@given(COSTS, st.floats(0.0, 1.0))
def test_what_is_given_up_is_within_one_layer_of_the_least(
    costs: list[LayerCost], share: float
) -> None:
    must = set(slower_in_int8(costs))
    wanted = share * remaining(costs, ()) + 1e-12

    def given_up(kept: set[str]) -> float:
        return sum(cost.price_ns for cost in costs if cost.node in kept)

    free = [cost.node for cost in costs if cost.node not in must]
    least = min(
        given_up(must | set(some))
        for size in range(len(free) + 1)
        for some in combinations(free, size)
        if remaining(costs, (*must, *some)) <= wanted
    )
    one = max(cost.price_ns for cost in costs)
    assert given_up(set(kept_for(costs, share))) <= least + one + 1e-6


def test_the_layer_that_frees_most_noise_for_its_time_goes_first() -> None:
    costs = [
        LayerCost("cheap and loud", 0.6, 20.0, 10.0),
        LayerCost("dear and loud", 0.6, 200.0, 10.0),
        LayerCost("free", 0.01, 10.0, 10.0),
    ]
    assert kept_for(costs, 0.5) == ("cheap and loud", "free")
    assert kept_for(costs, 0.0) == ("cheap and loud", "dear and loud", "free")
    assert kept_for(costs, 1.0) == ()


def test_the_shares_follow_the_square_of_what_the_flips_must_shrink_to() -> None:
    assert shares_for(0.5) == pytest.approx((0.25, 0.125, 0.05))
    assert shares_for(0.5, own=0.05) == pytest.approx((0.2, 0.1, 0.04))
    # Of the noise that flipped them, some was the float's of the engine that ran them.
    assert shares_for(0.5, own=0.2, within=0.2) == pytest.approx((0.0625, 0.03125, 0.0125))
    assert shares_for(0.9, own=0.0, within=0.4) == pytest.approx((0.675, 0.27))  # 1.35 is all


@pytest.mark.parametrize(("scale", "own"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.25), (0.5, 0.9)])
def test_no_share_is_tried_where_none_is_needed_or_none_would_do(scale: float, own: float) -> None:
    assert shares_for(scale, own) == ()


@pytest.mark.parametrize(
    ("passes", "between"),
    [
        ({}, None),
        ({1.0: True, 0.25: True}, None),
        ({1.0: False, 0.25: True}, 0.5),
        ({1.0: False, 0.5: False, 0.125: True, 0.05: True}, 0.25),
        ({1.0: False, 0.4: False, 0.3: True}, None),
        ({1.0: False, 0.4: False, 0.2: False}, 0.05),
        ({1.0: False, 0.4: True, 0.2: False}, math.sqrt(0.4)),
    ],
)
def test_the_next_share_lies_between_what_passes_and_what_does_not(
    passes: dict[float, bool], between: float | None
) -> None:
    assert between_shares(passes) == (between if between is None else pytest.approx(between))
