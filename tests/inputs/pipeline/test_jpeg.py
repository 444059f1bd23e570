import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.base import Origin
from hasten.inputs.pipeline.image import Decode
from hasten.inputs.pipeline.jpeg import jpeg_pixels
from hasten.inputs.pipeline.turning import ORIENTATION

PHOTO = Image.fromarray(load_sample_image("flower.jpg")).resize((333, 217))


def jpeg(image: Image.Image = PHOTO, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def by_pillow(file: bytes, step: Decode) -> Array:
    """Decode without simplejpeg."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "simplejpeg", None)
        return step(file)


def by_simplejpeg(file: bytes) -> bool:
    with Image.open(io.BytesIO(file)) as image:
        return jpeg_pixels(image, file, (image.height, image.width)) is not None


@pytest.mark.parametrize("least", [0, 100, 50, 20])
@pytest.mark.parametrize(
    "options",
    [
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"quality": 20},
        {"keep_rgb": True, "subsampling": 0},
    ],
)
def test_both_decoders_give_the_same_pixels(options: dict[str, Any], least: int) -> None:
    for size in ((333, 217), (17, 16), (8, 9), (1, 1)):
        file = jpeg(PHOTO.resize(size), **options)
        assert by_simplejpeg(file)
        step = Decode(least=least)
        np.testing.assert_array_equal(step(file), by_pillow(file, step))


def test_gray_pictures_and_pictures_of_several_frames_are_the_same_by_both_decoders() -> None:
    several = io.BytesIO()
    PHOTO.save(several, "MPO", save_all=True, append_images=[PHOTO.rotate(90)])
    for file in (jpeg(PHOTO.convert("L")), several.getvalue()):
        assert by_simplejpeg(file)
        np.testing.assert_array_equal(Decode()(file), by_pillow(file, Decode()))


@pytest.mark.parametrize("least", [0, 50])
def test_cmyk_is_left_to_pillow(least: int) -> None:
    file = jpeg(PHOTO.convert("CMYK"))
    assert not by_simplejpeg(file)
    decoded = Decode(least=least)(file)
    wanted = np.asarray(PHOTO.resize(decoded.shape[1::-1]), np.int16)
    assert np.abs(decoded - wanted).mean() < 8  # What JPEG itself loses of a photograph.


def test_a_file_whose_two_headers_differ_is_left_to_pillow() -> None:
    file = jpeg()
    with Image.open(io.BytesIO(file)) as image:
        assert jpeg_pixels(image, file, (217, 333)) is not None
        assert jpeg_pixels(image, file, (217, 332)) is None


def test_paths_and_bytes_are_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg())
    np.testing.assert_array_equal(Decode()(tmp_path / "a.jpg"), Decode()(jpeg()))


def test_a_damaged_scan_gives_what_pillow_gives() -> None:
    file = bytearray(jpeg())
    middle = len(file) // 2
    file[middle : middle + 40] = bytes(40)
    damaged = bytes(file)
    np.testing.assert_array_equal(Decode()(damaged), by_pillow(damaged, Decode()))


@pytest.mark.parametrize(
    ("least", "shape"),
    [
        (0, (217, 333)),
        (110, (217, 333)),
        (109, (109, 167)),
        (55, (55, 84)),
        (28, (28, 42)),
        (1, (28, 42)),
    ],
)
def test_least_keeps_that_many_pixels_on_the_shorter_side(
    least: int, shape: tuple[int, int]
) -> None:
    pixels, origin = Decode(least=least).traced(jpeg(), Origin())
    assert pixels.shape[:2] == shape
    factor = -(-217 // shape[0])
    assert origin == Origin(217, 333, (factor, factor))


def test_least_leaves_other_formats_as_they_are() -> None:
    file = io.BytesIO()
    PHOTO.save(file, "PNG")
    assert Decode(least=20)(file.getvalue()).shape == (217, 333, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("least", [0, 50, 20])
def test_a_mark_in_a_smaller_and_turned_picture_is_told_where_it_is_in_the_source(
    orientation: int, least: int
) -> None:
    stored = np.zeros((203, 301, 3), np.uint8)
    stored[48:96, 160:176] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    file = jpeg(Image.fromarray(stored), exif=exif, quality=100, subsampling=0)
    full = Decode()(file)
    pixels, origin = Decode(least=least).traced(file, Origin())
    assert (origin.height, origin.width) == full.shape[:2]
    for axis in (0, 1):
        wanted, found = _span(full, axis), _span(pixels, axis)
        told = [origin.offset[axis] + origin.scale[axis] * position for position in found]
        assert told == pytest.approx(wanted, abs=0.5)


def _span(pixels: Array, axis: int) -> tuple[float, float]:
    """Return where a bright mark begins and ends on an axis, as positions between pixels."""
    line = np.flatnonzero((pixels[..., 0] > 127).any(axis=1 - axis))
    return float(line[0]), float(line[-1] + 1)


def test_a_header_that_promises_too_many_pixels_is_refused_by_both_decoders() -> None:
    file = bytearray(jpeg())
    frame = file.index(b"\xff\xc0")
    file[frame + 5 : frame + 9] = struct.pack(">HH", 60000, 60000)
    for decode in (Decode(least=10), lambda file: by_pillow(file, Decode())):
        with pytest.raises(InputError, match="pixels"):
            decode(bytes(file))
