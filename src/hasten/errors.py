"""The three kinds of failure that hasten knows; anything else is a bug and keeps its traceback."""

from __future__ import annotations

import errno


class HastenError(Exception):
    """What went wrong, in one line: what was asked, what came, and what to do."""


class InputError(HastenError):
    """The caller gave something that can't be used: a file, an option, an array."""


class CandidateError(HastenError):
    """One candidate failed. It is recorded with its reason, and the run goes on."""


class IntegrityError(InputError):
    """A bundle or a record is damaged, truncated, tampered with, or from a newer version."""


def full_disk(error: BaseException | None) -> OSError | None:
    """Return the error that says that a disk or a quota is full, of an error and all its causes."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return error
        error = error.__cause__ or error.__context__
    return None
