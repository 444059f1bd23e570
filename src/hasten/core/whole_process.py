"""Settings of the whole process that hold while blocks run, which may overlap in several threads."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

from hasten.core.forks import ForkedLock


def while_any_runs(
    begin: Callable[[contextlib.ExitStack], None],
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Make a block of a function that changes the process: the first that begins changes it, the last that ends undoes it.

    Args:
        begin: Function that changes the process, and leaves in the stack what undoes it.
    """
    lock, undo = ForkedLock(), contextlib.ExitStack()
    running = 0

    @contextlib.contextmanager
    def block() -> Iterator[None]:
        nonlocal running
        with lock:
            if not running:
                begin(undo)
            running += 1
        try:
            yield
        finally:
            with lock:
                running -= 1
                if not running:
                    undo.close()

    return functools.update_wrapper(
        block, begin, ("__module__", "__name__", "__qualname__", "__doc__")
    )
