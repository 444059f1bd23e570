"""What latencies are compared by, in a race and before."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from hasten.engines.null import Null
from hasten.measure.candidate import Measurement, Single, Trial
from hasten.measure.intervals import Statistic, quantile
from hasten.measure.latency import Pace, pace_for
from hasten.measure.race import AGAIN, BASELINE, Standings, dominated, finished
from hasten.optimization.measured.screening import ratio

Draw = Callable[[np.random.Generator], Sequence[float]]


def steady(rng: np.random.Generator) -> Sequence[float]:
    return [1e6 * x for x in rng.gamma(400, 1 / 400, 24)]


def stalling(rng: np.random.Generator) -> Sequence[float]:
    """Half as long mostly; one request in twelve takes ten times as long."""
    return [0.5 * x * (20 if i in (5, 16) else 1) for i, x in enumerate(steady(rng))]


def standings(objective: Statistic, rounds: int, **entrants: Draw) -> Standings:
    rng = np.random.default_rng(0)
    found = Standings("race/1", 1, objective=objective)
    for number in range(rounds):
        draws = {BASELINE: steady, AGAIN: steady, **entrants}
        block = {name: tuple(map(int, draw(rng))) for name, draw in draws.items()}
        found.add(number, block, {}, counts=True)
    return found


@pytest.mark.parametrize(("objective", "faster"), [("p50", True), ("mean", False), ("p99", False)])
def test_a_race_is_won_by_the_objective(objective: Statistic, faster: bool) -> None:
    found = standings(objective, 40, stalling=stalling)
    assert found.statistic == objective
    assert (found.ratio("stalling").estimate < 1) is faster
    assert (found.ratio("stalling").high < 1) is faster


@pytest.mark.parametrize(("rounds", "decides"), [(24, "mean"), (40, "p99")])
def test_means_decide_while_a_p99_is_not_established(rounds: int, decides: str) -> None:
    found = standings("p99", rounds, stalling=stalling)
    assert (found.statistic, found.established) == (decides, decides == "p99")


@pytest.mark.parametrize(("rounds", "decides"), [(160, "mean"), (440, "p99")])
def test_a_p99_to_be_told_takes_hundreds_of_rounds(rounds: int, decides: str) -> None:
    found = standings("p99", rounds)
    assert found.statistic == "p99"
    found.told = True
    assert found.statistic == decides


def test_busy_rounds_are_part_of_a_p99_and_of_nothing_else() -> None:
    found = standings("p99", 440)
    calm, mean = found.ratio(AGAIN), found.means(AGAIN)
    for number in range(440, 452):
        stalled = {BASELINE: (10**6,) * 24, AGAIN: (10**7,) * 24}
        found.add(number, stalled, {}, counts=False)
    assert found.counted == 440
    assert found.ratio(AGAIN).estimate > 5 * calm.estimate
    assert found.means(AGAIN) == mean
    assert found.shows_p99(BASELINE)
    high = quantile(found.rounds[AGAIN], 0.99, refused=found.busy[AGAIN]).high_ns
    assert high is None or high == 10**7


def test_who_fell_out_keeps_no_p99_from_being_established() -> None:
    found = standings("p99", 40)
    found.rounds["fallen"] = {0: (5,)}
    assert found.established


def test_a_race_for_p99_goes_on_until_it_is_established() -> None:
    assert not finished(standings("p99", 24), 24, settle=10.0)
    assert finished(standings("mean", 24), 24, settle=10.0)
    assert finished(standings("p99", 40), 24, settle=10.0)
    few = standings("p99", 96)
    few.rounds = {name: {r: b[:2] for r, b in own.items()} for name, own in few.rounds.items()}
    assert not few.established
    assert finished(few, 24, settle=10.0)  # four times as many rounds are enough for anything


def test_nobody_falls_out_by_another_figure_than_the_one_asked_for() -> None:
    def out(objective: Statistic, rounds: int) -> set[str]:
        found = standings(objective, rounds, stalling=stalling, steady=steady)
        return dominated(found, dict.fromkeys(found.rounds), {"stalling": 0.0, "steady": 0.0})  # type: ignore[arg-type]

    assert out("mean", 24) == {"stalling"}
    assert out("p50", 24) == {"steady"}
    assert out("p99", 24) == set()
    assert out("p99", 40) == {"stalling"}


def test_a_trial_is_compared_by_what_is_asked() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = (
        Measurement("measured", 1, {r: tuple(map(int, draw(rng))) for r in range(6)})
        for draw in (stalling, steady)
    )
    trial = Trial(Single((), Null()), measurement=ours, baseline=theirs)
    assert ratio(trial).high < 1
    assert ratio(trial, "mean").low > 1


def test_turns_for_p99_have_more_requests_of_slow_models_and_fewer_of_fast_ones() -> None:
    assert pace_for("p50", 5.0) == pace_for("mean", 5.0) == Pace(limit_s=5.0)
    assert pace_for("p99", 5.0).at_least > Pace.at_least
    assert pace_for("p99", 5.0).at_most < Pace.at_most
