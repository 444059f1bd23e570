"""Unpack packed bundles into folders: for good where the user says, or into the cache for a command."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from hasten.bundle.folder import discard, manifest_bytes, put_in_place, read, replaceable
from hasten.bundle.manifest import MANIFEST
from hasten.bundle.packing import layout
from hasten.bundle.packing.names import is_address, is_packed
from hasten.bundle.packing.reader import Older, Packed
from hasten.bundle.packing.source import FileSource, Source
from hasten.bundle.signatures import PublicKey, Trusted, keys_of
from hasten.bundle.stored import stored_at
from hasten.core.cache_folder import cache_folder
from hasten.core.presence import is_there, path_text
from hasten.core.records import with_name
from hasten.core.rooms import ArrayRoom, FileRoom, PathRoom, Room
from hasten.errors import InputError, IntegrityError, call, visible

_FOLDER = "unpacked"
_UNPACKED = re.compile(r"[0-9a-f]{64}|\.[0-9a-f]{64}\.[0-9a-f]{8}")
"""Names of the folders in it: of bundles, and of those that are being written."""
_ABANDONED_S, _UNUSED_S = 3600.0, 30 * 86400.0
"""Ages from which a folder is removed that a killed process left, and one that nobody used."""
_OPEN_FILES = 128
"""Number of files that stay open while they are written to; many systems let a process have 1,024."""
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def unpack(
    packed: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    base: str | os.PathLike[str] | None = None,
    trusted: Trusted = None,
) -> Path:
    """Unpack a bundle into a folder, which is there whole and checked, or not at all.

    Args:
        packed: Packed bundle: a file, or its address.
        out: Folder to write; an older bundle there is replaced. By default the file's name with .hasten,
            beside it (here for an address), where only the same bundle is replaced. With `base` it may be `base` itself, or
            a packed bundle's name, which ends in ".hastenz".
        base: Older bundle, a folder or a packed one, where `packed` is the difference to it.
        trusted: Public key, its file, or several, one of which must have signed the bundle that is written;
            None where an unsigned one will do.

    Returns:
        Path of the folder.

    Raises:
        InputError: the file can't be read, is the difference to another bundle, `out` holds something
            else, or there is no room.
        IntegrityError: the file is damaged, the message names the tensor; or it isn't signed by such a key.
    """
    keys = keys_of(trusted)
    goal = _beside(packed) if out is None else with_name(Path(out))
    if base is not None:
        from hasten.bundle.packing.update import unpack_since

        return unpack_since(packed, base, goal, keys)
    replaceable(goal)
    with opened(packed) as file, beside(goal) as new:
        file.check_alone()
        if out is None:
            _check_replaces_itself(file, goal)
        write_files(file, new)
        checked(file, new, keys)
        if not is_address(packed):
            file.check_end()
        put_in_place(new, goal)
    return goal


def _beside(packed: str | os.PathLike[str]) -> Path:
    """Return the folder that a bundle is unpacked to where the caller names none.

    Raises:
        InputError: an address ends in no file's name.
    """
    if is_address(packed):
        stem = Path(unquote(urlsplit(os.fspath(packed)).path)).stem
        if stem.strip(". ") == "" or not stem.isprintable():
            raise InputError(f"{packed} doesn't end in a file's name: give out= for the folder")
        return Path(f"{stem}.hasten")
    return with_name(Path(path_text(packed))).with_suffix(".hasten")


def _check_replaces_itself(file: Packed, goal: Path) -> None:
    """Check that a folder which nobody named isn't another bundle.

    Raises:
        InputError: it is.
    """
    if goal.exists() and not _has_manifest_of(file, goal):
        raise InputError(
            f"{goal} isn't the bundle that {file.source.name} contains: give out= to replace it"
        )


def _has_manifest_of(file: Packed, folder: Path) -> bool:
    """Whether a folder's manifest is a packed bundle's, byte for byte; it has the hashes of all other files."""
    there = (folder / MANIFEST).read_bytes()
    if dict(file.head.files).get(MANIFEST) != len(there):
        return False
    found = np.empty(len(there), np.uint8)
    file.unpack({MANIFEST: ArrayRoom(found)})
    return found.tobytes() == there


def unpacked(path: str | os.PathLike[str], trusted: Sequence[PublicKey] = ()) -> Path:
    """Return the folder of a bundle: a packed one is unpacked in the cache, once for its content.

    Args:
        path: A bundle's folder, or a packed file.
        trusted: Keys, one of which must have signed the bundle, which is checked before anything is
            unpacked, and by whoever reads the folder; none where an unsigned one will do.

    Raises:
        InputError: a packed file can't be read, is the difference to another bundle, or there is no room.
        IntegrityError: it is damaged, or not signed by such a key.
    """
    if is_address(path):
        raise InputError(
            f"{path} is an address, and only hasten.load opens addresses: download the file first"
        )
    if trusted:
        stored_at(path, trusted).close()
    if not is_packed(path):
        return Path(path)
    with opened(path) as file:
        file.check_alone()
        key = bytes(file.source.read(file.end, layout.END_BYTES)).hex()
        root = _root()
        goal = root / key
        call(goal, os.fspath(path))
        if _still_good(goal, file):
            _hold(goal)
            return goal
        try:
            # The goal's own name stands for the packed file in messages, which isn't what is written to.
            with beside(goal, root) as new:
                write_files(file, new)
                # The folder is named by this hash: one made up would stand for another bundle.
                file.check_end()
                checked(file, new)
                with contextlib.suppress(OSError):  # another process was faster
                    new.rename(goal)
                _hold(goal)
        except OSError as error:
            raise InputError(f"can't unpack {path} in {root}: {error.strerror or error}") from error
        _tidy(root)
        return goal


@contextlib.contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Packed]:
    """Open a packed bundle: a file, or its address.

    Raises:
        InputError: it can't be read.
        IntegrityError: it is damaged, or no packed bundle.
    """
    source: Source
    if is_address(path):
        from hasten.bundle.packing.web import WebSource

        source = WebSource(os.fspath(path))
    elif is_there(path):
        source = FileSource(Path(path))
    else:
        raise InputError(f"no packed bundle at {path}: no such file")
    with source:
        yield Packed.open(source)


@contextlib.contextmanager
def beside(goal: Path, named: Path | None = None) -> Iterator[Path]:
    """Make a folder beside a path for what is to be renamed to it; whatever is left of it goes.

    It is locked meanwhile: if the clock jumps, another process would take it for an abandoned one.
    Messages don't name the folder, because it is gone by then.

    Args:
        goal: Path that the folder is beside.
        named: Place that messages name; by default `goal`.

    Raises:
        InputError: it can't be made.
    """
    new = goal.with_name(f".{goal.name}.{secrets.token_hex(4)}")
    try:
        new.mkdir(mode=0o755)
        descriptor = _locked(new)
    except OSError as error:
        raise InputError(f"can't write {named or goal}: {error.strerror}") from error
    try:
        yield new
    except InputError as error:
        said = error.whole.replace(visible(str(new)), visible(str(named or goal)))
        if said == error.whole:
            raise
        kind = IntegrityError if isinstance(error, IntegrityError) else InputError
        raise kind(said) from error
    finally:
        discard(new)
        os.close(descriptor)


def write_files(file: Packed, folder: Path, older: Older | None = None) -> None:
    """Unpack all files of a bundle into a new folder.

    Args:
        file: The packed bundle.
        folder: Empty folder.
        older: Function that returns bytes of the base; None for a bundle that stands alone.

    Raises:
        InputError: there is no room, or the bundle can't be read.
        IntegrityError: the bundle is damaged.
    """
    files: dict[str, Room] = {}
    with contextlib.ExitStack() as closing:
        for number, (name, size_bytes) in enumerate(file.head.files):
            goal = folder / name
            try:
                goal.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.ExitStack() as opening:
                    descriptor = os.open(goal, _NEW, 0o644)
                    opening.callback(os.close, descriptor)
                    files[name] = FileRoom(descriptor, size_bytes, reserved=True)
                    if number < _OPEN_FILES:
                        closing.enter_context(opening.pop_all())
                    else:
                        files[name] = PathRoom(goal, size_bytes)
            except OSError as error:
                raise InputError(f"can't write {goal}: {error.strerror}") from error
        file.unpack(files, older)


def checked(file: Packed, folder: Path, trusted: Sequence[PublicKey] = ()) -> None:
    """Check every file that was unpacked against the manifest among them.

    Args:
        file: The packed bundle.
        folder: Folder that it was unpacked to.
        trusted: Keys, one of which must have signed it; none where an unsigned bundle will do.

    Raises:
        IntegrityError: they don't fit, or aren't signed by such a key; the message names the packed file.
    """
    name = file.source.name
    if trusted:
        manifest_bytes(folder, trusted, name)
    try:
        read(folder, trusted)
    except InputError as error:
        said = str(error).replace(str(folder), name)
        raise IntegrityError(f"{said}: the content of {name} isn't a whole bundle") from error


def _root() -> Path:
    """Return the folder of unpacked bundles: of the cache, or one that goes with this process."""
    kept = cache_folder()
    if kept is not None and (root := kept.inner(_FOLDER)) is not None:
        return root
    if not _own:
        _own.append(Path(os.path.realpath(tempfile.mkdtemp(prefix="hasten-unpacked-"))))
        atexit.register(_remove, _own[0], os.getpid())
    return _own[0]


def _remove(folder: Path, process: int) -> None:
    """Remove a folder of this process; one that was forked off leaves its parent's."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


_own: list[Path] = []
"""Folder of this process alone, where the cache is off or can't be used."""


def _still_good(folder: Path, file: Packed) -> bool:
    """Whether a bundle was unpacked before and is whole; then it counts as used now.

    Raises:
        IntegrityError: the folder is another bundle's, whose hash this one states as its own.
    """
    if not folder.is_dir():
        return False
    try:
        read(folder)
        same = _has_manifest_of(file, folder)
    except InputError:
        same = False
    if not same:
        file.check_end()
        shutil.rmtree(folder, ignore_errors=True)
        return False
    with contextlib.suppress(OSError):  # a cache that can only be read
        os.utime(folder)
    return True


def _hold(folder: Path) -> None:
    """Lock a folder as long as this process runs, which may open files in it much later."""
    if folder in _held:
        return
    with contextlib.suppress(OSError):
        _held[folder] = _locked(folder)


def _locked(folder: Path) -> int:
    """Return a descriptor of a folder, which nobody removes while it is open.

    Raises:
        OSError: the folder can't be opened.
    """
    descriptor = os.open(folder, _DIRECTORY)
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


_held: dict[Path, int] = {}
"""Descriptors of the folders that this process has locked."""


def _tidy(root: Path) -> None:
    """Remove what killed processes left, and what nobody used for a month."""
    now = time.time()
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            if not _UNPACKED.fullmatch(entry.name):
                continue
            age = now - entry.stat(follow_symlinks=False).st_mtime
            if age > (_ABANDONED_S if entry.name.startswith(".") else _UNUSED_S):
                descriptor = os.open(entry.path, _DIRECTORY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path, ignore_errors=True)
                except BlockingIOError:
                    pass  # a process that runs uses it
                finally:
                    os.close(descriptor)
