"""An exact candidate whose sealed answers changed is tested first, and the level holds."""

import numpy as np

from hasten.certificate.betting import BettingPrior
from hasten.certificate.certification import judge_with_fallen
from hasten.certificate.promise import Promise
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


def test_it_is_the_first_rung_and_the_others_follow_where_it_passes() -> None:
    assert verdicts(1, 2) == ["exact certified", "0 certified"]
    assert verdicts(30, 0) == ["exact not accurate enough"]


def test_where_it_kept_all_answers_it_is_no_rung() -> None:
    assert verdicts(None, 1) == ["0 certified"]


def test_where_even_unchanged_answers_would_not_pass_it_is_left_out() -> None:
    assert verdicts(1, 2, limit=0.005) == ["0 not enough data"]
    assert verdicts(1, limit=0.005) == []
