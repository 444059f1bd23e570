"""Requests with raw samples: the files of a folder, as plain bodies or as the input `raw`."""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hasten.bundle import MANIFEST
from hasten.core.presence import is_folder
from hasten.core.tensors import Tensors
from hasten.errors import InputError
from hasten.evaluation.loadtest.metadata import Described, Metadata
from hasten.evaluation.loadtest.payloads import DISTINCT, MOST_BYTES, check_batch
from hasten.inputs.data.files import sample_files, spread
from hasten.serving.protocol.requests import DECISION, RAW

RAW_SAMPLES = Metadata((Described(RAW, "BYTES", (-1,)),), (Described(DECISION, "BYTES", (-1,)),))
"""Description of a model that is asked about raw samples."""


@dataclass(frozen=True)
class RawRequest:
    """A request with the content of some files.

    Attributes:
        files: Its files, of which one may occur repeatedly.
        contents: Content of each of them.
    """

    files: tuple[Path, ...]
    contents: tuple[bytes, ...]

    @property
    def kind(self) -> str:
        """Return the content type of a request with one file as its body."""
        kind = mimetypes.guess_type(self.files[0].name)[0] or ""
        if kind == "application/json" or kind.startswith(("image/", "audio/", "video/")):
            return kind
        return "text/plain" if kind.startswith("text/") else "application/octet-stream"

    @property
    def tensors(self) -> Tensors:
        """Return the request's tensor."""
        raw = np.empty(len(self.contents), object)
        raw[:] = self.contents
        return {RAW: raw}

    def __str__(self) -> str:
        more = len(self.files) - 1
        return f"{self.files[0]}{f' and {more} more' if more else ''}"


def is_folder_of_files(data: Path | None) -> bool:
    """Whether data is a folder of raw samples, and not a bundle's."""
    return data is not None and is_folder(data) and not (data / MANIFEST).is_file()


def raw_requests(folder: Path, batch: int) -> Iterator[RawRequest]:
    """Yield different requests, which together are bounded; files are read when their turn comes.

    Args:
        folder: Folder of files, each of which is one sample; only its images or its sounds, if it has some,
            whichever are more.
        batch: Samples in each request.

    Raises:
        InputError: the folder has no files, one can't be read, or a request is too large.
    """
    check_batch(batch)
    listed = sample_files(folder)
    files = spread(listed, min(len(listed), DISTINCT * batch))
    taken = 0
    for first in range(0, min(DISTINCT * batch, len(files)), batch):
        chosen = tuple(files[place % len(files)] for place in range(first, first + batch))
        try:
            size = sum(file.stat().st_size for file in chosen)
            if size > MOST_BYTES:
                raise InputError(
                    f"a request with {RawRequest(chosen, ())} takes {size / 2**20:,.4g} MiB, and the "
                    f"limit is {MOST_BYTES >> 20} MiB"
                )
            taken += size
            if taken > MOST_BYTES:
                return
            yield RawRequest(chosen, tuple(file.read_bytes() for file in chosen))
        except OSError as error:
            raise InputError(f"can't read {error.filename}: {error.strerror}") from error
