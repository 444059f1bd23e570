"""Make a stream of a street: a camera that pans and zooms over photographs.

    python examples/driving/stream.py street.mp4 views

writes 20 s of video, 30 frames a second of 640 x 480 pixels, and a folder with single views that such
a camera could have, drawn at random. The photographs, of people, cars, a dog and horses, are those of
Debian's package darknet, read where it keeps them, and of scikit-image.
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
VIEWS = 700
"""Number of single views."""
DARKNET = Path("/usr/share/darknet/data")
NAMES = ("dog.jpg", "person.jpg", "horses.jpg")
ZOOMS = (0.98, 0.75)
"""Share of the largest view of a photograph that is seen first and last."""


def photographs() -> list[Image.Image]:
    """Return the photographs that are panned over.

    Raises:
        InputError: a package isn't installed.
    """
    if not DARKNET.is_dir():
        raise InputError(f"no photographs in {DARKNET}: apt-get install darknet")
    skimage = package_folder("skimage", "scikit-image") / "data"
    files = [*(DARKNET / name for name in NAMES), skimage / "motorcycle_left.png"]
    return [Image.open(file).convert("RGB") for file in files]


def view(photo: Image.Image, zoom: float, across: float, down: float) -> Image.Image:
    """Return what the camera sees of a photograph, 640 x 480 pixels.

    Args:
        photo: The photograph.
        zoom: Share of the largest view, in (0, 1].
        across: Place from the left, 0, to the right, 1.
        down: Place from above, 0, to below, 1.
    """
    scale = zoom * min(photo.width / SIZE[0], photo.height / SIZE[1])
    width, height = scale * SIZE[0], scale * SIZE[1]
    left, top = (photo.width - width) * across, (photo.height - height) * down
    box = (left, top, left + width, top + height)
    return photo.resize(SIZE, Image.Resampling.BILINEAR, box=box)


def frames(photos: Sequence[Image.Image], count: int) -> Iterator[Array]:
    """Yield the stream's frames, `(480, 640, 3)` uint8 in RGB, `SCENE` of each photograph in turn."""
    for number in range(count):
        along = number % SCENE / (SCENE - 1)
        zoom = ZOOMS[0] + (ZOOMS[1] - ZOOMS[0]) * along
        yield np.asarray(view(photos[number // SCENE % len(photos)], zoom, along, 0.5))


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


def draw(folder: Path, count: int, seed: int = 0) -> None:
    """Write views of photographs, zooms and places drawn at random, as JPEG files.

    Args:
        folder: Folder, which is made if it isn't there.
        count: Number of views.
        seed: Seed of the random numbers.

    Raises:
        InputError: a package with photographs isn't installed.
    """
    photos, numbers = photographs(), np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for number in range(count):
        photo = photos[numbers.integers(len(photos))]
        zoom, (across, down) = numbers.uniform(*sorted(ZOOMS)), numbers.random(2)
        view(photo, zoom, across, down).save(folder / f"{number:04}.jpg", quality=90)


if __name__ == "__main__":
    write(Path(sys.argv[1]), 20 * RATE)
    draw(Path(sys.argv[2]), VIEWS)
