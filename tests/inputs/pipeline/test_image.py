import io
import json
import re
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hasten.core.records import from_record, to_record
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline import image as steps
from hasten.inputs.pipeline.base import Origin, Pipeline, Step
from hasten.inputs.pipeline.image import (
    CenterCrop,
    Decode,
    Normalize,
    Resize,
    ToLayout,
    check_header,
)

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 40, 3), np.uint8)
NO_IMAGE = "it is no whole BMP, GIF, JPEG, PNG, PPM, TIFF or WEBP file"


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def refused(step: Step, value: Any) -> str:
    with pytest.raises(InputError) as error:
        step(value)
    return str(error.value)


def test_bytes_and_files_decode_to_the_same_rgb(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(PIXELS))
    (tmp_path / "a.png").write_bytes(data)
    np.testing.assert_array_equal(Decode()(data), PIXELS)
    np.testing.assert_array_equal(Decode()(tmp_path / "a.png"), PIXELS)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_images_of_any_kind_become_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((4, 5), 0x80FF, np.uint16))
    else:
        image = Image.new("RGB", (5, 4), (128, 128, 128)).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    decoded = Decode()(encoded(image, kind))
    assert decoded.shape == (4, 5, 3)
    assert decoded.dtype == np.uint8
    off = {"1": 128, "P": 26}.get(mode, 3)  # Black and white, and Pillow's web palette.
    assert np.abs(decoded.astype(int) - 128).max() <= off


def test_colors_of_16_bits_keep_their_upper_8() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = zlib.compress(b"\0\x12\x34\xab\xff\x00\xff")
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    assert Decode()(data).tolist() == [[[0x12, 0xAB, 0x00]]]


def test_a_palette_with_transparency_becomes_rgb_without_a_warning() -> None:
    image = Image.new("P", (5, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    decoded = Decode()(encoded(image, transparency=b"\x80\x00"))
    assert decoded[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("chain", [(Decode(),), (Decode(), Resize(4))])
def test_a_text_is_no_path_of_a_picture(chain: tuple[Step, ...], tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    Image.new("RGB", (5, 4)).save(file)
    with pytest.raises(InputError) as error:
        Pipeline(chain)(str(file))
    assert str(error.value) == (
        "decode takes a picture's bytes or its path, but a text isn't a path: give "
        f"Path({str(file)!r:.80})"
    )


def test_gray_without_a_range_is_refused() -> None:
    data = encoded(Image.fromarray(np.ones((4, 5), np.float32)), "TIFF")
    assert refused(Decode(), data) == (
        "the image can't be read as an image: 32-bit gray (mode F) has no defined range"
    )


@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 have a meaning.
def test_images_are_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(Decode()(data), wanted)
    np.testing.assert_array_equal(Decode(orient=False)(data), PIXELS)


def test_damaged_exif_data_beside_the_orientation_are_no_matter() -> None:
    # Turn it by 90 degrees to see it upright, and text for a resolution.
    entries = struct.pack("<HHHI4sHHI4s", 2, 0x0112, 3, 1, b"\6\0\0\0", 0x011A, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0\x08\0\0\0" + entries + bytes(4)
    data = encoded(Image.fromarray(PIXELS), exif=exif)
    np.testing.assert_array_equal(Decode()(data), np.rot90(PIXELS, -1))


@pytest.mark.filterwarnings("error")
def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = encoded(Image.fromarray(PIXELS))
    assert Decode(max_pixels=1200)(data).shape == (30, 40, 3)
    assert refused(Decode(max_pixels=1199), data) == (
        "the image has 40 x 30 pixels, more than 1199"
    )
    for limit in (1000, 500):  # Pillow warns past its limit, and raises past twice that.
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert refused(Decode(max_pixels=9), data) == "the image has more than 9 pixels"


def test_what_is_no_image_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"text")
    said = f"can't be read as an image: {NO_IMAGE}; it begins with b'text'"
    assert refused(Decode(), path) == f"{path} {said}"
    assert refused(Decode(), b"text") == f"the image {said}"
    assert refused(Decode(), b"") == f"the image can't be read as an image: {NO_IMAGE}; it is empty"
    page = b"<!DOCTYPE html><title>404</title>"
    assert refused(Decode(), page).endswith("; it begins with b'<!DOCTYPE ht'")
    assert refused(Decode(), tmp_path / "no.jpg") == (
        f"{tmp_path / 'no.jpg'} can't be read as an image: [Errno 2] No such file or directory: "
        f"'{tmp_path / 'no.jpg'}'"
    )
    with pytest.raises(InputError) as error:
        check_header(path)
    assert str(error.value) == f"{path} {said}"


def test_an_image_that_is_cut_short_is_refused() -> None:
    data = encoded(Image.fromarray(PIXELS))
    assert re.fullmatch(
        "the image can't be read as an image: image file is truncated.*",
        refused(Decode(), data[:1000]),
    )


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA"])
def test_formats_that_folders_of_images_do_not_hold_are_refused(kind: str) -> None:
    data = encoded(Image.fromarray(PIXELS), kind)
    assert refused(Decode(), data).startswith(f"the image can't be read as an image: {NO_IMAGE}; ")


def test_a_tiff_whose_entries_are_of_another_type_is_refused() -> None:
    data = bytearray(encoded(Image.fromarray(PIXELS), "TIFF"))
    strip_offsets = data.index(struct.pack("<HH", 273, 4))
    data[strip_offsets + 2] = 2  # Text, not a number.
    assert re.fullmatch("the image can't be read as an image: .+", refused(Decode(), bytes(data)))


BOUNDS = "give sides of at least 1 pixel, and at most 67108864 pixels in all"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"type": "resize", "size": 0}, f"resize.size=0: {BOUNDS}"),
        ({"type": "resize", "size": 8193}, f"resize.size=8193: {BOUNDS}"),
        ({"type": "resize", "size": [1, 2**27]}, f"resize.size=(1, 134217728): {BOUNDS}"),
        ({"type": "center_crop", "size": 10**9}, f"center_crop.size=1000000000: {BOUNDS}"),
        ({"type": "center_crop", "size": [-1, -1]}, f"center_crop.size=(-1, -1): {BOUNDS}"),
        (
            {"type": "decode", "max_pixels": 2**40},
            "decode.max_pixels=1099511627776: give a number from 1 to 67108864",
        ),
        (
            {"type": "decode", "max_pixels": 0},
            "decode.max_pixels=0: give a number from 1 to 67108864",
        ),
    ],
)
def test_a_record_with_absurd_sizes_is_refused(step: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        from_record(Pipeline, {"steps": [step]})
    assert str(error.value) == message


def test_the_largest_sizes_are_taken() -> None:
    assert Resize(2**13).size == CenterCrop(2**13).size == 2**13
    assert CenterCrop((1, 2**26)).size == (1, 2**26)
    assert Decode(max_pixels=2**26) == Decode()


def test_a_crop_is_never_larger_between_than_at_its_end() -> None:
    tall, wide = np.ones((2**20, 1, 3), np.uint8), CenterCrop((1, 2**20))
    tracemalloc.start()
    try:
        cropped = wide(tall)
        assert tracemalloc.get_traced_memory()[1] < 2 * cropped.nbytes
    finally:
        tracemalloc.stop()
    assert cropped.shape == (1, 2**20, 3)
    assert cropped.sum() == 3
    assert cropped[0, 2**19 - 1].tolist() == [1, 1, 1]


def test_resize_takes_the_shorter_side_or_both() -> None:
    assert Resize(15)(PIXELS).shape == (15, 20, 3)
    assert Resize(15)(PIXELS.transpose(1, 0, 2)).shape == (20, 15, 3)
    assert Resize((7, 9))(PIXELS).shape == (7, 9, 3)
    assert Resize(30)(PIXELS) is PIXELS
    wanted = np.asarray(Image.fromarray(PIXELS).resize((20, 15), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(Resize(15, "bilinear")(PIXELS), wanted)


def test_a_long_thin_image_does_not_grow_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "MAX_PIXELS", 1000)
    assert refused(Resize(30), PIXELS[:1]) == (
        "an image of 40 x 1 pixels becomes 1200 x 30, more than 1000 pixels"
    )


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12))
def test_a_crop_is_torchvisions(height: int, width: int, crop_h: int, crop_w: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="needs torchvision")
    wanted = transforms.CenterCrop((crop_h, crop_w))(Image.fromarray(PIXELS[:height, :width]))
    cropped = CenterCrop((crop_h, crop_w))(PIXELS[:height, :width])
    np.testing.assert_array_equal(cropped, np.asarray(wanted))


def test_normalize_is_its_formula() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    given_: Array = Normalize(mean, std)(PIXELS)
    wanted = (PIXELS / 255 - np.array(mean)) / np.array(std)
    assert given_.dtype == np.float32
    np.testing.assert_allclose(given_, wanted, atol=5e-7)
    scaled = Normalize((127, 127, 127), (128, 128, 128), 1)(PIXELS)
    np.testing.assert_allclose(scaled, (PIXELS - 127.0) / 128, atol=5e-7)


def by_formula(pixels: Array, step: Normalize) -> Any:
    factor = (step.scale / np.array(step.std)).astype(np.float32)
    return pixels * factor - (np.array(step.mean) / np.array(step.std)).astype(np.float32)


IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CAFFE = Normalize((123.68, 116.78, 103.94), (58.4, 57.1, 57.4), 1.0)


@pytest.mark.parametrize("step", [IMAGENET, CAFFE])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (33, 65), (224, 224), (500, 333)])
def test_normalizing_fast_equals_the_formula_bit_for_bit(
    step: Normalize, height: int, width: int
) -> None:
    whole = RNG.integers(0, 256, (height + 9, width + 5, 3), np.uint8)
    for pixels in (whole[4 : 4 + height, 2 : 2 + width], whole[:height, :width].copy()):
        wanted = by_formula(pixels, step)
        np.testing.assert_array_equal(step(pixels), wanted)
        for layout in (ToLayout("CHW"), ToLayout("HWC"), ToLayout("CHW", "float16")):
            sample = Pipeline((step, layout))(pixels)
            np.testing.assert_array_equal(sample, layout(wanted))
            assert sample.dtype == layout.dtype
            assert sample.flags.c_contiguous


def test_every_pixel_value_is_normalized_as_the_formula_says() -> None:
    pixels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    for step in (IMAGENET, CAFFE):
        planes = Pipeline((step, ToLayout()))(pixels)
        np.testing.assert_array_equal(planes, by_formula(pixels, step).transpose(2, 0, 1))


def test_what_is_not_uint8_rgb_is_normalized_by_the_formula_too() -> None:
    for value in (PIXELS.astype(np.float32), PIXELS.astype(np.uint16), PIXELS[:, :, :1]):
        planes = Pipeline((IMAGENET, ToLayout()))(value)
        np.testing.assert_array_equal(planes, by_formula(value, IMAGENET).transpose(2, 0, 1))


def test_normalizing_into_planes_takes_no_memory_but_the_result() -> None:
    pixels = RNG.integers(0, 256, (600, 500, 3), np.uint8)
    pipeline = Pipeline((CenterCrop((500, 400)), IMAGENET, ToLayout()))
    pipeline(pixels)
    tracemalloc.start()
    sample = pipeline(pixels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sample.nbytes <= peak < 1.05 * sample.nbytes


def test_a_pipeline_with_steps_in_one_pass_keeps_its_record() -> None:
    pipeline = Pipeline((CenterCrop(20), IMAGENET, ToLayout()))
    before = to_record(pipeline)
    pipeline(PIXELS)
    assert to_record(pipeline) == before
    assert pipeline == from_record(Pipeline, before)


@pytest.mark.parametrize("std", [(0.0, 1.0, 1.0), (1.0, float("inf"), 1.0)])
def test_a_deviation_that_is_no_divisor_is_refused(std: tuple[float, float, float]) -> None:
    with pytest.raises(InputError) as error:
        Normalize((0.0, 0.0, 0.0), std)
    assert str(error.value) == (
        f"normalize.mean=(0.0, 0.0, 0.0), std={std!r}, scale={1 / 255!r}: give finite numbers, and "
        "deviations above 0"
    )


def test_the_layout_is_contiguous_and_of_the_dtype_asked_for() -> None:
    chw = ToLayout("CHW", "float16")(PIXELS)
    assert chw.shape == (3, 30, 40)
    assert chw.dtype == np.float16
    assert chw.flags.c_contiguous
    np.testing.assert_array_equal(ToLayout("HWC", "uint8")(PIXELS), PIXELS)
    assert refused(ToLayout("HWC", "uint8"), PIXELS / 2) == (
        "the pipeline ends in uint8, but its steps give float64: leave out mean and std, "
        "or end in float32"
    )


def test_a_pipeline_is_written_and_read_back() -> None:
    pipeline = Pipeline(
        (Decode(), Resize(256), Resize((3, 4)), CenterCrop(224), Normalize((0, 0, 0), (1, 1, 1)))
    )
    record = to_record(pipeline)
    assert [step["type"] for step in record["steps"]] == [
        "decode",
        "resize",
        "resize",
        "center_crop",
        "normalize",
    ]
    assert from_record(Pipeline, json.loads(json.dumps(record))) == pipeline


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(Decode()(data), np.asarray(frames[0]))


def test_webp_is_what_pillow_makes_of_it() -> None:
    data = encoded(Image.fromarray(PIXELS), "WEBP", quality=80)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(Decode()(data), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orient", [True, False])
def test_a_turned_tiff_has_the_size_that_pillow_gives_it(orient: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(PIXELS), "TIFF", exif=exif)
    pixels, origin = Decode(orient=orient).traced(data, Origin())
    np.testing.assert_array_equal(pixels, np.rot90(PIXELS, -1))
    assert origin == Origin(40, 30)


def test_half_of_an_odd_margin_is_rounded_as_asked() -> None:
    line = np.arange(7, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    for size, even, down in ((4, 2, 1), (2, 2, 2), (6, 0, 0)):
        for rounding, first in (("even", even), ("down", down)):
            step = CenterCrop((1, size), rounding)  # type: ignore[arg-type]
            cut, origin = step.traced(line, Origin(1, 7))
            assert cut[0, 0, 0] == first
            assert origin.offset == (0.0, float(first))


def test_fewer_than_no_pixels_are_refused() -> None:
    with pytest.raises(InputError) as error:
        Decode(least=-1)
    assert str(error.value) == "decode.least=-1: give a number of pixels, or 0"


def test_a_picture_for_which_there_is_no_memory_is_refused_as_any_that_cant_be_read() -> None:
    """Pillow raises MemoryError where a line of a picture is too long for it, as it does without memory."""
    file = io.BytesIO()
    Image.new("RGBA", (4, 1)).save(file, "PNG")
    data = file.getvalue()
    head = struct.pack(">II", 2**26, 1) + data[24:29]
    wide = data[:16] + head + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + data[33:]
    with pytest.raises(InputError) as caught:
        Decode(memory_per_byte=0)(wide)
    assert str(caught.value) == "the image can't be read as an image: MemoryError"
