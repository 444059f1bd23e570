"""Scores of places in a picture: segmentation and keypoints, by sums that a person can check."""

import numpy as np
import pytest

from hasten.core.records import type_name
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.missing import filled
from hasten.inputs.metrics import named_metric
from hasten.inputs.metrics.base import Metric
from hasten.inputs.metrics.iou import Iou
from hasten.inputs.metrics.keypoints import COCO_SIGMAS, Oks, Pck
from hasten.inputs.metrics.unlabelled import check_labelled

MASK = np.array([[[0, 0, 1, 1], [0, 0, 1, 1]]])
MOVED = np.array([[[0, 1, 1, 1], [0, 0, 1, 2]]])


def scores_of(classes: Array, count: int = 3) -> Array:
    return np.moveaxis(np.eye(count, dtype=np.float32)[classes], 3, 1)


def test_masks_of_0_and_255_are_not_taken_for_background_alone() -> None:
    masks = np.array([[[0, 255], [255, 0]]], np.uint8)
    said = (
        "iou: the labels are 0 and 255 alone, and 255 doesn't count: give class 1 as 1, as labels // 255; or give -1 "
        "for places that don't count"
    )
    for metric in (Iou(), named_metric(["iou@y", "agreement@z"])):
        for labels in (masks, np.concatenate([masks, masks * 0])):
            with pytest.raises(InputError) as error:
                check_labelled(metric, labels, "iou")
            assert str(error.value) == said
        for labels in (masks // 255, masks * 0, masks | 1, masks.astype(int) - 256, masks > 0):
            check_labelled(metric, labels, "iou")
    check_labelled(Iou(), None, "iou")


def test_the_iou_is_the_mean_over_classes_of_answer_and_truth() -> None:
    expected = [(3 / 4 + 3 / 5 + 0) / 3]
    assert Iou().score({"y": MOVED}, {}, MASK).tolist() == pytest.approx(expected)
    assert Iou().score({"y": scores_of(MOVED)}, {}, MASK).tolist() == pytest.approx(expected)
    last = {"y": np.moveaxis(scores_of(MOVED), 1, 3)}
    assert Iou(last=True).score(last, {}, MASK[:, np.newaxis]).tolist() == pytest.approx(expected)
    assert Iou().score({"y": MOVED}, {"y": MASK}, None).tolist() == pytest.approx(expected)


def test_places_without_a_class_do_not_count() -> None:
    labels = np.where(MOVED == MASK, MASK, 255)
    assert Iou().score({"y": MOVED}, {}, labels).tolist() == [1]
    assert Iou().score({"y": MOVED}, {}, np.full_like(MASK, -1)).tolist() == [1]


def test_a_single_class_is_read_by_a_threshold() -> None:
    score = {"y": np.array([[[[0.9, 0.4, 0.1, 0.1]]]], np.float32)}
    truth = np.array([[[1, 1, 0, 0]]])
    assert Iou().score(score, {}, truth).tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2])
    assert Iou(0.3).score({"y": score["y"][:, 0]}, {}, truth).tolist() == [1]


def test_a_mask_is_unchanged_where_every_place_is() -> None:
    assert Iou().unchanged({"y": scores_of(MOVED)}, {"y": scores_of(MASK)}).tolist() == [False]
    assert Iou().unchanged({"y": 2 * scores_of(MASK)}, {"y": scores_of(MASK)}).tolist() == [True]


SQUARE = np.array([[[0, 0], [10, 0], [10, 10], [0, 10]]], np.float32)
NEAR = SQUARE + np.array([[[0.9, 0], [2, 0], [0, 1], [0, 0]]], np.float32)


def test_keypoints_within_a_share_of_the_box_are_correct() -> None:
    assert Pck().score({"y": NEAR}, {}, SQUARE).tolist() == [3 / 4]
    assert Pck(0.2).score({"y": NEAR.reshape(1, 8)}, {}, SQUARE).tolist() == [1]


def test_a_point_that_is_not_visible_counts_for_nothing() -> None:
    seen = np.dstack([SQUARE, [[1, 0, 2, 1]]])
    assert Pck().score({"y": NEAR}, {}, seen).tolist() == [1]
    seen[..., 2] = 0
    assert Pck().score({"y": NEAR + 99}, {}, seen).tolist() == [1]


@pytest.mark.parametrize("metric", [Pck(), Oks(0.05)])
def test_a_visible_point_that_lacks_a_coordinate_is_refused(metric: Pck | Oks) -> None:
    whole = [[0, 0], [10, 0], [10, 10]]
    found = {"y": np.array([[*whole, [0, 10.0]]])}
    for gap in ([None, 10], [0, np.nan]):
        for label in ([*whole, gap], [[*point, 1] for point in [*whole, gap]]):
            with pytest.raises(InputError) as error:
                metric.score(found, {}, filled(np.array([label], object)))
            assert str(error.value) == (
                f"{type_name(metric)} reads x and y of each visible point, but one has None, NaN or a masked value "
                "there: repair it, or give labels (n, 4, 3) whose third number is 0 for a point that isn't visible"
            )
        for seen in (0, None):
            label = [*([*point, 1] for point in whole), [*gap, seen]]
            assert metric.score(found, {}, filled(np.array([label], object))).tolist() == [1]


def test_a_heatmap_stands_for_the_place_of_its_highest_number() -> None:
    maps = np.zeros((1, 2, 5, 7), np.float32)
    maps[0, 0, 4, 1] = maps[0, 1, 0, 6] = 1
    assert Pck().score({"y": maps}, {}, np.array([[[1, 4], [6, 0]]])).tolist() == [1]


def test_oks_is_cocos_formula() -> None:
    pycocotools = pytest.importorskip("pycocotools.cocoeval")
    assert pytest.approx(COCO_SIGMAS) == pycocotools.Params("keypoints").kpt_oks_sigmas
    found = np.exp(-np.array([0.81, 4, 1, 0]) / (2 * 100 * 0.1**2)).mean()
    assert Oks(0.05).score({"y": NEAR}, {}, SQUARE).tolist() == pytest.approx([found])


def test_oks_agrees_with_pycocotools_of_the_same_area() -> None:
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 100, (1, 17, 2))
    found = truth + rng.normal(0, 3, truth.shape)
    visible = np.dstack([truth, rng.integers(0, 3, (1, 17))])
    own = truth[0][visible[0, :, 2] > 0]
    area = float(np.prod(own.max(0) - own.min(0)))
    image = {"images": [{"id": 1}], "categories": [{"id": 1}]}
    one = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 100, 100], "iscrowd": 0}
    counted = int((visible[0, :, 2] > 0).sum())
    true, theirs = coco.COCO(), coco.COCO()
    true.dataset = {
        **image,
        "annotations": [
            {
                **one,
                "area": area,
                "keypoints": visible[0].reshape(-1).tolist(),
                "num_keypoints": counted,
            }
        ],
    }
    points = np.dstack([found, np.ones((1, 17))])[0].reshape(-1).tolist()
    theirs.dataset = {
        **image,
        "annotations": [
            {**one, "area": area, "keypoints": points, "score": 1.0, "num_keypoints": 17}
        ],
    }
    true.createIndex()
    theirs.createIndex()
    run = COCOeval(true, theirs, "keypoints")
    run.evaluate()
    (oks,) = run.ious[1, 1].reshape(-1)
    assert Oks().score({"y": found}, {}, visible).tolist() == pytest.approx([oks])


def test_without_labels_the_exact_models_points_are_the_truth() -> None:
    assert Pck().score({"y": NEAR}, {"y": SQUARE}, None).tolist() == [3 / 4]
    assert Pck().unchanged({"y": NEAR}, {"y": SQUARE}).tolist() == [False]


def test_classes_on_either_axis_count_where_nothing_says_which_it_is() -> None:
    one, other = np.zeros((2, 1, 16, 16, 5))
    one[..., 0] = other[..., 3] = 1
    assert Iou().unchanged({"y": one}, {"y": other}).tolist() == [False]
    assert Iou().unchanged({"y": one}, {"y": 2 * one}).tolist() == [True]
    truth = np.moveaxis(np.eye(9)[np.arange(48).reshape(1, 8, 6) % 9], 3, 1)
    assert Iou().score({"y": truth}, {}, truth.argmax(axis=1)).tolist() == [1]


def test_points_of_one_object_may_have_an_axis_for_it() -> None:
    seen = np.dstack([NEAR, np.ones((1, 4, 1))])[:, np.newaxis]
    assert Pck().score({"y": seen}, {}, SQUARE).tolist() == [3 / 4]
    assert Pck().score({"y": seen}, {"y": SQUARE[:, np.newaxis]}, None).tolist() == [3 / 4]


def test_heatmaps_higher_than_wide_are_read_by_labels_that_count_their_points() -> None:
    maps = np.zeros((1, 9, 8, 6))
    maps[0, :, 3, 2] = 1
    moved = np.roll(maps, 1, axis=2)
    truth = np.tile([2, 3], (1, 9, 1)) + np.array([[[0, 0]] * 8 + [[9, 9]]])
    assert Pck().score({"y": maps}, {}, truth).tolist() == pytest.approx([8 / 9])
    assert Pck().unchanged({"y": maps}, {"y": maps * 2}).tolist() == [True]
    assert Pck().unchanged({"y": maps}, {"y": moved}).tolist() == [False]
    one, other = np.zeros((2, 1, 8, 8, 5))
    one[0, :, 0, 0], other[0, :, 0, 0] = np.arange(1, 9), np.arange(8, 0, -1)
    assert Pck().unchanged({"y": one}, {"y": other}).tolist() == [False]


@pytest.mark.parametrize(
    ("metric", "output", "labels", "message"),
    [
        (
            Iou(),
            np.zeros((2, 16, 16, 5)),
            None,
            "iou: the output is (n, 16, 16, 5), so its classes seem to be on the last axis: write iou:last; "
            "or give labels, if they are on the second",
        ),
        (
            Pck(),
            np.zeros((2, 64, 48, 17)),
            None,
            "pck: the output is (n, 64, 48, 17), so the points of its heatmaps seem to be on the "
            "last axis, but this metric reads them on the second: give labels if they are on the "
            "second, or else a function of your own, my.py:score",
        ),
        (
            Oks(0.05),
            np.zeros((2, 6, 17, 3)),
            None,
            "oks reads the points of one object, (n, points, 2) or (n, 1, points, 2), or 3; the "
            "output is (n, 6, 17, 3), which looks like 6 objects: use a function of your own, "
            "my.py:score",
        ),
        (
            Iou(),
            MASK.astype(np.float64)[0],
            None,
            "iou reads scores (n, classes, h, w) or integers (n, h, w); the output is float64 (n, 4)",
        ),
        (
            Iou(),
            MASK,
            np.zeros((1, 4, 4), int),
            "iou reads labels that are classes: integers (n, 2, 4), as in the output; "
            "got int64 "
            "(n, 4, 4)",
        ),
        (
            Iou(),
            np.zeros((1, 8, 8, 1), np.float32),
            None,
            "iou: the output is (n, 8, 8, 1), so its classes seem to be on the last axis: write iou:last",
        ),
        (
            Pck(),
            SQUARE,
            SQUARE[:, :3],
            "pck reads labels (n, 4, 2), or (n, 4, 3) with whether each is visible; got float32 (n, 3, 2)",
        ),
        (
            Oks(),
            SQUARE,
            SQUARE,
            "oks knows the spread of COCO's 17 points, but the model has 4: give one spread for "
            "all, as in oks:0.05",
        ),
        (
            Pck(),
            np.zeros((1, 3)),
            None,
            "pck reads points (n, points, 2), (n, points, 3) or (n, 2 * points), or heatmaps (n, points, "
            "h, w); the output is float64 (n, 3)",
        ),
    ],
)
def test_what_are_no_places_is_refused(
    metric: Metric, output: Array, labels: Array | None, message: str
) -> None:
    with pytest.raises(InputError) as error:
        metric.score({"y": output}, {"y": output}, labels)
    assert str(error.value) == message
