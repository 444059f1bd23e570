"""Make a stream of a street: a camera that pans and zooms over photographs.

    python examples/driving/stream.py street.mp4

writes 30 frames a second of 640 x 480 pixels. The photographs, of people, cars, a dog and horses, are
those of Debian's package darknet, read where it keeps them, and of scikit-image.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hasten.cli.demos import package_folder
from hasten.core.tensors import Array
from hasten.errors import InputError

RATE = 30
SIZE = (640, 480)
SCENE = 60
"""Number of frames over one photograph."""
DARKNET = Path("/usr/share/darknet/data")
NAMES = ("dog.jpg", "person.jpg", "horses.jpg")
ZOOMS = (0.98, 0.75)
"""Share of the largest view of a photograph that is seen first and last."""


def photographs() -> list[Path]:
    """Return the files that are panned over.

    Raises:
        InputError: a package isn't installed.
    """
    if not DARKNET.is_dir():
        raise InputError(f"no photographs in {DARKNET}: apt-get install darknet")
    skimage = package_folder("skimage", "scikit-image") / "data"
    return [*(DARKNET / name for name in NAMES), skimage / "motorcycle_left.png"]


def frames(files: Sequence[Path], count: int) -> Iterator[Array]:
    """Yield views of photographs, `(480, 640, 3)` uint8 in RGB, `SCENE` of each in turn."""
    for number in range(count):
        step = number % SCENE
        if step == 0:
            photo = Image.open(files[number // SCENE % len(files)]).convert("RGB")
        along = step / (SCENE - 1)
        share = ZOOMS[0] + (ZOOMS[1] - ZOOMS[0]) * along
        scale = share * min(photo.width / SIZE[0], photo.height / SIZE[1])
        width, height = scale * SIZE[0], scale * SIZE[1]
        left, top = (photo.width - width) * along, (photo.height - height) / 2
        box = (left, top, left + width, top + height)
        yield np.asarray(photo.resize(SIZE, Image.Resampling.BILINEAR, box=box))


def write(path: Path, count: int) -> None:
    """Write a stream of a number of frames.

    Raises:
        InputError: a package with photographs isn't installed.
    """
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.options = {"bf": "0"}  # no frame refers to a later one, as a camera encodes
        for number, image in enumerate(frames(photographs(), count)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


if __name__ == "__main__":
    write(Path(sys.argv[1]), 20 * RATE)
