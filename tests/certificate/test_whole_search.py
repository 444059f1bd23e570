"""A whole search, simulated: choosing among 200 candidates must not spoil the certificate.

Candidates that sit just at the limit would be wrong to ship. Speed is unrelated to accuracy, so the
search is drawn to them, as it is in life to those that look more accurate than they are. The ladder,
the sealed judgement and what ships are those of a run: only models and data are simulated.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from hasten.certificate import draws
from hasten.certificate.certification import judge_ladder, last_certified, prior_of
from hasten.certificate.exact import clopper_pearson_upper, paired_certifies
from hasten.certificate.promise import Promise
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.intervals import Ratio
from hasten.optimization.choose import Standing, ladder
from hasten.optimization.trials import risk

pytestmark = pytest.mark.seconds

ALPHA = 0.05
MAX_DROP = 0.02
CANDIDATES, SEARCH, SEALED = 200, 216, 506
"""Of 506 the exact test's own size is 4.3% here: 4,000 searches can tell that from 5%."""
GROUP = 2
BASELINE = Standing("baseline", True, Ratio(1.0, 1.0, 1.0, 24), 0.0, 0.0)
RATIOS = [Ratio(x, x - 0.01, x + 0.01, 24) for x in np.linspace(0.3, 0.9, CANDIDATES).tolist()]
AT_THE_LIMIT, BETTER = 2 * MAX_DROP, 0.2 * MAX_DROP
"""Chances that a sample is hit. Of hits three are losses for one gain, so half of them on balance."""

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int, Floats], tuple[Floats, Floats]]
"""From how many samples, and each candidate's chance of a hit, `(k,)`, to the original's scores, `(n,)`,
and the candidates', `(k, n)`."""


def flips(rng: np.random.Generator, n: int, chances: Floats) -> tuple[Floats, Floats]:
    """0/1 scores: a hit is another answer."""
    right = rng.random(n) < 0.8
    hit = rng.random((len(chances), n), np.float32) < chances[:, None] * np.where(
        right, 0.75 / 0.8, 0.25 / 0.2
    )
    return right.astype(np.float64), (right ^ hit).astype(np.float64)


def flips_of_groups(rng: np.random.Generator, n: int, chances: Floats) -> tuple[Floats, Floats]:
    """As `flips`, where a group is hit or spared as a whole: half of it flips on average."""
    spared = rng.random((len(chances), n // GROUP)) >= GROUP * chances[:, None]
    right, flipped = flips(rng, n, np.full(len(chances), 1 / GROUP))
    return right, np.where(np.repeat(spared, GROUP, axis=1), right, flipped)


def shifts(rng: np.random.Generator, n: int, chances: Floats) -> tuple[Floats, Floats]:
    """Scores between 0 and 1: a hit takes 0.7 away or adds 0.1."""
    original, chance = rng.uniform(0.7, 0.9, n), rng.random((len(chances), n), np.float32)
    lost, hit = chance < 0.75 * chances[:, None], chance < chances[:, None]
    return original, original - np.where(lost, 0.7, np.where(hit, -0.1, 0.0))


paired_certifies_once = cache(paired_certifies)


@pytest.fixture(autouse=True)
def quick_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict on 0/1 scores depends on three counts; all beside whether it certifies, of no use here, is slow."""
    monkeypatch.setattr(draws, "paired_certifies", paired_certifies_once)
    for name in ("paired_upper_bound", "betting_upper_bound"):
        monkeypatch.setattr(draws, name, lambda *_: 1.0)
    for name in ("paired_refutes", "betting_refutes"):
        monkeypatch.setattr(draws, name, lambda *_: False)


def searched(rng: np.random.Generator, draw: Draw, better: int, *, peek: bool) -> float | None:
    """The chance of a hit of what one search ships; one that peeks chooses on the data that judges."""
    chances = rng.permutation(np.where(np.arange(CANDIDATES) < better, BETTER, AT_THE_LIMIT))
    original, scores = draw(rng, SEALED if peek else SEARCH, chances)
    falls = original - scores
    standings = [BASELINE] + [
        Standing(str(i), False, ratio, fall, risk(own, SEALED))
        for i, (ratio, fall, own) in enumerate(
            zip(RATIOS, falls.mean(axis=1).tolist(), falls, strict=True)
        )
    ]
    rungs = ladder(standings, "baseline", spread=0.01, max_drop=MAX_DROP)
    chosen = [int(key) for key in rungs]
    original, sealed = (original, scores[chosen]) if peek else draw(rng, SEALED, chances[chosen])
    units = np.arange(SEALED) // (GROUP if draw is flips_of_groups else 1)
    judged = judge_ladder(
        original,
        rungs,
        dict(zip(rungs, sealed, strict=True)),
        units,
        {key: prior_of(falls[int(key)], units) for key in rungs},
        Promise(Top1(), max_drop=MAX_DROP, confidence=1 - ALPHA),
        binary=draw is not shifts,
    )
    passed = last_certified(judged)
    return float(chances[int(passed[0])]) if passed else None


def shipped(draw: Draw, better: int, runs: int, *, peek: bool) -> tuple[int, int]:
    """How many searches ship a candidate at the limit, and how many ship any."""
    rng = np.random.default_rng(better)
    found = [searched(rng, draw, better, peek=peek) for _ in range(runs)]
    return found.count(AT_THE_LIMIT), runs - found.count(None)


@pytest.mark.parametrize(
    ("draw", "better", "runs"),
    [
        pytest.param(flips, 0, 4000, marks=pytest.mark.slow),
        (flips, 20, 1000),
        (flips, 150, 500),
        pytest.param(flips_of_groups, 0, 1000, marks=pytest.mark.slow),
        (flips_of_groups, 0, 500),
        (flips_of_groups, 150, 500),
        pytest.param(shifts, 0, 3000, marks=pytest.mark.slow),
        (shifts, 150, 500),
    ],
)
def test_a_search_ships_a_wrong_candidate_at_most_alpha_of_the_time(
    draw: Draw, better: int, runs: int
) -> None:
    wrong, some = shipped(draw, better, runs, peek=False)
    assert clopper_pearson_upper(wrong, runs, 0.05) <= ALPHA  # the simulation is 95% sure
    assert better < 100 or some > runs * 0.2


@pytest.mark.parametrize(("draw", "better"), [(flips, 0), (flips, 20), (shifts, 0)])
def test_choosing_on_the_sealed_data_would_break_it(draw: Draw, better: int) -> None:
    runs = 150
    wrong, _ = shipped(draw, better, runs, peek=True)
    surely_above = 1 - clopper_pearson_upper(runs - wrong, runs, 0.001)
    assert surely_above > 2 * ALPHA
