"""LiteRT says on standard error, from C++, that it made a delegate; nothing else tells it not to."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Send what is written to the process's standard error nowhere meanwhile."""
    with contextlib.ExitStack() as stack:
        try:
            sys.stderr.flush()
            kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        except (OSError, ValueError, AttributeError):  # there is no standard error
            yield
            return
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 2)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        yield
