"""Where two models' answers get the same score, whatever the label."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.sequences import LENGTHS
from hasten.core.tensors import Array, Tensors
from hasten.inputs.metrics import parse_metric
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.auroc import Auroc
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.brier import Brier
from hasten.inputs.metrics.changes import disagreeing_rows
from hasten.inputs.metrics.custom import Custom
from hasten.inputs.metrics.detection_f1 import DetectionF1
from hasten.inputs.metrics.embedding import Embedding
from hasten.inputs.metrics.regression import Regression
from hasten.inputs.metrics.top_k import Top1, Top5
from hasten.measure.steps import OverSteps

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])


def same(metric: Metric, one: Array, other: Array) -> list[bool]:
    found = metric.unchanged({"y": one}, {"y": other})
    assert found.dtype == bool
    return found.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("metric", [Top1(), Agreement()])
def test_of_class_scores_the_highest_class_is_the_answer(metric: Metric) -> None:
    other = np.array([[0.3, 0.4, 0.3], [0.4, 0.0, 0.6]])
    assert same(metric, SCORES, other) == [True, False]


def test_equal_scores_are_ranked_by_class_as_a_label_would_find_them() -> None:
    tied = np.array([[0.5, 0.5, 0.0], [0.5, 0.2, 0.5]])
    assert same(Top1(), tied, SCORES) == [False, True]


def test_of_five_highest_classes_the_order_does_not_count() -> None:
    scores = np.array([[9.0, 8, 7, 6, 5, 4, 3]] * 3)
    other = np.array([[5.0, 6, 7, 8, 9, 4, 3], [9, 8, 7, 6, 4, 5, 3], [9, 8, 7, 6, 4, 4, 4]])
    assert same(Top5(), scores, other) == [True, False, True]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), text=st.sampled_from(["top1", "top5"]))
def test_every_label_scores_unchanged_classes_alike_and_some_label_tells_others_apart(
    seed: int, text: str
) -> None:
    rng = np.random.default_rng(seed)
    metric, own = parse_metric(text), rng.integers(0, 4, (6, 7)).astype(float)
    other = np.where(rng.random(own.shape) < 0.2, rng.integers(0, 4, own.shape), own)
    labels = [np.full(len(own), label) for label in range(7)]
    alike = [
        metric.score({"y": other}, {}, label) == metric.score({"y": own}, {}, label)
        for label in labels
    ]
    assert same(metric, other, own) == np.all(alike, axis=0).tolist()


def test_scores_with_nan_are_unchanged_only_where_all_numbers_are_equal() -> None:
    one = np.array([[np.nan, 1.0, 0.0], [np.nan, 1.0, 0.0]])
    other = np.array([[np.nan, 1.0, 0.0], [np.nan, 0.0, 1.0]])
    assert same(Top1(), one, other) == [True, False]


def test_scores_of_other_classes_are_other_answers() -> None:
    assert same(Top1(), SCORES, SCORES[:, :2]) == [False, False]


def test_numbers_within_a_tolerance_are_changed_since_a_label_may_lie_between() -> None:
    one, other = np.array([1.0, 2.0]), np.array([1.0, 2.0 + 1e-12])
    assert same(Regression(0.1), one, other) == [True, False]
    label = np.array([0.0, 2.1 + 5e-13])
    scores = [Regression(0.1).score({"y": y}, {}, label)[1] for y in (one, other)]
    assert scores == [0, 1]


def test_an_embedding_is_unchanged_within_its_cosine() -> None:
    one = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    other = np.array([[2.0, 0.1], [1.0, 1.0], [0.0, 0.0]])
    assert same(Embedding(0.99), one, other) == [True, False, True]


def test_probabilities_and_rankings_are_unchanged_where_they_are_equal() -> None:
    one = np.array([0.25, 0.5, 0.75])
    other = np.array([0.25, 0.5, np.nextafter(0.75, 1)])
    assert same(Brier(), one, other) == [True, True, False]
    assert same(Auroc(), one, other) == [True, True, False]


def test_one_difference_of_two_columns_is_one_ranking() -> None:
    assert same(Auroc(), np.array([[1.0, 3.0]]), np.array([[2.0, 4.0]])) == [True]
    assert same(Brier("softmax"), np.array([[1.0, 3.0]]), np.array([[2.0, 4.0]])) == [False]


def test_detections_are_unchanged_where_boxes_and_classes_above_the_threshold_are() -> None:
    boxes = np.array([[[0, 0, 10, 10], [20, 20, 30, 40.0]]] * 4)
    scores = np.array([[0.9, 0.2]] * 4)
    labels = np.zeros((4, 2), np.int64)
    one: Tensors = {"boxes": boxes, "scores": scores, "labels": labels}
    moved, less, other = boxes.copy(), scores.copy(), labels.copy()
    moved[0, 0, 0], moved[1, 1], less[2, 0], other[3, 0] = 1, 7, 0.8, 1
    found = DetectionF1().unchanged({"boxes": moved, "scores": less, "labels": other}, one)
    assert found.tolist() == [False, True, True, False]


def test_under_a_users_own_function_only_equal_bits_are_unchanged() -> None:
    metric = Custom("nowhere.py:score")
    one = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    assert same(metric, one, np.array([[0.0, 1.0], [-0.0, 1.0]], np.float32)) == [True, False]
    assert same(metric, one, one.astype(np.float64)) == [False, False]
    assert metric.unchanged({"y": one, "z": one}, {"y": one}).tolist() == [False, False]


def test_a_sequence_is_unchanged_where_its_scored_steps_are() -> None:
    own = np.repeat(SCORES[np.newaxis], 3, axis=0)
    other = own.copy()
    other[1, 0], other[2, 1] = [0.9, 0.0, 0.1], [0.0, 0.9, 0.1]
    assert same(OverSteps(Top1(), "all"), other, own) == [True, False, False]
    assert same(OverSteps(Top1(), "last"), other, own) == [True, True, False]


def test_padding_does_not_count_and_another_length_does() -> None:
    own = np.repeat(SCORES[np.newaxis], 3, axis=0)
    other = own.copy()
    other[0, 1] = [0.0, 0.9, 0.1]
    lengths, others = np.array([1, 1, 2]), np.array([1, 2, 2])
    for scored in ("all", "last"):
        metric = OverSteps(Top1(), scored, lengths=True)
        found = metric.unchanged({"y": other, LENGTHS: lengths}, {"y": own, LENGTHS: others})
        assert found.tolist() == [True, False, True]


def test_outputs_with_unlike_first_axes_are_one_answer() -> None:
    own = {"kind": np.array([[1.0, 2.0]]), "boxes": np.arange(12.0).reshape(3, 4)}
    other = {**own, "boxes": own["boxes"] * 2}
    fewer = {**own, "boxes": own["boxes"][:2]}
    none = {**own, "boxes": own["boxes"][:0]}
    pairs = ((own, own), (none, none), (other, own), (fewer, own), (none, own), (own, none))
    found = [disagreeing_rows(one, two).tolist() for one, two in pairs]
    assert found == [[False], [False], [True], [True], [True], [True]]


def test_an_answer_without_rows_agrees_with_itself() -> None:
    none = {"places": np.zeros((0, 2), np.int64)}
    assert disagreeing_rows(none, none).tolist() == []
