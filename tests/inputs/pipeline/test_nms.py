"""Boxes that overlap a better one are left out exactly as torchvision does."""

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin
from hasten.inputs.pipeline.boxes import Boxes
from hasten.inputs.pipeline.nms import Nms, standing


def crowd(count: int, seed: int, classes: int = 5, spread: float = 600) -> Boxes:
    """Random boxes, best first; the smaller the spread, the more of them overlap."""
    numbers = np.random.default_rng(seed)
    low = numbers.uniform(0, spread, (count, 2))
    corners = np.concatenate([low, low + numbers.uniform(5, 120, (count, 2))], axis=1)
    scores = np.sort(numbers.uniform(0.1, 1, count))[::-1]
    kinds = numbers.integers(0, classes, count)
    return Boxes(corners.astype(np.float32), scores.astype(np.float32), kinds)


def oracle(boxes: Boxes, overlap: float, *, agnostic: bool) -> list[int]:
    kinds = np.zeros_like(boxes.classes) if agnostic else boxes.classes
    arrays = (boxes.corners, boxes.scores.copy(), kinds)
    corners, scores, classes = (torch.from_numpy(array) for array in arrays)
    kept: list[int] = batched_nms(corners, scores, classes, overlap).tolist()
    return kept


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("spread", [30, 200, 600])
@pytest.mark.parametrize("count", [0, 1, 2, 63, 64, 65, 500, 3000])
def test_those_boxes_stand_that_torchvision_keeps(
    count: int, spread: float, agnostic: bool
) -> None:
    for seed, overlap in enumerate((0.3, 0.45, 0.7)):
        boxes = crowd(count, seed, spread=spread)
        classes = None if agnostic else boxes.classes
        kept = standing(boxes.corners, classes, overlap, 10_000)
        assert kept.tolist() == oracle(boxes, overlap, agnostic=agnostic)


@pytest.mark.parametrize("most", [1, 5, 64, 70, 100])
def test_at_most_as_many_boxes_as_asked_stand_and_they_are_the_best(most: int) -> None:
    boxes = crowd(2000, 7)
    every = standing(boxes.corners, boxes.classes, 0.5, 10_000)
    assert len(every) > 100
    assert standing(boxes.corners, boxes.classes, 0.5, most).tolist() == every[:most].tolist()


def test_a_box_that_is_left_out_leaves_out_no_other() -> None:
    chain = np.array([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]], np.float32)
    assert standing(chain, None, 0.3, 10).tolist() == [0, 2]


def test_boxes_without_area_or_with_swapped_corners_stand_and_suppress_none() -> None:
    odd = np.array([[5, 5, 5, 5], [9, 9, 2, 2], [0, 0, 10, 10], [5, 5, 5, 5]], np.float32)
    assert standing(odd, None, 0.0, 10).tolist() == [0, 1, 2, 3]


def test_the_decision_names_classes_and_scores_and_tells_boxes_in_the_sources_pixels() -> None:
    corners = np.array([[10, 20, 30, 40], [11, 20, 30, 40], [10, 20, 30, 40]], np.float32)
    boxes = Boxes(corners, np.array([0.75, 0.5, 0.25], np.float32), np.array([1, 1, 0]), ("a", "b"))
    # A picture of 80 x 100 pixels, halved, with a border of 5 rows above.
    origin = Origin(80, 100, (2.0, 2.0), (-10.0, 0.0))
    expected = [20.0, 30.0, 60.0, 70.0]
    assert Nms()(boxes, origin) == [
        {"class": 1, "label": "b", "score": 0.75, "box": expected},
        {"class": 0, "label": "a", "score": 0.25, "box": expected},
    ]
    assert Nms(agnostic=True, most=1)(boxes, origin) == Nms(most=1)(boxes, origin)
    assert len(Nms(agnostic=True)(boxes, origin)) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"overlap": 1.5}, "nms.overlap=1.5: give a number from 0 to 1"),
        ({"overlap": float("nan")}, "nms.overlap=nan: give a number from 0 to 1"),
        ({"most": 0}, "nms.most=0: give a number from 1 to 30000"),
        ({"most": 10**9}, "nms.most=1000000000: give a number from 1 to 30000"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(settings: dict[str, float], words: str) -> None:
    with pytest.raises(InputError) as error:
        Nms(**settings)  # type: ignore[arg-type]
    assert str(error.value) == words


def test_something_else_than_boxes_is_refused() -> None:
    outputs: dict[str, Array] = {"y": np.zeros(3)}
    with pytest.raises(InputError) as error:
        Nms()(outputs, Origin())
    assert str(error.value) == "nms takes boxes; got dict: put yolo_boxes before it"
