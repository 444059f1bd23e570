"""Folder of cached bytes that only this user can write, limited in size, for any number of processes.

What it holds may be run as code by whoever reads it (a compiled model), so nothing is read unless the
folder and the file belong to this user and nobody else can write to them. A file is written under
another name and renamed, begins with a hash of its key and its content, and is read whole before
it is used. Whatever fails here costs time and nothing else: `get` finds nothing, `put` keeps nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hasten.errors import InputError

LIMIT_BYTES = 2 << 30
"""Size of all entries together, unless another one is asked for."""
VARIABLE = "HASTEN_CACHE"
"""Environment variable with the folder, or "off"."""
_LIMIT_VARIABLE = "HASTEN_CACHE_BYTES"
_OFF = frozenset({"off", "0"})
_KEY = re.compile(r"[0-9a-f]{64}")
_UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.[0-9a-f]{16}")
_ABANDONED_S = 3600.0
"""Age from which a file that is still under its first name is taken for a killed process's."""
_HASH_BYTES = 32
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_ENTRY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_log = logging.getLogger("hasten.cache")
_told: set[Path] = set()
"""Folders of which this process has said why they aren't used."""


@dataclass(frozen=True)
class CacheFolder:
    """Folder of cached bytes by key; a key is a SHA-256 in hex.

    Attributes:
        path: Folder, which is made when something is first kept.
        limit_bytes: Most bytes of all entries together; those unused for the longest go first.
    """

    path: Path
    limit_bytes: int = LIMIT_BYTES

    def get(self, key: str) -> bytes | None:
        """Return what was kept under a key; None if there is nothing that can be trusted."""
        try:
            with self._opened() as folder:
                return self._read(folder, key)
        except FileNotFoundError:
            return None
        except (OSError, _RefusedError) as error:
            self._tell(error)
            return None

    def put(self, key: str, content: bytes) -> bool:
        """Keep bytes under a key, whole or not at all, and drop old entries past the limit.

        Returns:
            Whether they are kept now.
        """
        size = _HASH_BYTES + len(content)
        if size > self.limit_bytes:
            return False
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._opened() as folder:
                self._make_room(folder, key, size)
                self._write(folder, key, content)
        except (OSError, _RefusedError) as error:
            self._tell(error)
            return False
        return True

    def drop(self, key: str) -> None:
        """Remove an entry that turned out to be of no use."""
        with contextlib.suppress(OSError, _RefusedError), self._opened() as folder:
            os.unlink(key, dir_fd=folder)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Yield a descriptor of the folder, which is checked, so that no other can take its place."""
        folder = os.open(self.path, _DIRECTORY)
        try:
            _check(os.fstat(folder), "it")
            yield folder
        finally:
            os.close(folder)

    def _read(self, folder: int, key: str) -> bytes | None:
        with os.fdopen(os.open(key, _ENTRY, dir_fd=folder), "rb", buffering=0) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise _RefusedError("an entry isn't a file")
            _check(facts, "an entry")
            if facts.st_size > self.limit_bytes:
                raise _RefusedError("an entry is larger than the limit")
            stated, content = file.read(_HASH_BYTES), file.readall()
            if stated != _hash(key, content):
                with contextlib.suppress(OSError):
                    os.unlink(key, dir_fd=folder)
                raise _RefusedError("an entry was damaged, and is dropped")
            with contextlib.suppress(OSError):  # a folder that can only be read serves too
                os.utime(file.fileno())
            return content

    def _write(self, folder: int, key: str, content: bytes) -> None:
        beside = f".{key}.{secrets.token_hex(8)}"
        try:
            with os.fdopen(os.open(beside, _NEW, 0o600, dir_fd=folder), "wb", buffering=0) as file:
                for part in (_hash(key, content), memoryview(content)):
                    while part:
                        part = part[file.write(part) :]
            os.rename(beside, key, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside, dir_fd=folder)
            raise

    def _make_room(self, folder: int, key: str, size_bytes: int) -> None:
        """Drop what killed processes left and, past the limit, what wasn't used for the longest."""
        found, now = [], time.time()
        with os.scandir(folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # another process may have dropped it
                    facts = entry.stat(follow_symlinks=False)
                    if _UNFINISHED.fullmatch(entry.name) and now - facts.st_mtime > _ABANDONED_S:
                        os.unlink(entry.name, dir_fd=folder)
                    elif _KEY.fullmatch(entry.name) and entry.name != key:
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
        _log.warning(
            "the cache %s is not used: %s; models open without it", self.path, why or error
        )


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
        raise InputError('cache, the folder of compiled models, is "": give a folder, or "off"')
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
    """What is there isn't to be trusted."""


def _check(facts: os.stat_result, what: str) -> None:
    """Refuse what belongs to another user, or can be written by others.

    The group's bits bound what an access control list grants: see acl(5).
    """
    if facts.st_uid != os.geteuid():
        raise _RefusedError(f"{what} belongs to another user")
    if facts.st_mode & _OTHERS_WRITE:
        raise _RefusedError(f"{what} can be written by others")


def _hash(key: str, content: bytes) -> bytes:
    """Return the hash that an entry begins with; an entry under another key's name doesn't fit."""
    whole = hashlib.sha256(key.encode())
    whole.update(content)
    return whole.digest()
