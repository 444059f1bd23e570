"""Folder of cached bytes that only this user can write, limited in size, for any number of processes.

What it holds may be run as code by its reader (a compiled model), so nothing is read unless the
folder and the file belong to this user and nobody else can write to them. A file is written under
another name and renamed, begins with a hash of its key and its content, and is read whole before
it is used. Whatever fails here costs time and nothing else: nothing is found, or nothing is kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from hasten.core.pieces import hash_of, hash_of_file, read_hashed
from hasten.errors import InputError

FORMAT = 2
"""Number to raise when entries are written in another way; contents were hashed in one piece in 1."""
LIMIT_BYTES = 2 << 30
"""Size of all entries together, unless another one is asked for."""
VARIABLE = "HASTEN_CACHE"
"""Environment variable with the folder, or "off"."""
_LIMIT_VARIABLE = "HASTEN_CACHE_BYTES"
_OFF = frozenset({"off", "0"})
_KEPT = re.compile(r"[0-9a-f]{64}(\.[0-9a-f]{16})?")
_UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{16}")
_ABANDONED_S = 3600.0
"""Age from which a file that is still under its first name is taken for a killed process's."""
_HASH_BYTES, _TOKEN_BYTES = 32, 16
_HEAD_BYTES = 2 * _HASH_BYTES + _TOKEN_BYTES
"""Start of an entry: the hash of all that follows, the hash of the file kept with it (zeros without one),
and the end of that file's name."""
_CHUNK_BYTES = 1 << 20
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ENTRY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
Room: TypeAlias = Callable[[int], memoryview]
_log = logging.getLogger("hasten.cache")
_told: set[Path] = set()
"""Folders of which this process has said why they aren't used."""


class Entry(NamedTuple):
    """Entry of a cache, kept under a key.

    Attributes:
        content: Bytes, as they were kept; none where the reader gave the memory for them.
        bulk: Path of a file that was kept with them, for readers that read it in place; None if there is none.
            It serves while the entry is held; other processes never change the file, but may drop it.
    """

    content: bytes
    bulk: Path | None


@dataclass(frozen=True)
class CacheFolder:
    """Folder of cached bytes by key; a key is a SHA-256 in hex.

    Attributes:
        path: Folder, which is made when something is first kept.
        limit_bytes: Largest number of bytes of all entries together; those unused for the longest
            go first.
    """

    path: Path
    limit_bytes: int = LIMIT_BYTES

    @contextlib.contextmanager
    def entry(self, key: str, into: Room | None = None) -> Iterator[Entry | None]:
        """Hold what was kept under a key; None if there is nothing that can be trusted.

        Args:
            key: Key under which it was kept.
            into: Function from a number of bytes to writable memory of that size, which takes the content
                in place of the entry. Where None is yielded, that memory holds nothing of use.
        """
        with contextlib.ExitStack() as held:
            found = None
            try:
                folder = held.enter_context(self._opened())
                found = self._read(folder, key, into)
            except FileNotFoundError:
                pass
            except (OSError, MemoryError, _RefusedError) as error:
                self._tell(error)
            yield found

    def put(self, key: str, content: bytes | memoryview, bulk: Path | None = None) -> bool:
        """Keep bytes under a key, and a file with them, and drop old entries past the limit.

        The entry is whole or absent; processes that use an older one under this key still can.

        Args:
            key: SHA-256 in hex of all that the bytes depend on.
            content: Bytes to keep.
            bulk: File that is copied, by a name that `bulk_name` gave, which it keeps.

        Returns:
            Whether they are kept now.
        """
        try:
            size = _HEAD_BYTES + len(content) + (bulk.stat().st_size if bulk else 0)
            if size > self.limit_bytes:
                return False
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._opened() as folder:
                self._make_room(folder, key, size)
                bulk_hash, token = bytes(_HASH_BYTES), bytes(_TOKEN_BYTES)
                if bulk is not None:
                    token = bulk.name.removeprefix(f"{key}.").encode()
                    with bulk.open("rb", buffering=0) as file:
                        bulk_hash = hash_of_file(file.fileno())
                        parts = iter(lambda: file.read(_CHUNK_BYTES), b"")
                        self._write(folder, bulk.name, parts)
                rest = bulk_hash + token
                whole = _hash(key, rest, hash_of(content))
                self._write(folder, key, iter([whole, rest, content]))
        except (OSError, _RefusedError) as error:
            self._tell(error)
            return False
        return True

    def drop(self, key: str) -> None:
        """Remove an entry that turned out to be of no use."""
        with contextlib.suppress(OSError, _RefusedError), self._opened() as folder:
            os.unlink(key, dir_fd=folder)

    def inner(self, name: str) -> Path | None:
        """Return a folder in this one that only this user can write to, which is made where there is none.

        Args:
            name: Name of the folder.

        Returns:
            Its path; None where others may put another folder in its place, or a link to one.
        """
        outer = Path(os.path.realpath(self.path))  # who owns a link could let it lead elsewhere
        folder = outer / name
        try:
            for each in (outer, folder):
                each.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check(outer.stat(), "it")
            facts = folder.lstat()
            _check(facts, folder.name)
        except (OSError, _RefusedError):
            return None
        return folder if stat.S_ISDIR(facts.st_mode) else None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Yield a descriptor of the folder, which is checked, so that no other can take its place."""
        folder = os.open(self.path, _DIRECTORY)
        try:
            _check(os.fstat(folder), "it")
            yield folder
        finally:
            os.close(folder)

    def _read(self, folder: int, key: str, into: Room | None) -> Entry:
        with self._file(folder, key) as file:
            head = file.read(_HEAD_BYTES)
            stated, rest = head[:_HASH_BYTES], head[_HASH_BYTES:]
            content = b""
            if into is None:
                content = file.readall()
                found = hash_of(content)
            else:
                room = into(max(os.fstat(file.fileno()).st_size - _HEAD_BYTES, 0))
                found = read_hashed(file.fileno(), _HEAD_BYTES, room)
            if stated != _hash(key, rest, found):
                raise self._damaged(folder, key)
        bulk_hash, token = rest[:_HASH_BYTES], rest[_HASH_BYTES:].decode()
        if not any(bulk_hash):
            return Entry(content, None)
        with self._file(folder, f"{key}.{token}") as file:
            if hash_of_file(file.fileno()) != bulk_hash:
                raise self._damaged(folder, key)
        # The path goes by the descriptor: the folder that was checked, whatever has its name by now.
        return Entry(content, Path(f"/proc/self/fd/{folder}/{key}.{token}"))

    @contextlib.contextmanager
    def _file(self, folder: int, name: str) -> Iterator[io.FileIO]:
        """Open a file for reading that only this user can have written, and count it as used now."""
        with io.FileIO(os.open(name, _ENTRY, dir_fd=folder), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise _RefusedError("an entry isn't a file")
            _check(facts, "an entry")
            if facts.st_size > self.limit_bytes:
                raise _RefusedError("an entry is larger than the limit")
            with contextlib.suppress(OSError):  # a folder that can only be read serves too
                os.utime(file.fileno())
            yield file

    def _damaged(self, folder: int, key: str) -> _RefusedError:
        with contextlib.suppress(OSError):
            os.unlink(key, dir_fd=folder)
        return _RefusedError("an entry was damaged, and is dropped")

    def _write(self, folder: int, name: str, parts: Iterator[bytes | memoryview]) -> None:
        """Write a file under another name and rename it."""
        beside = f".{name[:64]}.{secrets.token_hex(8)}"
        try:
            with io.FileIO(os.open(beside, _NEW, 0o600, dir_fd=folder), "wb") as file:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                for part in parts:
                    left = memoryview(part)
                    while left:
                        left = left[file.write(left) :]
                os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside, dir_fd=folder)
            raise

    def _make_room(self, folder: int, key: str, size_bytes: int) -> None:
        """Drop what killed processes left, older files of this key, and past the limit others."""
        found, now = [], time.time()
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process may have dropped it
                    facts = entry.stat(follow_symlinks=False)
                    if _UNFINISHED.fullmatch(entry.name):
                        if now - facts.st_mtime > _ABANDONED_S and _is_free(folder, entry.name):
                            os.unlink(entry.name, dir_fd=folder)
                    elif _KEPT.fullmatch(entry.name):
                        if entry.name.startswith(key):
                            os.unlink(entry.name, dir_fd=folder)
                        else:
                            found.append((facts.st_mtime_ns, entry.name, facts.st_size))
        used = sum(size for _, _, size in found)
        for _, name, size in sorted(found):
            if used + size_bytes <= self.limit_bytes:
                return
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
            used -= size

    def _tell(self, error: Exception) -> None:
        """Say once in a process why a folder isn't used."""
        if self.path in _told:
            return
        _told.add(self.path)
        why = error.strerror if isinstance(error, OSError) else None
        if isinstance(error, MemoryError):
            why = "there is no memory for an entry"
        _log.warning(
            "the cache %s is not used: %s; models open without it", self.path, why or error
        )


def _is_free(folder: int, name: str) -> bool:
    """Whether no process writes a file any more: a file's age says nothing if the clock jumps.

    Raises:
        OSError: the file can't be opened.
    """
    with io.FileIO(os.open(name, _ENTRY, dir_fd=folder), "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass  # a file system without locks
    return True


def key_of(facts: str) -> str:
    """Return the key for all that an entry depends on; no version that writes entries in another way has it."""
    return hashlib.sha256(f"{FORMAT}\n{facts}".encode()).hexdigest()


def bulk_name(key: str) -> str:
    """Return a name for a file to keep under a key, which no other file has."""
    return f"{key}.{secrets.token_hex(_TOKEN_BYTES // 2)}"


def cache_folder(given: str | os.PathLike[str] | bool | None = None) -> CacheFolder | None:
    """Return the cache that is asked for; None if it is switched off.

    Args:
        given: Folder; False or "off" for no cache; None or True for the folder that the environment
            variable HASTEN_CACHE names ("off" for none), else `$XDG_CACHE_HOME/hasten`, else
            `~/.cache/hasten`. HASTEN_CACHE_BYTES sets the limit in bytes.

    Raises:
        InputError: the limit isn't a whole number, or a folder's name is empty.

    Source: XDG Base Directory Specification 0.8, "Environment variables".
    """
    if given is None or given is True:
        given = os.environ.get(VARIABLE) or _by_default()
    if given is None or given is False or os.fspath(given) in _OFF:
        return None
    if not os.fspath(given):
        raise InputError('cache, the folder of compiled models, is empty: give a folder, or "off"')
    limit = os.environ.get(_LIMIT_VARIABLE) or str(LIMIT_BYTES)
    if not re.fullmatch(r"[0-9]{1,18}", limit):
        raise InputError(f"{_LIMIT_VARIABLE} must be a whole number of bytes: got {limit!r:.100}")
    return CacheFolder(Path(given).absolute(), int(limit))


def _by_default() -> Path | None:
    """Return the user's folder; None for a user who has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base, "hasten")
    try:
        return Path.home() / ".cache" / "hasten"
    except RuntimeError:
        return None


class _RefusedError(Exception):
    """Error for content of a cache that isn't to be trusted."""


def _check(facts: os.stat_result, what: str) -> None:
    """Refuse what belongs to another user, or can be written by others.

    The group's bits bound what an access control list grants: see acl(5).
    """
    if facts.st_uid != os.geteuid():
        raise _RefusedError(f"{what} belongs to another user")
    if facts.st_mode & _OTHERS_WRITE:
        raise _RefusedError(f"{what} can be written by others")


def _hash(key: str, head: bytes, content: bytes) -> bytes:
    """Return the hash that an entry begins with; an entry under another key's name doesn't fit.

    Args:
        key: Key of the entry.
        head: Bytes between that hash and the content.
        content: Hash of the content.
    """
    return hashlib.sha256(b"".join((key.encode(), head, content))).digest()
