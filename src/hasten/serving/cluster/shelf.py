"""Keep the files of this machine's replicas and doors, where they survive programs that tidy up."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from hasten.errors import InputError

_CHUNK_BYTES = 1 << 20
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DOOR = "hasten-ingress-"
_DOOR_S = 60.0
"""Age from which a door's folder is held, if the door is still there."""


def private_root() -> Path:
    """Return a folder on this machine that only this user can access.

    Raises:
        InputError: other users own the folder or can access it, or it can't be made.
    """
    root = Path(tempfile.gettempdir()) / f"hasten-replicas-{os.getuid()}"
    try:
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise InputError(f"can't make {root}: {error.strerror}") from error
    if root.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InputError(f"{root} must be accessible to this user only: remove it")
    return root


def _held(folder: Path) -> int:
    """Return a descriptor that keeps a folder from programs that tidy up, as long as it is open.

    They leave folders that are locked (systemd-tmpfiles does).

    Raises:
        OSError: the folder can't be opened.
    """
    descriptor = os.open(folder, _FOLDER)
    with contextlib.suppress(OSError):  # some file systems have no locks
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextlib.contextmanager
def door_folder() -> Iterator[Path]:
    """Make a private folder for a door's secrets, which vanishes with the context.

    Those of doors that were killed are removed first.
    """
    for each in Path(tempfile.gettempdir()).glob(f"{_DOOR}*"):
        _remove_unheld(each, _DOOR_S)
    with tempfile.TemporaryDirectory(prefix=_DOOR) as name:
        descriptor = _held(Path(name))
        try:
            yield Path(name)
        finally:
            os.close(descriptor)


def _remove_unheld(folder: Path, age_s: float = 0.0) -> None:
    """Remove a folder of this user that nobody holds and that is so old; nothing else."""
    with contextlib.suppress(OSError):  # it is held, or no folder
        descriptor = os.open(folder, _FOLDER)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = os.fstat(descriptor)
            if found.st_uid == os.getuid() and time.time() - found.st_mtime >= age_s:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(descriptor)


class Shelf:
    """Folders of files that several replicas on a machine share; each is kept while one uses it.

    Args:
        root: Folder of all, which only this user can access.

    Attributes:
        descriptors: Descriptors that hold the folders in use. A process that inherits them holds the
            folders, too.

    Raises:
        InputError: the folder can't be used.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        with _told(root):
            self.descriptors = [_held(root)]

    def place(self, name: str, files: Mapping[str, bytes]) -> Path:
        """Return a folder with these files; only those are written that lack, or have other bytes.

        Args:
            name: Name of the folder.
            files: Relative path -> the file's bytes.

        Raises:
            InputError: the files can't be written.
        """
        folder = self._root / name
        with _told(folder), self._alone():
            folder.mkdir(mode=0o700, exist_ok=True)
            self.descriptors.append(_held(folder))
            for each, data in files.items():
                file, beside = folder / each, self._root / "part"
                if not _has(file, data):
                    beside.write_bytes(data)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    beside.rename(file)  # a replica that reads the file never sees half of it
        return folder

    def tidy(self) -> None:
        """Remove the folders that no replica uses.

        Raises:
            InputError: the folder of all can't be read.
        """
        with _told(self._root), self._alone():
            for each in self._root.iterdir():
                _remove_unheld(each)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other replicas on this machine from writing and tidying meanwhile."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._root / "lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _has(file: Path, data: bytes) -> bool:
    """Whether a file has these bytes."""
    try:
        with file.open("rb", buffering=0) as opened:
            if os.fstat(opened.fileno()).st_size != len(data):
                return False
            rest = memoryview(data)
            while found := opened.read(_CHUNK_BYTES):
                if found != rest[: len(found)]:
                    return False
                rest = rest[len(found) :]
            return not rest
    except OSError:
        return False


@contextlib.contextmanager
def _told(place: Path) -> Iterator[None]:
    """Say in a line what can't be written.

    Raises:
        InputError: an operation of the system failed.
    """
    try:
        yield
    except OSError as error:
        raise InputError(
            f"can't keep a replica's files in {place}: {error.strerror or error}"
        ) from error
