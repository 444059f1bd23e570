import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array, Tensors
from hasten.errors import InputError
from hasten.inputs.data.missing import filled
from hasten.inputs.metrics import detection_f1, named_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.detection_f1 import DetectionF1, Found, overlaps
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.classes import TopK
from hasten.inputs.pipeline.nms import Nms
from hasten.inputs.pipeline.yolo import YoloBoxes

A, B, FAR = [0, 0, 10, 10], [20, 20, 30, 40], [90, 90, 99, 99]


def image(*rows: tuple[Sequence[float], float, int]) -> dict[str, Array]:
    return {
        "boxes": np.array([[box for box, _, _ in rows]], float).reshape(1, -1, 4),
        "scores": np.array([[score for _, score, _ in rows]], float),
        "labels": np.array([[label for _, _, label in rows]], np.int64),
    }


def f1(found: Tensors, labels: Sequence[Sequence[float]]) -> float:
    rows = np.array([labels], float).reshape(1, -1, 5)
    return float(DetectionF1().score(found, {}, rows)[0])


def test_every_true_box_found_and_no_other_is_one() -> None:
    assert f1(image((B, 0.9, 2), (A, 0.8, 1)), [[*A, 1], [*B, 2]]) == 1


def test_a_missing_and_a_wrong_box_each_cost() -> None:
    assert f1(image((A, 0.9, 1)), [[*A, 1], [*B, 2]]) == pytest.approx(2 / 3)
    assert f1(image((A, 0.9, 1), (FAR, 0.9, 1)), [[*A, 1]]) == pytest.approx(2 / 3)


def test_a_box_of_another_class_is_no_match() -> None:
    assert f1(image((A, 0.9, 2)), [[*A, 1]]) == 0


def test_a_true_box_is_taken_once() -> None:
    assert f1(image((A, 0.9, 1), (A, 0.8, 1)), [[*A, 1]]) == pytest.approx(2 / 3)


def test_the_better_score_takes_first_and_the_best_overlap() -> None:
    # The low-scored box would take B's twin if it came first; the IoU of the shifted box is 0.6.
    near = [0, 0, 10, 6]
    found = image((A, 0.6, 1), (near, 0.9, 1))
    assert f1(found, [[*A, 1]]) == pytest.approx(2 / 3)
    assert f1(found, [[*A, 1], [*near, 1]]) == 1


@pytest.mark.parametrize(("height", "score"), [(5.0, 1), (4.99, 0)])
def test_an_overlap_of_exactly_a_half_counts(height: float, score: float) -> None:
    assert f1(image(([0, 0, 10, height], 0.9, 1)), [[*A, 1]]) == score


def test_detections_below_the_threshold_and_padding_do_not_count() -> None:
    assert f1(image((A, 0.9, 1), (FAR, 0.49, 1)), [[*A, 1], [*FAR, -1]]) == 1


def test_a_true_box_that_lacks_a_corner_is_refused_unless_it_is_padding() -> None:
    found = {name: np.repeat(array, 2, axis=0) for name, array in image((A, 0.9, 1)).items()}
    for labels in (
        [[[*A, 1], [0, 0, None, 10, 1]], [[*A, 1], [*B, 1]]],
        np.array([[[*A, 1], [0, 0, np.nan, 10, 1]], [[*A, 1], [*B, 1]]]),
        np.ma.masked_equal([[[*A, 1], [0, 0, 99, 10, 1]], [[*A, 1], [*B, 1]]], 99),
    ):
        with pytest.raises(InputError) as error:
            DetectionF1().score(found, {}, filled(labels))
        assert str(error.value) == (
            "detection_f1 reads x0, y0, x1 and y1 of each true box, but one has None, NaN or a masked value there: "
            "repair it, or give the box a class below 0, which is padding"
        )
    padded = [[[*A, 1], [None] * 5], [[*A, 1], [None, 0, 0, 0, -1]]]
    assert DetectionF1().score(found, {}, filled(padded)).tolist() == [1, 1]


def matched_at_once(found: Found, true: Found) -> float:
    """F1 of one image, from the overlaps of all boxes at once."""
    low = np.maximum(found.boxes[:, None, :2], true.boxes[None, :, :2])
    high = np.minimum(found.boxes[:, None, 2:], true.boxes[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [
        np.prod(np.clip(b[:, 2:] - b[:, :2], 0, None), axis=1) for b in (found.boxes, true.boxes)
    ]
    union = areas[0][:, None] + areas[1][None, :] - shared
    whole = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    assert overlaps(found.boxes, true.boxes).tobytes() == whole.tobytes()
    whole = np.where(found.classes[:, None] == true.classes[None, :], whole, 0.0)
    taken = 0
    for row in range(len(whole)):
        best = int(whole[row].argmax())
        if whole[row, best] >= 0.5:
            taken += 1
            whole[:, best] = 0
    return 2 * taken / (len(found.classes) + len(true.classes))


@pytest.mark.parametrize("pairs", [1, 50, 1 << 14])
def test_scores_are_the_same_however_many_boxes_are_compared_at_once(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection_f1, "_PAIRS", pairs)
    random = np.random.default_rng(0)
    for found_count, true_count in ((1, 1), (40, 7), (7, 40), (60, 60)):
        corners = np.round(random.random((found_count + true_count, 4)) * 9, 1)
        corners[:, 2:] += corners[:, :2]
        corners[0, 3] = np.nan
        classes = random.integers(0, 2, len(corners))
        found = Found(corners[:found_count], classes[:found_count])
        true = Found(corners[found_count:], classes[found_count:])
        score = f1(
            image(*((box, 0.9, each) for box, each in zip(*found, strict=True))),
            [[*box, each] for box, each in zip(*true, strict=True)],
        )
        assert score == matched_at_once(found, true)


def test_many_true_boxes_take_little_memory() -> None:
    """4,094 of them are a label of 49 kB."""
    boxes = [[0, 0, 1, 1]] * 1000
    found = image(*((box, 0.9, 0) for box in boxes))
    labels = np.tile(np.array([0, 0, 1, 1, 0], float), (1, 4094, 1))
    tracemalloc.start()
    score = DetectionF1().score(found, {}, labels)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert score[0] == 2 * 1000 / (1000 + 4094)
    assert most_bytes < 8 << 20


def test_nothing_to_find_and_nothing_found_is_one() -> None:
    assert f1(image((A, 0.1, 1)), [[*A, -1]]) == 1
    assert f1(image((A, 0.9, 1)), [[*A, -1]]) == 0
    assert f1(image((A, 0.1, 1)), [[*A, 1]]) == 0


def test_without_labels_the_exact_models_detections_are_the_truth() -> None:
    exact = image((A, 0.9, 1), (B, 0.8, 1), (FAR, 0.2, 1))
    assert DetectionF1().score(exact, exact, None).tolist() == [1]
    assert DetectionF1().score(image((A, 0.9, 1)), exact, None).tolist() == [pytest.approx(2 / 3)]


def test_a_model_of_one_class_needs_no_labels_output() -> None:
    found = image((A, 0.9, 0))
    del found["labels"]
    assert f1(found, [[*A, 0]]) == 1


BOXES = arrays(np.float64, (3, 5, 4), elements=st.integers(0, 9))
SCORES = arrays(np.float64, (3, 5), elements=st.floats(0, 1))
CLASSES = arrays(np.int64, (3, 5), elements=st.integers(0, 2))


@given(BOXES, SCORES, CLASSES, BOXES, SCORES, CLASSES)
def test_f1_lies_in_0_1(b: Array, s: Array, c: Array, b2: Array, s2: Array, c2: Array) -> None:
    found = {"boxes": b, "scores": s, "labels": c}
    exact = {"boxes": b2, "scores": s2, "labels": c2}
    scores = DetectionF1().score(found, exact, None)
    assert scores.shape == (3,)
    assert ((scores >= 0) & (scores <= 1)).all()


@given(BOXES)
def test_overlaps_are_symmetric_and_full_only_with_itself(boxes: Array) -> None:
    one, other = boxes[0], boxes[1]
    np.testing.assert_allclose(overlaps(one, other), overlaps(other, one).T)
    own = np.diag(overlaps(one, one))
    area = ((one[:, 2:] - one[:, :2]) > 0).all(axis=1)
    np.testing.assert_array_equal(own, area.astype(float))


def test_the_boxes_that_the_pipeline_decodes_count() -> None:
    places = [[5, 5, 10, 10, 0.9, 0.1], [5, 5, 10, 9, 0.8, 0.1], [25, 30, 10, 20, 0.2, 0.7]]
    grid = {"grid": np.array([places], np.float32).mT}
    true = np.array([[[*A, 0], [*B, 1]]], float)
    metric = named_metric("detection_f1").around(Pipeline((), after=(YoloBoxes(), Nms())))
    assert metric.score(grid, {}, true).tolist() == [1]
    assert metric.score(grid, grid, None).tolist() == [1]
    assert metric.unchanged(grid, {"grid": grid["grid"] * [[[1]] * 4 + [[0.99]] * 2]}).all()
    assert from_record(Metric, to_record(metric)) == metric
    # Without removal, the second box of the first object is found too.
    assert DetectionF1(steps=(YoloBoxes(), Nms(overlap=1))).score(grid, {}, true) == [0.8]


def test_a_pipeline_that_decides_on_something_else_changes_nothing() -> None:
    assert DetectionF1().around(Pipeline((), after=(TopK(),))) == DetectionF1()
    assert DetectionF1().around(None) == DetectionF1()


def test_outputs_and_labels_that_do_not_fit_are_named() -> None:
    def message(outputs: Tensors, labels: Array | None = None) -> str:
        with pytest.raises(InputError) as error:
            DetectionF1().score(outputs, outputs, labels)
        return str(error.value)

    good = image((A, 0.9, 1))
    assert message({"boxes": good["boxes"]}) == (
        "detection_f1 reads the outputs boxes, scores and labels; the model has boxes. If the outputs "
        "aren't boxes yet, give a pipeline whose steps after the model make boxes, such as yolo_boxes and nms"
    )
    assert message({**good, "scores": np.ones((1, 2))}) == (
        "detection_f1 reads boxes (n, k, 4), scores (n, k) and labels (n, k); the model gives "
        "[1, 1, 4], [1, 2] and [1, 1]"
    )
    assert message(good, np.ones((1, 3))) == (
        "detection_f1 reads labels (n, k, 5): x0, y0, x1, y1, class; got (n, 3)"
    )
    with pytest.raises(InputError) as error:
        DetectionF1(iou=0)
    assert str(error.value) == "detection_f1:0: the least IoU must be above 0 and at most 1"
