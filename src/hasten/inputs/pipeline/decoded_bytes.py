"""Memory that a picture takes while it is decoded and resized, told from its header."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasten.errors import InputError
from hasten.inputs.pipeline.strips import STRIP_PIXELS, Scaling
from hasten.inputs.pipeline.turning import ORIENTATION

if TYPE_CHECKING:
    from PIL import Image

ALWAYS_BYTES = 40 << 20
"""Memory that preparing a picture may take, however few bytes it has."""
FEW_BYTES = 64 << 10
"""Size of a file up to which it is that."""
_ONE_BYTE, _TWO_BYTES = ("1", "L", "P"), ("I;16", "I;16L", "I;16B", "I;16N")
_WEBP_BYTES = 17
"""Bytes for a pixel: two canvases, the frame as bytes, and the image; measured with Pillow 13."""
_ARRAY_BYTES, _IMAGE_BYTES = 3, 4
_BITS_PER_SAMPLE, _SAMPLES, _TILE_WIDTH, _TILE_LENGTH = 258, 277, 322, 323
"""Tags of TIFF 6.0."""


def check_bytes(
    image: Image.Image, sent: int, per_byte: int, factor: int, scale: Scaling | None, turned: bool
) -> None:
    """Refuse a picture whose preparation takes much memory for the bytes that it was sent in.

    Args:
        image: The picture, opened by Pillow, at its full size.
        sent: Bytes of the file.
        per_byte: Bytes of memory that are allowed for each byte of the file beyond `FEW_BYTES`.
        factor: Factor by which the file is decoded smaller.
        scale: Step that resizes the picture in strips; None where its pixels become an array.
        turned: Whether the picture is turned after it is decoded.

    Raises:
        InputError: it takes more than `ALWAYS_BYTES` and what its further bytes allow.
    """
    height, width = -(-image.height // factor), -(-image.width // factor)
    needed = _decoding(image, height * width) + 12 * max(0, width - STRIP_PIXELS)
    if scale is None or turned:
        needed += _ARRAY_BYTES * height * width * (2 if turned else 1)
    if scale is not None:
        new = scale.size_after((width, height) if turned else (height, width))
        beyond = max(0, new[0] * new[1] - scale.customary_pixels)
        needed += _IMAGE_BYTES * new[1] * (width if turned else height)
        needed += (_IMAGE_BYTES + _ARRAY_BYTES) * beyond
    allowed = ALWAYS_BYTES + per_byte * max(0, sent - FEW_BYTES)
    if needed > allowed:
        raise InputError(
            f"the image has {image.width} x {image.height} pixels in {sent:,} bytes: preparing it takes "
            f"{needed / 2**20:,.0f} MiB, and {allowed / 2**20:,.0f} MiB are allowed for so few bytes; send it "
            "with fewer pixels, or raise memory_per_byte of the step decode"
        )


def _decoding(image: Image.Image, after: int) -> int:
    """Return the bytes that Pillow takes for an image of so many pixels after decoding."""
    full = image.width * image.height
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
