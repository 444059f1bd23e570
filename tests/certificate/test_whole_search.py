"""A whole search, simulated: choosing among 200 candidates must not spoil the certificate.

Candidates that sit just at the limit would be wrong to ship. Speed is unrelated to accuracy, so the
search is drawn to them, as it is in life to those that look more accurate than they are.
"""

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from hasten.certificate.exact import clopper_pearson_upper, paired_certifies

ALPHA = 0.05
MAX_DROP = 0.02
SEARCH, SEALED = 240, 560
LADDER = 5
AT_THE_LIMIT = (0.03, 0.01)
BETTER = (0.004, 0.004)

certifies = cache(paired_certifies)


def flips(rng: np.random.Generator, n: int, rates: NDArray[np.float64]) -> NDArray[np.int64]:
    """Lost and gained counts on n samples, shape (candidates, 2)."""
    cells = np.column_stack((rates, 1 - rates.sum(axis=1)))
    return rng.multinomial(n, cells)[:, :2]


def frozen_ladder(counts: NDArray[np.int64], n: int, speed: NDArray[np.float64]) -> list[int]:
    """The fastest few of those that look accurate enough, from safest to fastest."""
    drop = (counts[:, 0] - counts[:, 1]) / n
    promising = np.flatnonzero(drop < MAX_DROP / 2)
    fastest = promising[np.argsort(-speed[promising])][:LADDER]
    return [int(index) for index in fastest[np.argsort(drop[fastest], kind="stable")]]


def shipped(ladder: list[int], counts: NDArray[np.int64]) -> int | None:
    """The last of the ladder that passes before the first failure."""
    winner = None
    for index in ladder:
        lost, gained = (int(count) for count in counts[index])
        if not certifies(lost, gained, SEALED, MAX_DROP, ALPHA):
            break
        winner = index
    return winner


def run(seed: int, better: int, runs: int, *, peek: bool) -> tuple[int, int]:
    """How many runs ship a candidate at the limit, and how many ship any."""
    rng = np.random.default_rng(seed)
    rates = np.array([BETTER] * better + [AT_THE_LIMIT] * (200 - better))
    wrong = some = 0
    for _ in range(runs):
        speed = rng.random(200)
        search, sealed = flips(rng, SEARCH, rates), flips(rng, SEALED, rates)
        if peek:
            ladder = frozen_ladder(sealed, SEALED, speed)
        else:
            ladder = frozen_ladder(search, SEARCH, speed)
        winner = shipped(ladder, sealed)
        some += winner is not None
        wrong += winner is not None and winner >= better
    return wrong, some


@pytest.mark.parametrize("better", [0, 20, 100])
def test_a_search_ships_a_wrong_candidate_at_most_alpha_of_the_time(better: int) -> None:
    runs = 30_000
    wrong, some = run(1, better, runs, peek=False)
    assert clopper_pearson_upper(wrong, runs, 0.01) <= ALPHA
    if better == 100:
        assert some > runs * 0.2


@pytest.mark.parametrize("better", [0, 20])
def test_choosing_on_the_sealed_data_would_break_it(better: int) -> None:
    runs = 500
    wrong, _ = run(2, better, runs, peek=True)
    surely_above = 1 - clopper_pearson_upper(runs - wrong, runs, 0.001)
    assert surely_above > 2 * ALPHA
