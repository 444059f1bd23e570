"""Files of a folder, each of which is one raw sample: a picture, a sound, a text or the JSON of a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hasten.core.presence import is_folder
from hasten.core.tensors import Array, TensorSpec
from hasten.errors import InputError
from hasten.inputs.data.class_folders import GROUPS, groups_of
from hasten.inputs.data.dataset import Dataset
from hasten.inputs.data.images import ImageFolder
from hasten.inputs.data.samples import check_counts, check_finite, tensors_hash
from hasten.inputs.data.sounds import SoundFolder, reads_sounds
from hasten.inputs.pipeline.base import Pipeline, as_request


def sample_files(folder: Path, pipeline: Pipeline | None = None) -> list[Path]:
    """Return the files that are samples of a folder and of those in it, sorted.

    If it has images or sounds, those are its samples, else all its files. If it has both, the sounds are for a
    pipeline that reads sounds, and the images for any other.

    Args:
        folder: The folder.
        pipeline: Pipeline that reads the files; None where it isn't known, and the more frequent kind is taken.

    Raises:
        InputError: there is no such folder, or it has no files.
    """
    if not is_folder(folder):
        raise InputError(f"no such folder: {folder}")
    listed = [file for file in sorted(folder.rglob("*")) if _is_sample(file, folder)]
    images, sounds = (
        [file for file in listed if file.suffix.lower() in kind.suffixes]
        for kind in (ImageFolder, SoundFolder)
    )
    first = len(sounds) > len(images) if pipeline is None else reads_sounds(pipeline)
    files = (sounds or images if first else images or sounds) or listed
    if not files:
        raise InputError(f"{folder} has no files")
    return files


def spread(files: Sequence[Path], count: int) -> tuple[Path, ...]:
    """Return a number of files, evenly spread over all of them; some repeatedly where there are fewer."""
    return tuple(files[place] for place in np.linspace(0, len(files) - 1, count).astype(int))


class FileFolder(Dataset):
    """Files as samples, each prepared when it is read; without labels.

    Attributes:
        files: Files in the order of the samples, by their paths.

    Args:
        folder: Folder of files, maybe in folders; hidden ones are skipped, and for a pipeline that reads
            sounds, all others too. A file `groups.csv` names the samples that belong together, as for
            `ImageFolder`.
        pipeline: Steps from a file's path to the model's inputs.
        inputs: Specs of the model's inputs.

    Raises:
        InputError: there is no such folder or no file in it, or the groups don't fit.
    """

    ragged = True
    missing = True

    def __init__(self, folder: Path, pipeline: Pipeline, inputs: Sequence[TensorSpec]) -> None:
        if not folder.is_dir():
            raise InputError(f"no such folder: {folder}")
        self._pipeline, self._inputs = pipeline, tuple(inputs)
        self.names = tuple(spec.name for spec in inputs)
        self.files = [path for path in sorted(folder.rglob("*")) if _is_sample(path, folder)]
        if self.files and reads_sounds(pipeline):
            self.files = sample_files(folder, pipeline)
        self.labels = None
        self.groups = groups_of(folder, self.files)
        check_counts({"files": len(self.files)}, None, self.groups, str(folder))

    def __len__(self) -> int:
        return len(self.files)

    def inputs(self, indices: Sequence[int]) -> dict[str, Array]:
        read = [self._sample(index) for index in indices]
        return {name: np.stack([one[name] for one in read]) for name in self.names}

    def content_hash(self, index: int) -> bytes:
        """Return the hash of the prepared sample, which is that of the same numbers in an archive."""
        sample = self._sample(index)
        for name, array in sample.items():
            check_finite(name, array[None], [index], missing=True)
        return tensors_hash(sample)

    def _sample(self, index: int) -> dict[str, Array]:
        """Return a file's arrays by input name.

        Raises:
            InputError: the file can't be read, or doesn't fit the model.
        """
        file = self.files[index]
        try:
            request = as_request(self._pipeline(file), self._inputs)
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        return {name: array[0] for name, array in request.items()}


def _is_sample(path: Path, folder: Path) -> bool:
    inside = path.relative_to(folder)
    hidden = any(part.startswith(".") for part in inside.parts)
    return path.is_file() and not hidden and inside != Path(GROUPS)
