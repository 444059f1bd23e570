"""Pixels of JPEG files by simplejpeg (libjpeg-turbo): those of Pillow, in less time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hasten.core.tensors import Array

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 2**26
"""Size in bytes, 64 MiB, up to which a file is read as a whole; Pillow reads others in parts."""


def jpeg_pixels(
    image: Image.Image, value: bytes | Path, full: tuple[int, int], *, gray: bool = False
) -> Array | None:
    """Return the RGB pixels of a JPEG file as (height, width, 3) uint8, not turned.

    The accurate transform and the smooth upsampling are used, as Pillow uses them, so that the
    pixels are the same. What simplejpeg can't read is left to Pillow, which reads some of it.

    Args:
        image: The file, opened by Pillow and not loaded; its size is the one to decode at.
        value: The file's bytes, or its path.
        full: Height and width that the header states, which the caller has bounded.
        gray: Whether the pixels of a file in gray are wanted as it holds them, (height, width, 1).

    Returns:
        The pixels; None where Pillow must decode the file: simplejpeg isn't installed or can't read
        it, it is no JPEG file, or it has other colors than gray, YCbCr and RGB.
    """
    if image.format not in ("JPEG", "MPO") or image.mode not in ("L", "RGB"):
        return None
    try:
        import simplejpeg
    except ImportError:
        return None
    if isinstance(value, Path):
        if value.stat().st_size > MAX_BYTES:
            return None
        value = value.read_bytes()
    space = "GRAY" if gray and image.mode == "L" else "RGB"
    wanted = {"min_height": image.height, "min_width": image.width}
    try:
        # The size is bounded by the header that Pillow read: what both read must be the same.
        if simplejpeg.decode_jpeg_header(value)[:2] != full:
            return None
        pixels: Array = simplejpeg.decode_jpeg(value, space, **wanted)
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (image.height, image.width) else None
