"""What a run under load comes to, and the highest rate at which a bound holds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.measure.scenario import Offer, highest_rate, load_of, rarely_over


def offer(bound_ns: int = 0) -> Offer:
    return Offer("server", 10, 1.0, 100.0, bound_ns)


def test_a_run_lasts_as_long_as_asked_and_has_as_many_requests() -> None:
    assert Offer("server", 10, 2.0, 100.0).count == 200
    assert Offer("server", 1000, 2.0, 100.0).count == 1000


def test_figures_are_those_of_the_latencies() -> None:
    found = load_of(offer(900), range(1000, 0, -1), 10**9)
    assert (found.requests, found.throughput_per_s, found.mean_ns) == (1000, 1000.0, 500.5)
    assert (found.p50_ns, found.p90_ns, found.p99_ns) == (501, 901, 991)
    assert (found.over_bound, found.holds) == (100, False)
    assert found.latency_ns[:2] == (1000, 999)


def test_a_bound_holds_where_hardly_any_request_is_over() -> None:
    assert load_of(offer(1000), [1000] * 459, 10**9).holds
    assert not load_of(offer(1000), [1000] * 458, 10**9).holds
    assert not load_of(offer(1000), [1000] * 458 + [1001], 10**9).holds


def test_without_a_bound_none_holds() -> None:
    found = load_of(offer(), [1] * 1000, 10**9)
    assert (found.over_bound, found.holds) == (0, False)


@given(st.integers(0, 30), st.integers(1, 3000))
def test_few_enough_are_over_by_the_binomial_distribution(over: int, count: int) -> None:
    over = min(over, count)
    share = sum(math.comb(count, k) * 0.01**k * 0.99 ** (count - k) for k in range(over + 1))
    if abs(share - 0.01) > 1e-9:
        assert rarely_over(over, count) is (share < 0.01)


@pytest.mark.parametrize(("over", "least"), [(0, 459), (1, 662), (2, 838)])
def test_so_many_requests_are_needed_where_so_many_are_over(over: int, least: int) -> None:
    assert rarely_over(over, least)
    assert not rarely_over(over, least - 1)


@given(st.floats(0.02, 0.98), st.integers(6, 20))
def test_bisection_ends_below_the_highest_rate_and_near_it(share: float, tries: int) -> None:
    capacity, asked = 200.0, []

    def holds(rate: float) -> bool:
        asked.append(rate)
        return rate <= share * capacity

    found = highest_rate(capacity, holds, tries)
    assert len(asked) == tries
    assert max(asked) < capacity
    assert found is not None
    assert share * capacity - capacity / 2**tries <= found <= share * capacity


def test_rates_below_the_least_are_not_tried() -> None:
    asked: list[float] = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        return False

    assert highest_rate(200.0, holds, 6, least_per_s=20.0) is None
    assert asked == [100.0, 50.0, 25.0]


def test_where_no_rate_holds_there_is_none() -> None:
    assert highest_rate(200.0, lambda rate: False, 6) is None
