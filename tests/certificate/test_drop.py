"""The search split's view of a drop: its estimate and its interval."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.certificate.drop import Drop, observed_drop
from hasten.core.tensors import Array


def of_counts(lost: int, gained: int, n: int) -> Drop:
    falls = np.concatenate([np.ones(lost), -np.ones(gained), np.zeros(n - lost - gained)])
    return observed_drop(falls, np.arange(n), binary=True)


def test_the_interval_is_agresti_and_mins() -> None:
    drop = of_counts(20, 5, 400)
    middle, n = 15 / 402, 402
    half = 1.9659 * np.sqrt((26 / n - middle**2) / n)
    assert (drop.estimate, drop.draws, drop.lost, drop.gained) == (15 / 400, 400, 20, 5)
    assert (drop.low, drop.high) == pytest.approx((middle - half, middle + half), rel=1e-4)


def test_nothing_lost_of_few_is_no_proof_of_nothing() -> None:
    assert of_counts(0, 0, 50).high > 0.03
    assert of_counts(0, 0, 5000).high < 0.001


def test_where_nothing_can_be_gained_the_interval_ends_at_none() -> None:
    falls = np.zeros(100)
    assert observed_drop(falls, np.arange(100), binary=True, only_falls=True).low == 0
    assert observed_drop(falls, np.arange(100), binary=True).low < 0


def test_a_group_is_one_draw_and_has_no_counts() -> None:
    falls = np.repeat([0.0, 1.0, 0.0, 0.0], 100)
    drop = observed_drop(falls, np.repeat(np.arange(4), 100), binary=True)
    assert (drop.estimate, drop.draws, drop.lost, drop.gained) == (0.25, 4, None, None)
    assert drop.high > 0.6


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50))
def test_an_interval_holds_its_estimate(falls: list[float]) -> None:
    drop = observed_drop(np.array(falls), np.arange(len(falls)), binary=False)
    assert -1 <= drop.low <= drop.estimate <= drop.high <= 1
    assert (drop.lost, drop.gained) == (None, None)


@pytest.mark.parametrize(
    ("lost", "gained", "n"), [(0.01, 0.0, 300), (0.02, 0.01, 300), (0.3, 0.2, 100), (0.05, 0.0, 60)]
)
def test_intervals_cover_the_truth_about_as_often_as_they_say(
    lost: float, gained: float, n: int
) -> None:
    rng = np.random.default_rng(0)
    counts: Array = rng.multinomial(n, [lost, gained, 1 - lost - gained], 2000)
    drops = [of_counts(int(a), int(b), n) for a, b, _ in counts]
    covered = np.mean([d.low <= lost - gained <= d.high for d in drops])
    assert covered > 0.92
