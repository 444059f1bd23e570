"""A folder of pictures as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.pipeline.image import Decode
from hasten.serving.streams.frames import FrameClock
from hasten.serving.streams.sources import Source

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff", ".gif")


class Pictures(Source):
    """The pictures of a folder in the order of their names, at a steady rate.

    Args:
        folder: Folder with the files; folders in it are left out.
        rate_per_s: Pictures per second.

    Raises:
        InputError: the folder holds no picture, or none that can be read.
    """

    def __init__(self, folder: Path, rate_per_s: float) -> None:
        super().__init__()
        self.name = str(folder)
        self.rate_per_s = rate_per_s
        self._decode = Decode()
        self._files = sorted(
            file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file()
        )
        if not self._files:
            raise InputError(
                f"{folder} has no pictures: no file in it ends in {', '.join(SUFFIXES)}"
            )
        self.size = self._first_size()

    def _first_size(self) -> tuple[int, int]:
        """Return the height and width of the first picture that can be read.

        Raises:
            InputError: none can be read; the message is that of the first.
        """
        failed: InputError | None = None
        for file in self._files:
            try:
                height, width = self._decode(file).shape[:2]
            except InputError as error:
                failed = failed or error
            else:
                return height, width
        assert failed is not None
        raise failed

    def frames(self, pace: FrameClock) -> Iterator[tuple[Array, int]]:
        for number, file in enumerate(self._files):
            arrived_ns = pace.arrival_ns(round(1e9 * number / self.rate_per_s))
            try:
                image = self._decode(file)
            except InputError as error:
                self.unreadable += 1
                if self.unreadable == 1:
                    self.note(f"left out: {error}")
                continue
            yield image, arrived_ns

    def close(self) -> None:
        return None
