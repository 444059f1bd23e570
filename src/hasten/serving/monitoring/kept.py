"""Keep a bundle's evidence in a file that all processes add to, and that survives restarts and swaps.

A file belongs to one bundle, by the hash of its manifest. It is locked, read, added to, written under
another name and renamed, so that several servers on one machine, or in one shared folder, share one
process of evidence. Where no file can be used, the evidence is kept in memory, and a line says why.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import functools
import json
import math
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hasten.certificate.monitor import Batch, Evidence, Null
from hasten.core.records import from_record, to_record
from hasten.errors import InputError, IntegrityError

_MOST_BYTES = 1 << 20
_MOST_NULLS = 32
_MOST_LINES = 50
"""Lines of the audit record that are kept; the oldest go first."""
_MOST_UNSAVED = 1000
"""Changes that wait for the file; past them, the record in memory takes the file's place."""
_BEGUN = b"evidence was written\n"
"""Content of the lock of a file that was written once."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_VARIABLE = "XDG_STATE_HOME"


@dataclass(frozen=True)
class Watched:
    """One limit that a bundle's answers are held to.

    Attributes:
        what: Quantity of the numbers: "changed", "lost" or "net".
        null: Limit on their mean.
        alpha: Largest chance of an alarm though the limit is kept.
    """

    what: str
    null: Null
    alpha: float

    @property
    def key(self) -> str:
        """Name of the limit among a bundle's."""
        return f"{self.what} {self.null.limit!r}"


@dataclass(frozen=True)
class Alarm:
    """One alarm, with the evidence for it.

    Attributes:
        at: Time by this machine's clock, ISO 8601, UTC.
        what: Quantity that broke its limit: "changed", "lost" or "net".
        limit: Limit.
        n: Number of audited answers.
        losses: Changed answers, or lost score.
        gains: Gained score.
        low: Lower end of the interval of the mean.
        high: Upper end of the interval of the mean.
        capital: Capital that a stake of 1 against the limit has become.
        told: Whether the webhook, if there is one, has been told.
    """

    at: str
    what: str
    limit: float
    n: int
    losses: float
    gains: float
    low: float
    high: float
    capital: float
    told: bool = False

    def in_words(self) -> str:
        """Return one sentence for people."""
        mean = 100 * (self.losses - self.gains) / self.n
        kind = {
            "changed": "of answers change",
            "lost": "of answers, or of the score, are lost",
            "net": "is the net loss",
        }[self.what]
        return (
            f"more than {100 * self.limit:.4g}% {kind}: {mean:.3g}% of {self.n:,} audited answers "
            f"(95% interval {100 * self.low:.3g}% to {100 * self.high:.3g}%; at {self.capital:,.0f} "
            "to 1 against the limit)"
        )


@dataclass(frozen=True)
class Record:
    """Record that is kept of one bundle.

    Attributes:
        bundle: SHA-256 of the bundle's manifest.
        evidence: Limit's key -> evidence.
        alarms: Limit's key -> alarm that nobody has cleared.
        taken_over: Whether the exact model answers until somebody clears it.
        begun_anew: Times that the evidence was restarted; each may raise one more false alarm.
        lines: Audit record, oldest first.
    """

    bundle: str
    evidence: dict[str, Evidence] = field(default_factory=dict)
    alarms: dict[str, Alarm] = field(default_factory=dict)
    taken_over: bool = False
    begun_anew: int = 0
    lines: tuple[str, ...] = ()

    def noted(self, at: str, text: str) -> Record:
        """Return the record with one more line."""
        return dataclasses.replace(self, lines=(*self.lines, f"{at} {text}")[-_MOST_LINES:])

    def added(self, watched: Watched, batch: Batch, at: str, *, take_over: bool) -> Record:
        """Return the record with more audited answers, and with the alarm if they raise one."""
        key = watched.key
        evidence = self.evidence.get(key, watched.null.begun()).after(batch)
        record = dataclasses.replace(self, evidence={**self.evidence, key: evidence})
        if key in self.alarms or not evidence.breaks(watched.alpha):
            return record
        low, high = evidence.interval()
        alarm = Alarm(
            at=at,
            what=watched.what,
            limit=watched.null.limit,
            n=evidence.n,
            losses=evidence.losses,
            gains=evidence.gains,
            low=low,
            high=high,
            capital=math.exp(min(evidence.log_value, 700.0)),
        )
        record = dataclasses.replace(record, alarms={**self.alarms, key: alarm})
        record = record.noted(at, f"alarm: {alarm.in_words()}")
        return taken_over(record) if take_over else record


def state_folder(given: str) -> Path | None:
    """Return the folder of all bundles' evidence; None for "off".

    Args:
        given: Folder, "off", or "" for `hasten/monitor` in the user's folder of state.
    """
    if given == "off":
        return None
    if given:
        return Path(given)
    base = os.environ.get(_VARIABLE, "")
    root = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return root / "hasten" / "monitor"


def now() -> str:
    """Return the time by this machine's clock, ISO 8601, UTC; it orders nothing."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Kept:
    """The evidence of one bundle, in memory and in its file; for any thread.

    Args:
        bundle: SHA-256 of the bundle's manifest.
        folder: Folder of the files; None to keep the evidence in memory alone.
        say: Callback that is told, in a line, where evidence can't be kept, and where it can again.
        news: Callback that is told, in a line, where evidence begins.
        anew: Callback that is told, in a line, where evidence begins again, as what was kept is lost
            or damaged.
    """

    def __init__(
        self,
        bundle: str,
        folder: Path | None,
        say: Callable[[str], None] = lambda text: None,
        news: Callable[[str], None] = lambda text: None,
        anew: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._bundle, self._folder, self._say, self._anew = bundle, folder, say, anew
        self._lock = threading.Lock()
        self._failed = False
        self._kept = Record(bundle)
        self._unsaved: list[Callable[[Record], Record]] = []
        self._news, self._told_begin = news, False
        self.changed(as_it_is)
        if self._failed:
            self._look()

    @property
    def path(self) -> Path | None:
        """File of the evidence; None where it is kept in memory alone."""
        return None if self._folder is None else _file(self._bundle, self._folder)

    @property
    def record(self) -> Record:
        """Record that is kept, as it was when this process last looked."""
        return self._kept

    def changed(self, change: Callable[[Record], Record]) -> Record:
        """Change what is kept, beginning with what other processes have made of it; return it.

        Args:
            change: Function that returns the changed record. It may run again, on another process's
                record, where the file can't be written at first.
        """
        aside = ""
        with self._lock:
            try:
                with self._locked() as (path, lock):
                    found, aside = self._read(path)
                    if found is None and not aside and self._kept == Record(self._bundle):
                        aside = self._begun(path, lock)
                    record = self._kept if found is None else found
                    for one in (*(self._unsaved if found is not None else ()), change):
                        record = one(record)
                    if aside:
                        record = _anew(record, aside)
                    if record != found and record != Record(self._bundle):
                        self._write(path, record)
                        # The change is kept by now, and must not wait to be added again.
                        with contextlib.suppress(OSError):
                            if not os.fstat(lock).st_size:
                                os.write(lock, _BEGUN)
            except OSError as error:
                self._tell(error)
                missed: list[Callable[[Record], Record]] = [change]
                missed += [functools.partial(_anew, aside=aside)] if aside else []
                for one in missed:
                    self._kept = one(self._kept)
                # Added once it can be; without a folder it never can.
                if self._folder is not None:
                    self._unsaved += [one for one in missed if one is not as_it_is]
                if len(self._unsaved) > _MOST_UNSAVED:
                    self._unsaved = [_fixed(self._kept)]
                return self._kept
            self._unsaved.clear()
            if self._failed:
                self._failed = False
                self._say(f"the monitor's evidence is kept in {self._folder} again")
            self._kept = record
            return record

    def _begun(self, path: Path, lock: int) -> str:
        """Say that evidence begins; return what to note where there was some that is lost.

        Once evidence was written, its lock isn't empty. Where both are gone, nobody can know.
        """
        lost, told, self._told_begin = os.fstat(lock).st_size > 0, self._told_begin, True
        if lost and not told:
            self._anew(_lost(path))
        elif not told:
            self._news(f"the monitor's evidence begins in {path}")
        return "the evidence was started again: its file was lost" if lost else ""

    def _look(self) -> None:
        """Read the file where it can't be locked, as in a folder that is read-only."""
        with contextlib.suppress(OSError, ValueError):
            if self._folder is not None:
                self._kept = peek(self._bundle, self._folder)

    def _tell(self, error: OSError) -> None:
        if not self._failed and self._folder is not None:
            self._failed = True
            why = error.strerror or str(error)
            self._say(
                f"the monitor's evidence can't be kept in {self._folder}: {why}; it is in memory "
                "only, so the next start begins again, with another 5% risk of a false alarm"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[tuple[Path, int]]:
        """Hold the lock of the bundle's file; yield the file's path, and the open lock.

        Raises:
            OSError: the folder can't be used, or others can write to it.
        """
        if self._folder is None:
            raise OSError("no folder")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_own(os.lstat(self._folder))
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        number = os.open(_file(self._bundle, self._folder, "lock"), flags, 0o600)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            assert self.path is not None
            yield self.path, number
        finally:
            with contextlib.suppress(OSError):  # a folder on a network tells of a full disk here
                os.close(number)

    def _read(self, path: Path) -> tuple[Record | None, str]:
        """Read the file.

        Returns:
            What it holds, None if there is none; and what to note where it was damaged.

        Raises:
            OSError: it can't be read, or isn't this user's.
        """
        try:
            return _peeked(path, self._bundle), ""
        except FileNotFoundError:
            return None, ""
        except ValueError as error:
            beside = path.with_suffix(f".damaged-{secrets.token_hex(4)}")
            path.rename(beside)
            self._anew(
                f"the monitor's evidence in {path} is damaged ({error!s:.200}): it was set aside as "
                f"{beside.name}, and the evidence starts again, with another 5% risk of a false "
                "alarm"
            )
            return (
                None,
                f"the evidence was started again: the file was damaged, and is now {beside.name}",
            )

    def _write(self, path: Path, record: Record) -> None:
        beside = path.with_name(f".{path.stem}.{secrets.token_hex(8)}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        before = self._kept
        other = (record.alarms, record.taken_over) != (before.alarms, before.taken_over)
        try:
            with os.fdopen(os.open(beside, flags, 0o600), "w") as file:
                file.write(json.dumps(to_record(record), allow_nan=False))
                # Also what replaces a file with an alarm: after a power cut, either is there.
                if other or record.alarms or record.taken_over:
                    file.flush()
                    os.fsync(file.fileno())
            beside.rename(path)
            if other:
                _sync(path.parent)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def _sync(folder: Path) -> None:
    """Have a folder's names on the disk; where that fails, they are there a moment later."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def _file(bundle: str, folder: Path, suffix: str = "json") -> Path:
    """Return the file of a bundle's evidence, or its lock."""
    return folder / f"{bundle[:32]}.{suffix}"


def _lost(path: Path) -> str:
    """Say that evidence was lost."""
    return (
        f"the monitor's evidence in {path} is lost: it starts again, with another 5% risk of a false "
        "alarm"
    )


def _anew(record: Record, aside: str) -> Record:
    """Return a record whose evidence was started again, which counts, with a line about what was lost."""
    return dataclasses.replace(record, begun_anew=record.begun_anew + 1).noted(now(), aside)


def _fixed(record: Record) -> Callable[[Record], Record]:
    """Return the change that puts a record in any other's place."""
    return lambda other: record


def _check_own(found: os.stat_result) -> None:
    """Check that a file is this user's, and that nobody else can write to it.

    Raises:
        OSError: it isn't.
    """
    if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE or stat.S_ISLNK(found.st_mode):
        raise PermissionError(13, "it belongs to another user, or others can write to it")


def peek(bundle: str, folder: Path) -> Record:
    """Read what a folder keeps of a bundle, and leave it as it is.

    Raises:
        FileNotFoundError: nothing is kept.
        OSError: it can't be read, or isn't this user's.
        ValueError: it is damaged.
    """
    _check_own(os.lstat(folder))
    return _peeked(_file(bundle, folder), bundle)


def loss(bundle: str, folder: Path) -> str:
    """Say that a folder's evidence of a bundle is lost; "" where it is kept, or none was known of."""
    path = _file(bundle, folder)
    with contextlib.suppress(OSError):
        if not os.path.lexists(path) and os.lstat(_file(bundle, folder, "lock")).st_size:
            return _lost(path)
    return ""


def _peeked(path: Path, bundle: str) -> Record:
    """Read a file; see `peek`."""
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(number, "rb") as file:
        _check_own(os.fstat(number))
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError("it is too large")
    try:
        record: Record = from_record(Record, json.loads(data))
    except (RecursionError, InputError, IntegrityError) as error:
        raise ValueError(str(error)) from error
    if record.bundle != bundle:
        raise ValueError("it belongs to another bundle")
    if len(record.evidence) > _MOST_NULLS or len(record.lines) > _MOST_LINES:
        raise ValueError("it has too many entries")
    for each in record.evidence.values():
        numbers = (each.losses, each.gains, *each.capital)
        counts = each.n >= 0 and 0 <= each.losses + each.gains <= each.n and 0 < each.staked <= 1
        same = len(each.capital) == len(each.null.begun().capital)
        if not (all(map(math.isfinite, numbers)) and counts and same):
            raise ValueError("its numbers are impossible")
    return record


def as_it_is(record: Record) -> Record:
    """Return a record unchanged, to see what other processes have made of it."""
    return record


def taken_over(record: Record) -> Record:
    """Return a record by which the exact model answers until somebody clears it."""
    if record.taken_over:
        return record
    return dataclasses.replace(record, taken_over=True).noted(now(), "the exact model takes over")


def cleared(record: Record) -> Record:
    """Return a record without alarms, whose evidence starts again."""
    at = now()
    fresh = dataclasses.replace(
        record, evidence={}, alarms={}, taken_over=False, begun_anew=record.begun_anew + 1
    )
    return fresh.noted(at, "cleared by a person: the evidence starts again")


def told(record: Record, keys: Mapping[str, Alarm]) -> Record:
    """Return a record that says that the webhook has been told of alarms."""
    alarms = {
        key: dataclasses.replace(alarm, told=alarm.told or keys.get(key) == alarm)
        for key, alarm in record.alarms.items()
    }
    return dataclasses.replace(record, alarms=alarms)
