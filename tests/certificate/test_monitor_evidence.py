"""Evidence for all time: what it claims, whatever the traffic, and that it adds up."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.certificate.monitor import ALPHA, Evidence, Null
from hasten.core.records import from_record, to_record
from hasten.errors import InputError


def of(null: Null, values: list[float], size: int = 1) -> Evidence:
    evidence = null.begun()
    for some in _cut(values, size):
        evidence = evidence.after(null.batch(list(some)))
    return evidence


def _cut(values: list[float], size: int) -> list[list[float]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


@pytest.mark.parametrize(
    ("null", "values"),
    [
        (Null(0.01), (0.0, 1.0)),
        (Null(0.2), (0.0, 0.25, 1.0)),
        (Null(0.7), (0.0, 1.0)),
        (Null(0.01, net=True), (-1.0, 0.0, 1.0)),
        (Null(0.3, net=True), (-1.0, 0.5, 1.0)),
    ],
)
def test_capital_expects_no_gain_where_the_limit_is_kept(
    null: Null, values: tuple[float, ...]
) -> None:
    """One step ahead of any past, over every distribution whose mean is the limit exactly."""
    rng = np.random.default_rng(0)
    for past in ([], [values[-1]] * 3, [0.0] * 40, [values[0], values[-1]] * 5):
        before = of(null, past)
        for _ in range(20):
            low, high = sorted(rng.choice(values, 2, replace=False))
            if not low <= null.limit <= high:
                continue
            chance = (null.limit - low) / (high - low)
            after = [math.exp(before.after(null.batch([v])).log_value) for v in (low, high)]
            expected = (1 - chance) * after[0] + chance * after[1]
            assert expected == pytest.approx(math.exp(before.log_value), rel=1e-9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=60), st.integers(1, 7))
def test_the_order_within_a_batch_is_of_no_account(values: list[float], size: int) -> None:
    null = Null(0.05)
    turned = [value for some in _cut(values, size) for value in reversed(some)]
    one, other = of(null, values, size), of(null, turned, size)
    assert one.log_value == pytest.approx(other.log_value, abs=1e-9)
    assert (one.n, one.losses) == (len(values), sum(values))


def test_batches_of_several_machines_add_up() -> None:
    null = Null(0.01)
    here, there = null.batch([0, 1, 0]), null.batch([0, 0, 1, 0])
    both = null.begun().after(here + there)
    assert both.n == 7
    assert both.log_value == pytest.approx(
        null.begun().after(null.batch([0, 1, 0, 0, 0, 1, 0])).log_value
    )


def test_false_alarms_stay_under_five_percent_whatever_the_traffic() -> None:
    """Rates just below the limit, in bursts, and always at it: 20,000 audited answers a stream."""
    limit, n, streams, at_once = 0.01, 20_000, 300, 20
    null, rng = Null(limit), np.random.default_rng(0)
    moments = np.arange(n)
    traffic = {
        "at the limit": np.full(n, limit),
        "bursts": np.where(moments // 500 % 2, limit, 0.0),
        "swinging": limit * (0.5 + 0.5 * np.sin(moments / 700)),
    }
    for name, shares in traffic.items():
        alarms = 0
        for _ in range(streams):
            changed = (rng.random(n) < shares).reshape(-1, at_once)
            alarms += _ever(null, changed.sum(axis=1), at_once)
        # An upper 99.9% quantile of the binomial at 5%: 27 of 300.
        assert alarms <= 27, name


def _ever(null: Null, counts: np.ndarray, size: int) -> bool:
    """Whether batches of so many answers, of which so many changed, ever raise the alarm."""
    stakes, shares = null.bets
    growth = counts[:, None] * np.log1p(stakes * (1 - null.limit)) + (size - counts)[
        :, None
    ] * np.log1p(-stakes * null.limit)
    due = 1 - 0.5 * math.log(500) / np.log(500 + size * np.arange(len(counts)))
    fresh = np.diff(due, prepend=0.0)
    total = np.cumsum(growth, axis=0)
    begun = np.concatenate([np.zeros((1, len(stakes))), total[:-1]])
    capital = np.logaddexp.accumulate(np.log(fresh)[:, None] - begun, axis=0) + total
    value = np.log(np.exp(capital) @ shares + 1 - due)
    return bool((value >= -math.log(ALPHA)).any())


def test_the_quick_reckoning_of_the_simulation_is_the_evidence() -> None:
    null, rng = Null(0.01), np.random.default_rng(3)
    for share in (0.01, 0.04):
        changed = rng.random((30, 20)) < share
        evidence, ever = null.begun(), False
        for some in changed:
            evidence = evidence.after(null.batch(some.astype(float)))
            ever |= evidence.breaks()
        assert ever == _ever(null, changed.sum(axis=1), 20)


def test_four_percent_are_seen_within_some_hundred_answers_and_late_ones_too() -> None:
    null, rng = Null(0.01), np.random.default_rng(0)
    counts = [_first(null, rng.random(400) < 0.04, null.begun()) for _ in range(30)]
    assert np.median(counts) < 250
    assert np.mean(np.isfinite(counts)) > 0.7
    calm = null.begun()
    for _ in range(100):  # 100,000 answers of half the limit
        calm = calm.after(null.batch((rng.random(1000) < 0.005).astype(float)))
    assert not calm.breaks()
    late = [_first(null, rng.random(1500) < 0.04, calm) for _ in range(5)]
    assert np.median(late) < 1000


def _first(null: Null, changed: np.ndarray, evidence: Evidence) -> float:
    for place, one in enumerate(changed):
        evidence = evidence.after(null.batch([float(one)]))
        if evidence.breaks():
            return place + 1
    return math.inf


def test_its_size_does_not_grow_and_it_survives_json() -> None:
    null = Null(0.01)
    evidence = null.begun()
    thousand = null.batch(np.zeros(1000))
    for _ in range(1000):
        batch = thousand + thousand
        evidence = evidence.after(batch + batch + batch + batch + thousand + thousand)
    assert evidence.n == 10_000_000
    text = json.dumps(to_record(evidence), allow_nan=False)
    assert len(text) < 500
    assert from_record(Evidence, json.loads(text)) == evidence
    assert not evidence.breaks()


def test_the_interval_holds_the_share_at_all_times() -> None:
    null, rng, missed = Null(0.05), np.random.default_rng(1), 0
    for _ in range(100):
        evidence, out = null.begun(), False
        for _ in range(40):
            evidence = evidence.after(null.batch((rng.random(25) < 0.03).astype(float)))
            low, high = evidence.interval()
            out |= not low <= 0.03 <= high
        missed += out
    assert missed <= 13  # 99.9% quantile of the binomial at 5%
    assert null.begun().interval() == (0.0, 1.0)


def test_the_interval_of_a_net_loss_holds_its_mean() -> None:
    null = Null(0.01, net=True)
    low, high = null.begun().after(null.batch([1.0] * 30 + [-1.0] * 20 + [0.0] * 950)).interval()
    assert -0.03 < low < 0.01 < high < 0.05


@pytest.mark.parametrize(
    ("null", "value"), [(Null(0.01), -0.1), (Null(0.01), 1.1), (Null(0.01, True), -1.1)]
)
def test_impossible_numbers_are_refused(null: Null, value: float) -> None:
    with pytest.raises(InputError, match=r"^audited numbers must be between"):
        null.batch([value])
    with pytest.raises(InputError, match=r"^audited numbers must be between"):
        null.batch([math.nan])


def test_a_limit_is_a_share() -> None:
    with pytest.raises(InputError, match=r"^limit is a share between 0 and 1: got 1"):
        Null(1.0)
