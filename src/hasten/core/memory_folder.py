"""Files that are in memory only, under paths that engines open like any others."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from hasten.core.forks import ForkedLock
from hasten.core.rooms import HashedRoom
from hasten.core.target import Target
from hasten.errors import InputError, IntegrityError

_UNASKED_BYTES = 64 << 20
"""Size of a file in memory from which it is asked how much memory is free."""

_SHARED_MEMORY = "/dev/shm"
"""Folder in memory that most containers may write to, even where they may write nowhere else."""
_CHUNK_BYTES = 1 << 20
_SEALS = 0x1 | 0x2 | 0x4 | 0x8
"""No seal may be added, and the file may neither shrink nor grow nor be written to; see fcntl(2)."""


class MemoryFolder:
    """Folder of files in memory, which vanish with this object.

    Each file is a link to a descriptor of this process, so nothing is written to a disk but names, and
    a process that is killed leaves nothing else. Where the system has no such files, they are files in
    the folder for temporary ones.

    Attributes:
        path: The folder, which only this user may enter.

    Raises:
        InputError: there can be no folder.
    """

    _all: ClassVar[weakref.WeakSet[MemoryFolder]] = weakref.WeakSet()

    def __init__(self) -> None:
        self.path = _new_folder()
        self._sealed: list[SealedFile] = []
        self._descriptors: dict[str, int] = {}
        with contextlib.suppress(OSError):  # programs that tidy up folders leave one that is locked
            self._descriptors[""] = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(self._descriptors[""], fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._end = weakref.finalize(self, _free, self.path, self._descriptors, os.getpid())
        self._all.add(self)

    def make(self, name: str, size_bytes: int) -> HashedRoom:
        """Make a file of some size, to be filled.

        Args:
            name: Path in the folder, checked to lead nowhere else.
            size_bytes: Size of the file.

        Raises:
            InputError: there is no memory for it, or the folder is closed.
        """
        goal = self.path / name
        if not self._end.alive:
            raise InputError(f"can't unpack {name}: the bundle is closed")
        try:
            check_memory(size_bytes)
            goal.parent.mkdir(parents=True, exist_ok=True)
            self._descriptors[name] = _unnamed(goal)
            return HashedRoom(self._descriptors[name], size_bytes)
        except (OSError, ValueError, OverflowError) as error:
            self.drop(name)
            said = getattr(error, "strerror", None) or error
            raise InputError(f"no room for the {size_bytes:,} bytes of {name}: {said}") from error
        except BaseException:
            self.drop(name)
            raise

    def add(self, name: str, file: Path, sha256: str) -> None:
        """Add a copy of a file that nobody can change any more, after its bytes were checked.

        Copies of the same bytes are one, however many folders in this process hold them.

        Args:
            name: Path in the folder, checked to lead nowhere else.
            file: File to copy.
            sha256: SHA-256 that the copy must have, in hex.

        Raises:
            IntegrityError: the file has other bytes, or can't be read.
            InputError: there is no memory for it.
        """
        sealed = SealedFile.of(file, sha256)
        goal = self.path / name
        try:
            goal.parent.mkdir(parents=True, exist_ok=True)
            if not _link(goal, sealed.descriptor):
                _write_out(sealed.descriptor, goal)
        except OSError as error:
            raise InputError(f"can't copy {file} to {goal}: {error.strerror}") from error
        self._sealed.append(sealed)

    def seal(self, name: str) -> None:
        """Let nobody change a file any more."""
        _seal(self._descriptors[name])

    def drop(self, name: str) -> None:
        """Free a file that couldn't be filled, so that it can be made again."""
        descriptor = self._descriptors.pop(name, None)
        if descriptor is not None:
            os.close(descriptor)
            (self.path / name).unlink(missing_ok=True)

    def close(self) -> None:
        """Free the files; a process that mapped one keeps it."""
        self._end()
        self._sealed.clear()

    @staticmethod
    def clear_after(process: int) -> None:
        """Remove the folders that a process of this user left, which was killed; none that is in use."""
        found: list[Path] = []
        with contextlib.suppress(OSError):  # too many files may be open
            for place in (tempfile.gettempdir(), _SHARED_MEMORY):
                found += Path(place).glob(f"{_prefix(process)}*")
        for folder in found:
            with contextlib.suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if os.fstat(descriptor).st_uid == os.getuid():
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)

    @classmethod
    def close_all(cls) -> None:
        """Free the files of all folders, for a process that ends without Python's own end."""
        for folder in list(cls._all):
            folder.close()


class SealedFile:
    """Copy in memory of a file whose bytes were checked, which no process can change any more.

    Attributes:
        descriptor: Descriptor of the copy, which is closed with this object.
    """

    _all: ClassVar[weakref.WeakValueDictionary[str, SealedFile]] = weakref.WeakValueDictionary()
    _lock = ForkedLock()

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    @classmethod
    def of(cls, file: Path, sha256: str) -> SealedFile:
        """Return the copy of a file with these bytes: the one that is there, or a new one.

        Raises:
            IntegrityError: the file has other bytes, or can't be read.
            InputError: there is no memory for it.
        """
        with cls._lock:
            found = cls._all.get(sha256)
            if found is None:
                found = cls._all[sha256] = cls(_sealed(file, sha256))
            return found


def _sealed(file: Path, sha256: str) -> int:
    """Copy a file into memory, check the copied bytes, and return the copy's descriptor."""
    try:
        source = file.open("rb", buffering=0)
    except OSError as error:
        raise IntegrityError(f"{file} can't be read: {error.strerror}") from error
    with source, contextlib.ExitStack() as undo:
        try:
            check_memory(os.fstat(source.fileno()).st_size)
            copy = _without_name()
            undo.callback(os.close, copy)
            whole, chunk = hashlib.sha256(), memoryview(bytearray(_CHUNK_BYTES))
            with ThreadPoolExecutor(1, "hasten-copy") as beside:
                while count := source.readinto(chunk):
                    written = beside.submit(_write, copy, chunk[:count])
                    whole.update(chunk[:count])
                    written.result()
            _seal(copy)
        except OSError as error:
            raise InputError(f"can't copy {file} into memory: {error.strerror}") from error
        if whole.hexdigest() != sha256:
            raise IntegrityError(f"{file} was changed after it was written")
        undo.pop_all()
    return copy


def _seal(descriptor: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # only files in memory have seals
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)


def _in_memory() -> int:
    """Open a new file in memory that can be sealed.

    Raises:
        OSError: the system has no such files.
    """
    make = getattr(os, "memfd_create", None)
    if make is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    descriptor: int = make("hasten", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    return descriptor


def _without_name() -> int:
    """Open a new file in memory; or, where there are none, one without a name."""
    with contextlib.suppress(OSError):
        return _in_memory()
    with tempfile.TemporaryFile() as unnamed:
        return os.dup(unnamed.fileno())


def _write(descriptor: int, data: memoryview) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _write_out(descriptor: int, goal: Path) -> None:
    """Write a new file with a descriptor's bytes."""
    with goal.open("xb") as out:
        while data := os.pread(descriptor, _CHUNK_BYTES, out.tell()):
            out.write(data)


def _prefix(process: int) -> str:
    """Return how the names of a process's folders begin."""
    return f"hasten-packed-{process}-"


def _new_folder() -> Path:
    """Make a folder in the one for temporary files, or in memory where that can't be written to.

    Raises:
        InputError: there can be none.
    """
    with contextlib.suppress(OSError):
        return Path(os.path.realpath(tempfile.mkdtemp(prefix=_prefix(os.getpid()))))
    try:
        return Path(tempfile.mkdtemp(prefix=_prefix(os.getpid()), dir=_SHARED_MEMORY))
    except OSError as error:
        raise InputError(
            f"can't make a folder for temporary files: {error.strerror}; set TMPDIR to another "
            "folder"
        ) from error


def check_memory(size_bytes: int) -> None:
    """Check that so much memory may be taken, since a system that lacks it may kill this process.

    Raises:
        OSError: it isn't there.
    """
    if size_bytes > _UNASKED_BYTES and size_bytes > (free := _free_bytes()):
        raise OSError(errno.ENOMEM, f"{free:,} bytes of memory are free")


def content_of(path: Path) -> bytes:
    """Return a file's bytes, if there is memory for as many as it claims: one may have far more than are on the disk.

    Raises:
        OSError: it can't be read, or the memory isn't there.
    """
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        try:
            check_memory(size_bytes)
        except OSError as error:
            raise OSError(
                errno.ENOMEM, f"it has {size_bytes:,} bytes, and only {error.strerror}"
            ) from error
        return file.read()


def _free_bytes() -> int:
    """Return how much memory is free in this machine, at most what this process may take."""
    most = Target.host().memory_bytes
    with contextlib.suppress(OSError), Path("/proc/meminfo").open() as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name == "MemAvailable" and (words := value.split()) and words[0].isdecimal():
                return min(most, 1024 * int(words[0]))
    return most


def _unnamed(goal: Path) -> int:
    """Open a new file in memory that a link leads to; or a file of that name where there are none."""
    with contextlib.suppress(OSError):
        descriptor = _in_memory()
        with contextlib.suppress(OSError):
            if _link(goal, descriptor):
                return descriptor
        os.close(descriptor)
    return os.open(goal, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _link(goal: Path, descriptor: int) -> bool:
    """Make a link that leads to a descriptor; return False where the system has no such links."""
    # Another name of this process may be known in /proc than to itself.
    link = Path("/proc/self/fd").resolve() / str(descriptor)
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(link.stat(), os.fstat(descriptor)):
            goal.symlink_to(link)
            return True
    return False


def _free(path: Path, descriptors: dict[str, int], process: int) -> None:
    for descriptor in descriptors.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    descriptors.clear()
    if os.getpid() == process:  # a process that was forked off leaves its parent's files
        shutil.rmtree(path, ignore_errors=True)
