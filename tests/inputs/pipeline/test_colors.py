"""Pictures in gray and in OpenCV's order of channels: the same pixels as Pillow's, through every step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image
from tests.inputs.pipeline.test_pictures_of_few_bytes import (
    PIXELS,
    SCALES,
    one_color,
    opened_in_rgb,
    picture,
)

from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline import decoded_bytes, resample, strips
from hasten.inputs.pipeline.base import Origin, Pipeline, Step
from hasten.inputs.pipeline.config import from_yaml, image_pipeline
from hasten.inputs.pipeline.image import CenterCrop, Decode, Normalize, Resize, ToLayout
from hasten.inputs.pipeline.letterbox import Letterbox
from hasten.inputs.pipeline.memory import making_room
from hasten.inputs.pipeline.turning import ORIENTATION

PHOTO = Image.fromarray(load_sample_image("china.jpg"))
FORMS = [
    *(("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("LA", "PNG")),
    *(("I;16", "PNG"), ("CMYK", "TIFF"), ("L", "JPEG"), ("RGB", "JPEG"), ("CMYK", "JPEG")),
]


def gray_by_pillow(image: Image.Image) -> Array:
    return np.asarray(image.convert("L"))[..., np.newaxis]


@pytest.mark.parametrize(("mode", "form"), FORMS)
def test_gray_is_what_pillow_makes_of_the_pictures_rgb(
    mode: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture(mode, form)
    wanted = gray_by_pillow(opened_in_rgb(data))
    for strip_pixels in (2**19, 700):
        monkeypatch.setattr(strips, "STRIP_PIXELS", strip_pixels)
        for value in (data, Decode()(data)):
            found, origin = Decode(colors="gray").traced(value, Origin())
            np.testing.assert_array_equal(found, wanted)
            assert found.dtype == np.uint8
            assert origin == Origin(61, 83)


@pytest.mark.parametrize("scale", SCALES, ids=repr)
def test_a_gray_picture_is_resized_as_pillow_resizes_gray(
    scale: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture("RGB", "PNG")
    small = opened_in_rgb(data).convert("L")
    filter_ = Image.Resampling[scale.interpolation.upper()]
    wanted = np.asarray(small.resize(scale.size_after((61, 83))[::-1], filter_))
    for strip_pixels in (2**19, 700):
        monkeypatch.setattr(strips, "STRIP_PIXELS", strip_pixels)
        for value in (data, PIXELS):
            found, origin = Pipeline((Decode(colors="gray"), scale)).prepared(value)
            if isinstance(scale, Letterbox):
                in_rgb, _ = Pipeline((Decode(), scale)).prepared(np.zeros_like(PIXELS))
                assert ((found[..., 0] == scale.fill) >= (in_rgb[..., 0] == scale.fill)).all()
                found = found[in_rgb[..., 0] == 0].reshape(wanted.shape)
            np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)
            assert origin == Pipeline((Decode(), scale)).prepared(data)[1]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("scale", SCALES, ids=repr)
def test_bgr_is_rgb_with_its_channels_reversed(
    scale: Step, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compiled:
        resample.compile_now()
    else:
        monkeypatch.setattr(strips, "ready_for", lambda part: None)
    for steps in ((), (scale,), (scale, CenterCrop(9)), (CenterCrop(9), scale)):
        data = picture("RGB", "JPEG")
        for value in (data, PIXELS):
            wanted, origin = Pipeline((Decode(), *steps)).prepared(value)
            found, place = Pipeline((Decode(colors="BGR"), *steps)).prepared(value)
            np.testing.assert_array_equal(found, wanted[..., ::-1])
            assert found.flags["C_CONTIGUOUS"] or steps  # as a step of somebody's own may need it
            assert place == origin


@pytest.mark.parametrize("colors", ["gray", "BGR"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_other_colors_are_turned_and_decoded_smaller_as_rgb_is(
    colors: Any, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for mode in ("L", "RGB"):
        data = picture(mode, "JPEG", exif=exif)
        for scale in ((), (Resize((20, 30)),)):
            wanted, origin = Decode(least=20).traced(data, Origin())
            found, place = Pipeline((Decode(least=20, colors=colors), *scale)).prepared(data)
            if colors == "gray":
                wanted = gray_by_pillow(Image.fromarray(wanted))
            else:
                wanted = wanted[..., ::-1]
            for step in scale:
                wanted, origin = step.traced(wanted, origin)
            np.testing.assert_array_equal(found, wanted)
            assert place == origin


def test_one_channel_is_normalized_and_becomes_a_plane() -> None:
    steps = (Decode(colors="gray"), Normalize((0.1307,), (0.3081,)))
    whole = gray_by_pillow(PHOTO).astype(np.float64) / 255
    for layout, wanted in (("CHW", whole.transpose(2, 0, 1)), ("HWC", whole)):
        last = ToLayout("CHW") if layout == "CHW" else ToLayout("HWC")
        found = Pipeline((*steps, last))(np.asarray(PHOTO))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, (wanted - 0.1307) / 0.3081, atol=1e-6)
    assert Pipeline((Decode(colors="gray"), ToLayout("CHW", "uint8")))(PIXELS).shape == (1, 61, 83)


def test_a_gray_picture_becomes_three_channels_where_there_are_three_means() -> None:
    three = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    in_three = np.repeat(gray_by_pillow(Image.fromarray(PIXELS)), 3, axis=2)
    found = Pipeline((Decode(colors="gray"), three, ToLayout()))(PIXELS)
    np.testing.assert_array_equal(found, Pipeline((three, ToLayout()))(in_three))
    for mean, std in (((0.5,), (0.5, 0.5, 0.5)), ((), ()), ((0.5, 0.5), (0.5, 0.5))):
        with pytest.raises(InputError) as error:
            Normalize(mean, std)
        assert str(error.value) == (
            f"normalize.mean={mean!r}, std={std!r}: give one number for each of 3 channels, or one for all"
        )


def test_colors_come_from_a_file_and_back_from_a_record(tmp_path: Any) -> None:
    path = tmp_path / "pipeline.yaml"
    path.write_text("size: 28\nmean: 0.1307\nstd: 0.3081\ncolors: gray\n")
    short = from_yaml(path)
    assert short == image_pipeline(28, mean=[0.1307], std=[0.3081], colors="gray")
    path.write_text(
        "before:\n  - decode: {colors: gray}\n  - resize: 28\n  - center_crop: 28\n"
        "  - normalize: {mean: [0.1307], std: [0.3081]}\n  - to_layout\n"
    )
    assert from_yaml(path) == short
    three = image_pipeline(28, std=[0.1, 0.2, 0.3], colors="gray")
    assert Normalize((0.0, 0.0, 0.0), (0.1, 0.2, 0.3)) in three.steps
    assert tuple(from_record(Step, to_record(step)) for step in short.steps) == short.steps
    for bad, said in (
        ({"colors": "red"}, "colors='red': give one of RGB, BGR, gray"),
        (
            {"colors": "gray", "mean": [0.1, 0.2]},
            "mean=[0.1, 0.2]: give one number, or one for each of 3 channels",
        ),
    ):
        with pytest.raises(InputError) as error:
            image_pipeline(28, **bad)
        assert str(error.value) == said
    path.write_text("before:\n  - decode: {colors: red}\n")
    with pytest.raises(InputError, match="decode: Invalid enum value 'red'"):
        from_yaml(path)


def test_a_gray_array_counts_beside_the_decoded_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    data = one_color("RGB", (1_000, 1_000), "PNG")
    told: list[int] = []
    token = making_room.set(told.append)
    try:
        needed = {}
        for colors in ("RGB", "gray"):
            Pipeline((Decode(colors=colors), Resize(50)))(data)
            needed[colors] = max(told)
            told.clear()
        # In between, a row becomes 50 pixels of 4 bytes or of 1.
        assert needed == {"RGB": 4_200_000, "gray": 5_050_000}
        large = np.zeros((1_000, 1_000, 3), np.uint8)
        Pipeline((Decode(colors="gray"), Resize(50)))(large[:500])  # as a crop of a chain
        assert max(told) == large.nbytes + 500 * 1_000
    finally:
        making_room.reset(token)
    monkeypatch.setattr(decoded_bytes, "ALWAYS_BYTES", 4_500_000)
    assert Pipeline((Decode(), Resize(50)))(data).shape == (50, 50, 3)
    with pytest.raises(InputError, match="preparing it takes 5 MiB"):
        Pipeline((Decode(colors="gray"), Resize(50)))(data)
