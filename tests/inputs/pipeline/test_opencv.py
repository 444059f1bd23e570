"""Pictures resized without smoothing, as OpenCV and so Ultralytics' letterbox does it."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.inputs.pipeline.test_colors import gray_by_pillow
from tests.inputs.pipeline.test_pictures_of_few_bytes import PIXELS, opened_in_rgb, picture

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline import resample, strips
from hasten.inputs.pipeline.base import Origin, Pipeline
from hasten.inputs.pipeline.config import image_pipeline
from hasten.inputs.pipeline.image import CenterCrop, Decode, Resize
from hasten.inputs.pipeline.letterbox import Letterbox
from hasten.inputs.pipeline.opencv import pairs
from hasten.inputs.pipeline.resample import OPENCV

SIDES = st.integers(1, 120)


@pytest.fixture(scope="module", params=["C", "Python"])
def language(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let this process resize by compiled C, or never."""
    before = resample.resampler.made
    made = None if request.param == "Python" else resample.unmade().get(None)
    assert (made is None) == (request.param == "Python"), "there is no C compiler here"
    resample.resampler.use(made)
    yield request.param
    resample.resampler.use(before)


def noise(height: int, width: int, channels: int = 3) -> Array:
    return np.random.default_rng(height).integers(0, 256, (height, width, channels), np.uint8)


def by_opencv(cv2: Any, pixels: Array, new: tuple[int, int]) -> Array:
    found = cv2.resize(np.ascontiguousarray(pixels), new[::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(found).reshape(*new, -1)


@pytest.mark.usefixtures("language")
def test_a_small_picture_gets_the_pixels_that_opencv_gave() -> None:
    y, x = np.mgrid[:5, :7]
    source = ((37 * y + 91 * x + 7 * x * y * x) % 256).astype(np.uint8)[..., np.newaxis]
    smaller = [[47, 184, 69, 97], [113, 76, 158, 104], [115, 160, 140, 111]]
    larger = [
        [0, 61, 131, 145, 17, 88, 158, 144, 34],
        [16, 79, 155, 177, 61, 61, 127, 136, 48],
        [39, 105, 181, 210, 123, 35, 89, 124, 69],
        [62, 131, 143, 131, 186, 122, 115, 113, 90],
        [85, 157, 141, 97, 168, 128, 106, 102, 110],
        [109, 183, 174, 106, 71, 54, 61, 90, 131],
        [132, 113, 127, 149, 117, 125, 80, 79, 151],
        [148, 57, 89, 180, 161, 185, 98, 71, 166],
    ]
    for new, wanted in (((3, 4), smaller), ((8, 9), larger)):
        assert Resize(new, OPENCV)(source)[..., 0].tolist() == wanted
        in_three = Resize(new, OPENCV)(np.repeat(source, 3, axis=2))
        assert (in_three == np.array(wanted)[..., np.newaxis]).all()


@pytest.mark.usefixtures("language")
@given(
    old=st.tuples(SIDES, SIDES),
    new=st.tuples(SIDES, SIDES),
    channels=st.sampled_from([1, 3]),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
)
def test_any_part_of_a_picture_has_opencvs_pixels(
    old: tuple[int, int], new: tuple[int, int], channels: int, corners: list[float]
) -> None:
    cv2: Any = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    source = noise(*old, channels)
    top, bottom = sorted(min(int(place * new[0]), new[0] - 1) for place in corners[:2])
    left, right = sorted(min(int(place * new[1]), new[1] - 1) for place in corners[2:])
    kept = (top, bottom + 1, left, right + 1)
    wanted = by_opencv(cv2, source, new)
    np.testing.assert_array_equal(strips.resized(source, new, "opencv_linear"), wanted)
    part = strips.resized(source, new, "opencv_linear", kept)
    np.testing.assert_array_equal(part, wanted[top : bottom + 1, left : right + 1])


@pytest.mark.usefixtures("language")
@pytest.mark.parametrize(
    ("old", "new"),
    [((720, 1280), (360, 640)), ((1080, 1920), (360, 640)), ((427, 640), (640, 959))],
)
def test_large_pictures_have_opencvs_pixels(old: tuple[int, int], new: tuple[int, int]) -> None:
    cv2: Any = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    source = noise(*old)
    np.testing.assert_array_equal(Resize(new, OPENCV)(source), by_opencv(cv2, source, new))


@pytest.mark.usefixtures("language")
@given(
    old=st.tuples(SIDES, SIDES),
    size=st.tuples(SIDES, SIDES),
    enlarge=st.booleans(),
    center=st.booleans(),
)
def test_a_letterbox_is_ultralytics_rule_done_by_opencv(
    old: tuple[int, int], size: tuple[int, int], enlarge: bool, center: bool
) -> None:
    cv2: Any = pytest.importorskip("cv2", reason="needs opencv-python-headless")
    source = noise(*old)
    # LetterBox.__call__ of Ultralytics 8.4, with auto=False.
    ratio = min(size[0] / old[0], size[1] / old[1])
    ratio = ratio if enlarge else min(ratio, 1.0)
    high, wide = round(old[0] * ratio), round(old[1] * ratio)
    if not high or not wide:
        return  # OpenCV refuses a picture without pixels
    down, across = size[0] - high, size[1] - wide
    if center:
        down, across = down / 2, across / 2  # type: ignore[assignment]
    if (high, wide) != old:
        source = by_opencv(cv2, source, (high, wide))
    borders = (
        *((round(down - 0.1) if center else 0), round(down + 0.1)),
        *((round(across - 0.1) if center else 0), round(across + 0.1)),
    )
    wanted = cv2.copyMakeBorder(source, *borders, cv2.BORDER_CONSTANT, value=(114,) * 3)
    step = Letterbox(size, interpolation="opencv_linear", enlarge=enlarge, center=center)
    np.testing.assert_array_equal(step(noise(*old)), wanted)


@pytest.mark.usefixtures("language")
@pytest.mark.parametrize("new", [(17, 23), (100, 200), (61, 40), (90, 83), (61, 83)])
@pytest.mark.parametrize(("mode", "form"), [("P", "PNG"), ("RGB", "PNG"), ("RGB", "JPEG")])
def test_a_file_is_resized_in_strips_to_the_same(
    new: tuple[int, int], mode: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, resize = picture(mode, form), Resize(new, OPENCV)
    in_rgb = np.asarray(opened_in_rgb(data))
    gray = gray_by_pillow(opened_in_rgb(data))
    wanted, in_gray = resize(in_rgb), resize(gray)
    monkeypatch.setattr(strips, "STRIP_PIXELS", 4 * 700)
    for crop in ((), (CenterCrop((13, 17)),), (CenterCrop((130, 217)),)):
        for colors, expected in (
            ("RGB", wanted),
            ("BGR", wanted[..., ::-1]),
            ("gray", in_gray),
        ):
            cut, origin = expected, Origin(61, 83).resized((61, 83), new)
            for step in crop:
                cut, origin = step.traced(cut, origin)
            decode = Decode(colors=colors)  # type: ignore[arg-type]
            for value in (data, in_rgb):
                found, place = Pipeline((decode, resize, *crop)).prepared(value)
                np.testing.assert_array_equal(found, cut)
                assert place == origin


@pytest.mark.usefixtures("language")
def test_rows_that_do_not_follow_each_other_in_memory_are_taken() -> None:
    wanted = Resize((20, 90), OPENCV)(PIXELS[3:50, 10:70].copy())
    np.testing.assert_array_equal(Resize((20, 90), OPENCV)(PIXELS[3:50, 10:70]), wanted)
    turned = PIXELS[::-1, ::-1]
    np.testing.assert_array_equal(
        Resize((20, 90), OPENCV)(turned), Resize((20, 90), OPENCV)(turned.copy())
    )


def test_what_is_no_picture_of_bytes_is_refused() -> None:
    with pytest.raises(InputError) as error:
        Resize((3, 3), OPENCV)(np.zeros((5, 7, 4), np.uint8))
    assert str(error.value) == (
        "opencv_linear resizes (height, width, 3 or 1) of uint8: got [5, 7, 4] of uint8"
    )
    with pytest.raises(InputError, match=r"but gets \[5, 7, 3\] of float32$"):
        Resize((3, 3), OPENCV)(np.zeros((5, 7, 3), np.float32))


def test_weights_of_neighbors_add_up_to_one_within_their_rounding() -> None:
    for old, new in ((83, 200), (200, 83), (7, 7), (1, 9), (9, 1)):
        for columns in (True, False):
            found = pairs(old, new, columns=columns)
            assert (abs(found.weights.sum(axis=0) - 2**11) <= 1).all()
            assert 0 <= found.first.min() <= found.second.max() < old


def test_the_short_form_takes_it() -> None:
    assert image_pipeline(8, interpolation="opencv_linear").steps[1] == Resize(8, "opencv_linear")


def test_a_tensor_that_torchvision_does_not_smooth_differs_by_at_most_a_level() -> None:
    pytest.importorskip("torchvision", reason="needs torchvision: pip install 'hasten[torch]'")
    v2: Any = importlib.import_module("torchvision.transforms.v2")
    from hasten.inputs.pipeline.torchvision import from_torchvision

    for size in (50, (90, 170), (20, 20)):
        transform = v2.Compose([v2.ToImage(), v2.Resize(size, antialias=False)])
        pipeline = from_torchvision(transform)
        assert pipeline.steps[1] == Resize(size, OPENCV)
        wanted = transform(PIXELS).numpy().astype(int)
        assert np.abs(pipeline(PIXELS) - wanted).max() <= 1
