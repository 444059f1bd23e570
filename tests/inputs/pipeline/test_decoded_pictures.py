"""Pictures that are decoded already pass through `decode`, as a video's frames do."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from tests.support.videos import photograph

from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.image import Decode


def test_a_decoded_picture_is_prepared_as_its_file_is() -> None:
    file = io.BytesIO()
    photograph().save(file, "PNG")
    pipeline = image_pipeline(64, resize=80, mean=0.5, std=0.2)
    one, origin = pipeline.prepared(np.asarray(photograph()))
    other, origin_of_file = pipeline.prepared(file.getvalue())
    assert np.array_equal(one, other)
    assert origin == origin_of_file
    assert (origin.height, origin.width) == (427, 640)


def test_a_decoded_picture_is_its_own_origin() -> None:
    image = np.zeros((5, 7, 3), np.uint8)
    passed, origin = Decode().traced(image, Origin())
    assert passed is image
    assert origin == Origin(5, 7)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((5, 7, 3), np.float32), "[5, 7, 3] of float32"),
        (np.zeros((5, 7, 4), np.uint8), "[5, 7, 4] of uint8"),
        (np.zeros((5, 7), np.uint8), "[5, 7] of uint8"),
        (np.zeros((1, 5, 7, 3), np.uint8), "[1, 5, 7, 3] of uint8"),
        (np.zeros((0, 7, 3), np.uint8), "[0, 7, 3] of uint8"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(image: Any, got: str) -> None:
    with pytest.raises(InputError) as error:
        Decode()(image)
    assert str(error.value) == (
        f"a decoded picture is (height, width, 3) of uint8, in RGB: got {got}"
    )


def test_a_decoded_picture_is_bounded_as_a_file_is() -> None:
    with pytest.raises(InputError) as error:
        Decode(max_pixels=30)(np.zeros((5, 7, 3), np.uint8))
    assert str(error.value) == "the image has 7 x 5 pixels, more than 30"
