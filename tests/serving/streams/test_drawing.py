"""What is drawn into a picture, and that nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.support.videos import views

from hasten.core.tensors import Array
from hasten.serving.streams.drawing import drawn


def plain() -> Array:
    return next(views(1, (300, 400)))


def changed(decision: Any, corner: str = "") -> Array:
    """Return which pixels differ after drawing."""
    image = plain()
    result = drawn(image, decision, corner)
    assert result.shape == image.shape
    assert result.dtype == np.uint8
    assert np.array_equal(image, plain()), "the picture itself was drawn into"
    found: Array = (result != image).any(axis=2)
    return found


def test_a_box_is_drawn_where_it_is_with_its_label_above() -> None:
    where = changed([{"box": [100, 150, 200, 250], "class": 1, "label": "dog", "score": 0.9}])
    assert where[150:250, 100].mean() > 0.9
    assert where[150:250, 200].mean() > 0.9
    assert where[150, 100:200].mean() > 0.9
    assert where[250, 100:200].mean() > 0.9
    assert not where[160:240, 110:190].any()
    assert where[135:149, 100:130].any()
    assert not where[:120].any()


def test_the_likeliest_classes_are_written_in_the_upper_left_corner() -> None:
    one = changed([{"class": 3, "label": "a cat", "score": 0.8}])
    two = changed([{"class": 3, "label": "a cat", "score": 0.8}, {"class": 4, "score": 0.1}])
    assert one[:20, :20].any()
    assert not one[22:].any()
    assert two[22:40].any()


def test_a_step_that_may_abstain_has_its_classes_written_where_it_does_not() -> None:
    classes = [{"class": 3, "label": "a cat", "score": 0.8}]
    sure = changed({"abstained": False, "classes": classes})
    assert np.array_equal(sure, changed(classes))
    assert not changed({"abstained": True, "least": 0.9, "likeliest": classes}).any()


def test_the_latency_is_written_in_the_lower_left_corner() -> None:
    where = changed(None, "12.3 ms")
    assert where[-22:, :40].any()
    assert not where[:-30].any()


def test_a_box_beyond_the_picture_is_drawn_up_to_its_edge() -> None:
    where = changed([{"box": [-50, -50, 5000, 5000], "class": 0}])
    assert where[0].all()
    assert where[:, 399].all()


@pytest.mark.parametrize(
    "decision",
    [
        None,
        [],
        {},
        "text",
        7,
        {"scores": np.zeros(3)},
        [1, None],
        [{"box": [1, 2, 3]}],
        [{"box": [1, 2, float("nan"), 4]}],
        [{"box": [20, 20, 10, 10]}],
        [{"box": [900, 900, 999, 999]}],
        [{"box": "everywhere"}],
        [{"label": "no class", "score": 1.0}],
    ],
)
def test_nothing_is_drawn_of_other_decisions(decision: Any) -> None:
    assert not changed(decision).any()


def test_very_many_boxes_and_very_long_labels_are_bounded() -> None:
    boxes = [{"box": [0, 0, 9, 9], "class": 1}] * 100
    last = {"box": [300, 250, 350, 290], "class": 1}
    assert not changed([*boxes, last])[240:, 290:].any()
    assert changed([{"class": 1, "label": "x" * 10**6, "score": 1.0}])[:20].any()


def test_pictures_of_a_few_pixels_can_be_drawn_into() -> None:
    image = np.zeros((1, 2, 3), np.uint8)
    assert drawn(image, [{"box": [0, 0, 1, 1], "class": 0}], "1 ms").shape == (1, 2, 3)
