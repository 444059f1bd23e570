"""Data set of image files: one folder per class, or one folder of images without labels."""

from __future__ import annotations

import copy
import csv
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from hasten.core.records import file_digest
from hasten.core.tensors import Array
from hasten.core.words import counted
from hasten.errors import InputError
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.missing import NO_CLASS
from hasten.inputs.data.samples import check_counts, check_rank, stack
from hasten.inputs.pipeline.base import Pipeline
from hasten.inputs.pipeline.image import check_header

SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
GROUPS = "groups.csv"
UNLABELLED = frozenset(("unlabelled", "unlabeled"))
"""Names of a folder, beside those of classes, of images whose class isn't known."""


_SHOWN = 4
"""Largest number of classes that the sentence on their numbers shows."""


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
        self.files, labels, self.classes = _list(folder, _named(pipeline))
        self.numbering = _numbering(self.classes, _named(pipeline))
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


def _images(folder: Path) -> list[Path]:
    """Return the images of a folder, by name; hidden files are skipped, as they aren't data."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _named(pipeline: Pipeline) -> tuple[str, ...]:
    """Return the names that a pipeline gives the model's classes; none where it gives none."""
    every = (tuple(step.labels) for step in pipeline.after)
    return next((names for names in every if names), ())


def _numbered(folders: Sequence[Path], names: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return each class folder's label, and the classes' names.

    Args:
        folders: Class folders, sorted.
        names: Names that the pipeline gives the model's classes, in order.
    """
    unknown = [folder for folder in folders if folder.name not in names]
    if len(unknown) == len(folders):
        if folders and names and len(names) != len(folders):
            raise InputError(
                f"no folder in {folders[0].parent} has the name of a class, and nothing else says which "
                f"class it is: there are {counted(len(folders), 'class folder')}, such as "
                f"{folders[0].name!r}, and the pipeline's labels are {counted(len(names), 'name')}, such as "
                f"{names[0]!r}. Name each folder as its class's label, or give one folder for each label, "
                "whose names sort in the order of the labels"
            )
        return list(range(len(folders))), tuple(folder.name for folder in folders)
    if unknown:
        raise InputError(
            f"the folder {unknown[0]} has a name that is none of the {len(names)} classes in the "
            "pipeline, although other folders are named after classes: rename it, or remove it"
        )
    twice = next((folder for folder in folders if names.count(folder.name) > 1), None)
    if twice is not None:
        raise InputError(
            f"the pipeline gives several classes the name of the folder {twice}: "
            "give each class a name of its own"
        )
    return [names.index(folder.name) for folder in folders], tuple(names)


def _numbering(classes: Sequence[str] | None, names: Sequence[str]) -> str:
    """Return the sentence on how classes were numbered; empty where the pipeline's names did it."""
    if not classes or tuple(classes) == tuple(names):
        return ""
    pairs = [f"{number} is {name!r}" for number, name in enumerate(classes)]
    if names:
        pairs = [f"{pair} ({label!r})" for pair, label in zip(pairs, names, strict=True)]
    shown = pairs if len(pairs) <= _SHOWN else [*pairs[: _SHOWN - 1], "...", pairs[-1]]
    why = "; the pipeline's labels name none of them" if names else ""
    return f"classes were numbered by the order of the folders' names{why}: {', '.join(shown)}"


def _list(
    folder: Path, names: Sequence[str]
) -> tuple[list[Path], list[int] | None, tuple[str, ...] | None]:
    """Return the files, and their labels and class names (both None if there are no class folders)."""
    loose = _images(folder)
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if loose and classes:
        raise InputError(
            f"{folder} has images next to the class folder {classes[0].name}: "
            "put every image into a class folder, or put none into one; images without a class "
            "go into the folder unlabelled"
        )
    if not loose and not classes:
        raise InputError(f"{folder} has no images ({', '.join(sorted(SUFFIXES))})")
    if loose:
        return loose, None, None
    files: list[Path] = []
    labels: list[int] = []
    known = [inner for inner in classes if inner.name.lower() not in UNLABELLED]
    own, called = _numbered(known, names)
    numbers = dict(zip(known, own, strict=True))
    for inner in classes:
        found = _images(inner)
        if not found:
            raise InputError(f"the class folder {inner} has no images; fill it or remove it")
        files += found
        labels += [numbers.get(inner, NO_CLASS)] * len(found)
    return files, labels if known else None, called if known else None


def groups_of(folder: Path, files: Sequence[Path]) -> Array | None:
    """Read `groups.csv` of a folder, if it exists, and return each file's group.

    Raises:
        InputError: it can't be read, or has no line for a file.
    """
    table = folder / GROUPS
    if not table.exists():
        return None
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} must contain lines of `path,group` in UTF-8: {error}") from error
    wrong = next((row for row in rows if len(row) != 2), None)
    if wrong is not None:
        raise InputError(f"{table}: the line {','.join(wrong)!r} isn't `path,group`")
    groups = dict(rows)
    for file in files:
        if str(file.relative_to(folder)) not in groups:
            raise InputError(f"{table} has no line for {file.relative_to(folder)}")
    return np.array([groups[str(file.relative_to(folder))] for file in files])
