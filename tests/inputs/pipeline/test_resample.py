"""Pictures resized by compiled C: Pillow's pixels, whatever the sizes, the filter and the part that is kept."""

from __future__ import annotations

import io
import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hasten.core.tensors import Array
from hasten.inputs.pipeline import resample, strips
from hasten.inputs.pipeline.base import Origin, Pipeline
from hasten.inputs.pipeline.image import CenterCrop, Decode, Resize
from hasten.inputs.pipeline.resample import Resampler

SIDES = st.integers(1, 120)


@pytest.fixture(scope="module")
def in_c() -> Iterator[Resampler]:
    """Let this process resize by compiled C, as one does that has resized some pictures."""
    before = resample.resampler.made
    made = resample.unmade().get(None)
    assert made is not None, "there is no C compiler here"
    resample.resampler.use(made)
    yield made
    resample.resampler.use(before)


def picture(height: int, width: int, seed: int = 0) -> Array:
    """Return noise and hard edges, where a sum exceeds 0 to 255 most."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (height, width, 3), np.uint8)
    edges = (255 * rng.integers(0, 2, (height, width, 3))).astype(np.uint8)
    return noise if seed % 2 else edges


def by_pillow(pixels: Array, new: tuple[int, int], interpolation: str) -> Array:
    resized = Image.fromarray(pixels).resize(new[::-1], Image.Resampling[interpolation.upper()])
    return np.asarray(resized)


@pytest.mark.usefixtures("in_c")
@given(
    old=st.tuples(SIDES, SIDES),
    new=st.tuples(SIDES, SIDES),
    interpolation=st.sampled_from([*resample.FILTERS, "nearest", "lanczos"]),
    corners=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    seed=st.integers(0, 9),
)
def test_any_part_of_a_picture_has_pillows_pixels(
    old: tuple[int, int], new: tuple[int, int], interpolation: str, corners: list[float], seed: int
) -> None:
    pixels = picture(*old, seed)
    top, bottom = sorted(round(new[0] * corner) for corner in corners[:2])
    left, right = sorted(round(new[1] * corner) for corner in corners[2:])
    wanted = by_pillow(pixels, new, interpolation)[top:bottom, left:right]
    for source in (pixels, Image.fromarray(pixels)):
        found = strips.resized(source, new, interpolation, (top, bottom, left, right))  # type: ignore[arg-type]
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("in_c_too", [True, False])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((720, 1280), (256, 455)),
        ((1280, 720), (455, 256)),
        ((1600, 500), (400, 225)),  # down first since Pillow 13
        ((9000, 80), (300, 70)),  # down first since Pillow 12.2
        ((500, 1600), (500, 300)),
        ((1100, 700), (300, 700)),
    ],
)
def test_a_large_picture_has_pillows_pixels(
    in_c: Resampler,
    in_c_too: bool,
    old: tuple[int, int],
    new: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not in_c_too:
        monkeypatch.setattr(resample.resampler, "made", None)
    assert old[0] * old[1] > strips.STRIP_PIXELS
    pixels = picture(*old, 1)
    wanted = by_pillow(pixels, new, "bicubic")
    turned = np.ascontiguousarray(pixels[:, ::-1])[:, ::-1]
    channels = np.ascontiguousarray(pixels[:, :, ::-1])[:, :, ::-1]
    for source in (pixels, Image.fromarray(pixels), turned, channels, pixels.copy(order="F")):
        assert np.array_equal(strips.resized(source, new, "bicubic"), wanted)


@pytest.mark.usefixtures("in_c")
@pytest.mark.parametrize("given", ["gray", "with an alpha channel"])
def test_an_array_that_is_no_rgb_is_left_to_pillow(given: str) -> None:
    pixels = (
        picture(90, 80)[:, :, 0] if given == "gray" else np.dstack([picture(90, 80)] * 2)[:, :, :4]
    )
    wanted = by_pillow(np.ascontiguousarray(pixels), (40, 30), "bicubic")
    found = strips.resized(np.ascontiguousarray(pixels), (40, 30), "bicubic")
    assert np.array_equal(found, np.asarray(Image.fromarray(wanted).convert("RGB")))


def test_the_order_follows_the_version_of_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    def orders(version: tuple[int, int]) -> list[bool]:
        monkeypatch.setattr(resample, "_pillow", lambda: version)
        sizes = (((720, 1280), (256, 455)), ((900, 300), (300, 224)), ((901, 9), (300, 9)))
        assert not any(resample.down_first(*one, "nearest") for one in sizes)
        return [resample.down_first(*one, "bicubic") for one in sizes]

    assert orders((10, 0)) == orders((12, 1)) == [False, False, False]
    assert orders((12, 2)) == [False, False, True]
    assert orders((13, 0)) == [False, True, True]


@pytest.mark.parametrize("rounding", ["even", "down"])
@pytest.mark.parametrize("crop", [224, 61, (50, 300), (255, 91), 400])
@pytest.mark.parametrize("size", [64, 91, (120, 77)])
@pytest.mark.parametrize("sides", [(210, 333), (333, 210), (64, 64)])
@pytest.mark.usefixtures("in_c")
def test_a_crop_after_resizing_gives_what_both_give_alone(
    sides: tuple[int, int], size: int, crop: int, rounding: str
) -> None:
    file = io.BytesIO()
    Image.fromarray(picture(*sides)).save(file, "PNG")
    steps = (Decode(), Resize(size), CenterCrop(crop, rounding))  # type: ignore[arg-type]
    joined = Pipeline(steps)
    assert [step.name for step in joined.joined] == ["decode, resize, center_crop"]
    value: Any = file.getvalue()
    origin = Origin()
    for step in steps:
        value, origin = step.traced(value, origin)
    found, place = joined.prepared(file.getvalue())
    assert np.array_equal(found, value)
    assert place == origin
    assert np.array_equal(joined(file.getvalue()), value)
    assert np.array_equal(joined(picture(*sides)), value)


def test_without_a_compiler_pillow_resizes_and_it_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HASTEN_CC", "no-such-compiler")
    monkeypatch.setattr(resample, "resampler", resample.unmade())
    with caplog.at_level(logging.WARNING, "hasten.pictures"):
        assert resample.resampler.get(None) is None
        found = strips.resized(picture(90, 80), (40, 30), "bicubic")
    assert np.array_equal(found, by_pillow(picture(90, 80), (40, 30), "bicubic"))
    (line,) = caplog.messages
    assert line.startswith("pictures are resized by Pillow, which takes several times as long")


def test_code_whose_pixels_are_others_than_pillows_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(resample.FILTERS, "box", resample.FILTERS["bilinear"])
    with caplog.at_level(logging.WARNING, "hasten.pictures"):
        assert resample.unmade().get(None) is None
    assert "box gives other pixels than the installed Pillow" in caplog.text


def test_a_cache_that_cannot_be_used_costs_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HASTEN_CACHE_BYTES", "much")
    monkeypatch.setattr(resample, "resampler", resample.unmade())
    found = strips.resized(picture(90, 80), (40, 30), "bicubic")
    assert np.array_equal(found, by_pillow(picture(90, 80), (40, 30), "bicubic"))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_process_forked_off_while_another_thread_compiles_goes_on() -> None:
    native = resample.unmade()
    with native._lock:
        child = os.fork()
        if not child:
            native.get(1)
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def test_a_few_pictures_start_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resample, "resampler", resample.unmade())
    strips.resized(picture(90, 80), (40, 30), "bicubic")
    assert not [one for one in threading.enumerate() if one.name == "hasten-compile"]


@pytest.mark.slow
def test_no_picture_is_read_or_written_beyond_its_memory() -> None:
    from fuzz import sanitized_resizing

    assert sanitized_resizing.run(400, 3) == 400
