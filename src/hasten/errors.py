"""The three kinds of failure that hasten knows; anything else is a bug and keeps its traceback."""


class HastenError(Exception):
    """What went wrong, in one line: what was asked, what came, and what to do."""


class InputError(HastenError):
    """The caller gave something that can't be used: a file, an option, an array."""


class CandidateError(HastenError):
    """One candidate failed. It is recorded with its reason, and the run goes on."""


class IntegrityError(InputError):
    """A bundle or a record is damaged, truncated, tampered with, or from a newer version."""
