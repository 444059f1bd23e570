"""The ledger: a memory between runs of which samples were searched on, and which were tested on.

It lies in the user's state folder. Samples are known by the first 16 bytes of their content hash,
unsalted, so that equal content is found again in any file. Where it can't be read or written nothing
is certified: a run ends before its search, or stops before its test so that it can be resumed. Only a
user who switches it off goes on without one, and every certificate says so: `Ledger.trouble` has it in
words.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hasten.certificate.ledger_file import (
    LIMIT_BYTES,
    Content,
    DamagedError,
    Ended,
    LedgerFile,
    Looked,
    Seen,
    UnusableError,
    reason,
    set_lines,
    today,
)
from hasten.certificate.looks import Look, PastLook, look_at, refused, worth
from hasten.certificate.verdict import Judgement
from hasten.core.words import amount
from hasten.errors import InputError
from hasten.inputs.data.splits import KNOWN_BYTES, Earlier

VARIABLE = "HASTEN_LEDGER"
"""Environment variable with the ledger's folder, or "off"."""
_LONG_PATIENCE_S = 1800.0
"""Longest wait for other processes where answers that took long would be lost."""
_OFF = frozenset({"off", "0"})
_WAYS = (
    f'set {VARIABLE} to a folder that only you can write, or to "off" to go on without a memory, as the '
    "certificate then says"
)


@dataclass(frozen=True)
class Past:
    """Record of what earlier runs did with samples.

    Attributes:
        seen: First 16 bytes of the content hashes of samples that were searched or calibrated on.
        looks: Looks at samples, oldest first.
    """

    seen: frozenset[bytes] = frozenset()
    looks: tuple[PastLook, ...] = ()

    def __add__(self, other: Past) -> Past:
        """Return both; a look that both know is the other's."""
        looks = {one.id: one for one in (*self.looks, *other.looks)}
        return Past(self.seen | other.seen, tuple(looks.values()))

    def earlier(self, asked: float) -> Earlier:
        """Return the past as the split of data takes it, for an alpha that is asked for."""
        counts: dict[bytes, int] = {}
        for look in self.looks:
            spent = look.refused is not False and not look.repeats
            for one in look.hashes:
                counts[one] = counts.get(one, 0) + spent
        worths = [worth(asked, count) for count in range(1 + max(counts.values(), default=0))]
        return Earlier(self.seen, {one: worths[count] for one, count in counts.items()})


@dataclass
class Ledger:
    """Memory between runs.

    Attributes:
        file: File of the ledger; None where none is kept.
        trouble: Trouble with the ledger that a certificate must state, in words; empty where there is none.
    """

    file: LedgerFile | None
    trouble: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what a person must know of it now: nothing where all is well, or none is wanted."""
        return (self.trouble,) if self.trouble and self.file is not None else ()

    @classmethod
    def at(cls, folder: Path, limit_bytes: int = LIMIT_BYTES) -> Ledger:
        """Return the ledger in a folder, which is made when something is first kept."""
        return cls(LedgerFile(folder, limit_bytes))

    @classmethod
    def of_user(cls) -> Ledger:
        """Return the ledger of this user, unread: one that holds nothing where it is switched off.

        It lies in the folder that the environment variable HASTEN_LEDGER names ("off" for none), else in
        `$XDG_STATE_HOME/hasten`, else in `~/.local/state/hasten`.

        Raises:
            InputError: there is no home folder.

        Source: XDG Base Directory Specification 0.8, "Environment variables".
        """
        named = os.environ.get(VARIABLE, "")
        if named in _OFF:
            return cls(
                None,
                f"no ledger is kept, because {VARIABLE} is off: earlier looks aren't known",
            )
        if named:
            return cls.at(Path(named).absolute())
        base = os.environ.get("XDG_STATE_HOME", "")
        if Path(base).is_absolute():
            return cls.at(Path(base, "hasten"))
        try:
            return cls.at(Path.home() / ".local" / "state" / "hasten")
        except RuntimeError as error:
            raise InputError(
                f"there is no home folder for the ledger, and nothing is certified without one: {_WAYS}"
            ) from error

    def check(self) -> None:
        """Check that it can be read and written, and begin it where there is none yet.

        Raises:
            InputError: it can't.
        """
        if self.file is not None:
            with self._opened() as (file, folder, _):
                file.check_writable(folder)

    def past(self) -> Past:
        """Return what is known of earlier runs.

        Raises:
            InputError: it can't be read or written.
        """
        if self.file is None:
            return Past()
        with self._opened() as (_, _, content):
            return Past(frozenset(content.seen), tuple(content.looks.values()))

    def saw(self, hashes: Iterable[bytes]) -> None:
        """Keep that samples are searched or calibrated on; what is known already isn't kept twice.

        Args:
            hashes: Content hashes, of which the first 16 bytes count.

        Raises:
            InputError: it can't be read or written.
        """
        if self.file is None:
            return
        with self._opened() as (file, folder, content):
            new = short(hashes) - content.seen
            if new:
                name, lines = set_lines(content, new)
                file.append(folder, content, [*lines, Seen(name, today())])

    def look(
        self, hashes: Iterable[bytes], answers: str, *, asked: float, also: Past | None = None
    ) -> Look:
        """Return the look that is about to judge answers, after it was written down.

        Until then nobody knows what came out, so a run that is killed before spends nothing. The very
        test of an earlier look is a repeat, or that look itself where it never came to an end.

        Args:
            hashes: Content hashes of the samples, of which the first 16 bytes count.
            answers: Digest of the whole test, by `answers_digest`.
            asked: Alpha that is asked for.
            also: Past that is known from elsewhere, as from an older bundle.

        Raises:
            InputError: it can't be read or written, so nothing may be judged.
        """
        mine, known = short(hashes), also or Past()
        own = secrets.token_hex(8)
        if self.file is None:
            return look_at(mine, known.looks, own=own, asked=asked, kept=self.trouble)
        # Answers that took hours are lost if it can't be written now.
        with self._opened(_LONG_PATIENCE_S) as (file, folder, content):
            past = (known + Past(looks=tuple(content.looks.values()))).looks
            same = next((one for one in past if one.answers == answers and not one.repeats), None)
            if same is not None and same.refused is None:
                own = same.id
            look = look_at(mine, past, own=own, asked=asked, kept="")
            if same is not None:
                look = replace(look, alpha=same.alpha, repeats=same.id != own)
            if own not in content.looks:
                name, lines = set_lines(content, mine)
                line = Looked(own, name, look.alpha, answers, look.repeats, today())
                file.append(folder, content, [*lines, line])
            self.trouble = file.trouble or self.trouble
            return replace(look, kept=f"according to a ledger {self._since(content)}")

    def end(
        self, look: Look, judged: Iterable[tuple[str, Judgement | str]], *, held: bool = True
    ) -> None:
        """Keep how a look ended: whether something that was tested wasn't certified.

        Where that can't be written any more, the look stays one that never ended, which counts as refused.

        Args:
            look: Look that ended.
            judged: Verdicts on its candidates.
            held: Whether each that was certified held in all the batch sizes that were tested, too.
        """
        if self.file is None:
            return
        try:
            with self._locked() as (file, folder, content):
                if look.id in content.looks:
                    file.append(folder, content, [Ended(look.id, refused(judged) or not held)])
        except (UnusableError, OSError) as error:
            self.trouble = (
                f"how this look ended can't be written to the ledger {self.file.path}: "
                f"{reason(error)}; for later runs it counts as one that certified nothing"
            )

    def forget(self) -> None:
        """Empty the ledger; a new one begins, whose certificates say since when it is kept.

        One that is damaged is set aside.

        Raises:
            InputError: it can't be emptied.
        """
        if self.file is None or not os.path.lexists(self.file.path):
            return
        try:
            with self.file.locked() as folder:
                self.file.begin_anew(folder, "the user emptied it on that day")
        except (UnusableError, OSError) as error:
            raise InputError(f"can't empty {self.file.path}: {reason(error)}") from error

    def summary(self) -> list[tuple[str, str]]:
        """Return what the ledger holds, for people: names and facts.

        Raises:
            InputError: it can't be read.
        """
        if self.file is None:
            return [("ledger", self.trouble)]
        path = self.file.path
        content = None
        if os.path.lexists(self.file.folder):
            with self._refusing(), self.file.locked(reading=True) as folder:
                content = self.file.known(folder)
        if content is None:
            return [("ledger", f"{path}, not started yet")]
        looks = [one for one in content.looks.values() if not one.repeats]
        tested = frozenset[bytes]().union(*(one.hashes for one in looks))
        passed = sum(one.refused is False for one in looks)
        return [
            ("ledger", f"{path}, {self._since(content)}"),
            ("searched on", f"{amount(len(content.seen), 'sample')}"),
            ("tested on", f"{amount(len(tested), 'sample')}"),
            ("looks", f"{len(looks):,}: {passed:,} certified, {len(looks) - passed:,} not"),
            ("repeats", f"{len(content.looks) - len(looks):,}"),
            ("size", f"{path.stat().st_size:,} of at most {self.file.limit_bytes:,} bytes"),
        ]

    def _since(self, content: Content) -> str:
        """Return since when it is kept, and what is to be said of that."""
        more = self.trouble or content.begun.why
        return f"kept since {content.begun.on}{f'; {more}' if more else ''}"

    @contextlib.contextmanager
    def _opened(self, patience_s: float | None = None) -> Iterator[tuple[LedgerFile, int, Content]]:
        """Yield the file, a descriptor of its folder, and what it says, locked.

        Raises:
            InputError: it can't be read or written.
        """
        with self._refusing(), self._locked(patience_s) as opened:
            yield opened

    @contextlib.contextmanager
    def _locked(self, patience_s: float | None = None) -> Iterator[tuple[LedgerFile, int, Content]]:
        """Yield what `_opened` yields.

        Raises:
            UnusableError: it can't be trusted.
            OSError: it can't be opened, read or written.
        """
        assert self.file is not None
        with self.file.locked(patience_s=patience_s) as folder:
            try:
                yield self.file, folder, self.file.read(folder)
            finally:
                self.trouble = self.file.trouble or self.trouble

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Say in one line, where the ledger can't be used in the block, why nothing is certified.

        Raises:
            InputError: it can't be used.
        """
        assert self.file is not None
        try:
            yield
        except (UnusableError, OSError) as error:
            aside = "run `hasten ledger --forget` to set it aside, or "
            raise InputError(
                f"the ledger {self.file.path} can't be used: {reason(error)}; nothing is certified without "
                f"it: {aside if isinstance(error, DamagedError) else ''}{_WAYS}"
            ) from error


def user_ledger() -> Ledger:
    """Return the ledger of this user, for a run that certifies.

    Raises:
        InputError: it can't be read or written, and isn't switched off.
    """
    ledger = Ledger.of_user()
    ledger.check()
    return ledger


def short(hashes: Iterable[bytes]) -> frozenset[bytes]:
    """Return the first 16 bytes of content hashes, by which the ledger knows samples."""
    return frozenset(one[:KNOWN_BYTES] for one in hashes)
