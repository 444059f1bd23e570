"""Pictures of all forms, from a photograph: bytes are changed, chunks of PNG with sums that fit, sizes in heads."""

from __future__ import annotations

import io
import random
import struct
import zlib
from typing import Any

import numpy as np
from fuzz.mutation import changed_bytes
from fuzz.outcomes import refused
from fuzz.surface import Surface
from PIL import Image

from hasten.errors import InputError
from hasten.inputs.pipeline.config import image_pipeline

FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_SIZES = (0, 1, 2, 255, 2**13, 2**15, 2**16 - 1, 2**26, 2**31)
_PNG = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, form: str, **settings: Any) -> bytes:
    """Return the file of an image."""
    file = io.BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


class Images(Surface):
    """Files that a pipeline of pictures reads."""

    name = "images"
    most_s = 10.0
    most_mib = 1024

    def seeds(self) -> list[bytes]:
        from sklearn.datasets import load_sample_image

        photo = Image.fromarray(load_sample_image("china.jpg")).resize((48, 32))
        exif = Image.Exif()
        exif[274] = 6
        self._pipeline = image_pipeline(16)
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
        ]

    def mutate(self, rng: random.Random, seed: bytes) -> bytes:
        if seed.startswith(_PNG) and rng.random() < 0.7:
            return changed_png(seed, rng)
        if rng.random() < 0.3:
            return with_size(seed, rng)
        return changed_bytes(seed, rng)

    def check(self, data: bytes) -> str:
        try:
            array = self._pipeline(data)
        except InputError as error:
            return refused(error)
        assert array.shape == (3, 16, 16), f"the picture became {array.shape}"
        return "read"


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
        content = zlib.compress(bytes(rng.choice((0, 100, 1 << 20, 1 << 24))))
    elif kind < 0.8:
        content = changed_bytes(content, rng)
    else:
        name = rng.choice((b"IDAT", b"PLTE", b"tRNS", b"zTXt", b"iCCP", b"eXIf", b"acTL", b"IEND"))
    chunks[at : at + 1] = [(name, content)] * rng.choice((1, 1, 1, 2, 300))
    return _PNG + b"".join(
        struct.pack(">I", len(each)) + kind + each + struct.pack(">I", zlib.crc32(kind + each))
        for kind, each in chunks
    )


def with_size(data: bytes, rng: random.Random) -> bytes:
    """Write a large number where a form may state its width or height."""
    found = bytearray(data)
    form = rng.choice((">H", "<H", ">I", "<I"))
    room = struct.calcsize(form)
    at = rng.randrange(max(1, min(len(found), 400) - room))
    found[at : at + room] = struct.pack(form, rng.choice(_SIZES) % 256**room)
    return bytes(found)
