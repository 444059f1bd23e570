"""Memory that a picture or a sound may take while it is prepared, and what a picture takes, told from its header."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from hasten.errors import InputError
from hasten.inputs.pipeline.memory import make_room
from hasten.inputs.pipeline.resample import down_first, pixels_between
from hasten.inputs.pipeline.strips import STRIP_PIXELS, Scaling
from hasten.inputs.pipeline.turning import ORIENTATION

if TYPE_CHECKING:
    from PIL import Image

ALWAYS_BYTES = 40 << 20
"""Memory that preparing a sample may take, however few bytes it has."""
FEW_BYTES = 64 << 10
"""Size of a file up to which it is that."""
_ONE_BYTE, _TWO_BYTES = ("1", "L", "P"), ("I;16", "I;16L", "I;16B", "I;16N")
_WEBP_BYTES = 17
"""Bytes for a pixel: two canvases, the frame as bytes, and the image; measured with Pillow 13."""
_WEBP_HEAD = 30
"""Bytes in which a WebP file states its size."""
_ARRAY_BYTES, _IMAGE_BYTES = 3, 4
_BITS_PER_SAMPLE, _SAMPLES, _TILE_WIDTH, _TILE_LENGTH = 258, 277, 322, 323
"""Tags of TIFF 6.0."""
_PNG = b"\x89PNG\r\n\x1a\n"
_PACKED_TEXT, _PACKED_UNICODE = b"zTXt", b"iTXt"
_TEXT_BYTES, _TEXT_RATIO = 1 << 20, 1032
"""Bytes to which Pillow unpacks a text of a PNG file, and the most that zlib makes of a byte."""
_CHARACTER_BYTES = 4
"""Bytes for each character of a text, if one of them is a rare one."""


def text_bytes(data: bytes) -> int:
    """Return the most bytes that the packed texts of a PNG file take, which Pillow keeps; 0 for any other."""
    place, taken = len(_PNG), 0
    while data.startswith(_PNG) and place + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        place += 12 + size
        if kind in (_PACKED_TEXT, _PACKED_UNICODE):
            each = 1 if kind == _PACKED_TEXT else _CHARACTER_BYTES
            taken += each * min(_TEXT_BYTES, _TEXT_RATIO * size)
    return taken


def check_texts(texts: int, sent: int, per_byte: int) -> None:
    """Refuse a picture whose texts alone take too much memory, before it is opened.

    Args:
        texts: Bytes that its texts may take.
        sent: Bytes of the file.
        per_byte: Bytes of memory that are allowed for each byte of the file beyond `FEW_BYTES`; 0 for any.

    Raises:
        InputError: they may take more than `ALWAYS_BYTES` and what its further bytes allow.
    """
    allowed = allowed_bytes(sent, per_byte)
    if per_byte and texts > allowed:
        raise InputError(
            f"the image has compressed texts that may take {texts / 2**20:,.0f} MiB, in {sent:,} bytes, but only "
            f"{allowed / 2**20:,.0f} MiB are allowed for so few bytes; send it without those texts, or raise "
            "memory_per_byte of the step decode"
        )
    if texts:
        make_room(texts)


def allowed_bytes(sent: int, per_byte: int, always: int | None = None) -> int:
    """Return the memory, in bytes, that preparing a file of so many bytes may take.

    Args:
        sent: Bytes of the file.
        per_byte: Bytes of memory that are allowed for each byte beyond `FEW_BYTES`.
        always: Bytes that are allowed however few were sent; None for `ALWAYS_BYTES`.
    """
    return (ALWAYS_BYTES if always is None else always) + per_byte * max(0, sent - FEW_BYTES)


def check_bytes(
    image: Image.Image,
    full: tuple[int, int],
    sent: int,
    texts: int,
    per_byte: int,
    factor: int,
    scale: Scaling | None,
    turned: bool,
    gray: bool,
) -> None:
    """Refuse a picture whose preparation takes much memory for the bytes that it was sent in.

    Args:
        image: The picture, opened by Pillow.
        full: Its (height, width) in the file, which `image` may no longer have.
        sent: Bytes of the file.
        texts: Bytes that its texts may take.
        per_byte: Bytes of memory that are allowed for each byte of the file beyond `FEW_BYTES`; 0 for any.
        factor: Factor by which the file is decoded smaller.
        scale: Step that resizes the picture in strips; None where its pixels become an array.
        turned: Whether the picture is turned after it is decoded.
        gray: Whether its pixels become an array in gray, beside the decoded ones.

    Raises:
        InputError: it takes more than `ALWAYS_BYTES` and what its further bytes allow.
    """
    height, width = -(-full[0] // factor), -(-full[1] // factor)
    needed = texts + _decoding(image, full[0] * full[1], height * width)
    needed += 12 * max(0, width - STRIP_PIXELS)
    in_array, in_image = (1, 1) if gray else (_ARRAY_BYTES, _IMAGE_BYTES)
    if scale is None or turned or gray:
        needed += in_array * height * width * (2 if turned else 1)
    if scale is not None:
        old = (width, height) if turned else (height, width)
        new = scale.size_after(old)
        if down_first(old, new, scale.interpolation):
            needed += 12 * max(0, old[0] - STRIP_PIXELS)
        beyond = max(0, new[0] * new[1] - scale.customary_pixels)
        needed += in_image * pixels_between(old, new, scale.interpolation)
        needed += (in_image + in_array) * beyond
    _check(needed, full, sent, per_byte)


def check_webp(data: bytes, per_byte: int) -> None:
    """Refuse a WebP file as `check_bytes` does, before Pillow opens it, which takes memory for the pixels.

    Args:
        data: The file; any other than WebP passes.
        per_byte: Bytes of memory that are allowed for each byte of the file beyond `FEW_BYTES`; 0 for any.

    Raises:
        InputError: it takes more than `ALWAYS_BYTES` and what its further bytes allow.
    """
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= _WEBP_HEAD:
        full = _webp_size(data[12:16], data[20:_WEBP_HEAD])
        _check(_WEBP_BYTES * full[0] * full[1], full, len(data), per_byte)


def _webp_size(kind: bytes, head: bytes) -> tuple[int, int]:
    """Return the (height, width) that the first chunk of a WebP file states.

    Source: RFC 9649, WebP Image Format, 2.5 to 2.7 and 3.4.
    """
    if kind == b"VP8X":
        across, down = (int.from_bytes(head[at : at + 3], "little") for at in (4, 7))
        return down + 1, across + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    across, down = (int.from_bytes(head[at : at + 2], "little") & 0x3FFF for at in (6, 8))
    return down, across


def _check(needed: int, full: tuple[int, int], sent: int, per_byte: int) -> None:
    allowed = allowed_bytes(sent, per_byte)
    if per_byte and needed > allowed:
        raise InputError(
            f"the image has {full[1]} x {full[0]} pixels in {sent:,} bytes: preparing it takes "
            f"{needed / 2**20:,.0f} MiB, but only {allowed / 2**20:,.0f} MiB are allowed for so few bytes; send it "
            "with fewer pixels, or raise memory_per_byte of the step decode"
        )
    make_room(needed)


def _decoding(image: Image.Image, full: int, after: int) -> int:
    """Return the bytes that Pillow takes for an image of so many pixels in its file, and after decoding."""
    if image.format == "WEBP":
        return _WEBP_BYTES * full
    each = 1 if image.mode in _ONE_BYTE else 2 if image.mode in _TWO_BYTES else _IMAGE_BYTES
    if image.format in ("JPEG", "MPO"):
        return max(_ARRAY_BYTES, each) * after + _coefficients(image, full)
    if image.format == "TIFF":
        return _tiff(image, full, each)
    return each * full


def _coefficients(image: Any, full: int) -> int:
    """Return the bytes of a JPEG file's coefficients, which are kept where it may have several scans."""
    layers = [(int(across), int(down)) for _, across, down, _ in image.layer]
    if len(layers) == 1 and not image.info.get("progressive"):
        return 0
    most = max(across for across, _ in layers) * max(down for _, down in layers)
    return 2 * full * sum(across * down for across, down in layers) // max(1, most)


def _tiff(image: Any, full: int, each: int) -> int:
    """Return the bytes for a TIFF file: a strip or tile may be as large as the image, or larger."""
    tags = image.tag_v2
    bits = tags.get(_BITS_PER_SAMPLE, (1,))
    samples = int(tags.get(_SAMPLES, 1))
    stated = max(bits) * samples if isinstance(bits, tuple) else int(bits) * samples
    tile = int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_LENGTH, 0))
    copies = 1 if tags.get(ORIENTATION, 1) == 1 else 2  # Pillow turns it itself
    return copies * each * full + max(full, tile) * stated // 8
