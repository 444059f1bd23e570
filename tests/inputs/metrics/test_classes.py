import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.metrics.agreement import Agreement
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.top_k import Top1, Top5

LOGITS = np.array([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3], [0.0, 0.4, 0.6]])


def message(metric: Metric, outputs: Tensors, labels: Array | None) -> str:
    with pytest.raises(InputError) as error:
        metric.score(outputs, outputs, labels)
    return str(error.value)


def test_top1_is_one_where_the_label_scores_highest() -> None:
    assert Top1().score({"y": LOGITS}, {}, np.array([1, 1, 2])).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "labels",
    [
        np.array([[1], [1], [2]]),
        np.array([1.0, 1.0, 2.0]),
        np.array([[0, 1, 0], [0, 1, 0], [0, 0, 1]]),
        np.array([1, 1, 2], np.uint8),
    ],
)
def test_labels_may_be_columns_floats_or_one_hot(labels: Array) -> None:
    assert Top1().score({"y": LOGITS}, {}, labels).tolist() == [1, 0, 1]


@given(
    arrays(np.float32, (6, 9), elements=st.integers(-3, 3)),
    arrays(np.int64, 6, elements=st.integers(0, 8)),
)
def test_top1_is_what_argmax_says_and_top5_is_never_less(scores: Array, labels: Array) -> None:
    one = Top1().score({"y": scores}, {}, labels)
    five = Top5().score({"y": scores}, {}, labels)
    np.testing.assert_array_equal(one, scores.argmax(1) == labels)
    first = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(five, (first == labels[:, None]).any(1))
    assert one.dtype == np.float64
    assert (one <= five).all()


def test_equal_scores_for_all_classes_are_not_always_right() -> None:
    scores = np.zeros((10, 10))
    assert Top1().score({"y": scores}, {}, np.arange(10)).sum() == 1
    assert Top5().score({"y": scores}, {}, np.arange(10)).sum() == 5


def test_the_one_output_of_class_scores_is_found() -> None:
    outputs = {"features": np.zeros((3, 4, 4)), "y": LOGITS, "loss": np.zeros((3, 1))}
    assert Top1().score(outputs, {}, np.array([1, 0, 2])).tolist() == [1, 1, 1]
    both = {"a": LOGITS, "b": -LOGITS}
    assert Top1("b").score(both, {}, np.array([0, 1, 0])).tolist() == [1, 1, 1]


def test_agreement_compares_with_the_exact_model_and_reads_no_labels() -> None:
    other = LOGITS.copy()
    other[1] = [0.1, 0.9, 0.0]
    assert Agreement().score({"y": other}, {"y": LOGITS}, None).tolist() == [1, 0, 1]
    assert not Agreement.needs_labels


def test_outputs_that_are_no_class_scores_are_named() -> None:
    labels = np.array([0, 1, 2])
    assert message(Top1(), {"y": LOGITS[:, :1]}, labels) == (
        "top1 reads class scores (n, classes); the model gives y (n, 1)"
    )
    assert message(Top1(), {"a": LOGITS, "b": LOGITS}, labels) == (
        "top1 reads one output of class scores; the model gives a (n, 3), b (n, 3): name one, "
        "as in top1@a"
    )
    assert message(Agreement("z"), {"a": LOGITS}, None) == (
        "agreement reads the output 'z'; the model has a"
    )
    assert message(Agreement("a"), {"a": LOGITS[0]}, None) == (
        "agreement reads class scores (n, classes); output 'a' is (n,)"
    )


def test_labels_that_are_no_classes_are_named() -> None:
    y = {"y": LOGITS}
    assert message(Top1(), y, None) == "top1 needs labels; the data has none"
    assert message(Top1(), y, np.array([0, 1, 3])) == (
        "top1: label 3 is none of the 3 classes 0 to 2"
    )
    assert message(Top1(), y, np.array([0, -1, 2])) == (
        "top1: label -1 is none of the 3 classes 0 to 2"
    )
    assert message(Top1(), y, np.array([0, 0.5, 2])) == (
        "top1: label 0.5 is none of the 3 classes 0 to 2"
    )
    assert message(Top1(), y, np.array([0, np.nan, 2])) == (
        "top1: label nan is none of the 3 classes 0 to 2"
    )
    assert message(Top1(), y, np.array([1, 3, 2])) == (
        "top1: label 3 is none of the 3 classes 0 to 2; if the labels count from 1, give labels - 1"
    )
    assert message(Top1(), y, np.zeros((3, 2))) == (
        "top1 reads labels (n,) or one-hot (n, 3); got float64 (n, 2)"
    )
    assert message(Top1(), y, np.array(["cat", "dog", "cow"])) == (
        "top1: the labels are words, such as 'cat', and nothing says which class each is: give the "
        "classes' numbers in the model's order, as np.unique(labels, return_inverse=True)[1] where "
        "that is alphabetical"
    )
    assert message(Top1(), y, np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])) == (
        "top1: a one-hot label must have exactly one class; for several use recall"
    )


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_a_class_that_the_model_chose_itself_is_compared_as_it_is(
    dtype: type, shape: tuple[int, ...]
) -> None:
    chosen = {"y": np.array([1, 0, 1]).astype(dtype).reshape(shape), "loss": np.zeros(3)}
    other = {"y": np.array([1, 1, 1]).astype(dtype).reshape(shape), "loss": np.zeros(3)}
    for metric in (Top1(), Top1("y")):
        assert metric.score(chosen, {}, np.array([1, 0, 0])).tolist() == [1, 1, 0]
        assert metric.score(chosen, {}, np.array([[1.0], [0.0], [0.0]])).tolist() == [1, 1, 0]
        assert metric.score(chosen, {}, np.eye(2)[[1, 0, 0]]).tolist() == [1, 1, 0]
        assert metric.unchanged(chosen, other).tolist() == [True, False, True]
    for same in (Agreement(), Agreement("y")):
        assert same.score(chosen, other, None).tolist() == [1, 0, 1]
    assert message(Top1(), chosen, np.array([0, 0.5, 7])) == (
        "top1: label 0.5 is no class: classes are 0, 1, 2, ..."
    )
    assert message(Top1(), chosen, None) == "top1 needs labels; the data has none"
    assert message(Top1(), chosen, np.zeros((3, 2, 2))) == (
        "top1 reads labels (n,) or one-hot (n, classes); got float64 (n, 2, 2)"
    )


def test_top5_of_five_classes_is_refused() -> None:
    assert message(Top5(), {"y": np.zeros((2, 5))}, np.array([0, 1])) == (
        "top5 of 5 classes is always right; use top1"
    )


@pytest.mark.parametrize("metric", [Top1("y"), Top5(), Agreement()])
def test_a_metric_is_written_by_its_name_and_read_back(metric: Metric) -> None:
    record = to_record(metric)
    assert record["type"] in ("top1", "top5", "agreement")
    assert from_record(Metric, record) == metric


def test_a_label_beyond_the_scores_names_the_output_of_classes_beside_them() -> None:
    outputs = {"label": np.array([5, 7]), "scores": np.array([[0.9, 0.1], [0.2, 0.8]])}
    labels = np.array([5, 7])
    with pytest.raises(InputError) as refused:
        Top1().score(outputs, {}, labels)
    assert str(refused.value) == (
        "top1: label 5 is none of the 2 classes 0 to 1; if the labels are the numbers that the output 'label' "
        'gives, name it: metric="top1@label"'
    )
    assert Top1("label").score(outputs, {}, labels).tolist() == [1.0, 1.0]
    with pytest.raises(InputError, match=r"classes 0 to 1$"):
        Top1().score({**outputs, "count": np.array([1, 1])}, {}, labels)
