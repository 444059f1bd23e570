import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import InputError
from hasten.measure.intervals import Ratio
from hasten.optimization.choose import Standing, entrants, faster, fastest_exact, ladder, undecided


def standing(
    key: str, estimate: float, drop: float = 0.0, *, exact: bool = False, half: float = 0.01
) -> Standing:
    return Standing(key, exact, Ratio(estimate, estimate - half, estimate + half, 24), drop, drop)


BASELINE = Standing("baseline", True, Ratio(1.0, 1.0, 1.0, 24), 0.0, 0.0)
SHARES = st.integers(0, 40).map(lambda i: i / 1000)
FIELDS = st.lists(
    st.tuples(st.floats(0.05, 2.0), SHARES, st.floats(0, 0.2), st.booleans()), max_size=12
)


def field(raw: list[tuple[float, float, float, bool]]) -> list[Standing]:
    return [
        BASELINE,
        *(
            standing(str(i), estimate, 0.0 if exact else drop, exact=exact, half=half)
            for i, (estimate, drop, half, exact) in enumerate(raw)
        ),
    ]


@given(FIELDS, st.floats(0, 0.2), SHARES, st.integers(1, 5))
def test_a_ladder_is_safest_first_and_each_rung_earns_its_place(
    raw: list[tuple[float, float, float, bool]], spread: float, max_drop: float, most: int
) -> None:
    standings = field(raw)
    by_key = {s.key: s for s in standings}
    exact = fastest_exact(standings, "baseline", spread)
    rungs = [
        by_key[key]
        for key in ladder(standings, exact, spread=spread, max_drop=max_drop, rungs=most)
    ]
    assert len(rungs) <= most
    assert [r.drop for r in rungs] == sorted({r.drop for r in rungs})
    speeds = [r.ratio.estimate for r in rungs]
    assert speeds == sorted(speeds, reverse=True)
    floor = by_key[exact].ratio
    for rung in rungs:
        assert not rung.exact
        assert rung.drop < max_drop
        assert faster(rung.ratio, floor, spread)


@given(FIELDS, st.floats(0, 0.2), SHARES)
def test_the_last_rung_is_the_fastest_within_the_noise_and_the_first_the_safest(
    raw: list[tuple[float, float, float, bool]], spread: float, max_drop: float
) -> None:
    standings = field(raw)
    able = [
        s
        for s in standings
        if not s.exact and s.drop < max_drop and faster(s.ratio, BASELINE.ratio, spread)
    ]
    rungs = ladder(standings, "baseline", spread=spread, max_drop=max_drop)
    by_key = {s.key: s for s in standings}
    assert bool(rungs) == bool(able)
    if able:
        fastest = min(s.ratio.estimate for s in able)
        assert by_key[rungs[-1]].ratio.estimate <= fastest * (1 + spread)
        assert by_key[rungs[0]].drop == min(s.drop for s in able)


@given(FIELDS, st.floats(0, 0.2))
def test_the_exact_fallback_is_exact_and_beats_the_baseline_beyond_the_noise(
    raw: list[tuple[float, float, float, bool]], spread: float
) -> None:
    standings = field(raw)
    by_key = {s.key: s for s in standings}
    key = fastest_exact(standings, "baseline", spread)
    assert by_key[key].exact
    assert key == "baseline" or faster(by_key[key].ratio, BASELINE.ratio, spread)


def test_a_fast_engine_with_wrong_answers_is_never_chosen() -> None:
    wrong = standing("wrong", 0.01, 0.9)
    assert ladder([BASELINE, wrong], "baseline", spread=0.0, max_drop=0.01) == ()
    good = standing("good", 0.5, 0.002)
    assert ladder([BASELINE, wrong, good], "baseline", spread=0.0, max_drop=0.01) == ("good",)
    assert fastest_exact([BASELINE, wrong, good], "baseline", 0.0) == "baseline"


def test_a_drop_of_just_the_limit_is_no_rung() -> None:
    edge = standing("edge", 0.5, 0.01)
    assert ladder([BASELINE, edge], "baseline", spread=0.0, max_drop=0.01) == ()


def test_of_two_that_tie_in_speed_the_safer_stays() -> None:
    pair = [standing("risky", 0.50, 0.008), standing("safe", 0.51, 0.001)]
    assert ladder([BASELINE, *pair], "baseline", spread=0.03, max_drop=0.01) == ("safe",)
    assert ladder([BASELINE, *pair], "baseline", spread=0.0, max_drop=0.01) == ("safe", "risky")


def test_ties_do_not_chain_from_the_fastest_to_a_slow_one() -> None:
    chain = [standing(str(i), 0.5 * 1.02**i, (9 - i) / 1000) for i in range(9)]
    rungs = ladder([BASELINE, *chain], "baseline", spread=0.03, max_drop=0.01)
    assert rungs[-1] == "1"  # as fast as "0" within the noise, and safer
    assert rungs[0] == "8"


def test_a_lucky_gain_is_not_safety() -> None:
    # As measured once: an int8 model flipped 86 of 1,500 answers to the better on balance, bf16 11.
    lucky = Standing("int8", False, Ratio(0.55, 0.54, 0.56, 24), -0.0027, 0.0101)
    steady = Standing("bf16", False, Ratio(0.6, 0.59, 0.61, 24), -0.0007, 0.0036)
    rungs = ladder([BASELINE, lucky, steady], "baseline", spread=0.01, max_drop=0.01)
    assert rungs == ("bf16", "int8")
    assert undecided([BASELINE, lucky, steady], 0.01) == ("int8", "bf16")


def test_a_long_ladder_keeps_its_ends() -> None:
    steps = [standing(str(i), 0.9 - i / 20, i / 1000) for i in range(9)]
    rungs = ladder([BASELINE, *steps], "baseline", spread=0.0, max_drop=0.01, rungs=4)
    assert rungs == ("0", "3", "5", "8")
    assert ladder([BASELINE, *steps], "baseline", spread=0.0, max_drop=0.01, rungs=1) == ("0",)


def test_who_may_be_as_fast_as_one_as_safe_is_undecided() -> None:
    standings = [
        BASELINE,
        standing("best", 0.40, 0.01),
        standing("twin", 0.41, 0.01),  # its interval reaches the best's
        standing("slower", 0.45, 0.01),
        standing("safer", 0.45, 0.0),
        standing("lucky", 0.45, -0.01),  # nothing inexact is safer than what is exact
        standing("beyond", 0.3, 0.05),
        standing("exact", 0.41, exact=True),
    ]
    assert undecided(standings, max_drop=0.03) == ("best", "twin")
    assert undecided([s for s in standings if s.key != "exact"], 0.03) == (
        *("best", "twin", "lucky", "safer"),
    )


def test_the_safest_races_although_few_turns_could_not_tell_that_it_is_faster() -> None:
    standings = [
        BASELINE,
        standing("bf16", 0.31, 0.0, half=0.9),  # its interval reaches beyond the baseline's latency
        *(standing(f"int8 {n}", 0.13 + n / 100, 0.02 - n / 1000, half=0.5) for n in range(6)),
    ]
    assert entrants(standings, "baseline", max_drop=0.05, most=4) == (
        *("int8 5", "bf16", "int8 3", "int8 0"),
    )
    assert entrants(standings[:2], "baseline", max_drop=0.05, most=4) == ("bf16",)
    assert entrants(standings[:1], "baseline", max_drop=0.05, most=4) == ()
    slow = standing("no faster", 1.1, 0.0, half=0.5)
    (*rungs, last) = entrants([BASELINE, slow, *standings[2:]], "baseline", max_drop=0.05, most=4)
    assert "no faster" not in rungs
    assert last != "no faster"


@given(FIELDS, SHARES)
def test_every_rung_is_among_the_undecided(
    raw: list[tuple[float, float, float, bool]], max_drop: float
) -> None:
    standings = field(raw)
    fastest = fastest_exact(standings, "baseline", 0.0)
    rungs = ladder(standings, fastest, spread=0.0, max_drop=max_drop)
    for key in {*rungs} - {*undecided(standings, max_drop)}:
        own = next(s for s in standings if s.key == key)
        assert any(o.exact and o.ratio.high < own.ratio.low for o in standings)


def test_an_interval_that_reaches_the_other_is_not_faster() -> None:
    assert faster(Ratio(0.8, 0.7, 0.9, 24), Ratio(1.0, 1.0, 1.0, 24), 0.05)
    assert not faster(Ratio(0.8, 0.6, 1.0, 24), Ratio(1.0, 1.0, 1.0, 24), 0.05)
    assert not faster(Ratio(0.96, 0.95, 0.97, 24), Ratio(1.0, 1.0, 1.0, 24), 0.05)


def test_without_a_baseline_nothing_is_compared() -> None:
    with pytest.raises(InputError) as error:
        fastest_exact([standing("one", 0.5)], "baseline", 0.0)
    assert str(error.value) == ("the baseline was not measured, so nothing can be compared with it")
