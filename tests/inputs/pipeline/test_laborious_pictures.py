"""Pictures of few bytes, and of few pixels or little memory, that would take long to decode."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzz.surfaces.images import encoded, run_length, with_scans
from PIL import Image, ImageFile

from hasten.errors import InputError
from hasten.inputs.pipeline.image import Decode

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
PHOTO = Image.fromarray(PIXELS)
PROGRESSIVE = encoded(PHOTO, "JPEG", progressive=True)
EXIF = b"\xff\xe1\x00\x09Exif\0\0x"


def strips(count: int) -> bytes:
    """Return a TIFF file of 8 x 2 pixels of gray that names the same row several times."""
    tags = [(256, 8), (257, 2), (258, 8), (259, 1), (262, 1), (273, 8 + 2 + 12 * 8 + 4), (277, 1)]
    entries = [struct.pack("<HHII", tag, 4, 1 + (count - 1) * (tag == 273), at) for tag, at in tags]
    entries.append(struct.pack("<HHII", 278, 4, 1, 1))
    pixels = struct.pack("<I", 8 + 2 + 12 * 8 + 4 + 4 * count) * count + bytes(range(8))
    return b"".join((b"II*\0\x08\0\0\0\x08\0", *entries, bytes(4), pixels))


def with_profiles(count: int) -> bytes:
    content = b"iCCPa\0\0" + zlib.compress(bytes(1 << 20), 9)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    data = encoded(PHOTO, "PNG")
    return data[:33] + chunk * count + data[33:]


def with_comments(count: int) -> bytes:
    return b"P2\n2 2\n255\n" + b"#\n" * count + b"1 2 3 4"


RUNS = b"\x08\x01\0\0" * 8
LABORIOUS: dict[str, tuple[bytes, str]] = {
    "runs of 8 bits": (
        run_length(8, 8, 1, RUNS),
        "the image is a BMP file with run-length compression, which isn't read from bytes: save it without "
        "compression, or as PNG",
    ),
    "runs of 4 bits": (
        run_length(8, 8, 2, RUNS),
        "the image is a BMP file with run-length compression, which isn't read from bytes: save it without "
        "compression, or as PNG",
    ),
    "scans": (
        with_scans(PROGRESSIVE, 101),
        "the image is a JPEG file of more than 100 scans, each of which takes as long as the whole: save it with "
        "the usual scans, or as a baseline file",
    ),
    "scans behind an end": (
        PROGRESSIVE[:2] + b"\xff\xd9" + with_scans(PROGRESSIVE, 101)[2:],
        "the image is a JPEG file of more than 100 scans, each of which takes as long as the whole: save it with "
        "the usual scans, or as a baseline file",
    ),
    "segments": (
        PROGRESSIVE[:2] + EXIF * 1001 + PROGRESSIVE[2:],
        "the image is a JPEG file of more than 1,000 segments: save it without its metadata",
    ),
    "segments behind a scan": (
        PROGRESSIVE[:-2] + b"\xff\xfe\x00\x02" * 1001 + PROGRESSIVE[-2:],
        "the image is a JPEG file of more than 1,000 segments: save it without its metadata",
    ),
    "codes without a length behind a scan": (
        PROGRESSIVE[:-2] + b"\xff\xf0" * 1001 + PROGRESSIVE[-2:],
        "the image is a JPEG file of more than 1,000 segments: save it without its metadata",
    ),
    "many bytes up to 100": (
        b"P5\n1200 900\n100\n" + bytes(1200 * 900),
        "the image is a PPM file of 1,080,016 bytes, and of more than 1,048,576 only binary ones whose largest value "
        "is 255 are read: save it so, or as PNG",
    ),
    "many numbers": (
        b"P2\n600 900\n255\n" + b"7 " * 540_000,
        "the image is a PPM file of 1,080,015 bytes, and of more than 1,048,576 only binary ones whose largest value "
        "is 255 are read: save it so, or as PNG",
    ),
    "profiles": (
        with_profiles(11),
        "the image is a PNG file of more than 10 color profiles: save it with one, or none",
    ),
    "comments": (
        with_comments(101),
        "the image is a PPM file of text with more than 100 comments: save it without them, or in binary",
    ),
    "strips": (
        strips(17),
        "the image is a TIFF file whose parts cover its pixels more than 8 times: save it again",
    ),
}


@pytest.mark.parametrize(("data", "said"), LABORIOUS.values(), ids=LABORIOUS)
def test_a_picture_that_takes_long_for_its_bytes_is_refused_before_it_is_decoded(
    data: bytes, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", loaded.append)
    for decode in (Decode(), Decode(memory_per_byte=0), Decode(colors="gray", least=1)):
        with pytest.raises(InputError) as error:
            decode(data)
        assert str(error.value) == said
    assert loaded == []


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(PROGRESSIVE, id="the usual scans"),
        pytest.param(with_scans(PROGRESSIVE, 80), id="80 scans more"),
        pytest.param(PROGRESSIVE + b"\xff\xda" * 200, id="a video behind the picture"),
        pytest.param(
            PROGRESSIVE[:2] + b"\xff\xe2\x02\x02" + b"\xff\xda" * 256 + PROGRESSIVE[2:],
            id="bytes like scans in a segment",
        ),
        pytest.param(PROGRESSIVE[:2] + EXIF * 900 + PROGRESSIVE[2:], id="900 segments"),
        pytest.param(encoded(PHOTO, "JPEG", restart_marker_blocks=1), id="many restarts"),
        pytest.param(encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO] * 20), id="MPO"),
        pytest.param(with_profiles(1), id="a color profile"),
        pytest.param(with_comments(100), id="100 comments"),
        pytest.param(b"P5\n1200 900\n255\n" + bytes(1200 * 900), id="PPM"),
        pytest.param(b"P5\n20 9\n100\n" + bytes(range(90)) * 2, id="PPM up to 100"),
        pytest.param(strips(16), id="16 strips"),
        pytest.param(encoded(PHOTO, "BMP"), id="BMP"),
        pytest.param(encoded(PHOTO.quantize(16), "BMP"), id="BMP with a palette"),
    ],
)
def test_other_pictures_are_read_as_pillow_reads_them(data: bytes) -> None:
    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(Decode()(data), wanted)


@pytest.mark.parametrize("make", [lambda: run_length(8, 8, 1, RUNS), lambda: strips(17)])
def test_ones_own_files_are_read_however_long_it_takes(
    make: Callable[[], bytes], tmp_path: Path
) -> None:
    (tmp_path / "picture").write_bytes(make())
    assert Decode()(tmp_path / "picture").shape[2] == 3


def test_no_bytes_make_the_look_at_segments_long() -> None:
    """Fill bytes before a code, a length of 0, and a file that ends within a length."""
    for rest in (b"\xff" * 100_000, b"\xff\xe1\0\0" * 1_000, b"\xff\xe1\xff", b"\xff"):
        with pytest.raises(InputError, match=r"^the image can't be read as an image"):
            Decode()(b"\xff\xd8" + rest)
