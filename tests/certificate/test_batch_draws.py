"""Samples that share a batch are one draw, unless it is proven that rows don't mix."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from hasten.certificate import draws
from hasten.certificate.batches import Batches, batch_key, covered, drawn_together
from hasten.certificate.betting import BettingPrior
from hasten.certificate.exact import clopper_pearson_upper, paired_certifies
from hasten.certificate.promise import Promise
from hasten.certificate.verdict import Judgement, Verdict, judge
from hasten.core.tensors import Array
from hasten.inputs.metrics.top_k import Top1

N, ALPHA = 1200, 0.05
PROMISE = Promise(Top1(), max_drop=0.02)


@pytest.mark.parametrize(
    ("units", "size", "chunk", "numbers"),
    [
        (range(8), 4, 64, [0, 0, 0, 0, 1, 1, 1, 1]),
        (range(7), 4, 64, [0] * 7),  # the last batch is filled up with the first one's samples
        (range(3), 8, 64, [0] * 3),
        (range(12), 4, 8, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        ([0, 1, 2, 3, 3, 5, 6, 7, 8, 9, 10, 11], 4, 64, [0] * 8 + [1] * 4),  # a group joins two
    ],
)
def test_a_draw_is_all_that_shares_a_batch_or_a_group(
    units: list[int], size: int, chunk: int, numbers: list[int]
) -> None:
    found = drawn_together(np.array(units), size, chunk)
    assert np.unique(found, return_inverse=True)[1].tolist() == numbers


def lone(score: Array) -> Judgement:
    return judge(
        np.ones(N),
        score,
        guard="net",
        max_drop=PROMISE.max_drop,
        confidence=0.95,
        metric="top1",
        prior=BettingPrior(),
    )


def sizes(
    score: Array, batched: Array | str, *, rows_apart: bool, size: int = 8
) -> Judgement | str:
    scores = {"k": score, batch_key("k", size): batched}
    batches = Batches((size,), rows_apart)
    _, found = covered(
        "k",
        batches,
        lone(score),
        np.ones(N),
        scores,
        np.arange(N),
        BettingPrior(),
        PROMISE,
        binary=True,
    )
    return found[size]


def test_equal_scores_cost_no_test_where_rows_are_apart_and_draws_where_they_may_mix() -> None:
    right = np.ones(N)
    apart = sizes(right, right, rows_apart=True)
    assert apart == lone(right)
    mixed = sizes(right, right, rows_apart=False)
    assert isinstance(mixed, Judgement)
    assert (mixed.verdict, mixed.n) == (Verdict.NOT_ENOUGH_DATA, N // 8)


def test_scores_that_differ_are_tested_for_themselves() -> None:
    wrong = np.ones(N)
    wrong[::25] = 0
    found = sizes(np.ones(N), wrong, rows_apart=True)
    assert isinstance(found, Judgement)
    assert found.verdict is Verdict.NOT_ACCURATE_ENOUGH
    assert sizes(np.ones(N), "it died", rows_apart=True) == "it died"


@pytest.fixture
def verdicts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what a verdict brings beside whether it certifies, which is slow."""
    monkeypatch.setattr(draws, "paired_certifies", cache(paired_certifies))
    for name in ("paired_upper_bound", "betting_upper_bound"):
        monkeypatch.setattr(draws, name, lambda *_: 1.0)
    for name in ("paired_refutes", "betting_refutes"):
        monkeypatch.setattr(draws, name, lambda *_: False)


@pytest.mark.usefixtures("verdicts_alone")
@pytest.mark.parametrize("size", [2, 4])
def test_spoiled_batches_at_the_limit_are_certified_no_oftener_than_the_level_allows(
    size: int,
) -> None:
    """Whole batches go wrong; with samples as draws the level would be exceeded."""
    rng = np.random.default_rng(size)
    runs, false, naive = 400, 0, 0
    for _ in range(runs):
        score = 1.0 - np.repeat(rng.random(N // size) < PROMISE.max_drop, size)
        naive += lone(score).verdict is Verdict.CERTIFIED
        found = sizes(np.ones(N), score, rows_apart=False, size=size)
        assert isinstance(found, Judgement)
        false += found.verdict is Verdict.CERTIFIED
    assert clopper_pearson_upper(false, runs, 0.5) <= ALPHA
    assert clopper_pearson_upper(runs - naive, runs, 0.01) < 1 - ALPHA
