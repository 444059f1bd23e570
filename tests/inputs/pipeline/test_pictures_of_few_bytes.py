import io
import itertools
import random
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz import isolated
from fuzz.surface import surface_of
from fuzz.surfaces.images import LARGE, encoded
from PIL import Image

from hasten.errors import InputError
from hasten.inputs.pipeline import decoded_bytes, strips
from hasten.inputs.pipeline.base import Origin, Pipeline, Step
from hasten.inputs.pipeline.image import Decode, Resize
from hasten.inputs.pipeline.letterbox import Letterbox
from hasten.inputs.pipeline.memory import making_room
from hasten.inputs.pipeline.turning import ORIENTATION

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (61, 83, 3), np.uint8)
SCALES = (
    Resize(17, "bilinear"),
    Resize((90, 20), "bicubic"),
    Resize((61, 40), "lanczos"),
    Resize((13, 83), "hamming"),
    Resize((61, 83), "box"),
    Resize((31, 29), "nearest"),
    Letterbox(24),
    Letterbox((100, 200), enlarge=False),
)


def picture(mode: str, form: str, **settings: Any) -> bytes:
    if mode == "I;16":
        return encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), form, **settings)
    return encoded(Image.fromarray(PIXELS).convert(mode), form, **settings)


def opened_in_rgb(data: bytes) -> Image.Image:
    """Return a file's picture in RGB, as Pillow gives it."""
    image: Image.Image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB")


def one_color(mode: str, size: tuple[int, int], form: str, **settings: Any) -> bytes:
    color = Image.new("RGB", (1, 1), (200, 30, 30)).convert(mode).getpixel((0, 0))
    return encoded(Image.new(mode, size, color), form, **settings)


@pytest.mark.parametrize("scale", SCALES, ids=repr)
@pytest.mark.parametrize(
    ("mode", "form"),
    [
        *(("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("LA", "PNG")),
        *(("I;16", "PNG"), ("CMYK", "TIFF"), ("RGB", "JPEG"), ("CMYK", "JPEG"), ("P", "GIF")),
    ],
)
def test_a_picture_resized_in_strips_is_pillows(
    mode: str, form: str, scale: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = picture(mode, form)
    whole, origin = scale.traced(*Decode().traced(data, Origin()))
    monkeypatch.setattr(strips, "STRIP_PIXELS", 700)  # 8 rows and 5 in the last strip
    found, found_origin = Pipeline((Decode(), scale)).prepared(data)
    np.testing.assert_array_equal(found, whole)
    assert found_origin == origin
    np.testing.assert_array_equal(scale(Decode()(data)), whole)


def test_pillow_resizes_the_whole_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips, "STRIP_PIXELS", 700)
    for filter_ in ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"):
        wanted = Image.fromarray(PIXELS).resize((20, 90), Image.Resampling[filter_.upper()])
        np.testing.assert_array_equal(Resize((90, 20), filter_)(PIXELS), np.asarray(wanted))


def test_a_palette_with_transparency_is_resized_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    data = picture("P", "PNG", transparency=3)
    wanted = Resize(9)(Decode()(data))
    monkeypatch.setattr(strips, "STRIP_PIXELS", 700)
    np.testing.assert_array_equal(Pipeline((Decode(), Resize(9)))(data), wanted)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_before_it_is_resized(
    orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for data in (picture("L", "PNG", exif=exif), picture("RGB", "JPEG", exif=exif)):
        wanted, origin = Resize((90, 20)).traced(*Decode(least=20).traced(data, Origin()))
        with monkeypatch.context() as patch:
            patch.setattr(strips, "STRIP_PIXELS", 700)
            found, found_origin = Pipeline((Decode(least=20), Resize((90, 20)))).prepared(data)
        np.testing.assert_array_equal(found, wanted)
        assert found_origin == origin


def test_a_scanned_page_of_35_million_pixels_in_few_bytes_is_read() -> None:
    page = Image.new("1", (4960, 7016), 1)
    page.paste(Image.fromarray(RNG.random((400, 600)) < 0.5), (700, 900))
    data = encoded(page, "PNG")
    assert len(data) < 64 << 10
    found = Pipeline((Decode(), Resize(64)))(data)
    wanted = page.convert("L").resize((64, 90), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(found, np.asarray(wanted.convert("RGB")))


def test_a_picture_that_takes_much_memory_for_its_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = one_color("1", (8192, 8192), "PNG")
    pipeline = Pipeline((Decode(), Resize(8)))
    with pytest.raises(InputError) as error:
        pipeline(data)
    assert str(error.value) == (
        "the image has 8192 x 8192 pixels in 8,216 bytes: preparing it takes 64 MiB, but only 40 MiB are "
        "allowed for so few bytes; send it with fewer pixels, or raise memory_per_byte of the step decode"
    )
    # More bytes, a setting, or a file of one's own.
    monkeypatch.setattr(decoded_bytes, "ALWAYS_BYTES", 1 << 20)
    data = one_color("1", (2048, 2048), "PNG")
    assert pipeline(data + bytes(68_000)).shape == (8, 8, 3)
    assert Pipeline((Decode(memory_per_byte=0), Resize(8)))(data).shape == (8, 8, 3)
    (tmp_path / "page.png").write_bytes(data)
    with pytest.raises(InputError, match="preparing it takes 4 MiB"):
        pipeline(data)
    assert pipeline(tmp_path / "page.png").shape == (8, 8, 3)


def with_texts(data: bytes, kind: bytes, texts: list[bytes]) -> bytes:
    """Return a PNG with packed texts before its pixels and after them."""
    end, chunks = len(data) - 12, []
    for number, text in enumerate(texts):
        between = b"\0\1\0\0\0" if kind == b"iTXt" else b"\0\0"
        content = b"%d" % number + between + zlib.compress(text, 9)
        sum_ = struct.pack(">I", zlib.crc32(kind + content))
        chunks.append(struct.pack(">I", len(content)) + kind + content + sum_)
    half = len(chunks) // 2
    return b"".join((data[:33], *chunks[:half], data[33:end], *chunks[half:], data[end:]))


def test_packed_texts_of_a_png_that_take_much_memory_are_refused_before_they_are_unpacked() -> None:
    small = encoded(Image.fromarray(PIXELS), "PNG")
    rare = "\U0001f600".encode() + bytes(97 for _ in range(2**20 - 4))  # 4 bytes for a character
    data = with_texts(small, b"iTXt", [rare] * 20)
    assert len(data) < 64 << 10
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as error:
            Decode()(data)
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(error.value) == (
        f"the image has compressed texts that may take 80 MiB, in {len(data):,} bytes, but only 40 MiB are allowed "
        "for so few bytes; send it without those texts, or raise memory_per_byte of the step decode"
    )
    assert most_bytes < 1 << 20
    # A setting, or texts as programs write them.
    np.testing.assert_array_equal(Decode(memory_per_byte=0)(data), PIXELS)
    for kind, most in ((b"iTXt", 9), (b"zTXt", 39)):
        np.testing.assert_array_equal(
            Decode()(with_texts(small, kind, [b"a" * 9_000] * most)), PIXELS
        )


def test_texts_and_pixels_of_a_png_count_together() -> None:
    data = one_color("RGB", (2_200, 4_000), "PNG")  # 34 MiB
    pipeline = Pipeline((Decode(), Resize(8)))
    assert pipeline(data).shape == (14, 8, 3)
    with pytest.raises(InputError, match=r"2200 x 4000 pixels in .* preparing it takes 44 MiB"):
        pipeline(with_texts(data, b"zTXt", [b"a" * 2**20] * 10))


def test_a_png_that_is_cut_anywhere_is_refused_in_one_line() -> None:
    data = with_texts(encoded(Image.fromarray(PIXELS[:2, :2]), "PNG"), b"zTXt", [b"a"] * 2)
    for size in range(len(data) - 60):
        with pytest.raises(InputError, match=r"^the image can't be read as an image"):
            Decode()(data[:size])


def test_a_picture_that_is_decoded_smaller_and_turned_counts_as_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exif = Image.Exif()
    monkeypatch.setattr(decoded_bytes, "ALWAYS_BYTES", 4 << 20)
    for orientation in (1, 6):
        exif[ORIENTATION] = orientation
        data = one_color("L", (1_600, 1_600), "JPEG", exif=exif.tobytes())
        assert len(data) < 64 << 10
        if orientation == 1:
            assert Decode(least=800)(data).shape == (800, 800, 3)
            continue
        with pytest.raises(InputError, match=r"1600 x 1600 pixels in .* preparing it takes 5 MiB"):
            Decode(least=800)(data)


def test_memory_per_byte_is_no_less_than_none() -> None:
    with pytest.raises(InputError) as error:
        Decode(memory_per_byte=-1)
    assert str(error.value) == "decode.memory_per_byte=-1: give a number of bytes, or 0"


def test_a_long_thin_picture_does_not_grow_while_it_is_resized() -> None:
    for scale, (width, height), becomes in (
        (Resize((224, 224)), (1, 2**20), "224 x 1048576"),  # in between
        (Resize(224), (12_000, 10), "268800 x 224"),
    ):
        data = one_color("L", (width, height), "PNG")
        said = f"an image of {width} x {height} pixels becomes {becomes}, more than 4194304 pixels"
        for value in (data, Decode()(data)):  # a crop of a chain is an array
            with pytest.raises(InputError) as error:
                Pipeline((Decode(), scale))(value)
            assert str(error.value) == said
    assert Resize(224)(np.zeros((10, 800, 3), np.uint8)).shape == (224, 17920, 3)


def test_pixels_that_a_resize_adds_count_too() -> None:
    data = one_color("RGB", (2_200, 4_000), "PNG")  # 34 MiB, and 3 MiB in between
    assert Pipeline((Decode(), Resize(200)))(data).shape == (363, 200, 3)
    with pytest.raises(InputError, match=r"2200 x 4000 pixels in .* preparing it takes 66 MiB"):
        Pipeline((Decode(), Resize((3_900, 2_100))))(data)


def test_what_is_accepted_takes_less_than_64_mib_as_measured(
    tmp_path: Path,
) -> None:
    """Forms whose decoding differs, at the largest size that is accepted."""
    surface = surface_of("images", tmp_path)
    # Files that state the largest accepted size, whole or cut.
    inputs = [one_color(*case) for case in (("L", (8, 8), "GIF"), ("RGB", (8, 8), "WEBP"))]
    in_colors, in_both = 0, 2
    for further, (mode, form, _, settings) in itertools.product(
        (0, 1), LARGE[3:4] + LARGE[8:10] + LARGE[11:14]
    ):
        each = _bytes_for_a_pixel(mode, form, settings) + further
        side = int((decoded_bytes.ALWAYS_BYTES / each) ** 0.5) - 50
        data = one_color(mode, (side, side), form, **settings)
        inputs.append(data[: 64 << 10])
        whole = len(data) <= 64 << 10
        both = (
            further or form == "WEBP"
        )  # of 17 bytes for a pixel, one more is less than the margin
        in_both, in_colors = in_both + (whole and both), in_colors + (whole and not both)
        if further == 0 and form in ("WEBP", "JPEG"):  # and a larger one, which is refused
            inputs.append(one_color(mode, (side + 100, side + 100), form, **settings)[: 64 << 10])
    outcome = isolated.attack(surface, inputs)
    assert [(each.why, each.data[:4], inputs.index(each.data)) for each in outcome.findings] == []
    assert outcome.counts["read"] == in_both  # gray takes one byte more for a pixel
    assert outcome.counts["in colors"] == in_colors
    assert outcome.most_kib > 36 << 10


def _bytes_for_a_pixel(mode: str, form: str, settings: dict[str, Any]) -> float:
    if form == "WEBP":
        return 17
    own = 1 if mode in ("1", "L", "P") else 4
    if form == "TIFF":
        return own + {"1": 0.125, "RGB": 3, "CMYK": 4}[mode]
    if form == "JPEG":
        return max(3, own) + {"L": 0, "CMYK": 8, "RGB": 6 if "progressive" in settings else 3}[mode]
    return own


def test_pictures_of_many_pixels_follow_from_the_random_numbers() -> None:
    from fuzz.surfaces.images import many_pixels

    first, second = (many_pixels(random.Random(4)) for _ in range(2))
    assert first == second
    with Image.open(io.BytesIO(first)) as image:
        assert image.width * image.height > 2**15


@pytest.mark.parametrize(
    "settings",
    [{"lossless": True}, {"quality": 1}, {"quality": 1, "icc_profile": b"icc"}],
    ids=["VP8L", "VP8 ", "VP8X"],
)
def test_webp_files_take_no_memory_before_it_is_known_to_be_there(
    settings: dict[str, Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = one_color("RGB", (300, 100), "WEBP", **settings)
    assert data[12:16].decode() in request.node.name
    told: list[int] = []
    opened = Image.open

    def opening(*given: Any, **settings: Any) -> Image.Image:
        told.append(0)
        return opened(*given, **settings)

    monkeypatch.setattr(Image, "open", opening)
    token = making_room.set(told.append)
    try:
        Pipeline((Decode(), Resize(8)))(data)
    finally:
        making_room.reset(token)
    assert told[:2] == [17 * 300 * 100, 0]
    monkeypatch.setattr(decoded_bytes, "ALWAYS_BYTES", 1 << 18)
    told.clear()
    with pytest.raises(InputError, match="the image has 300 x 100 pixels in"):
        Decode()(data)
    assert told == []
