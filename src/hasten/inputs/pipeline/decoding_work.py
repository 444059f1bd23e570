"""Refuse pictures that take much time to decode for the bytes that they were sent in, whatever memory they take."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hasten.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

_MOST_SCANS = 100
"""Scans of a JPEG file, each of which goes through all pixels; libtiff allows as many, programs write about 10."""
_MOST_SEGMENTS = 1000
"""Segments of a JPEG file besides its scans; Pillow copies what it has of EXIF data at each further one."""
_MOST_PROFILES = 10
"""Color profiles of a PNG file, which may have one; Pillow unpacks up to 1 MiB for each."""
_MOST_COMMENTS = 100
"""Comments of a PPM file of text; Pillow copies up to 1 MiB at each."""
_MOST_SLOW_BYTES = 1 << 20
"""Size of a PPM file that Pillow decodes in Python, at some 2.5 MB a second."""
_MOST_REPEATS = 8
"""Times that the parts of a picture may cover its pixels; a TIFF file may have a layer for each channel."""
_JPEG, _PNG, _PROFILE = b"\xff\xd8", b"\x89PNG", b"iCCP"
_SEGMENT = re.compile(rb"\xff[^\x00\xff\xd0-\xd8]")
_BARE = bytes((0x01, 0xC8, 0xD9, *range(0xF0, 0xFE)))
"""Codes after which Pillow reads no length."""
_SCAN, _END = 0xDA, 0xD9


def check_segments(data: bytes) -> None:
    """Refuse a JPEG file of many scans or other segments, and a PNG file of many color profiles.

    Source: ITU-T T.81, B.1.1, and the order in which Pillow and libjpeg-turbo go through it.

    Args:
        data: The file, which isn't opened yet; any other than JPEG and PNG passes.

    Raises:
        InputError: it has more scans than `_MOST_SCANS`, more other segments than `_MOST_SEGMENTS`, or more
            profiles than `_MOST_PROFILES`.
    """
    if data.startswith(_PNG) and data.count(_PROFILE) > _MOST_PROFILES:
        raise InputError(
            f"the image is a PNG file of more than {_MOST_PROFILES} color profiles: save it with one, or none"
        )
    place = segments = scans = 0
    while data.startswith(_JPEG) and (found := _SEGMENT.search(data, place)) is not None:
        place, code = found.end(), data[found.end() - 1]
        if code == _END and scans:
            return
        if code not in _BARE:
            place += max(2, int.from_bytes(data[place : place + 2], "big"))
        scans += code == _SCAN
        segments += code != _SCAN
        if scans > _MOST_SCANS:
            raise InputError(
                f"the image is a JPEG file of more than {_MOST_SCANS} scans, each of which takes as long as the "
                "whole: save it with the usual scans, or as a baseline file"
            )
        if segments > _MOST_SEGMENTS:
            raise InputError(
                f"the image is a JPEG file of more than {_MOST_SEGMENTS:,} segments: save it without its metadata"
            )


def check_decoder(image: Image.Image, data: bytes) -> None:
    """Refuse a picture whose pixels Pillow decodes slowly, before it decodes them.

    Args:
        image: The picture, opened by Pillow and not loaded.
        data: The file.

    Raises:
        InputError: it is a BMP file with run-length compression, a PPM file that is long or has many comments and
            that Pillow decodes in Python, or a file whose parts cover its pixels again and again.
    """
    tiles: list[Any] = getattr(image, "tile", [])
    decoders = {tile[0] for tile in tiles}
    if "bmp_rle" in decoders:  # in Python, and a few bytes may be many pixels
        raise InputError(
            "the image is a BMP file with run-length compression, which isn't read from bytes: save it without "
            "compression, or as PNG"
        )
    if "ppm_plain" in decoders and data.count(b"#") > _MOST_COMMENTS:
        raise InputError(
            f"the image is a PPM file of text with more than {_MOST_COMMENTS} comments: save it without them, or "
            "in binary"
        )
    if decoders & {"ppm", "ppm_plain"} and len(data) > _MOST_SLOW_BYTES:
        raise InputError(
            f"the image is a PPM file of {len(data):,} bytes, and of more than {_MOST_SLOW_BYTES:,} only binary ones "
            "whose largest value is 255 are read: save it so, or as PNG"
        )
    covered = sum((right - left) * (low - top) for _, (left, top, right, low), *_ in tiles)
    if covered > _MOST_REPEATS * image.width * image.height:
        raise InputError(
            f"the image is a {image.format} file whose parts cover its pixels more than {_MOST_REPEATS} times: "
            "save it again"
        )
