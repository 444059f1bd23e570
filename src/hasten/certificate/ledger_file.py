"""The file of the ledger: lines of JSON behind checksums, a lock, and a size that it keeps to.

Lines are only ever added, under the lock, and are on disk when `append` returns. Past its size the
oldest are dropped, into a new file that takes the old one's place whole. What belongs to another user,
or can be written by others, is never read.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import hashlib
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import msgspec

from hasten.certificate.looks import PastLook
from hasten.inputs.data.splits import KNOWN_BYTES

LIMIT_BYTES = 32 << 20
"""Largest number of bytes of the ledger: about a million and a half samples."""
FILE, LOCK = "ledger.jsonl", "ledger.lock"
_SUM = 16
PATIENCE_S = 10.0
"""Longest wait for other processes that work in the ledger, where nothing is lost by giving up."""
_LOCK_PAUSE_S = 0.1
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_LOCK = os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


class Begun(msgspec.Struct, tag="begun"):
    """First line: since when the ledger is kept, and what became of an older one."""

    on: str
    why: str = ""


class Samples(msgspec.Struct, tag="samples"):
    """Samples, by their hashes one after the other in base64."""

    set: str
    hashes: bytes


class Seen(msgspec.Struct, tag="seen"):
    """A run searched or calibrated on samples."""

    set: str
    on: str


class Looked(msgspec.Struct, tag="look"):
    """A run is about to test candidates on samples, at a level; `answers` is the digest of the test."""

    id: str
    set: str
    alpha: float
    answers: str
    repeats: bool
    on: str


class Ended(msgspec.Struct, tag="end"):
    """A look came to its end."""

    id: str
    refused: bool


Line: TypeAlias = Begun | Samples | Seen | Looked | Ended
_decode = msgspec.json.Decoder(Line).decode


class UnusableError(Exception):
    """The ledger can't be used; the text says why."""


class DamagedError(UnusableError):
    """The ledger's lines aren't what was written."""


@dataclass
class Content:
    """Content of a ledger's lines."""

    begun: Begun
    lines: list[tuple[Line, bytes]] = field(default_factory=list)
    sets: dict[str, frozenset[bytes]] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)
    looks: dict[str, PastLook] = field(default_factory=dict)

    def add(self, line: Line, raw: bytes) -> None:
        """Take in one line.

        Raises:
            KeyError: the line is about samples, or a look, that no line before it has.
        """
        self.lines.append((line, raw))
        if isinstance(line, Begun):
            self.begun = line
        elif isinstance(line, Samples):
            self.sets[line.set] = frozenset(
                line.hashes[i : i + KNOWN_BYTES] for i in range(0, len(line.hashes), KNOWN_BYTES)
            )
        elif isinstance(line, Seen):
            self.seen |= self.sets[line.set]
        elif isinstance(line, Looked):
            self.looks[line.id] = PastLook(
                line.id, self.sets[line.set], line.alpha, None, line.answers, line.repeats
            )
        else:
            self.looks[line.id] = replace(self.looks[line.id], refused=line.refused)


@dataclass
class LedgerFile:
    """The file, in a folder of its own.

    Attributes:
        folder: Folder of the file, made when it is first opened.
        limit_bytes: Largest number of bytes of the file.
        trouble: Trouble that the file had and that ended nothing, in words; empty where there was none.
    """

    folder: Path
    limit_bytes: int = LIMIT_BYTES
    trouble: str = ""

    @property
    def path(self) -> Path:
        """Path of the file."""
        return self.folder / FILE

    @contextlib.contextmanager
    def locked(self, *, reading: bool = False, patience_s: float | None = None) -> Iterator[int]:
        """Yield a descriptor of the folder, checked, which this process alone works in.

        Args:
            reading: Whether the block only reads, so that a folder that can't be written serves too.
            patience_s: Longest wait for other processes that work in it; None for the usual one.

        Raises:
            UnusableError: it isn't this user's alone, or another process holds it.
            OSError: there is no folder, or it can't be opened or written.
        """
        if not reading:
            with contextlib.suppress(FileExistsError):  # opening says what lies there
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            folder = os.open(self.folder, _FOLDER)
            held.callback(os.close, folder)
            _check(os.fstat(folder), str(self.folder))
            lock = _opened_lock(folder, reading=reading)
            if lock is not None:
                held.callback(os.close, lock)
                _wait_for(lock, PATIENCE_S if patience_s is None else patience_s)
            yield folder

    def known(self, folder: int) -> Content | None:
        """Read the file; None where there is none, or a kill cut its very first line short.

        Raises:
            UnusableError: it isn't this user's alone, or it is damaged.
            OSError: it can't be read.
        """
        try:
            file = os.open(FILE, _READ, dir_fd=folder)
        except FileNotFoundError:
            return None
        with os.fdopen(file, "rb") as opened:
            facts = os.fstat(opened.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise UnusableError(f"{FILE} isn't a file")
            _check(facts, FILE)
            whole = opened.read(self.limit_bytes + 1)
        content = _content_of(whole) if len(whole) <= self.limit_bytes else None
        begun = b"\n" in whole or _size(folder, LOCK) > 0
        if (content is None and begun) or len(whole) < _least(folder):
            raise DamagedError("it is damaged")
        return content

    def read(self, folder: int) -> Content:
        """Read the file; where there is none, begin a new one.

        Raises:
            UnusableError: it isn't this user's alone, or it is damaged.
            OSError: it can't be read, or begun.
        """
        content = self.known(folder)
        if content is not None:
            return content
        # The first thing under a new lock is to begin the file: a lock alone is what was left.
        why = "an older one was lost" if _size(folder, LOCK) > 0 else ""
        content = Content(Begun(today(), why))
        if why:
            self.trouble = f"the ledger {self.path} was started again: {why}, so the looks of earlier runs aren't known"
        self.append(folder, content, [content.begun])
        return content

    def check_writable(self, folder: int) -> None:
        """Check that lines can be added to the file.

        Raises:
            OSError: they can't.
        """
        os.close(os.open(FILE, _WRITE & ~os.O_CREAT, dir_fd=folder))

    def append(self, folder: int, content: Content, lines: Sequence[Line]) -> None:
        """Write lines and wait until they are on disk; more than the file may hold is said as trouble.

        Raises:
            UnusableError: the file isn't this user's alone.
            OSError: it can't be written.
        """
        raw = [_encoded(line) for line in lines]
        size = sum(len(one) for _, one in content.lines)
        if size + sum(map(len, raw)) > self.limit_bytes:
            newest = self._newest(content, list(zip(lines, raw, strict=True)))
            if newest is None:
                self.trouble = (
                    f"this run has more samples than the ledger {self.path} may hold; later runs "
                    "won't know of it"
                )
                return
            self.replace(folder, newest)
        else:
            _write_behind(folder, size, b"".join(raw))
            _keep_least(folder, size + sum(map(len, raw)))
        for line, one in zip(lines, raw, strict=True):
            content.add(line, one)

    def begin_anew(self, folder: int, why: str) -> None:
        """Begin a new file in the old one's place; one that can't be used is kept beside it.

        Args:
            folder: Descriptor of the locked folder.
            why: Words for what became of the old one.

        Raises:
            OSError: the folder can't be written.
        """
        try:
            self.known(folder)
        except UnusableError:
            aside = f"{FILE}.damaged-{secrets.token_hex(4)}"
            os.rename(FILE, aside, src_dir_fd=folder, dst_dir_fd=folder)
            why += f"; the old one, which couldn't be used, is kept as {aside}"
        self.replace(folder, [Begun(today(), why)])

    def _newest(self, content: Content, new: list[tuple[Line, bytes]]) -> list[Line] | None:
        """Return the newest lines that fill half of the limit, with what they are about.

        None where the new lines alone are too large.
        """
        lines = [*content.lines, *new]
        places = {_name_of(line): place for place, (line, _) in enumerate(lines)}
        kept: set[int] = set()
        room = self.limit_bytes // 2
        for place in range(len(lines) - 1, -1, -1):
            wanted = _grounds(lines, places, place) - kept
            room -= sum(len(lines[i][1]) for i in wanted)
            if room < 0:
                break
            kept |= wanted
        if not kept >= set(range(len(content.lines), len(lines))):
            return None
        begun = Begun(content.begun.on, f"its oldest entries were dropped on {today()}")
        rest = [lines[i][0] for i in sorted(kept)]
        return [begun, *(line for line in rest if not isinstance(line, Begun))]

    def replace(self, folder: int, lines: Sequence[Line]) -> None:
        """Write a new file beside the old one, and put it in its place."""
        beside = f".{FILE}.{secrets.token_hex(8)}"
        whole = b"".join(map(_encoded, lines))
        try:
            _write_behind(folder, 0, whole, beside)
            _keep_least(folder, 0)  # before the file gets shorter
            os.rename(beside, FILE, src_dir_fd=folder, dst_dir_fd=folder)
            _keep_least(folder, len(whole))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(beside, dir_fd=folder)
            raise


def _content_of(whole: bytes) -> Content | None:
    """Return what a ledger's lines say; None where one is damaged. A last line cut short is dropped."""
    content: Content | None = None
    for raw in whole[: whole.rfind(b"\n") + 1].splitlines(keepends=True):
        stated, text = raw[:_SUM], raw[_SUM + 1 : -1]
        if stated != hashlib.sha256(text).hexdigest()[:_SUM].encode():
            return None
        try:
            line = _decode(text)
            if content is None:
                if not isinstance(line, Begun):
                    return None
                content = Content(line)
            content.add(line, raw)
        except (msgspec.MsgspecError, KeyError, ValueError):
            return None
    return content


def _encoded(line: Line) -> bytes:
    text = msgspec.json.encode(line)
    return hashlib.sha256(text).hexdigest()[:_SUM].encode() + b" " + text + b"\n"


def _name_of(line: Line) -> str:
    """Return the name that later lines call this one by; none call one without a name."""
    return line.set if isinstance(line, Samples) else line.id if isinstance(line, Looked) else ""


def _grounds(
    lines: Sequence[tuple[Line, bytes]], places: Mapping[str, int], place: int
) -> set[int]:
    """Return a line's place, with those of the lines that it is about."""
    line = lines[place][0]
    if isinstance(line, Ended):
        return {place} | _grounds(lines, places, places[line.id])
    return {place, places[line.set]} if isinstance(line, (Seen, Looked)) else {place}


def _write_behind(folder: int, size: int, data: bytes, name: str = FILE) -> None:
    """Write bytes behind the first `size` of a file, on disk; on failure cut it back to these."""
    file = os.open(name, _WRITE, 0o600, dir_fd=folder)
    with os.fdopen(file, "wb", buffering=0) as opened:
        _check(os.fstat(file), name)
        try:
            opened.truncate(size)
            opened.seek(size)
            left = memoryview(data)
            while left:
                left = left[opened.write(left) :]
            os.fsync(file)
        except OSError:
            with contextlib.suppress(OSError):
                opened.truncate(size)
            raise


def _keep_least(folder: int, size: int) -> None:
    """Keep in the lock how long the file is: a sign that one was begun, and that none of it is cut off.

    It is written once the file is on disk, in one piece of always the same length.

    Raises:
        OSError: the lock can't be written.
    """
    lock = os.open(LOCK, os.O_WRONLY | _LOCK, dir_fd=folder)
    try:
        os.pwrite(lock, b"%15d\n" % size, 0)
    finally:
        os.close(lock)


def _least(folder: int) -> int:
    """Return the least length of the file by its lock; 0 where there is none, or it doesn't say."""
    try:
        lock = os.open(LOCK, _READ, dir_fd=folder)
    except OSError:
        return 0
    with os.fdopen(lock, "rb") as opened:
        said = opened.read(16)
    return int(said) if said.strip().isdigit() else 0


def _opened_lock(folder: int, *, reading: bool) -> int | None:
    """Open the lock; None where there is none, none can be made, and nobody writes.

    Raises:
        OSError: it can't be opened.
    """
    try:
        return os.open(LOCK, os.O_RDWR | os.O_CREAT | _LOCK, 0o600, dir_fd=folder)
    except OSError:
        if not reading:
            raise
    with contextlib.suppress(PermissionError, FileNotFoundError):
        return os.open(LOCK, os.O_RDONLY | _LOCK, dir_fd=folder)
    return None


def _wait_for(lock: int, patience_s: float) -> None:
    """Wait for the other processes that work in the ledger."""
    for _ in range(round(patience_s / _LOCK_PAUSE_S)):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        else:
            return
    raise UnusableError("another process has locked it")


def _size(folder: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_size
    except OSError:
        return 0


def _check(facts: os.stat_result, what: str) -> None:
    """Refuse what belongs to another user, or can be written by others.

    Raises:
        UnusableError: it does, or it can.
    """
    if facts.st_uid != os.geteuid():
        raise UnusableError(f"{what} belongs to another user")
    if facts.st_mode & _OTHERS_WRITE:
        raise UnusableError(f"{what} can be written by others")


def reason(error: Exception) -> str:
    if isinstance(error, OSError):
        linked = error.errno == errno.ELOOP
        return "it is a symbolic link" if linked else str(error.strerror or error)
    return str(error)


def today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def set_lines(content: Content, hashes: frozenset[bytes]) -> tuple[str, list[Line]]:
    """Return the name of a set of samples, and the line that describes it unless one does already."""
    joined = b"".join(sorted(hashes))
    name = hashlib.sha256(joined).hexdigest()[:32]
    return name, [] if name in content.sets else [Samples(name, joined)]
