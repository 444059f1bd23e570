"""Data set of files that are prepared when they are read: one folder per class, or one without labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.class_folders import groups_of, listed, named_by, numbering
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.samples import check_counts, check_rank, stack
from hasten.inputs.pipeline.base import Pipeline


class ClassFiles(Dataset):
    """Files as samples of a model with a single input, prepared when they are read.

    Attributes:
        suffixes: Suffixes of the files that are samples, in lower case.
        noun: Name of the samples for people, in the plural.
        files: Files in the order of the samples, sorted by class and name.
        classes: Names of the classes: label `i` is `classes[i]`. They are the names that the
            pipeline's steps after the model give the classes, where the folders are called so, and
            the names of the folders, sorted, where no folder is. None if there are no class folders.
        numbering: Sentence on how the folders' order numbers the classes; empty where names that the
            pipeline gives number them, or there are no classes.
        numbered: Names of the folders whose order numbers the classes; empty where `numbering` is.
    """

    suffixes: ClassVar[frozenset[str]]
    noun: ClassVar[str]

    def __init__(self, folder: Path, pipeline: Pipeline, name: str) -> None:
        """List a folder, and check each file's header.

        A file `groups.csv` in the folder, if there is one, names the samples that belong together
        (frames of one video, crops of one photo, recordings of one speaker). Its lines are
        `path,group`, with paths relative to the folder. Files in a folder called "unlabelled" have the
        label `NO_NUMBER`: none is known.

        Args:
            folder: Folder that holds one folder per class, or files.
            pipeline: Preprocessing from a file to the model's input.
            name: Name of the model's input.

        Raises:
            InputError: there is no such folder, it has no files, it has files both beside and in
                class folders, a class folder is empty, the pipeline names the classes of some
                folders and not of others, or of none and of another number of classes, a file isn't
                of its kind, or the groups don't fit.
        """
        if not folder.is_dir():
            raise InputError(f"no such folder: {folder}")
        self._pipeline = pipeline
        self.names = (name,)
        names = named_by(pipeline)
        self.files, labels, self.classes = listed(folder, names, self.suffixes, self.noun)
        self.numbering = numbering(self.classes, names)
        self.numbered = self.classes or () if self.numbering else ()
        self.labels = None if labels is None else np.array(labels, np.int64)
        self.groups = groups_of(folder, self.files)
        check_counts({name: len(self.files)}, self.labels, self.groups, str(folder))
        for file in self.files:
            self.check_header(file)
        self._forget()

    def _forget(self) -> None:
        """Know nothing of the prepared samples, as at first."""
        self._hashes: dict[int, bytes] = {}
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._different: set[tuple[int, ...]] = set()
        self.__dict__.pop("_shape", None)

    @classmethod
    @abstractmethod
    def check_header(cls, file: Path) -> None:
        """Check that a file begins like a sample.

        Raises:
            InputError: it doesn't, or the sample is too large; the message names the file.
        """

    @abstractmethod
    def _hash(self, index: int) -> tuple[bytes, Array]:
        """Return a sample's hash, and the prepared sample.

        Raises:
            InputError: the file can't be read or decoded; the message names it.
        """

    @property
    def ragged(self) -> bool:  # type: ignore[override]
        """Whether files that were read so far differ in shape once they are prepared."""
        return len(self._different) > 1

    def shapes(self, index: int) -> dict[str, tuple[int, ...]]:
        if index not in self._shapes:
            self.content_hash(index)
        return {self.names[0]: self._shapes[index]}

    def __len__(self) -> int:
        return len(self.files)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        (name,) = self.names
        return {name: stack(name, [self._prepared(i) for i in indices], indices)}

    def _prepared(self, index: int) -> Array:
        prepared: Array = self._pipeline(self.files[index])
        return prepared

    @cached_property
    def _shape(self) -> tuple[int, ...]:
        """Shape of the first sample."""
        return np.asarray(self._prepared(0)).shape

    def content_hash(self, index: int) -> bytes:
        """Return the sample's hash; on the first call, check the prepared sample too.

        Raises:
            InputError: the file can't be read or decoded, or its sample isn't finite or has
                other axes than the first.
        """
        if index not in self._hashes:
            content, sample = self._hash(index)
            check_rank(self.names[0], sample, self._shape, index)
            self._shapes[index] = sample.shape
            self._different.add(sample.shape)
            self._hashes[index] = content
        return self._hashes[index]
