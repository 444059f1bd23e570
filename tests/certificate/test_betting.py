"""The betting bound: that it holds over nasty distributions, and what it costs."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binom

from hasten.certificate import betting
from hasten.certificate.betting import (
    BettingPrior,
    betting_certifies,
    betting_refutes,
    betting_upper_bound,
    fewest_unchanged,
    group_means,
)
from hasten.errors import InputError

ALPHA = 0.05
Floats = NDArray[np.float64]
Shape = int | tuple[int, int]
Draw = Callable[[np.random.Generator, Shape], Floats]
Test = Callable[[Floats, float, float, BettingPrior], bool]


def rare_big_losses(rng: np.random.Generator, n: Shape) -> Floats:
    return (rng.random(n) < 0.02).astype(np.float64)


def many_small_losses(rng: np.random.Generator, n: Shape) -> Floats:
    return rng.beta(0.3, 12, n)


def flips_both_ways(rng: np.random.Generator, n: Shape) -> Floats:
    return rng.choice([1.0, -1.0, 0.0], n, p=[0.07, 0.05, 0.88])


def small_gains_and_rare_disasters(rng: np.random.Generator, n: Shape) -> Floats:
    return np.where(rng.random(n) < 0.04, 1.0, -0.02)


NASTY: list[tuple[Draw, float, int, int]] = [
    (rare_big_losses, 0.02, 400, 4000),
    (many_small_losses, 0.3 / 12.3, 3000, 800),
    (flips_both_ways, 0.02, 400, 4000),
    (small_gains_and_rare_disasters, 0.04 - 0.96 * 0.02, 400, 4000),
]
"""What is drawn, its mean, how many a time, and how often."""
PRIORS = [BettingPrior(), BettingPrior(0.0, 0.0, 200), BettingPrior(0.02, 0.05, 100)]


def at_once(test: Test, drawn: Floats, mean: float, prior: BettingPrior) -> int:
    """How many rows of `drawn` pass; the first is asked alone as well."""
    rows, m, expected = drawn, mean, prior
    if test is betting_refutes:
        (rows, expected), m = betting._turned(drawn, mean, prior), 0.0
    passed = betting._rejects(rows, np.ones_like(rows), np.array([m]), ALPHA, expected, 1.0)
    assert passed[0] == test(drawn[0], mean, ALPHA, prior)
    return int(passed.sum())


@pytest.mark.parametrize(
    ("test", "priors"), [(betting_certifies, PRIORS), (betting_refutes, PRIORS[1:2])]
)
@pytest.mark.parametrize(("draw", "mean", "n", "runs"), NASTY)
def test_a_true_drop_at_the_limit_is_certified_or_refuted_at_most_alpha_of_the_time(
    draw: Draw, mean: float, n: int, runs: int, test: Test, priors: list[BettingPrior]
) -> None:
    rng = np.random.default_rng(11)
    for prior in priors:
        batches = (draw(rng, (100, n)) for _ in range(runs // 100))
        false = sum(at_once(test, batch, mean, prior) for batch in batches)
        # The size comes so near to alpha that no number of runs would tell them apart; above, they would.
        assert false <= binom.ppf(0.999, runs, ALPHA)
        assert false > 0


def test_a_drop_far_beyond_the_limit_is_refuted_and_one_at_half_of_it_is_not() -> None:
    ordered = np.concatenate((np.ones(40), np.zeros(460)))
    differences = np.random.default_rng(0).permutation(ordered)
    assert betting_refutes(differences, 0.03, ALPHA, BettingPrior())
    assert not betting_refutes(differences, 0.16, ALPHA, BettingPrior())


def test_samples_sorted_by_outcome_would_break_it_hence_the_shuffle() -> None:
    rng = np.random.default_rng(3)
    ordered = [np.sort(rare_big_losses(rng, 400)) for _ in range(50)]
    false = sum(betting_certifies(d, 0.02, ALPHA, BettingPrior()) for d in ordered)
    assert false > 45


def test_no_difference_in_340_samples_certifies_one_percent() -> None:
    prior = BettingPrior.from_differences(np.zeros(120))
    assert betting_certifies(np.zeros(340), 0.01, ALPHA, prior)
    assert not betting_certifies(np.zeros(330), 0.01, ALPHA, prior)


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.5])
@pytest.mark.parametrize("max_drop", [0.001, 0.01, 0.3, 0.9])
def test_the_fewest_draws_certify_and_one_fewer_does_not(max_drop: float, alpha: float) -> None:
    fewest = fewest_unchanged(max_drop, alpha)
    assert betting_certifies(np.zeros(fewest), max_drop, alpha, BettingPrior())
    assert fewest == 1 or not betting_certifies(
        np.zeros(fewest - 1), max_drop, alpha, BettingPrior()
    )


def test_it_beats_hoeffding_by_far_where_differences_are_small() -> None:
    differences = np.random.default_rng(0).normal(0, 0.02, 1000).clip(-1, 1)
    hoeffding = differences.mean() + math.sqrt(2 * math.log(1 / ALPHA) / 1000)
    assert hoeffding > 0.07
    assert betting_upper_bound(differences, ALPHA, BettingPrior()) < 0.01


@pytest.mark.parametrize(("n", "drop"), [(3_731, 0.01), (988, 0.02), (472, 0.03)])
def test_it_needs_about_1_2_times_the_samples_of_the_exact_test(n: int, drop: float) -> None:
    rng = np.random.default_rng(5)
    prior = BettingPrior(0.0, 0.05, n * 3 // 7)
    passed = 0
    for _ in range(300):
        differences = rng.choice([1.0, -1.0, 0.0], n, p=[0.025, 0.025, 0.95])
        passed += betting_certifies(differences, drop, ALPHA, prior)
    assert 0.7 < passed / 300 < 0.9


@given(
    values=st.lists(st.floats(-1, 1), min_size=1, max_size=200),
    alpha=st.sampled_from([0.001, 0.05, 0.3]),
)
def test_the_bound_and_the_verdict_never_disagree(values: list[float], alpha: float) -> None:
    differences, prior = np.array(values), BettingPrior(0.0, 0.01, 50)
    bound = betting_upper_bound(differences, alpha, prior)
    assert 0 <= bound <= 1
    if bound < 0.999:
        assert betting_certifies(differences, max(bound, 1e-9), alpha, prior)
        assert betting_certifies(differences, (bound + 1) / 2, alpha, prior)
    if bound > 1e-5:
        assert not betting_certifies(differences, bound - 2e-6, alpha, prior)


@given(values=st.lists(st.floats(-1, 1), min_size=2, max_size=100), seen=st.integers(1, 99))
def test_a_bet_never_uses_the_sample_it_is_placed_on_or_a_later_one(
    values: list[float], seen: int
) -> None:
    differences, prior = np.array(values), BettingPrior(0.0, 0.01, 20)
    seen = min(seen, differences.size - 1)
    changed = differences.copy()
    changed[seen:] = 1.0
    weights = np.ones_like(differences)
    before, after = (betting._spread(d, weights, prior) for d in (differences, changed))
    assert np.array_equal(before[: seen + 1], after[: seen + 1])
    assert before.min() > 0


def test_once_certified_later_samples_do_not_take_it_back() -> None:
    good = np.zeros(340)
    prior = BettingPrior.from_differences(np.zeros(120))
    assert betting_certifies(np.concatenate((good, np.zeros(5))), 0.01, ALPHA, prior)
    assert betting_certifies(np.concatenate((np.zeros(345), np.ones(5))), 0.01, ALPHA, prior)


def test_a_groups_mean_is_one_draw() -> None:
    values = np.array([1.0, 0.0, 0.5, 1.0, 0.0])
    means = group_means(values, np.array(["b", "a", "b", "a", "c"]))
    assert means.tolist() == [0.5, 0.75, 0.0]


def test_unusable_differences_are_refused() -> None:
    prior = BettingPrior()
    with pytest.raises(InputError) as error:
        betting_upper_bound(np.array([]), ALPHA, prior)
    assert str(error.value) == (
        "nothing to bound: got differences of shape (0,); give at least one, in one dimension"
    )
    for bad in (1.5, math.nan):
        with pytest.raises(InputError) as error:
            betting_certifies(np.array([0.0, bad]), 0.01, ALPHA, prior)
        assert str(error.value) == (
            "differences lie between -1 and 1: got some outside, or not a number; give scores between 0 and 1"
        )
    with pytest.raises(InputError) as error:
        betting_certifies(np.zeros(3), 0.0, ALPHA, prior)
    assert str(error.value) == "max_drop is a share between 0 and 1: got 0.0; 1% is 0.01"
    for mean, variance, n in (
        (math.nan, 0.0, 1),
        (0.0, -1.0, 1),
        (0.0, math.inf, 1),
        (0.0, 0.0, -1),
    ):
        with pytest.raises(InputError) as error:
            BettingPrior(mean, variance, n)
        assert str(error.value).startswith("a prior has a mean in [-1, 1], a variance and a number")
    with pytest.raises(InputError) as error:
        group_means(np.zeros(3), np.zeros(2))
    assert str(error.value) == (
        "every sample needs one group: got scores of shape (3,) and groups of shape (2,); give one label per sample"
    )
