"""Bundles where they lie: folders, and packed files of which only what is asked for is unpacked."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hasten.bundle.folder import (
    check_file,
    manifest_bytes,
    parsed,
    path_inside,
    read_sizes,
    stated_artifact,
)
from hasten.bundle.manifest import MANIFEST, SIGNATURE, Manifest, Part
from hasten.bundle.packing.names import is_address, is_packed
from hasten.core.forks import ForkedLock, after_forks
from hasten.core.memory_folder import MemoryFolder
from hasten.core.rooms import HashedRoom
from hasten.engines.base import Artifact
from hasten.engines.checked import CheckedArtifact, Late, check_external, private
from hasten.errors import IntegrityError

if TYPE_CHECKING:
    from hasten.bundle.signatures import PublicKey


class Stored(ABC):
    """A bundle whose manifest was read and checked.

    Attributes:
        name: Path or address of the bundle.
        manifest: Its manifest.
        signed: "unsigned", "signature not checked", or "signed by a trusted key".
    """

    name: str
    manifest: Manifest
    signed: str

    @abstractmethod
    def folder_with(self, names: Sequence[str]) -> Path:
        """Return a folder in which some of the bundle's files lie, checked against the manifest.

        Args:
            names: Paths in the bundle that the manifest lists.

        Raises:
            IntegrityError: a file is damaged.
            InputError: it can't be read, or there is no memory for it.
        """

    @abstractmethod
    def whole(self) -> Path:
        """Return a folder with all of the bundle's files, and its signature if it has one.

        Raises:
            IntegrityError: a file is damaged.
            InputError: it can't be read, or there is no memory for it.
        """

    @abstractmethod
    def opening(
        self, item: Part, custom_ops: Sequence[Path], *, late: bool = False
    ) -> AbstractContextManager[Artifact]:
        """Lend a part's artifact while an engine opens it the first time; it may be opened later, too.

        Args:
            item: Part of the bundle.
            custom_ops: Libraries of operators.
            late: Whether its files may be unpacked or copied only when `private` is asked for them; see
                `Engine.reads_late`.

        Raises:
            IntegrityError: a file is damaged, or the artifact isn't possible.
            InputError: operator libraries are missing or differ, or a file can't be read.
        """

    @abstractmethod
    def close(self) -> None:
        """Free what unpacking took; engines keep what they have mapped."""


class StoredFolder(Stored):
    """A bundle's folder, of which every file is checked before a model is opened.

    The files of the model itself are checked in a copy that engines open; see `private`. Those that are read late are
    checked in place, and once more if they are copied.

    Args:
        path: The folder.
        trusted: Keys, one of which must have signed the bundle; none where an unsigned one will do.

    Raises:
        InputError: there is no bundle.
        IntegrityError: the bundle is damaged, or not signed by such a key.
    """

    def __init__(self, path: Path, trusted: Sequence[PublicKey] = ()) -> None:
        self.name, self._path = str(path), path.absolute()
        self.manifest = read_sizes(path, trusted)
        self.signed = _signed(trusted, (path / SIGNATURE).is_file())
        self._checked = False

    def folder_with(self, names: Sequence[str]) -> Path:
        self._check()
        return self._path

    def whole(self) -> Path:
        return self.folder_with([])

    @contextmanager
    def opening(
        self, item: Part, custom_ops: Sequence[Path], *, late: bool = False
    ) -> Iterator[Artifact]:
        inside = partial(path_inside, self._path)
        found = stated_artifact(str(self._path), item, self.manifest, custom_ops, inside)
        names = [file.as_posix() for file in (item.artifact.path, *item.artifact.files)]
        if late:  # `private` copies what the cache doesn't have
            self._check()
            yield found
            return
        self._check(names)
        with private(found):
            yield found

    def _check(self, others: Sequence[str] = ()) -> None:
        """Check every file once, but those that are checked otherwise."""
        for name, stated in self.manifest.files.items():
            if name not in others and not self._checked:
                check_file(self._path, name, *stated)
        self._checked = True

    def close(self) -> None:
        pass


class StoredPacked(Stored):
    """A packed bundle, of which files are unpacked into memory when they are first asked for.

    Args:
        path: Path or address of the file.
        trusted: Keys, one of which must have signed the bundle; none where an unsigned one will do.

    Raises:
        InputError: the file can't be read, or is the difference to another bundle.
        IntegrityError: it is damaged, or not signed by such a key.
    """

    def __init__(self, path: str | os.PathLike[str], trusted: Sequence[PublicKey] = ()) -> None:
        from hasten.bundle.packing.reader import Packed
        from hasten.bundle.packing.source import FileSource, Source

        source: Source
        if is_address(path):
            from hasten.bundle.packing.web import WebSource

            source = WebSource(os.fspath(path))
        else:
            source = FileSource(Path(path))
        self.name = source.name
        try:
            self._packed = Packed.open(source)
            self._packed.check_alone()
            self._sizes = dict(self._packed.head.files)
            if MANIFEST not in self._sizes:
                raise IntegrityError(f"{self.name}: it contains no {MANIFEST}")
            self._memory: MemoryFolder | None = MemoryFolder()
        except BaseException:
            source.close()
            raise
        self._lock = ForkedLock()
        self._there: set[str] = set()
        after_forks(self, StoredPacked._anew)
        try:
            self._unpack_checked_first(signature=bool(trusted))
            folder = self._folder().path
            data = manifest_bytes(folder, trusted, self.name)
            self.manifest = parsed(data, folder, self.name)
            self.signed = _signed(trusted, SIGNATURE in self._sizes)
            self._check_sizes()
        except BaseException:
            self.close()
            raise

    def folder_with(self, names: Sequence[str]) -> Path:
        with self._lock:
            self._unpack([name for name in dict.fromkeys(names) if name not in self._there])
            return self._folder().path

    def whole(self) -> Path:
        return self.folder_with(list(self._sizes))

    @contextmanager
    def opening(
        self, item: Part, custom_ops: Sequence[Path], *, late: bool = False
    ) -> Iterator[Artifact]:
        names = [file.as_posix() for file in (item.artifact.path, *item.artifact.files)]

        def stated() -> CheckedArtifact:
            folder = self.folder_with([])
            return stated_artifact(
                self.name, item, self.manifest, custom_ops, lambda name: folder / name
            )

        def there() -> Artifact:
            self.folder_with(names)
            found = stated()  # a process that was forked has another folder
            check_external(found.path, [*found.files], f"{self.name}/{item.artifact.path}")
            return replace(found, digests={})  # unpacked into memory, where nobody else writes

        known = stated()  # and refused where it needs a file that isn't there
        # A web server is read in order, while it is there.
        if late and self._packed.source.anywhere:
            size_bytes = sum(self._sizes[name] for name in names)
            yield replace(known, late=Late(size_bytes, there))
        else:
            yield there()

    def _folder(self) -> MemoryFolder:
        """Return the folder of this process, which one that was forked makes when it first needs it."""
        if self._memory is None:
            self._memory = MemoryFolder()
        return self._memory

    def _anew(self) -> None:
        """Unpack what this process needs for itself: the links in its parent's folder are the parent's."""
        self._memory, self._there = None, set()

    def _unpack(self, names: Sequence[str]) -> None:
        """Unpack files into memory, and check them against the manifest."""
        if not names:
            return
        files: dict[str, HashedRoom] = {}
        memory = self._folder()
        try:
            for name in names:
                files[name] = memory.make(name, self._sizes[name])
            self._packed.unpack(files)
            for name, room in files.items():
                if (
                    name not in (MANIFEST, SIGNATURE)
                    and room.sha256() != self.manifest.files[name][0]
                ):
                    raise IntegrityError(f"{self.name}: {name} was changed after it was written")
                memory.seal(name)
        except BaseException:
            for name in files:  # nobody finds half a file, and asking again may help
                memory.drop(name)
            raise
        self._there.update(names)

    def _unpack_checked_first(self, *, signature: bool) -> None:
        """Unpack what the others are checked by: the manifest, and the signature over it if there is one."""
        names = [MANIFEST, *([SIGNATURE] if signature and SIGNATURE in self._sizes else [])]
        if SIGNATURE in names:
            from hasten.bundle.signatures import MOST_BYTES

            if self._sizes[SIGNATURE] > MOST_BYTES:
                raise IntegrityError(
                    f"{self.name}: its {SIGNATURE} is larger than {MOST_BYTES >> 10} KiB"
                )
        self._unpack(names)

    def _check_sizes(self) -> None:
        """Check that the packed files are those that the manifest lists, and a signature at most."""
        own = (MANIFEST, SIGNATURE)
        stated = {name: size for name, (_, size) in self.manifest.files.items()}
        if stated != {name: size for name, size in self._sizes.items() if name not in own}:
            raise IntegrityError(f"{self.name}: its files aren't the ones that its manifest lists")

    def close(self) -> None:
        with self._lock:
            self._packed.source.close()
            if self._memory is not None:
                self._memory.close()
            self._there.clear()


def _signed(trusted: Sequence[PublicKey], there: bool) -> str:
    """Say whether a bundle that was opened is signed, and whether that was checked."""
    if trusted:
        return "signed by a trusted key"
    return "signature not checked" if there else "unsigned"


def stored_at(path: str | os.PathLike[str], trusted: Sequence[PublicKey] = ()) -> Stored:
    """Read and check the manifest of a bundle: of a folder, a packed file, or one on a web server.

    Args:
        path: Path or address of the bundle.
        trusted: Keys, one of which must have signed it; none where an unsigned bundle will do.

    Raises:
        InputError: there is no bundle, or it can't be read.
        IntegrityError: it is damaged, tampered with, from a newer version, or not signed by such a key.
    """
    if is_address(path) or is_packed(path):
        return StoredPacked(path, trusted)
    return StoredFolder(Path(path), trusted)
