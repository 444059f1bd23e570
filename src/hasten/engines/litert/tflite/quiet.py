"""LiteRT says on standard error, from C++, that it made its first delegate; no setting stops it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_said = False
_one = threading.RLock()
"""Standard error is the process's: of two at once, the second would put back what the first put there."""


@contextlib.contextmanager
def quiet(*, always: bool = False) -> Iterator[None]:
    """Send what is written to the process's standard error nowhere meanwhile.

    Args:
        always: Not only until it went well once, which is when the delegate has said its line.
    """
    global _said
    with contextlib.ExitStack() as stack:
        if always or not _said:
            stack.enter_context(_one)
            _silence(stack)
        yield
    _said = True


def _silence(stack: contextlib.ExitStack) -> None:
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, ValueError, AttributeError):  # there is no standard error
        return
    stack.callback(os.close, kept)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    stack.callback(os.close, nowhere)
    os.dup2(nowhere, 2)
    stack.callback(os.dup2, kept, 2)
