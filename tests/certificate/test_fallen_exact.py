"""An exact candidate whose sealed answers changed is tested first, and the level holds."""

from functools import cache

import numpy as np
import pytest

from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import judge_with_fallen
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, judge
from hasten.core.tensors import Array
from hasten.inputs.metrics.agreement import Agreement

N, LIMIT = 400, 0.02


def scores(lost: int) -> Array:
    return (np.arange(N) >= lost).astype(np.float64)


def verdicts(exact: int | None, *lost: int | str, limit: float = LIMIT) -> list[str]:
    """Judge a ladder; `exact` is the number of answers that the exact candidate changed."""
    found = {str(i): one if isinstance(one, str) else scores(one) for i, one in enumerate(lost)}
    fallen = [] if exact is None else ["exact"]
    judged = judge_with_fallen(
        np.ones(N),
        fallen,
        list(found),
        {**found, **({} if exact is None else {"exact": scores(exact)})},
        np.arange(N),
        {key: BettingPrior() for key in (*fallen, *found)},
        Promise(Agreement(), max_drop=limit),
    )
    return [
        f"{key} {entry if isinstance(entry, str) else entry.verdict.value}" for key, entry in judged
    ]


@pytest.fixture
def remembering(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge each number of changed answers once: a verdict depends on nothing else here."""

    @cache
    def of(lost: int) -> Judgement:
        return judge(
            np.ones(N),
            scores(lost),
            guard="net",
            max_drop=LIMIT,
            confidence=0.95,
            metric="agreement",
            prior=BettingPrior(),
        )

    monkeypatch.setattr(
        "hasten.certificate.certification.judge",
        lambda original, score, **_: of(int((original - score).sum())),
    )


@cache
def certified(exact: int, *lost: int) -> frozenset[str]:
    """Return who is certified where so many answers changed; an exact candidate falls by one."""
    found = verdicts(exact or None, *lost)
    return frozenset(said.split()[0] for said in found if said.endswith(" certified"))


@pytest.mark.parametrize(
    "rates",
    [(0.0201, 0.0201), (0.0201, 0.0), (0.0, 0.0201), (0.004, 0.0201), (0.0201, 0.0201, 0.03)],
)
@pytest.mark.usefixtures("remembering")
def test_of_candidates_over_the_limit_one_in_twenty_runs_at_most_certifies_any(
    rates: tuple[float, ...],
) -> None:
    rng = np.random.default_rng(0)
    runs = 20_000
    lost = rng.binomial(N, rates, (runs, len(rates)))
    over = {name for name, rate in zip(("exact", "0", "1"), rates, strict=False) if rate > LIMIT}
    false = sum(bool(certified(*map(int, one)) & over) for one in lost)
    assert false / runs < 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_it_is_the_first_rung_and_the_others_follow_where_it_passes() -> None:
    assert verdicts(1, 2) == ["exact certified", "0 certified"]
    assert verdicts(30, 0) == ["exact not accurate enough"]


def test_where_it_kept_all_answers_it_is_no_rung() -> None:
    assert verdicts(None, 1) == ["0 certified"]


def test_where_even_unchanged_answers_would_not_pass_it_is_left_out() -> None:
    assert verdicts(1, 2, limit=0.005) == ["0 not enough data"]
    assert verdicts(1, limit=0.005) == []
