from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import InputError
from hasten.measure.intervals import (
    Ratio,
    _p99s,
    effective_samples,
    establishes,
    paired_ratio,
    quantile,
    ratio_of_means,
)
from hasten.measure.replicates import student

Blocks = dict[int, tuple[int, ...]]
Floats = npt.NDArray[np.float64]
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


def test_two_rounds_of_a_host_that_stalls_give_an_interval_that_can_be_drawn() -> None:
    found = paired_ratio({0: (10**3,), 1: (10**8,)}, {0: (10**8,), 1: (10**3,)})
    assert found.low == pytest.approx(1e-6)
    assert found.high == pytest.approx(1e6)


def over_processes(rng: np.random.Generator, count: int, ratio: float) -> tuple[Blocks, Blocks]:
    """Rounds of two models whose processes differ lastingly by 2%, and rounds by 1%."""
    own: Blocks = {}
    other: Blocks = {}
    lasting = rng.normal(0, 0.02, (2, count))
    for r in range(8 * count):
        one, two = np.exp(lasting[:, r // 8] + rng.normal(0, 0.01, 2))
        own[r], other[r] = (round(1e6 * ratio * one),), (round(1e6 * two),)
    return own, other


@pytest.mark.parametrize("count", [3, 5])
def test_the_interval_over_processes_holds_the_true_ratio_as_often_as_it_says(count: int) -> None:
    rng, held, alone, repeats = np.random.default_rng(count), 0, 0, 60
    processes = {r: r // 8 for r in range(8 * count)}
    for _ in range(repeats):
        own, other = over_processes(rng, count, 0.9)
        found = paired_ratio(own, other, processes=processes)
        held += found.low <= 0.9 <= found.high
        means = ratio_of_means(own, other, processes=processes)
        assert means.estimate == pytest.approx(found.estimate, rel=0.02)
        few = paired_ratio(own, other)
        alone += few.low <= 0.9 <= few.high
    assert held > 0.9 * repeats
    assert alone < held


def test_rounds_of_one_process_are_compared_by_rounds() -> None:
    own, other = over_processes(np.random.default_rng(0), 3, 1.0)
    assert paired_ratio(own, other, processes=dict.fromkeys(own, 7)) == paired_ratio(own, other)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(freedom, 0.95) == pytest.approx(quantile, abs=5e-4)


def test_the_mean_over_all_requests_counts_a_stall_that_paired_rounds_hardly_count() -> None:
    other = dict.fromkeys(range(20), (10**6,) * 10)
    own = {**other, 7: (10**8,) * 10}
    assert paired_ratio(own, other, "mean").estimate == pytest.approx(1)
    assert ratio_of_means(own, other).estimate == pytest.approx(5.95)


def in_rounds(latencies: Floats, rounds: int = 40) -> Blocks:
    return {
        r: tuple(block.astype(int).tolist()) for r, block in enumerate(np.split(latencies, rounds))
    }


def independent(rng: np.random.Generator, count: int) -> Floats:
    return 1e6 + rng.exponential(1e6, count)


def following(rng: np.random.Generator, count: int, rho: float = 0.5) -> Floats:
    """AR(1) on a log scale: each latency is like the one before."""
    walk, noise = np.empty(count), rng.normal(size=count)
    walk[0] = noise[0]
    for i in range(1, count):
        walk[i] = rho * walk[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return np.asarray(1e6 * np.exp(0.2 * walk))


def bursts(rng: np.random.Generator, rounds: int, count: int = 30) -> Floats:
    """A neighbour slows one round in ten entirely, each time to another degree."""
    hit = rng.random(rounds) < 0.1
    slowed = 1 + np.where(hit, rng.exponential(2, rounds), 0.0)
    calm = 1e6 + rng.exponential(1e5, (rounds, count))
    return np.asarray((calm * slowed[:, None]).ravel())


LATENCIES: dict[str, tuple[Callable[[np.random.Generator], Floats], int]] = {
    "independent": (lambda rng: independent(rng, 4800), 480),
    "one like the last": (lambda rng: following(rng, 4800), 480),
    "whole rounds slowed": (lambda rng: bursts(rng, 480), 480),
    "few rounds, some slowed": (lambda rng: bursts(rng, 40), 40),
    "half a round in a hundred slowed": (lambda rng: long_bursts(rng, 480, 0.02, 1.02), 480),
    "bursts of three rounds": (lambda rng: long_bursts(rng, 480, 0.1, 3), 480),
    "bursts of twenty rounds": (lambda rng: long_bursts(rng, 480, 0.25, 20), 480),
    "bursts of twenty rounds, few of them": (lambda rng: long_bursts(rng, 40, 0.25, 20), 40),
}


def long_bursts(rng: np.random.Generator, rounds: int, share: float, length: float) -> Floats:
    """A neighbour slows all for so many rounds on average, in so large a share of the time."""
    slow, now = np.empty(rounds, bool), bool(rng.random() < share)
    for number, draw in enumerate(rng.random(rounds)):
        slow[number] = now
        now = draw >= 1 / length if now else draw < share / ((1 - share) * length)
    slowed = 1 + np.where(slow, rng.exponential(2, rounds), 0.0)
    return np.asarray((slowed[:, None] * (1e6 + rng.exponential(1e5, (rounds, 10)))).ravel())


def true_p99(kind: str) -> float:
    rng = np.random.default_rng(0)
    known = {
        "independent": 1e6 * (1 - np.log(0.01)),
        "one like the last": 1e6 * np.exp(0.2 * NormalDist().inv_cdf(0.99)),
        "whole rounds slowed": np.quantile(bursts(rng, 20_000), 0.99),
        "few rounds, some slowed": np.quantile(bursts(rng, 20_000), 0.99),
        "half a round in a hundred slowed": np.quantile(long_bursts(rng, 60_000, 0.02, 1), 0.99),
        "bursts of three rounds": np.quantile(long_bursts(rng, 60_000, 0.1, 3), 0.99),
    }
    return float(known.get(kind, np.quantile(long_bursts(rng, 60_000, 0.25, 20), 0.99)))


@pytest.mark.parametrize("kind", LATENCIES)
def test_bounds_of_p99_miss_it_no_more_often_than_they_say(kind: str) -> None:
    draw, rounds = LATENCIES[kind]
    rng, true, repeats = np.random.default_rng(rounds), true_p99(kind), 60
    found = [quantile(in_rounds(draw(rng), rounds), 0.99) for _ in range(repeats)]
    highs = [f.high_ns for f in found if f.high_ns is not None]
    assert sum(high < true for high in highs) <= 6  # of 60; more than 6 in one of 20 times at 5%
    assert sum(f.low_ns > true for f in found) <= 6
    assert len(highs) == 0 if rounds == 40 else len(highs) > 20
    if kind == "independent":
        assert len(highs) > 0.8 * repeats
        assert np.median(highs) < 1.4 * true


def test_a_bound_of_p99_holds_for_rare_slowdowns_once_one_was_met() -> None:
    # 1.5 begin in 600 rounds, so a fifth of all measurements meet none, and look as on a quiet host.
    rng = np.random.default_rng(7)
    true = float(np.quantile(long_bursts(rng, 60_000, 0.05, 20), 0.99))
    highs: list[float | None] = []
    unmet: list[float | None] = []
    for _ in range(80):
        latencies = long_bursts(rng, 600, 0.05, 20)
        met = (np.median(latencies.reshape(600, 10), axis=1) > 1.25e6).any()
        (highs if met else unmet).append(quantile(in_rounds(latencies, 600), 0.99).high_ns)
    false = sum(high is not None and high < true for high in highs)
    assert false <= 0.05 * len(highs)
    assert len(unmet) > 5
    assert sum(high is not None and high < true for high in unmet) > 0.9 * len(unmet)


@pytest.mark.parametrize("rounds", [6, 40])
def test_bounds_of_p50_hold_where_rounds_differ(rounds: int) -> None:
    rng = np.random.default_rng(rounds)
    found = []
    for _ in range(REPEATS):
        level = np.repeat(rng.normal(0, 0.1, rounds), 30)
        latencies = 1e6 * np.exp(level + rng.normal(0, 0.1, len(level)))
        found.append(quantile(in_rounds(latencies, rounds), 0.5))
    highs = [f.high_ns for f in found if f.high_ns is not None]
    assert len(highs) == (REPEATS if rounds == 40 else 0)
    assert sum(high < 1e6 for high in highs) / REPEATS < 0.08
    assert sum(f.low_ns > 1e6 for f in found) / REPEATS < 0.08


def test_a_middle_quantile_takes_29_rounds_and_a_p99_hundreds() -> None:
    rng = np.random.default_rng(1)

    def known(q: float, rounds: int) -> bool:
        return quantile(in_rounds(independent(rng, 10 * rounds), rounds), q).high_ns is not None

    assert [known(0.5, rounds) for rounds in (28, 29)] == [False, True]
    assert [known(0.99, rounds) for rounds in (40, 298, 600)] == [False, False, True]


def test_rounds_that_were_refused_are_part_of_the_tail() -> None:
    rng = np.random.default_rng(2)
    kept = in_rounds(independent(rng, 6000), 600)
    refused = dict(enumerate([(10**9,) * 10] * 20, 600))
    calm, whole = quantile(kept, 0.99), quantile(kept, 0.99, refused=refused)
    assert calm.high_ns is not None
    assert calm.high_ns < 2e7
    assert whole.value_ns > 9e8
    assert whole.high_ns in (None, 1e9)


def test_by_time_a_slow_round_weighs_as_much_as_a_fast_one() -> None:
    # In 6% of the time requests take ten times as long, so a closed loop sends a tenth of them.
    places = np.random.default_rng(3).permutation(600)
    rounds = {r: (10**7,) * 2 if place < 36 else (10**6,) * 20 for r, place in enumerate(places)}
    by_requests, by_time = (quantile(rounds, 0.97, by_time=choice) for choice in (False, True))
    assert (by_requests.value_ns, by_requests.high_ns) == (1e6, 1e6)
    assert (by_time.value_ns, by_time.high_ns) == (1e7, 1e7)


def test_too_few_samples_for_a_lower_bound_give_none() -> None:
    found = quantile({0: (5, 9, 7)}, 0.5)
    assert (found.low_ns, found.value_ns, found.high_ns) == (0.0, 7.0, None)


def test_samples_that_follow_each_other_count_for_less() -> None:
    rng = np.random.default_rng(3)
    worth = effective_samples(in_rounds(following(rng, 4000, 0.8)), 0.5)
    assert worth == pytest.approx(4000 * 0.2 / 1.8, rel=0.3)  # AR(1): (1 - rho) / (1 + rho)
    assert effective_samples(in_rounds(independent(rng, 4000)), 0.5) > 3000


@pytest.mark.parametrize("rounds", [6, 40])
def test_samples_of_rounds_that_differ_are_worth_less_than_one_each_round(rounds: int) -> None:
    levels = np.random.default_rng(6).permutation(rounds)
    noise = np.arange(30.0 * rounds) % 7
    latencies = np.repeat(1e6 * (1 + levels), 30) + noise
    assert rounds / 3 < effective_samples(in_rounds(latencies, rounds), 0.5) < rounds


def test_slow_rounds_that_come_together_are_few_moments() -> None:
    values = np.full((600, 10), 1e6)
    apart, together = values.copy(), values.copy()
    apart[50::100] *= 3
    together[300:306] *= 3
    assert quantile(in_rounds(apart.ravel(), 600), 0.99).high_ns == 3e6
    assert quantile(in_rounds(together.ravel(), 600), 0.99).high_ns is None


def test_equal_latencies_are_each_worth_one() -> None:
    even = in_rounds(np.full(400, 5.0))
    assert effective_samples(even, 0.99) == 400
    found = quantile(even, 0.5)
    assert (found.low_ns, found.high_ns) == (5.0, 5.0)


def test_a_quantile_of_nothing_is_refused() -> None:
    with pytest.raises(InputError) as error:
        quantile({0: ()}, 0.5)
    assert str(error.value) == "a quantile needs latencies; got none"


def tails(rng: np.random.Generator, rounds: int, scale: float = 1.0, shared: int = 0) -> Blocks:
    """Requests that now and then take far longer; a neighbour slows some rounds of all alike."""
    slowed = np.random.default_rng(shared).random(rounds) < 0.1
    own = 1e6 * (1 + rng.exponential(0.2, (rounds, 12)) + (rng.random((rounds, 12)) < 0.02))
    return in_rounds((scale * own * (1 + slowed[:, None])).ravel(), rounds)


@pytest.mark.parametrize("ratio", [1.0, 0.6])
@pytest.mark.parametrize("rounds", [40, 96])
def test_the_interval_of_a_p99_ratio_holds_the_true_one(rounds: int, ratio: float) -> None:
    rng, held, repeats = np.random.default_rng(rounds), 0, 100
    for number in range(repeats):
        own, other = tails(rng, rounds, ratio, number), tails(rng, rounds, 1.0, number)
        found = paired_ratio(own, other, "p99")
        held += found.low <= ratio <= found.high
    assert held / repeats > 0.9  # 95%, less two standard errors of 100 repeats


def test_a_p99_ratio_sees_what_a_p50_ratio_does_not() -> None:
    rng = np.random.default_rng(7)
    calm, stalling = ({r: block(rng, 1e6, 20) for r in range(40)} for _ in range(2))
    stalling = {
        r: tuple(x + 10**7 * (i == 3) for i, x in enumerate(b)) for r, b in stalling.items()
    }
    assert paired_ratio(stalling, calm).high < 1.05
    assert paired_ratio(stalling, calm, "mean").low > 1.3
    assert paired_ratio(stalling, calm, "p99").low > 5


@pytest.mark.parametrize(
    ("rounds", "count", "shown"), [(40, 12, True), (28, 100, False), (40, 7, False)]
)
def test_a_p99_takes_rounds_and_requests_to_show(rounds: int, count: int, shown: bool) -> None:
    latencies = np.array([1 + i * 7919 % 10007 for i in range(rounds * count)], np.float64)
    found = in_rounds(latencies, rounds)
    assert establishes(found, "p99") is shown
    assert establishes(found, "p50")
    assert establishes(found, "mean")


def test_slow_requests_that_come_together_show_no_p99() -> None:
    values = np.random.default_rng(4).integers(1000, 2000, 1000).astype(np.float64)
    values[500:520] += 10_000
    assert not establishes(in_rounds(values), "p99")


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=40), min_size=1, max_size=6))
def test_the_p99_of_a_resample_is_that_of_its_rounds_pooled(blocks: list[list[int]]) -> None:
    rounds = {number: tuple(block) for number, block in enumerate(blocks)}
    counts = np.eye(len(blocks), dtype=np.int64) * 3 + 1
    for taken, found in zip(counts, _p99s(rounds, list(rounds), counts), strict=True):
        pooled = sorted(x for n, block in zip(taken, blocks, strict=True) for x in block * int(n))
        assert found == pooled[::-1][int(0.01 * len(pooled))]
    for number, found in enumerate(_p99s(rounds, list(rounds), np.eye(len(blocks), dtype=int))):
        assert found == max(rounds[number])  # of forty at most, wherever among the others they are
