"""Silence for LiteRT, whose C++ prints to standard error when it creates its first delegate."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

_said = False
_one = threading.RLock()
"""Lock on standard error, which is the process's: a second block would restore the first's."""


@contextlib.contextmanager
def quiet(*, always: bool = False) -> Iterator[None]:
    """Discard what is written to the process's standard error while the block runs.

    Args:
        always: Whether to discard it every time, instead of only until a block has succeeded, after
            which the delegate prints nothing more.
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
    except (OSError, ValueError, AttributeError):  # the process has no standard error
        return
    stack.callback(os.close, kept)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    stack.callback(os.close, nowhere)
    os.dup2(nowhere, 2)
    stack.callback(os.dup2, kept, 2)
