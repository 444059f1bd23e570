"""The three kinds of failure that hasten knows, and a run's wait for labels; all else is a bug."""

from __future__ import annotations

import errno
import traceback
from pathlib import Path

_MOST_LETTERS, _LAST_LETTERS = 2000, 400
"""Most letters of a message, and those of its end, which says what to do."""
_GIVEN: dict[str, str] = {}
"""Path of a folder that hasten made for itself -> the caller's own name for its content; the newest come last."""
_MOST_GIVEN = 100
"""Number of such names that are kept, as a server that is given new files for months names many."""


class HastenError(Exception):
    """Base of hasten's errors: one line says what was asked, what came, and what to do.

    Line breaks and control characters in it, as a stranger's file may have them in a name, are written out. Of a
    message of more than 2,000 letters, the middle is left out.
    """

    def __str__(self) -> str:
        """Return the message, which a terminal shows as it is."""
        shown = self.whole
        if len(shown) <= _MOST_LETTERS:
            return shown
        begin = shown[: _MOST_LETTERS - _LAST_LETTERS]
        return f"{begin}... ({len(shown):,} characters) ...{shown[-_LAST_LETTERS:]}"

    @property
    def whole(self) -> str:
        """The message with nothing left out, in which the names are those that the caller gave."""
        said = super().__str__()
        given = _GIVEN.copy()  # at once: another thread may add names meanwhile
        there = [folder for folder in given if folder in said]
        for folder in sorted(there, key=len, reverse=True):
            said = said.replace(folder, given[folder])
        return visible(said)


class InputError(HastenError):
    """The caller gave something that can't be used: a file, an option, an array."""


class CandidateError(HastenError):
    """One candidate failed. It is recorded with its reason, and the run goes on."""


class NotCovered(CandidateError):  # noqa: N818
    """The engine isn't made for the model, so there is nothing to try; the message says why."""


class Uneven(CandidateError):  # noqa: N818
    """The answers to samples or steps of one shape differ in shape; the message names the output.

    Attributes:
        output: Name of the output, whose size depends on the samples' values; "" between steps.

    Args:
        message: Line for people.
        output: Name of the output.
    """

    def __init__(self, message: str, output: str = "") -> None:
        super().__init__(message)
        self.output = output


class BeyondRange(CandidateError):  # noqa: N818
    """A request has a number that the engine can't compute with; the message names it. Others are answered."""


class OutOfTime(CandidateError):  # noqa: N818
    """The run's time limit came before a step was done, so nothing is known of the candidate."""


class NothingRuns(InputError):  # noqa: N818
    """No engine of the device that was asked for runs the model in any form."""


class DeviceLost(CandidateError):  # noqa: N818
    """The device answers nothing more in this process, which has to be started again."""


class IntegrityError(InputError):
    """A bundle or a record is damaged, truncated, tampered with, or from a newer version."""


class UnknownMember(IntegrityError):  # noqa: N818
    """A record names an engine, a step or a member of another open family that isn't installed.

    Attributes:
        member: Family and name of the member, as in "the step 'features'".
        entry_point: Group and name of the entry point by which a package adds it, "hasten.steps:features".

    Args:
        hint: Words for its origin, as far as that is known, for the message.
    """

    def __init__(self, member: str, entry_point: str, hint: str) -> None:
        super().__init__(f"{member} isn't installed: {hint}")
        self.member, self.entry_point, self._hint = member, entry_point, hint

    def __reduce__(self) -> tuple[type[UnknownMember], tuple[str, str, str]]:
        """Pickle by the arguments, which the message alone doesn't show."""
        return type(self), (self.member, self.entry_point, self._hint)


class LabelsWanted(HastenError):  # noqa: N818
    """A run waits for labels that a person gives: no failure, and it goes on with `resume=True`.

    Attributes:
        folder: Folder with the samples to label.
        left: Number of samples that are still to be labelled.

    Args:
        said: Message of the error.
    """

    def __init__(self, said: str, folder: Path, left: int) -> None:
        super().__init__(said)
        self.folder, self.left = folder, left


def call(folder: Path, name: str) -> None:
    """Let the messages of all errors in this process name a folder that hasten made for itself as its caller does.

    Args:
        folder: Folder that nobody gave, such as that of an unpacked bundle in the cache.
        name: Name that the caller gave: the packed file.
    """
    for path in {str(folder), str(folder.absolute()), str(folder.resolve())}:
        _GIVEN.pop(path, None)
        _GIVEN[path] = name
    for path in [*_GIVEN][:-_MOST_GIVEN]:
        _GIVEN.pop(path, None)


def visible(text: str) -> str:
    """Return a text of others' in one line, with its line breaks and control characters written out."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def first_words(said: str) -> str:
    """Return the first line of a message that isn't empty, with those that follow while it ends at a colon.

    Nothing is left where the message is empty; a colon at its very end is left out.
    """
    words = ""
    for line in filter(None, map(str.strip, said.splitlines())):
        words = f"{words} {line}".lstrip()
        if not words.endswith(":"):
            break
    return words.rstrip(": ")


def named(error: BaseException) -> str:
    """Return the type of an exception with the first words of its message, in one line; the type where it has none."""
    said = first_words(str(error))
    return f"{type(error).__name__}: {visible(said)}" if said else type(error).__name__


def told(error: BaseException) -> str:
    """Return what another's code raised, in one line: its type, what it says, and where."""
    said = named(error)
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) or not frames:
        return said  # that names its line itself
    return f"{said} ({Path(frames[-1].filename).name}:{frames[-1].lineno})"


def at_fault(error: BaseException) -> str:
    """Return what a function of the user's raised, in one line, with the line of the user's file that led to it.

    That file is the first one of the traceback that isn't hasten's; the last of its lines there counts.
    """
    own = Path(__file__).parent
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if own not in Path(frame.filename).parents]
    said = visible(" ".join(str(error).split()))
    where = ""
    if theirs:
        line = [one for one in theirs if one.filename == theirs[0].filename][-1].lineno
        where = f" at line {line} of {Path(theirs[0].filename).name}"
    return f"{type(error).__name__}{where}{f': {said:.200}' if said else ''}"


def full_disk(error: BaseException | None) -> OSError | None:
    """Return the error that says that a disk or a quota is full, of an error and all its causes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or error.__context__
    return None
