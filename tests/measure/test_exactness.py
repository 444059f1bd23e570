"""Whether a candidate of exact settings answers as the original does."""

from itertools import pairwise

import numpy as np
import pytest
from tests.support.faults import without_ties

from hasten.core.tensors import Array
from hasten.inputs.metrics import parse_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.brier import Brier
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.same_answers import EXACT_TOLERANCE, differences
from hasten.inputs.metrics.top_k import Top1
from hasten.measure.exactness import Changes, Comparing, difference

ROWS, CHUNK = 2000, 64


def logits() -> Array:
    """Scores of ten classes, of which the two highest are nearly equal in every 110th row."""
    scores = np.random.default_rng(0).standard_normal((ROWS, 10)) * 4
    rows = np.arange(64, ROWS, 110)
    first = scores[rows].argmax(axis=1)
    scores[rows, (first + 1) % 10] = scores[rows, first] - 1e-4
    return scores


def changed(metric: Metric, one: Array, own: Array, labels: Array | None = None) -> int:
    changes = Changes(metric)
    for start, stop in pairwise([*range(0, len(own), CHUNK), len(own)]):
        changes.add({"y": one[start:stop]}, {"y": own[start:stop]})
    exact = {"y": own}
    scores = [metric.score({"y": each}, exact, labels) for each in (one, own)]
    return changes.count(*scores)


@pytest.mark.parametrize("text", ["top1", "agreement"])
def test_logits_made_to_stay_within_rounding_are_seen_to_change_answers(text: str) -> None:
    own = logits()
    one = without_ties(own)
    assert difference({"y": one}, {"y": own}) < EXACT_TOLERANCE / 2
    assert difference({"y": one[:64]}, {"y": own[:64]}) == 0  # all that was looked at before
    flips = int((one.argmax(axis=1) != own.argmax(axis=1)).sum())
    assert flips > 0.009 * ROWS
    assert changed(parse_metric(text), one, own, np.full(ROWS, 3)) == flips


def test_an_answer_that_was_wrong_and_is_wrong_otherwise_counts_as_changed() -> None:
    own = np.array([[5.0, 4.999, 0.0], [5.0, 0.0, 0.0]])
    assert changed(Top1(), np.array([[4.999, 5.0, 0.0], [5.0, 0, 0]]), own, np.array([2, 0])) == 1


def test_roundings_change_no_answer_of_any_metric() -> None:
    own = logits()
    own[64::110] += np.eye(10)[own[64::110].argmax(axis=1)]
    one = own.astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 10, ROWS)
    for metric in (Top1(), parse_metric("top5"), parse_metric("embedding"), Brier("softmax")):
        assert changed(metric, one, own, labels) == 0
    assert changed(Regression(0.1), one[:, 0], own[:, 0]) == 0


def test_of_numbers_an_answer_changed_where_the_score_did() -> None:
    own, labels = np.array([10.0, 10.0, 10.0]), np.array([10.1, 10.1, 12.0])
    one = own - np.array([0.0, 0.001, 0.001])
    assert changed(Regression(0.1), one, own, labels) == 1
    assert changed(Brier(), np.array([0.5, 0.4996]), np.array([0.5, 0.5]), np.array([1, 1])) == 1


def test_an_output_that_rounding_does_not_explain_is_no_exact_answer() -> None:
    own = np.array([[5.0, 1.0], [5.0, 1.0]])
    one = own + np.array([[0.0, 0.0], [0.0, 0.01]])
    assert changed(Top1(), one, own, np.array([0, 0])) == 1


def test_sealed_answers_are_compared_model_by_model_as_they_come() -> None:
    seen: list[str] = []
    comparing = Comparing(Top1(), ["a"], lambda key, _: seen.append(key))
    own = np.array([[5.0, 4.999], [0.0, 1.0]])
    for chunk in (own[:1], own[1:]):
        comparing("", {"y": chunk})
        comparing("b", {"y": -chunk})
        comparing("a", {"y": chunk[:, ::-1] if chunk[0, 0] == 5 else chunk})
    assert seen == ["", "b", "a"] * 2
    assert list(comparing.changes) == ["a"]
    assert comparing.changes["a"].count(np.ones(2), np.ones(2)) == 1


def test_an_infinity_in_both_answers_hides_no_other_change() -> None:
    own = np.array([[1.0, -np.inf, 2.0], [3.0, -np.inf, 4.0], [-np.inf, 1.0, 2.0]])
    one = own.copy()
    assert differences({"y": one}, {"y": own}).tolist() == [0, 0, 0]
    one[1, 0] = 9.0
    assert differences({"y": one}, {"y": own}).tolist() == [0, 1.5, 0]
    assert changed(Regression(100.0), one, own) == 1


@pytest.mark.parametrize("number", [np.nan, np.inf, 1.0])
def test_an_answer_that_isnt_infinite_where_the_originals_is_counts_as_changed(
    number: float,
) -> None:
    own = np.array([[1.0, -np.inf], [1.0, -np.inf]])
    one = own.copy()
    one[1, 1] = number
    assert differences({"y": one}, {"y": own}).tolist() == [0, np.inf]
    assert changed(Regression(100.0), one, own) == 1


@pytest.mark.parametrize("both", [True, False])
def test_nan_never_counts_as_unchanged(both: bool) -> None:
    own = np.array([[1.0, np.nan if both else 2.0], [1.0, 2.0]])
    one = np.array([[1.0, np.nan], [1.0, 2.0]])
    assert differences({"y": one}, {"y": own}).tolist() == [np.inf, 0]
