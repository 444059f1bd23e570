"""Data set of image files: one folder per class, or one folder of images without labels."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from hasten.core.records import file_digest
from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.class_folders import groups_of, listed, named_by, numbering
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.samples import check_counts, check_rank, stack
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import check_header
from hasten.inputs.pipeline.smaller import decoded_smaller

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)


class ImageFolder(Dataset):
    """Image files as samples, decoded and preprocessed when they are read.

    Attributes:
        files: Image files in the order of the samples, sorted by class and name.
        classes: Names of the classes: label `i` is `classes[i]`. They are the names that the
            pipeline's steps after the model give the classes, where the folders are called so, and
            the names of the folders, sorted, where no folder is. None if there are no class folders.
        numbering: Sentence on how the folders' order numbers the classes; empty where names that the
            pipeline gives number them, or there are no classes.
    """

    def __init__(self, folder: Path, pipeline: Pipeline, name: str) -> None:
        """List a folder, and check each image's header.

        A file `groups.csv` in the folder, if there is one, names the samples that belong together
        (frames of one video, crops of one photo). Its lines are `path,group`, with paths relative
        to the folder. Images in a folder called "unlabelled" have the label -1: none is known.

        Args:
            folder: Folder that holds one folder per class, or images.
            pipeline: Preprocessing from an image file to the model's input.
            name: Name of the model's input.

        Raises:
            InputError: there is no such folder, it has no images, it has images both beside and in
                class folders, a class folder is empty, the pipeline names the classes of some
                folders and not of others, or of none and of another number of classes, a file isn't an image, or the groups don't fit.
        """
        if not folder.is_dir():
            raise InputError(f"no such folder: {folder}")
        self._pipeline = pipeline
        self.names = (name,)
        self.files, labels, self.classes = listed(folder, named_by(pipeline), SUFFIXES, "images")
        self.numbering = numbering(self.classes, named_by(pipeline))
        self.labels = None if labels is None else np.array(labels, np.int64)
        self.groups = groups_of(folder, self.files)
        check_counts({name: len(self.files)}, self.labels, self.groups, str(folder))
        for file in self.files:
            check_header(file)
        self._hashes: dict[int, bytes] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._different: set[tuple[int, ...]] = set()

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """Whether images that were read so far differ in shape once they are prepared."""
        return len(self._different) > 1

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        if index not in self._shapes:
            self.content_hash(index)
        return {self.names[0]: self._shapes[index]}

    def prepared_by(self, pipeline: Pipeline) -> ImageFolder:
        """Return the same files, prepared by other steps, without checking their headers again."""
        other = copy.copy(self)
        other._pipeline = pipeline
        other._hashes, other._shapes, other._different = {}, {}, set()
        other.__dict__.pop("_shape", None)
        return other

    def decoded_to(self, least: int) -> ImageFolder | None:
        steps = decoded_smaller(self._pipeline, least)
        if steps is None:
            return None
        other = self.prepared_by(steps)
        other._hashes = self._hashes  # of the files' bytes, whatever becomes of them
        return other

    def __len__(self) -> int:
        return len(self.files)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        (name,) = self.names
        return {name: stack(name, [self._pipeline(self.files[i]) for i in indices], indices)}

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        """Shape of the first sample."""
        return np.asarray(self._pipeline(self.files[0])).shape

    def content_hash(self, index: int) -> bytes:
        """Return the SHA-256 of the file's bytes; on the first call, check the prepared image too.

        Raises:
            InputError: the file can't be read or decoded, or its sample isn't finite or has
                other axes than the first.
        """
        if index not in self._hashes:
            file = self.files[index]
            try:
                content = bytes.fromhex(file_digest(file))
            except OSError as error:
                raise InputError(f"can't read {file}: {error.strerror}") from error
            # By path, while the file is in the page cache: decoding bounds its pixels, not its
            # bytes.
            (sample,) = self.inputs([index]).values()
            check_rank(self.names[0], sample[0], self._shape, index)
            self._shapes[index] = sample[0].shape
            self._different.add(sample[0].shape)
            self._hashes[index] = content
        return self._hashes[index]

    def has_former_hashes(self) -> bool:
        """Whether samples have former hashes: none has, as a file's hash never depended on a type."""
        return False

    def former_hash(self, index: int) -> bytes | None:
        return None
