"""Data set of sound files: one folder per class, or one folder of sounds without labels."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from hasten.core.tensors import Array
from hasten.errors import InputError
from hasten.inputs.data.class_files import ClassFiles
from hasten.inputs.data.samples import tensors_hash
from hasten.inputs.pipeline.audio import DecodeAudio, check_header
from hasten.inputs.pipeline.base import Pipeline

SUFFIXES = frozenset((".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav"))


class SoundFolder(ClassFiles):
    """Sound files as samples, decoded and preprocessed when they are read; see `ClassFiles`."""

    suffixes: ClassVar[frozenset[str]] = SUFFIXES
    noun: ClassVar[str] = "sounds"

    @classmethod
    def check_header(cls, file: Path) -> None:
        check_header(file)

    def _prepared(self, index: int) -> Array:
        """Return a prepared sound.

        Raises:
            InputError: the sound can't be read or doesn't fit a step; the message names the file.
        """
        file = self.files[index]
        try:
            return super()._prepared(index)
        except InputError as error:
            if str(file) in str(error):
                raise
            raise InputError(f"{file}: {error}") from error

    def _hash(self, index: int) -> tuple[bytes, Array]:
        """Return the hash of the prepared sound, which is that of the same numbers in an archive."""
        inputs = {name: rows[0] for name, rows in self.inputs([index]).items()}
        return tensors_hash(inputs), inputs[self.names[0]]


def reads_sounds(pipeline: Pipeline | None) -> bool:
    """Whether a pipeline begins with the step that decodes sounds."""
    steps = () if pipeline is None else pipeline.steps
    return bool(steps) and isinstance(steps[0], DecodeAudio)
