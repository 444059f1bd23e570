"""Artifacts of bundles, whose bytes are checked once more whenever an engine reads them."""

from __future__ import annotations

import contextlib
import hashlib
import mmap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from hasten.core.memory_folder import MemoryFolder
from hasten.core.model import is_file_name, libraries
from hasten.core.onnx_functions import check_functions
from hasten.engines.base import Artifact
from hasten.engines.external_data import external_locations
from hasten.engines.operators import copied, keep_loaded
from hasten.errors import IntegrityError


class Late(NamedTuple):
    """Files of an artifact that aren't there yet.

    Attributes:
        size_bytes: Size of all of them.
        make: Function that makes them, and returns the artifact as it is then.
    """

    size_bytes: int
    make: Callable[[], Artifact]


@dataclass(frozen=True)
class CheckedArtifact(Artifact):
    """Artifact of which the files' bytes are known, if a bundle brought it.

    Attributes:
        digests: SHA-256 of each file, in hex; empty if they aren't known.
        library_digests: SHA-256 of each library of operators, in hex; empty if they aren't known.
        late: Maker of its files, for when they are needed; None if they are there.
    """

    digests: Mapping[Path, str] = field(default_factory=dict)
    library_digests: Mapping[Path, str] = field(default_factory=dict)
    late: Late | None = field(default=None, compare=False)

    @property
    def size_bytes(self) -> int:
        """Size of the files, also of those that aren't there yet."""
        return super().size_bytes if self.late is None else self.late.size_bytes

    def copied_libraries(self) -> tuple[Path, ...]:
        """Return the libraries of operators, as copies that can't change if their bytes are known.

        Raises:
            IntegrityError: a library was changed since it was checked.
            InputError: there is no memory for a copy.
        """
        if not self.library_digests:
            return self.custom_ops
        copies = copied(self.library_digests)
        return tuple(copies[library] for library in self.custom_ops)


@contextmanager
def private(artifact: Artifact) -> Iterator[Artifact]:
    """Lend a copy in memory of an artifact's files, which holds what was checked and can't change.

    A runtime that maps files while it answers would otherwise answer from whatever is written to them
    later, and crash where they are cut short. What it has mapped outlives the loan; what it hasn't
    is freed after it. Copies that overlap in time are one. Libraries of operators are copied
    for as long as this process runs. An artifact whose bytes aren't known, which no bundle brought, is lent as it is.
    Files that aren't there yet are made now.

    Raises:
        IntegrityError: a file was changed since it was checked, or names one that isn't the artifact's.
        InputError: there is no memory for the copy.
    """
    if isinstance(artifact, CheckedArtifact) and artifact.late is not None:
        artifact = artifact.late.make()
    if not isinstance(artifact, CheckedArtifact):
        yield artifact
        return
    own = artifact.copied_libraries()
    if not artifact.digests:
        yield replace(artifact, custom_ops=own, library_digests={})
        return
    base, files = artifact.path.parent, (artifact.path, *artifact.files)
    with contextlib.closing(MemoryFolder()) as folder:
        for file in files:
            folder.add(file.relative_to(base).as_posix(), file, artifact.digests[file])
        path, *beside = [folder.path / file.relative_to(base) for file in files]
        check_external(path, beside, str(artifact.path))
        yield replace(
            artifact,
            path=path,
            files=tuple(beside),
            custom_ops=own,
            digests={},
            library_digests={},
        )


def operators(artifact: Artifact, entry_point: str) -> Iterator[Path]:
    """Yield an artifact's libraries that are made for one runtime: those that mention its entry point.

    Of a bundle's artifact they are copies of what was checked, which stay loaded.

    Raises:
        IntegrityError: a library was changed since it was checked.
        InputError: there is no memory for a copy.
        CandidateError: a library can't be read.
    """
    if not isinstance(artifact, CheckedArtifact) or not artifact.library_digests:
        yield from libraries(artifact.custom_ops, entry_point)
        return
    for library in libraries(artifact.copied_libraries(), entry_point):
        keep_loaded(library)
        yield library


def content(artifact: Artifact, file: Path) -> bytes:
    """Return the bytes of one of an artifact's files, those that were checked.

    Raises:
        IntegrityError: the file was changed since it was checked.
        OSError: it can't be read.
    """
    data = file.read_bytes()
    known = artifact.digests if isinstance(artifact, CheckedArtifact) else {}
    if known and hashlib.sha256(data).hexdigest() != known.get(file):
        raise IntegrityError(f"{file} was changed after it was written")
    return data


def check_external(path: Path, beside: list[Path], said: str) -> None:
    """Check that external data of ONNX files lies in files that were checked, whatever their names are.

    The files' functions are checked too: a runtime puts their nodes in the place of each call.

    Args:
        path: File that an engine opens.
        beside: Further files of the model.
        said: Name of the file for messages.

    Raises:
        IntegrityError: a location isn't that of a file beside, so that a runtime would read another one,
            or it may be a tag with which a runtime reads an address in memory; or a file's functions become
            too many nodes.
    """
    for file in (path, *beside):
        if not file.stat().st_size:
            continue
        with (
            file.open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            try:
                check_functions(data)
            except IntegrityError as error:
                raise IntegrityError(f"{said}: {error}") from error
            for location in external_locations(data):
                if not is_file_name(location) or file.parent / location not in beside:
                    raise IntegrityError(
                        f"{said}: it refers to weights or compiled parts in {location!r:.100}, "
                        "which isn't one of the bundle's files for this model"
                    )
