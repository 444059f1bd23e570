"""Make a newer bundle of an older one and a packed difference; the older one stays until it is whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hasten.bundle.folder import put_in_place, read, replaceable
from hasten.bundle.manifest import MANIFEST, one_line
from hasten.bundle.packing.layout import Base, Piece
from hasten.bundle.packing.names import SUFFIX, is_address, is_packed
from hasten.bundle.packing.reader import Packed
from hasten.bundle.packing.unpacking import beside, checked, opened, write_files
from hasten.bundle.packing.writer import check_goal, pack
from hasten.bundle.signatures import PublicKey
from hasten.bundle.stored import Stored, StoredFolder, stored_at
from hasten.core.records import file_digest, with_name
from hasten.core.tensors import Array
from hasten.errors import InputError, IntegrityError

_SHOWN = 12


def unpack_since(
    packed: str | os.PathLike[str],
    old: str | os.PathLike[str],
    out: str | os.PathLike[str],
    trusted: Sequence[PublicKey] = (),
) -> Path:
    """Make the newer bundle that a packed difference leads to.

    Its files are written into a hidden folder beside `out` and checked against its manifest; only then
    do they get their name, at once. So `out` may be the older bundle itself, which stays whole until it
    is replaced, whatever fails and whoever ends the process.

    Args:
        packed: Path or address of the difference.
        old: Bundle that it is the difference to, a folder or a packed one.
        out: Folder of the newer bundle, or a packed one if its name ends in ".hastenz". An older bundle
            there is replaced. Where it is `old`, and the newer bundle already, nothing is done.
        trusted: Keys, one of which must have signed the newer bundle; none where an unsigned one will do.

    Returns:
        Path of the newer bundle.

    Raises:
        InputError: the older bundle isn't the one that was meant, or changed meanwhile; or the newer one
            can't be written.
        IntegrityError: the difference or the older bundle is damaged, or the newer one isn't signed by
            such a key.
    """
    goal = with_name(Path(out)).absolute()
    as_file = goal.suffix == SUFFIX
    check_goal(goal) if as_file else replaceable(goal)
    with opened(packed) as difference, contextlib.closing(stored_at(old)) as older:
        if isinstance(older, StoredFolder):
            older.whole()  # what changes after this is told from what was damaged
        if _is_same(goal, old) and _made_before(difference, older):
            stored_at(old, trusted).close()
            return Path(out)
        base = _Base(older, _stated(difference, older))
        try:
            with beside(goal) as new:
                write_files(difference, new, base.piece)
                _check_whole(difference, new, base, trusted)
                if not is_address(packed):
                    difference.check_end()
                if as_file:
                    pack(new, goal)
                    _to_disk(goal.parent, deep=False)
                    return Path(out)
                _to_disk(new)
                if _is_same(goal, old):
                    base.check_same()
                put_in_place(new, goal)
                _to_disk(goal.parent, deep=False)
        except OSError as error:
            raise InputError(f"can't write {out}: {error.strerror or error}") from error
    return Path(out)


def _is_same(goal: Path, old: str | os.PathLike[str]) -> bool:
    """Whether the newer bundle is to replace the older one."""
    return not is_address(old) and goal.exists() and goal.samefile(old)


def _made_before(difference: Packed, older: Stored) -> bool:
    """Whether a bundle is what a difference leads to already, as after a device's second try."""
    base = difference.head.base
    made = file_digest(older.folder_with([]) / MANIFEST)
    return base is not None and base.makes == made != base.manifest


def _stated(difference: Packed, older: Stored) -> Base:
    """Return what a difference states of its base, which the given bundle must be.

    Raises:
        InputError: it is another one, or there is no difference.
        IntegrityError: the difference needs files that the bundle hasn't.
    """
    base, name = difference.head.base, difference.source.name
    if base is None:
        raise InputError(f"{name} is a whole bundle, not a difference: unpack it without --base")
    manifest = older.folder_with([]) / MANIFEST
    found = file_digest(manifest)
    if found != base.manifest:
        here = older.manifest
        raise InputError(
            f"{name} is the difference to {_told(base.label, base.created, base.manifest)}; "
            f"{older.name} is {_told(here.winner.label, here.created, found)}: give the bundle that it "
            "was made for"
        )
    sizes = {path: size for path, (_, size) in older.manifest.files.items()}
    sizes[MANIFEST] = manifest.stat().st_size
    for path, size in base.files:
        if sizes.get(path) != size:
            raise IntegrityError(
                f"{name} is damaged: {older.name} has no {path!r:.100} of that size"
            )
    return base


def _told(label: str, created: str, sha256: str) -> str:
    """Return what people tell a bundle by."""
    when = one_line(created)[:19].replace("T", " ")
    return f"{one_line(label)[:60]!r} of {when} (manifest {one_line(sha256)[:_SHOWN]})"


@dataclass(frozen=True)
class _Base:
    """Older bundle, of which pieces are read.

    Attributes:
        stored: The older bundle.
        stated: Hash, files and label by which the difference knows the older bundle.
    """

    stored: Stored
    stated: Base

    def piece(self, piece: Piece) -> Array:
        """Return the bytes of a piece: uint8 of shape (length,).

        They are read and not mapped: a file that is cut off meanwhile would crash the process.

        Raises:
            InputError: they aren't there any more.
        """
        name = self.stated.files[piece.file][0]
        folder = self.stored.folder_with([name] if name != MANIFEST else [])
        try:
            found = np.fromfile(folder / name, np.uint8, piece.length, offset=piece.offset)
        except OSError as error:
            raise self._changed() from error
        if len(found) != piece.length:
            raise self._changed()
        return found

    def check_same(self) -> None:
        """Check that the older bundle is what it was at first.

        Raises:
            InputError: it isn't.
        """
        path = Path(self.stored.name)
        if is_packed(path):
            return  # its content came through one descriptor, and was checked
        try:
            read(path)
            same = file_digest(path / MANIFEST) == self.stated.manifest
        except (OSError, InputError) as error:
            raise self._changed() from error
        if not same:
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError(
            f"{self.stored.name} was changed while the difference to it was being unpacked: "
            "nothing was written; try again"
        )


def _check_whole(
    difference: Packed, folder: Path, base: _Base, trusted: Sequence[PublicKey]
) -> None:
    """Check every file of a newer bundle against its manifest.

    Raises:
        InputError: the older bundle changed meanwhile.
        IntegrityError: the difference leads to no whole bundle, or to one that isn't trusted.
    """
    try:
        checked(difference, folder, trusted)
    except IntegrityError:
        base.check_same()
        raise


def _to_disk(folder: Path, deep: bool = True) -> None:
    """Have a folder's names written to the disk, and all that is in it: power may fail right after."""
    inside = [*folder.rglob("*")] if deep else []
    for path in (folder, *inside):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
