"""Pictures of all forms, from a photograph: bytes are changed, chunks of PNG with sums that fit, sizes in heads."""

from __future__ import annotations

import functools
import io
import math
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from fuzz.mutation import changed_bytes, grown
from fuzz.outcomes import refused
from fuzz.surface import Surface
from PIL import Image

from hasten.errors import InputError
from hasten.inputs.pipeline.config import image_pipeline

LARGE: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    ("1", "PNG", 26, {}),
    ("L", "PNG", 26, {}),
    ("P", "PNG", 26, {}),
    ("RGB", "PNG", 24, {}),
    ("LA", "PNG", 24, {}),
    ("P", "GIF", 26, {}),
    ("1", "TIFF", 26, {"compression": "group4"}),
    ("RGB", "TIFF", 24, {"compression": "tiff_lzw"}),
    ("CMYK", "TIFF", 24, {"compression": "tiff_adobe_deflate"}),
    ("RGB", "WEBP", 23, {"lossless": True}),
    ("RGB", "WEBP", 23, {"quality": 1}),
    ("L", "JPEG", 25, {"quality": 1}),
    ("RGB", "JPEG", 24, {"quality": 1}),
    ("RGB", "JPEG", 24, {"progressive": True, "subsampling": 0}),
    ("CMYK", "JPEG", 24, {"quality": 1}),
    ("RGB", "PPM", 24, {}),
    ("L", "BMP", 24, {}),
)
"""Mode, form, most pixels as a power of two, and settings of pictures of many pixels in few bytes."""
_RUNS = (b"\x01\x01\0\0", b"\0\x02\xff\xff", b"\xff\x07")
"""A row of one pixel, the longest jump, and the longest run."""
_LONGEST = {"WEBP": 16383, "JPEG": 65500, "GIF": 65535}
FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SIZES = (0, 1, 2, 255, 2**13, 2**15, 2**16 - 1, 2**26, 2**31)
_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, form: str, **settings: Any) -> bytes:
    """Return the file of an image."""
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


def with_scans(data: bytes, count: int) -> bytes:
    """Return a progressive JPEG file with so many more scans of its first channel before its end."""
    return data[:-2] + bytes.fromhex("ffda00080101000105020000") * count + data[-2:]


def run_length(width: int, height: int, kind: int, runs: bytes) -> bytes:
    """Return a BMP file in gray whose pixels are runs; `kind` is 1 for 8 bits each, 2 for 4."""
    bits, colors = (8, 256) if kind == 1 else (4, 16)
    palette = b"".join(bytes((level, level, level, 0)) for level in range(colors))
    numbers = (40, width, height, 1, bits, kind, len(runs), 0, 0, colors, 0)
    sizes = struct.pack("<IiiHHIIiiII", *numbers)
    begin = 14 + len(sizes) + len(palette)
    return b"BM" + struct.pack("<III", begin + len(runs), 0, begin) + sizes + palette + runs


def many_pixels(rng: random.Random) -> bytes:
    """Return a picture of one color, large or thin, whose file may be cut or laborious and may say how to turn it."""
    mode, form, most, settings = rng.choice(LARGE)
    count, ratio = 2 ** rng.uniform(16, most), 2 ** rng.gauss(0, 2)
    longest = _LONGEST.get(form, 1 << 26)
    sizes = (math.sqrt(count * ratio), math.sqrt(count / ratio))
    width, height = (min(longest, max(1, int(size))) for size in sizes)
    if rng.random() < 0.05:
        runs = rng.choice(_RUNS) * int(2 ** rng.uniform(0, 14))
        return run_length(width, height, rng.choice((1, 2)), runs)
    image = Image.new("RGB", (1, 1), (200, 30, 30)).convert(mode)
    exif = Image.Exif()
    exif[274] = rng.choice((1, 1, 1, 3, 6))
    color = image.getpixel((0, 0))
    assert color is not None
    data = encoded(Image.new(mode, (width, height), color), form, exif=exif, **settings)
    if form == "JPEG" and rng.random() < 0.3:
        return with_scans(data, int(2 ** rng.uniform(0, 13)))
    return data[: rng.randrange(len(data))] if rng.random() < 0.1 else data


class Images(Surface):
    """Files that a pipeline of pictures reads."""

    name = "images"
    most_s = 3.0

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._pipelines = {3: image_pipeline(16), 1: image_pipeline(16, colors="gray")}

    def seeds(self) -> list[bytes]:
        from sklearn.datasets import load_sample_image

        photo = Image.fromarray(load_sample_image("china.jpg")).resize((48, 32))
        exif = Image.Exif()
        exif[274] = 6
        return [
            *(encoded(photo, form) for form in FORMS),
            encoded(photo.quantize(16), "PNG"),
            encoded(photo.convert("1"), "TIFF", compression="group4"),
            encoded(photo.convert("CMYK"), "JPEG"),
            encoded(photo, "JPEG", progressive=True, exif=exif),
            encoded(photo.convert("RGBA"), "PNG"),
            encoded(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30)), "PNG"),
            encoded(photo, "GIF", save_all=True, append_images=[photo.rotate(90)]),
            encoded(photo, "TIFF", compression="tiff_lzw"),
            b"P2\n48 32\n255\n" + b"# a\n" + b"17 " * 48 * 32,
        ]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        return many_pixels(rng) if rng.random() < 0.1 else self.changed(rng, seed)

    def changed(self, rng: random.Random, seed: bytes) -> bytes:
        """Return a picture of few pixels that is made of a good one."""
        if seed.startswith(_PNG) and rng.random() < 0.7:
            return changed_png(seed, rng)
        if rng.random() < 0.3:
            return with_size(seed, rng)
        if rng.random() < 0.1:
            return grown(seed, rng)
        return changed_bytes(seed, rng)

    def check(self, data: bytes) -> str:
        read = []
        for channels, pipeline in self._pipelines.items():
            try:
                array = pipeline(data)
            except InputError as error:
                said = refused(error)
                continue
            assert array.shape == (channels, 16, 16), f"the picture became {array.shape}"
            read.append(channels)
        # A JPEG is decoded in gray at once, and a picture is turned as one; others take more memory in gray.
        assert read != [1] or data.startswith(_JPEG) or turned(data), (
            "the picture was read in gray, which takes more memory, but not in colors"
        )
        return "read" if len(read) == 2 else "in colors" if read else said


def turned(data: bytes) -> bool:
    """Return whether a picture is to be turned when it is read."""
    with Image.open(io.BytesIO(data)) as image:
        return bool(image.getexif().get(274, 1) != 1)


def changed_png(data: bytes, rng: random.Random) -> bytes:
    """Change a chunk of a PNG, and write its sum anew."""
    chunks, place = [], len(_PNG)
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + size]))
        place += 12 + size
    at = rng.randrange(len(chunks))
    name, content = chunks[at]
    kind = rng.random()
    if name == b"IHDR" and kind < 0.6:
        content = struct.pack(">II", rng.choice(_SIZES), rng.choice(_SIZES)) + content[8:]
    elif name == b"IDAT" and kind < 0.6:
        content = _packed_zeros(rng.choice((0, 100, 1 << 20, 1 << 24)))
    elif kind < 0.8:
        content = changed_bytes(content, rng)
    else:
        name = rng.choice((b"IDAT", b"PLTE", b"tRNS", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"IEND"))
    chunks[at : at + 1] = [(name, content)] * rng.choice((1, 1, 1, 2, 300))
    return _PNG + b"".join(
        struct.pack(">I", len(each)) + kind + each + struct.pack(">I", zlib.crc32(kind + each))
        for kind, each in chunks
    )


@functools.cache
def _packed_zeros(size: int) -> bytes:
    return zlib.compress(bytes(size))


def with_size(data: bytes, rng: random.Random) -> bytes:
    """Write a large number where a form may state its width or height."""
    found = bytearray(data)
    form = rng.choice((">H", "<H", ">I", "<I"))
    room = struct.calcsize(form)
    at = rng.randrange(max(1, min(len(found), 400) - room))
    found[at : at + room] = struct.pack(form, rng.choice(_SIZES) % 256**room)
    return bytes(found)
