"""Exact bounds: their true size, by enumeration, and the facts that a plan relies on."""

import itertools
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from hasten.certificate import exact
from hasten.certificate.exact import (
    clopper_pearson_upper,
    paired_certifies,
    paired_p_value,
    paired_refutes,
    paired_upper_bound,
    tango_statistic,
)
from hasten.errors import InputError

ALPHA = 0.05
COSTLY = settings(max_examples=min(40, settings().max_examples))
Certifies = Callable[[int, int, int, float], bool]


def ours(lost: int, gained: int, n: int, drop: float) -> bool:
    return paired_certifies(lost, gained, n, drop, ALPHA)


def asymptotic(lost: int, gained: int, n: int, drop: float) -> bool:
    cutoff = stats.norm.ppf(ALPHA)
    return bool(tango_statistic(np.array(lost), np.array(gained), n, drop) <= cutoff)


def mirrored(lost: int, gained: int, n: int, drop: float) -> bool:
    return paired_refutes(gained, lost, n, drop, ALPHA)


@cache
def steps_so_far(certifies: Certifies, n: int, drop: float) -> list[int]:
    return []


def most_lost(certifies: Certifies, n: int, drop: float, most_gained: int) -> list[int]:
    """For each gained count, the most lost that still certify (-1 for none): a staircase walk."""
    steps = steps_so_far(certifies, n, drop)
    for gained in range(len(steps), most_gained + 1):
        lost = min(steps[-1] if steps else -1, n - gained)
        while lost + 1 + gained <= n and certifies(lost + 1, gained, n, drop):
            lost += 1
        steps.append(lost)
    return steps[: most_gained + 1]


def chance_to_certify(
    certifies: Certifies, n: int, drop: float, p_lost: float, p_gained: float
) -> float:
    """Exact, by summing over every outcome; gained beyond 1 - 1e-9 of its mass count as certified."""
    most_gained = int(stats.binom.ppf(1 - 1e-9, n, p_gained))
    gained = np.arange(most_gained + 1)
    lost = np.array(most_lost(certifies, n, drop, most_gained))
    at_most = stats.binom.cdf(lost, n - gained, p_lost / (1 - p_gained))
    return float(stats.binom.pmf(gained, n, p_gained) @ at_most) + 1e-9


@cache
def bisected_score_limits(
    n: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Every outcome's lost, its gained, and its score limit."""
    cutoff = stats.norm.ppf(ALPHA)
    cells = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    b, c = (np.array(counts) for counts in zip(*cells, strict=True))
    low, high = np.full(b.shape, -1.0), np.full(b.shape, 1.0)
    for _ in range(50):
        middle = (low + high) / 2
        below = np.array(
            [tango_statistic(x, y, n, m) <= cutoff for x, y, m in zip(b, c, middle, strict=True)]
        )
        low, high = np.where(below, low, middle), np.where(below, middle, high)
    return b, c, high


def brute_force_p_value(
    lost: int, gained: int, n: int, drop: float, nuisances: NDArray[np.float64]
) -> float:
    """The supremum over a dense grid, with the outcomes ordered by bisected score limits, no shortcuts."""
    b, c, high = bisected_score_limits(n)
    (own,) = high[(b == lost) & (c == gained)]
    region = high <= own + 1e-12
    probabilities = [
        stats.multinomial.pmf(
            np.stack([b, c, n - b - c], axis=-1)[region],
            n,
            [q + drop, q, max(0.0, 1 - 2 * q - drop)],
        ).sum()
        for q in nuisances
    ]
    return float(np.max(probabilities))


@pytest.mark.parametrize(
    ("n", "drop"),
    [
        *itertools.product((20, 50), (0.01, 0.05, 0.2)),
        *itertools.product((100, 299), (0.005, 0.01, 0.02, 0.05)),
        (268, 0.01),
        (500, 0.02),
    ],
)
def test_the_true_size_is_at_most_alpha(n: int, drop: float) -> None:
    nuisances = np.concatenate(([0, 1e-4, 3e-4], np.geomspace(0.001, 0.12, 14)))
    sizes = [chance_to_certify(ours, n, drop, q + drop, q) for q in nuisances]
    assert max(sizes) <= ALPHA


@pytest.mark.parametrize(
    ("n", "drop"), [(20, 0.05), (50, 0.2), (100, 0.02), (299, 0.01), (299, 0.06), (500, 0.02)]
)
def test_a_drop_at_the_limit_is_called_too_large_at_most_alpha_of_the_time(
    n: int, drop: float
) -> None:
    nuisances = np.concatenate(([0, 1e-4, 3e-4], np.geomspace(0.001, 0.12, 14)))
    sizes = [chance_to_certify(mirrored, n, drop, q, q + drop) for q in nuisances]
    assert max(sizes) <= ALPHA


def test_the_size_is_nearly_used_where_counts_are_fine_enough() -> None:
    for test, p in ((ours, (0.02, 0.0)), (mirrored, (0.0, 0.02))):
        sizes = [chance_to_certify(test, 500, 0.02, q + p[0], q + p[1]) for q in (0.01, 0.03, 0.1)]
        assert min(sizes) > 0.04


def test_tangos_own_cutoff_breaks_the_level_and_ours_does_not() -> None:
    assert chance_to_certify(asymptotic, 268, 0.01, 0.01, 0.0) == pytest.approx(0.0676, abs=1e-4)
    assert chance_to_certify(ours, 268, 0.01, 0.01, 0.0) <= ALPHA


def test_no_change_in_299_samples_certifies_one_percent() -> None:
    assert paired_certifies(0, 0, 299, 0.01, ALPHA)
    assert not paired_certifies(0, 0, 298, 0.01, ALPHA)
    assert clopper_pearson_upper(0, 299, ALPHA) < 0.01 < clopper_pearson_upper(0, 298, ALPHA)


@pytest.mark.parametrize(
    ("n", "drop"),
    [pytest.param(3_100, 0.01, marks=pytest.mark.seconds), (800, 0.02), (350, 0.03)],
)
def test_planned_samples_have_the_planned_power_where_five_percent_flip(
    n: int, drop: float
) -> None:
    assert 0.75 < chance_to_certify(ours, n, drop, 0.025, 0.025) < 0.85


@pytest.mark.parametrize(
    ("lost", "gained", "n", "drop"),
    [
        *((0, 0, 20, 0.1), (1, 3, 25, 0.12), (2, 0, 30, 0.3), (5, 9, 30, 0.05), (12, 13, 25, 0.5)),
        *((0, 1, 20, -0.01), (0, 6, 25, -0.1), (3, 9, 30, -0.05), (0, 0, 30, -0.5)),
    ],
)
def test_the_p_value_is_an_upper_bound_and_a_tight_one(
    lost: int, gained: int, n: int, drop: float
) -> None:
    first, last = max(0.0, -drop), (1 - drop) / 2
    brute = brute_force_p_value(lost, gained, n, drop, np.linspace(first, last, 801))
    p = paired_p_value(lost, gained, n, drop, gamma=0)
    assert brute <= p <= brute + 2e-3 * brute + 1e-5
    low, high = stats.beta.ppf([5e-7, 1 - 5e-7], [gained, gained + 1], [n - gained + 1, n - gained])
    low, high = np.clip((0.0 if gained == 0 else low, high), first, last)
    inside = brute_force_p_value(lost, gained, n, drop, np.linspace(low, high, 201))
    assert inside <= paired_p_value(lost, gained, n, drop)


def test_the_p_value_holds_between_the_points_where_it_is_computed() -> None:
    n, drop, rng = 400, 0.02, np.random.default_rng(7)
    for lost, gained in ((0, 2), (9, 14)):
        p = paired_p_value(lost, gained, n, drop, gamma=0)
        limit = _score_limit(lost, gained, n)
        b, c = np.arange(40), np.arange(n - 39)[:, None]
        inside = tango_statistic(b, c, n, limit) <= stats.norm.ppf(ALPHA) + 1e-9
        fewest = np.where(inside.any(axis=0), inside.argmax(axis=0), n + 1)
        for q in rng.uniform(0, 0.05, 40):
            tail = stats.binom.sf(fewest - 1, n - b, q / (1 - q - drop))
            assert stats.binom.pmf(b, n, q + drop) @ tail <= p


def _score_limit(lost: int, gained: int, n: int) -> float:
    low, high = -1.0, 1.0
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (low, middle) if asymptotic(lost, gained, n, middle) else (middle, high)
    return high


def test_tangos_statistic_is_monotone_in_each_count_and_in_the_drop() -> None:
    for n, drop in itertools.product((7, 40, 150), (-0.3, -0.01, 0.001, 0.01, 0.1, 0.6)):
        b, c = np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij")
        value = np.where(b + c <= n, tango_statistic(b, np.minimum(c, n - b), n, drop), np.nan)
        assert np.nanmax(np.diff(value, axis=1)) <= 1e-9
        assert np.nanmin(np.diff(value, axis=0)) >= -1e-9
        larger = tango_statistic(b, np.minimum(c, n - b), n, drop + 0.003)
        assert np.nanmax(np.where(b + c <= n, larger - value, np.nan)) <= 1e-9


@COSTLY
@given(
    n=st.integers(2, 800),
    rates=st.tuples(st.floats(0, 0.49), st.floats(0, 0.49)),
    drop=st.floats(0.002, 0.6),
)
def test_p_values_rise_with_losses_and_fall_with_gains_and_with_the_drop(
    n: int, rates: tuple[float, float], drop: float
) -> None:
    lost, gained = int(rates[0] * n), int(rates[1] * n)
    p, slack = paired_p_value(lost, gained, n, drop), 1e-5
    assert paired_p_value(lost + 1, gained, n, drop) >= p * 0.999 - slack
    assert paired_p_value(lost, gained + 1, n, drop) <= p * 1.001 + slack
    assert paired_p_value(lost, gained, n, min(drop * 1.1, 0.99)) <= p * 1.001 + slack


@COSTLY
@given(
    counts=st.tuples(*3 * [st.integers(0, 200)]).filter(any),
    alpha=st.sampled_from([0.001, 0.01, 0.05, 0.2]),
)
def test_the_bound_and_the_verdict_never_disagree(
    counts: tuple[int, int, int], alpha: float
) -> None:
    lost, gained, _ = counts
    n = sum(counts)
    bound = paired_upper_bound(lost, gained, n, alpha)
    assert max(0.0, (lost - gained) / n) <= bound <= 1
    if bound * 1.001 < 1:
        assert paired_certifies(lost, gained, n, bound * 1.001, alpha)
    if bound > 0.001:
        assert not paired_certifies(lost, gained, n, bound * 0.999, alpha)


def test_the_bound_is_one_where_everything_was_lost() -> None:
    assert paired_upper_bound(5, 0, 5, ALPHA) == 1.0
    assert clopper_pearson_upper(5, 5, ALPHA) == 1.0
    assert paired_upper_bound(0, 5, 5, ALPHA) < 0.05


@given(n=st.integers(1, 2000), share=st.floats(0, 0.99), alpha=st.floats(0.001, 0.3))
def test_clopper_pearson_leaves_exactly_alpha_below(n: int, share: float, alpha: float) -> None:
    count = int(share * n)
    upper = clopper_pearson_upper(count, n, alpha)
    assert stats.binom.cdf(count, n, upper) == pytest.approx(alpha, rel=1e-6)


def test_impossible_counts_and_limits_are_refused() -> None:
    with pytest.raises(InputError) as error:
        paired_p_value(3, 3, 5, 0.01)
    assert str(error.value) == (
        "lost and gained are counts among n samples: got lost=3, gained=3 and n=5; check the counts"
    )
    with pytest.raises(InputError) as error:
        paired_p_value(0, 0, 5, 1.0)
    assert str(error.value) == "a drop is a share between -1 and 1: got 1.0; 1% is 0.01"
    with pytest.raises(InputError) as error:
        clopper_pearson_upper(6, 5, 0.05)
    assert str(error.value) == (
        "a share needs 0 <= count <= n and n >= 1: got count=6 and n=5; check the counts"
    )
    with pytest.raises(InputError) as error:
        paired_upper_bound(0, 0, 5, 95)
    assert str(error.value) == (
        "alpha is a level between 0 and 1: got 95; 95% confidence is alpha=0.05"
    )


@pytest.mark.parametrize(
    ("n", "drop"),
    [(30, 0.1), (400, 0.02), pytest.param(3000, 0.01, marks=pytest.mark.seconds)],
)
def test_interpolation_stays_within_its_stated_error(n: int, drop: float) -> None:
    b = np.arange(n + 1)
    jagged = np.where(
        b % 7 < 3, b // 2, n + 1
    )  # not monotone: the error bound holds for any region
    grid = np.cos((2 * np.arange(exact._GRID) + 1) * np.pi / (2 * exact._GRID))
    nodes = np.cos((2 * np.arange(exact._NODES) + 1) * np.pi / (2 * exact._NODES))
    matrix, _ = exact._interpolation()
    ends = list(exact._pieces(n, drop, 0.0, (1 - drop) / 2))
    assert (ends[0][0], ends[-1][1]) == (0.0, (1 - drop) / 2)
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ends))
    for start, stop in ends[:: max(1, len(ends) // 6)]:
        middle, half = (start + stop) / 2, (stop - start) / 2
        for region in (jagged, exact._smallest_gained(n // 50, n // 50, n, ALPHA)):
            between = matrix @ exact._probability(region, n, drop, middle + half * nodes)
            direct = exact._probability(region, n, drop, middle + half * grid)
            assert np.abs(between - direct).max() <= exact._INTERPOLATION_ERROR
