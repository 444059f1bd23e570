"""When requests are due."""

import itertools
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hasten.errors import InputError
from hasten.evaluation.loadtest.schedule import schedule


@given(st.floats(1, 1e4), st.floats(0.1, 3), st.floats(0, 2), st.integers(0, 99))
def test_poisson_arrivals_are_ascending_and_end_with_the_window(
    rate: float, duration_s: float, warmup_s: float, seed: int
) -> None:
    assume(rate * duration_s > 40)  # else it may be that none is due
    plan = schedule(rate, duration_s, warmup_s=warmup_s, seed=seed)
    assert list(plan.due_ns) == sorted(plan.due_ns)
    assert plan.due_ns[0] >= 0
    assert plan.warmup_ns <= plan.due_ns[-1] < plan.warmup_ns + plan.duration_ns
    assert plan.due_ns[plan.first_counted] >= plan.warmup_ns
    assert all(due < plan.warmup_ns for due in plan.due_ns[: plan.first_counted])


def test_poisson_arrivals_fill_the_window_to_its_end() -> None:
    # Were only the expected number drawn, about half of the windows would end early.
    for seed in range(50):
        plan = schedule(1000, 1.0, seed=seed)
        assert plan.due_ns[-1] > 0.98e9
        assert abs(len(plan.due_ns) - 1000) < 6 * math.sqrt(1000)


def test_poisson_gaps_vary_as_an_exponential_does() -> None:
    due_ns = schedule(1000, 10.0, seed=3).due_ns
    gaps_ns = [after - before for before, after in itertools.pairwise(due_ns)]
    assert 0.34 < sum(gap > 1_000_000 for gap in gaps_ns) / len(gaps_ns) < 0.40  # 1/e


def test_a_seed_repeats_the_arrivals_and_another_gives_others() -> None:
    assert schedule(100, 1.0, seed=7) == schedule(100, 1.0, seed=7)
    assert schedule(100, 1.0, seed=7) != schedule(100, 1.0, seed=8)


def test_constant_arrivals_are_evenly_spaced_from_the_start() -> None:
    plan = schedule(4, 1.0, warmup_s=0.5, arrivals="constant")
    assert plan.due_ns == tuple(250_000_000 * number for number in range(6))
    assert plan.first_counted == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate_per_s": 0}, "the rate is in requests a second, above 0: got 0"),
        ({"rate_per_s": math.nan}, "the rate is in requests a second, above 0: got nan"),
        (
            {"duration_s": 0},
            "the duration is in seconds, above 0 and at most 86400: got 0",
        ),
        ({"warmup_s": -1}, "the warm-up is in seconds, from 0 to 86400: got -1"),
        ({"arrivals": "bursts"}, "arrivals are poisson or constant: got 'bursts'"),
        ({"seed": -1}, "the seed is at least 0: got -1"),
        (
            {"rate_per_s": 1e6, "duration_s": 9, "warmup_s": 1},
            "1e+06 requests a second for 10 s are 10,000,000 requests, and one test sends at "
            "most 5,000,000: lower the rate or the duration",
        ),
        (
            {"rate_per_s": 1e-6, "duration_s": 2},
            "no request is due within 2 s at 1e-06 a second: raise the rate or the duration",
        ),
    ],
)
def test_figures_out_of_range_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError) as raised:
        schedule(**{"rate_per_s": 10, "duration_s": 1, **options})  # type: ignore[arg-type]
    assert str(raised.value) == message
