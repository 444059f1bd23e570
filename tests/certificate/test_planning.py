"""How much data a certificate takes."""

import tracemalloc

import pytest
from scipy import stats

from hasten.certificate.draws import BETTING, EXACT, ONE_SHARE, Method
from hasten.certificate.exact import clopper_pearson_upper, paired_certifies
from hasten.certificate.planning import samples_needed
from hasten.errors import InputError


@pytest.mark.parametrize(
    ("flip_rate", "max_drop", "samples"), [(0.05, 0.01, 3160), (0.05, 0.02, 837), (0.05, 0.03, 400)]
)
def test_samples_needed_are_those_of_the_plan(
    flip_rate: float, max_drop: float, samples: int
) -> None:
    assert samples_needed(flip_rate, 0.0, max_drop, 0.95) == pytest.approx(samples, rel=0.05)


def test_samples_needed_are_exact_where_nothing_changes() -> None:
    assert samples_needed(0.0, 0.0, 0.01, 0.95) == 299
    for max_drop, alpha in ((0.003, 0.05), (0.02, 0.05), (0.1, 0.05), (0.01, 0.01)):
        n = samples_needed(0.0, 0.0, max_drop, 1 - alpha)
        assert paired_certifies(0, 0, n, max_drop, alpha)
        assert not paired_certifies(0, 0, n - 1, max_drop, alpha)
        n = samples_needed(0.0, 0.0, max_drop, 1 - alpha, method=ONE_SHARE)
        assert clopper_pearson_upper(0, n, alpha) <= max_drop
        assert clopper_pearson_upper(0, n - 1, alpha) > max_drop


@pytest.mark.parametrize(
    ("flip_rate", "drop", "max_drop"),
    [(0.005, 0.0, 0.01), (0.01, 0.0, 0.01), (0.02, -0.005, 0.01), (0.02, 0.005, 0.03)],
)
def test_as_many_as_it_says_certify_in_four_of_five_cases(
    flip_rate: float, drop: float, max_drop: float
) -> None:
    n = samples_needed(flip_rate, drop, max_drop, 0.95)
    lost, gained = (flip_rate + drop) / 2, (flip_rate - drop) / 2
    few = range(40)
    both = stats.binom.pmf(few, n, lost)[:, None] * stats.binom.pmf(few, n, gained)
    # Where gains are more, more losses pass: the boundary rises, so each row of it is found once.
    power, most = 0.0, -1
    for there in few:
        while most + 1 < 40 and paired_certifies(most + 1, there, n, max_drop, 0.05):
            most += 1
        power += float(both[: most + 1, there].sum())
    assert power == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize(("max_drop", "share"), [(0.01, 0.005), (0.02, 0.008), (0.05, 0.03)])
def test_samples_needed_serve_for_one_share_too(max_drop: float, share: float) -> None:
    n = samples_needed(share, share, max_drop, 0.95, method=ONE_SHARE)
    most = next(k for k in range(n) if clopper_pearson_upper(k + 1, n, 0.05) > max_drop)
    assert stats.binom.cdf(most, n, share) == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize(("flip_rate", "times"), [(0.0, 1.12), (0.05, 1.18), (0.2, 1.18)])
def test_betting_needs_a_sixth_more_or_an_eighth_where_nothing_changes(
    flip_rate: float, times: float
) -> None:
    needed = samples_needed(flip_rate, 0.0, 0.01, 0.95, method=BETTING)
    assert needed / samples_needed(flip_rate, 0.0, 0.01, 0.95) == pytest.approx(times, rel=0.02)


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (
            (0.02, 0.01, 0.01, 0.95),
            "no number of samples certifies a drop of 0.01 as less than 0.01; raise max_drop",
        ),
        (
            (0.001, 0.005, 0.01, 0.95),
            "expected rates need abs(drop) <= flip_rate <= 1 and 0 < power < 1: got drop=0.005, flip_rate=0.001 and power=0.8; check them",
        ),
    ],
)
def test_unusable_rates_are_refused(rates: tuple[float, float, float, float], message: str) -> None:
    with pytest.raises(InputError) as error:
        samples_needed(*rates)
    assert str(error.value) == message


@pytest.mark.parametrize("method", [EXACT, BETTING, ONE_SHARE])
def test_a_tiny_limit_takes_no_memory_for_the_draws_that_it_needs(method: Method) -> None:
    """A bundle's manifest states its limit, and may state any."""
    tracemalloc.start()
    try:
        needed = samples_needed(0.0, 0.0, 1e-9, 0.95, method=method)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2.9e9 < needed < 3.1e9
    assert peak_bytes < 1 << 20  # before, 36 GB


def test_a_limit_below_what_any_data_could_show_is_refused() -> None:
    with pytest.raises(InputError) as error:
        samples_needed(0.0, 0.0, 1e-300, 0.95)
    assert str(error.value) == (
        "max_drop is a share of at least 1e-09, since no data could show less: got 1e-300; 1% is 0.01"
    )
