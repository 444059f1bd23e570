"""Checks of a device, and their outcomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from hasten.errors import CandidateError, HastenError

State: TypeAlias = Literal["holds", "fails", "lost", "not done"]
"""Outcome of a check: "lost" where its process crashed or hung, "not done" where something that it
needs isn't here."""
Place: TypeAlias = Literal["cuda", "host"]
"""Device that checks run on: the first CUDA device, or this host in its place."""


class NotDone(HastenError):  # noqa: N818 - an outcome, not an error
    """Something that a check needs isn't here; the message says what."""


class Failing(CandidateError):  # noqa: N818 - an outcome, not an error
    """Something doesn't hold.

    Args:
        said: Statement that failed, in one line.
        details: Further lines.
    """

    def __init__(self, said: str, details: tuple[str, ...]) -> None:
        super().__init__(said)
        self.details = details


@dataclass(frozen=True)
class Found:
    """Finding of a check that holds.

    Attributes:
        said: Statement that holds, in one line.
        details: Further lines.
    """

    said: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """One check of a device.

    Attributes:
        run: Function that checks a place; it raises CandidateError where something doesn't hold, and
            NotDone or InputError where it can't be checked.
        limit_s: Longest time that it may take, in seconds.
    """

    run: Callable[[Place], Found]
    limit_s: float = 30.0


@dataclass(frozen=True)
class Finding:
    """Outcome of one check.

    Attributes:
        check: Name of the check.
        state: Whether the check holds, fails, was lost or was not done.
        said: Statement that holds, or the reason why it doesn't, in one line.
        details: Further lines.
        took_s: Time that it took with its process, in seconds.
    """

    check: str
    state: State
    said: str
    details: tuple[str, ...] = ()
    took_s: float = 0.0
