import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import InputError
from hasten.measure.intervals import Ratio, effective_samples, paired_ratio, quantile

Blocks = dict[int, tuple[int, ...]]
REPEATS = 200


def block(rng: np.random.Generator, scale: float, count: int = 8) -> tuple[int, ...]:
    return tuple((scale * rng.gamma(200, 1 / 200, count)).astype(int).tolist())


def pair(rng: np.random.Generator, rounds: int, ratio: float = 1.0) -> tuple[Blocks, Blocks]:
    """Two entrants whose rounds a drift, and now and then a neighbour, hits alike."""
    drift = 1e6 * np.exp(0.05 * np.cumsum(rng.normal(size=rounds)) + (rng.random(rounds) < 0.2))
    own = {r: block(rng, ratio * drift[r] * np.exp(rng.normal(0, 0.02))) for r in range(rounds)}
    other = {r: block(rng, drift[r] * np.exp(rng.normal(0, 0.02))) for r in range(rounds)}
    return own, other


@pytest.mark.parametrize("rounds", [6, 24, 40])
@pytest.mark.parametrize("ratio", [1.0, 0.4])
def test_the_paired_interval_holds_the_true_ratio_as_often_as_it_says(
    rounds: int, ratio: float
) -> None:
    rng = np.random.default_rng(rounds)
    found = [paired_ratio(*pair(rng, rounds, ratio)) for _ in range(REPEATS)]
    held = sum(f.low <= ratio <= f.high for f in found)
    assert held / REPEATS > 0.92  # 95%, less two standard errors of 200 repeats


def test_a_drift_over_whole_rounds_does_not_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    own = {r: block(rng, 1e6) for r in range(24)}
    other = {r: block(rng, 1e6) for r in range(24)}
    drift = np.exp(np.cumsum(rng.normal(0, 0.3, 24)))

    def drifted(rounds: Blocks) -> Blocks:
        return {r: tuple(round(1000 * x * drift[r]) for x in block) for r, block in rounds.items()}

    calm, wild = paired_ratio(own, other), paired_ratio(drifted(own), drifted(other))
    assert wild.spread == pytest.approx(calm.spread, rel=1e-3)


def test_one_disturbed_round_hardly_counts() -> None:
    rng = np.random.default_rng(1)
    own, other = ({r: block(rng, 1e6) for r in range(24)} for _ in range(2))
    calm = paired_ratio(own, other)
    own[7] = tuple(100 * x for x in own[7])
    assert paired_ratio(own, other).estimate == pytest.approx(calm.estimate, abs=0.01)


def test_a_model_against_itself_is_one_exactly() -> None:
    own = {r: (100 + r, 120 + r) for r in range(10)}
    assert paired_ratio(own, own) == Ratio(1.0, 1.0, 1.0, 10)
    assert paired_ratio(own, own).spread == 0.0


@pytest.mark.parametrize("statistic", ["p50", "p99", "mean"])
def test_each_statistic_finds_a_factor(statistic: str) -> None:
    rng = np.random.default_rng(2)
    other = {r: block(rng, 1e6, 50) for r in range(20)}
    own = {r: tuple(3 * x for x in block) for r, block in other.items()}
    found = paired_ratio(own, other, statistic)  # type: ignore[arg-type]
    assert found.estimate == pytest.approx(3)
    assert found.low <= found.estimate <= found.high


def test_only_rounds_that_both_ran_in_are_compared() -> None:
    own = dict.fromkeys(range(5), (200,)) | {9: (1,)}
    assert paired_ratio(own, dict.fromkeys(range(3), (100,))).rounds == 3
    with pytest.raises(InputError) as error:
        paired_ratio(own, {0: (100,), 7: (100,)})
    assert str(error.value) == "a paired ratio needs 2 rounds that both ran in; got 1"


@given(st.lists(st.integers(1, 10**9), min_size=2, max_size=12), st.integers(1, 50))
def test_the_interval_holds_its_estimate(values: list[int], factor: int) -> None:
    own = {r: (value,) for r, value in enumerate(values)}
    found = paired_ratio(own, dict.fromkeys(own, (factor,)))
    assert found.low <= found.estimate <= found.high


def independent(rng: np.random.Generator, count: int) -> Blocks:
    return {0: tuple((1e6 + rng.exponential(1e6, count)).astype(int).tolist())}


@pytest.mark.parametrize(("q", "count"), [(0.5, 40), (0.5, 1000), (0.99, 1000)])
def test_a_quantiles_bounds_miss_it_no_more_often_than_they_say(q: float, count: int) -> None:
    rng = np.random.default_rng(count)
    true = 1e6 - 1e6 * np.log(1 - q)
    found = [quantile(independent(rng, count), q) for _ in range(REPEATS)]
    highs = [f.high_ns for f in found if f.high_ns is not None]
    assert len(highs) > 0.9 * REPEATS
    assert sum(high < true for high in highs) / REPEATS < 0.08  # 5%, and two standard errors
    assert sum(f.low_ns > true for f in found) / REPEATS < 0.08


def test_p99_is_established_from_299_independent_samples_on() -> None:
    def found(count: int) -> tuple[int, bool]:
        # A multiple of a large odd number jumps about: no neighbours are alike.
        q = quantile({0: tuple(1 + i * 7919 % 10007 for i in range(count))}, 0.99)
        return q.effective, q.high_ns is not None

    assert found(298) == (298, False)
    assert found(299) == (299, True)


def test_too_few_samples_for_a_lower_bound_give_none() -> None:
    found = quantile({0: (5, 9, 7)}, 0.5)
    assert (found.low_ns, found.value_ns, found.high_ns) == (0.0, 7.0, None)


def test_samples_that_follow_each_other_count_for_less() -> None:
    rng = np.random.default_rng(3)
    noise = rng.normal(size=4000)
    walk = np.empty(4000)
    walk[0] = noise[0]
    for i in range(1, 4000):
        walk[i] = 0.8 * walk[i - 1] + noise[i]
    worth = effective_samples({0: tuple((1e6 + 1e4 * walk).astype(int).tolist())})
    assert worth == pytest.approx(4000 * 0.2 / 1.8, rel=0.3)  # AR(1): (1 - rho) / (1 + rho)
    assert effective_samples({0: tuple((1e6 + 1e4 * noise).astype(int).tolist())}) > 3000


def test_slow_requests_that_come_together_establish_no_p99() -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(1000, 2000, 1000)
    apart = values.copy()
    apart[50::50] += 10_000
    values[500:520] += 10_000
    together = quantile({0: tuple(values.tolist())}, 0.99)
    assert together.high_ns is None
    assert quantile({0: tuple(apart.tolist())}, 0.99).high_ns is not None


def test_equal_latencies_are_each_worth_one() -> None:
    assert effective_samples({0: (5,) * 100}) == 100
    found = quantile({0: (5,) * 300}, 0.99)
    assert (found.low_ns, found.high_ns) == (5.0, 5.0)


def test_a_quantile_of_nothing_is_refused() -> None:
    with pytest.raises(InputError) as error:
        quantile({0: ()}, 0.5)
    assert str(error.value) == "a quantile needs latencies; got none"
