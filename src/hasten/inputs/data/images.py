"""Data set of image files: one folder per class, or one folder of images without labels."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import ClassVar

from hasten.core.records import file_digest
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.class_files import ClassFiles
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import check_header
from hasten.inputs.pipeline.smaller import decoded_smaller

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


class ImageFolder(ClassFiles):
    """Image files as samples, decoded and preprocessed when they are read; see `ClassFiles`."""

    suffixes: ClassVar[frozenset[str]] = SUFFIXES
    noun: ClassVar[str] = "images"

    def __init__(self, folder: Path, pipeline: Pipeline, name: str) -> None:
        self._digests: dict[int, bytes] = {}
        """Hashes of the files' bytes, whatever prepares them: copies of this data set share them."""
        super().__init__(folder, pipeline, name)

    @classmethod
    def check_header(cls, file: Path) -> None:
        check_header(file)

    def prepared_by(self, pipeline: Pipeline) -> ImageFolder:
        """Return the same files, prepared by other steps, without checking their headers again."""
        other = copy.copy(self)
        other._pipeline = pipeline
        other._forget()
        return other

    def decoded_to(self, least: int) -> ImageFolder | None:
        steps = decoded_smaller(self._pipeline, least)
        if steps is None:
            return None
        other = self.prepared_by(steps)
        # Whether samples differ in shape is asked before these are read; they may where the whole pictures do.
        other._different = set(self._different)
        return other

    def _hash(self, index: int) -> tuple[bytes, Array]:
        """Return the SHA-256 of the file's bytes, whatever prepares them, and the prepared image."""
        file = self.files[index]
        content = self._digests.get(index)
        if content is None:
            try:
                content = bytes.fromhex(file_digest(file))
            except OSError as error:
                raise InputError(f"can't read {file}: {error.strerror}") from error
            self._digests[index] = content
        # By path, while the file is in the page cache: decoding bounds its pixels, not its bytes.
        (sample,) = self.inputs([index]).values()
        return content, sample[0]

    def has_former_hashes(self) -> bool:
        """Whether samples have former hashes: none has, as a file's hash never depended on a type."""
        return False

    def former_hash(self, index: int) -> bytes | None:
        return None
