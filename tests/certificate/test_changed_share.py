"""The bound on changed answers that a record keeps: how often it holds, for each kind of data."""

from __future__ import annotations

import numpy as np
import pytest

from hasten.certificate.changed import ChangedAnswers, ChangedShare, changed_share
from hasten.certificate.exact import clopper_pearson_upper
from hasten.certificate.monitor import BOUND_ALPHA
from hasten.core.tensors import Array
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.changes import tells_changes
from hasten.inputs.metrics.combined import AllOf
from hasten.inputs.metrics.iou import Iou
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.top_k import Top1

PART: Metric = Iou()
"""A metric that needs no labels, by which an answer may change in part."""


def of(changed: Array, units: Array | None = None, **given: object) -> ChangedShare:
    units = np.arange(len(changed)) if units is None else units
    fields = {"metric": Top1(), "sizes": None, "max_drop": 0.02, "models": 1, **given}
    return changed_share(changed=changed, units=units, **fields)  # type: ignore[arg-type]


def test_single_answers_have_clopper_and_pearsons_bound() -> None:
    changed = np.zeros(1000)
    changed[:20] = 1
    found = of(changed)
    assert (found.share, found.n, found.method) == (0.02, 1000, "Clopper-Pearson")
    assert found.confidence == 1 - BOUND_ALPHA
    assert found.bound == pytest.approx(clopper_pearson_upper(20, 1000, BOUND_ALPHA))


def test_several_candidates_and_a_spent_look_take_a_higher_bound() -> None:
    changed = np.zeros(1000)
    changed[:20] = 1
    found = of(changed, models=4, spent=0.5)
    assert found.confidence == 1 - BOUND_ALPHA
    assert found.bound == pytest.approx(clopper_pearson_upper(20, 1000, BOUND_ALPHA / 8))


def test_a_group_is_one_draw_that_counts_by_its_size() -> None:
    """A group of ten that changed as a whole is ten changed answers, and still one draw."""
    changed, units = np.zeros(1000), np.arange(1000) // 10
    changed[:20] = 1
    found = of(changed, units)
    assert (found.share, found.n, found.method) == (0.02, 100, "betting")
    assert of(changed).bound < 0.05 < found.bound


def test_answers_that_change_in_part_are_judged_by_betting_even_where_none_is() -> None:
    """The metric chooses the method before any answer is seen."""
    assert of(np.zeros(400), metric=PART).method == "betting"
    assert of(np.zeros(400)).method == "Clopper-Pearson"


def test_a_number_outside_the_tolerance_counts_as_a_changed_answer() -> None:
    """Regression can't tell whether a sample has several numbers, so a part counts as a whole."""
    changed = np.zeros(1000)
    changed[:20] = 0.25
    found = of(changed, metric=Regression(0.1))
    assert (found.share, found.method) == (0.005, "Clopper-Pearson")
    assert found.bound == pytest.approx(clopper_pearson_upper(20, 1000, BOUND_ALPHA))
    assert tells_changes(AllOf((Top1("a"), Regression(0.1, output="b"))))


SIZES = np.random.default_rng(5).permutation(np.repeat((1, 2, 4, 16), (120, 60, 30, 8)))
"""Sizes of groups, 488 samples in 218."""


def alone(rng: np.random.Generator) -> ChangedShare:
    return of((rng.random(400) < 0.03).astype(float))


def in_groups(rng: np.random.Generator) -> ChangedShare:
    units = np.arange(800) // 4
    return of((rng.random(200) < 0.03).astype(float)[units], units)


def in_unequal_groups(rng: np.random.Generator) -> ChangedShare:
    """As many as 3% of the samples change, all of them in the largest groups."""
    sizes = rng.choice(SIZES, len(SIZES))
    chance = 0.03 * SIZES.sum() / SIZES[SIZES == 16].sum()
    units = np.repeat(np.arange(len(sizes)), sizes)
    bad = (sizes == 16) & (rng.random(len(sizes)) < chance)
    return of(bad[units].astype(float), units, sizes=np.append(sizes, 16))


def in_part(rng: np.random.Generator) -> ChangedShare:
    return of((rng.random(400) < 0.1) * rng.choice((0.1, 0.5), 400), metric=PART)


@pytest.mark.parametrize("drawn", [alone, in_groups, in_unequal_groups, in_part])
def test_the_bound_is_below_the_true_share_as_seldom_as_it_says(drawn: object) -> None:
    assert callable(drawn)
    rng, runs = np.random.default_rng(3), 150
    bounds = np.array([drawn(rng).bound for _ in range(runs)])
    missed = int((bounds < 0.03).sum())
    assert clopper_pearson_upper(missed, runs, 0.05) <= 3 * BOUND_ALPHA
    assert np.median(bounds) < 0.25  # and it says something


def test_what_changed_is_gathered_chunk_by_chunk() -> None:
    rng = np.random.default_rng(0)
    own, other = rng.random((9, 3)), rng.random((9, 3))
    gathered = ChangedAnswers(Top1(), ["a", "b", "c"])
    for part in (slice(0, 4), slice(4, 9)):
        gathered("", {"y": own[part]})
        gathered("a", {"y": other[part]})
        if part.start == 0:
            gathered("b", {"y": other[part]})  # and then it fails
        gathered("c", {"y": other[part, 0]})  # no class scores, which the metric can't read
    found = gathered.of(9)
    assert list(found) == ["a"]
    assert (found["a"] == (own.argmax(axis=1) != other.argmax(axis=1))).all()
