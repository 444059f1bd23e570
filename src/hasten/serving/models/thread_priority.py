"""Lower the priority of threads, so that they run when no other wants the processor. Without effect off Linux."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_LOWEST = 19


def lower_priority() -> None:
    """Give this thread the lowest priority for good."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)


@contextlib.contextmanager
def lowered_priority() -> Iterator[None]:
    """Give this thread the lowest priority, and those that it begins meanwhile, an engine's among them.

    Afterwards they have the priority that this one had before. Where that isn't allowed (CAP_SYS_NICE,
    or ulimit -e), nothing is done, so that no thread stays at the lowest.
    """
    if sys.platform != "linux" or not _may_come_back():
        yield
        return
    here, others = threading.get_native_id(), _threads()
    before = os.getpriority(os.PRIO_PROCESS, here)
    os.setpriority(os.PRIO_PROCESS, here, _LOWEST)
    try:
        yield
    finally:
        for thread in (here, *(_threads() - others)):
            with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
                os.setpriority(os.PRIO_PROCESS, thread, before)


def _threads() -> set[int]:
    """All of this process."""
    return {int(each.name) for each in Path("/proc/self/task").iterdir()}


def _may_come_back() -> bool:
    """Whether a thread may get its priority back: tried with one that ends then."""
    allowed = False

    def work() -> None:
        nonlocal allowed
        thread = threading.get_native_id()
        before = os.getpriority(os.PRIO_PROCESS, thread)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, _LOWEST)
            os.setpriority(os.PRIO_PROCESS, thread, before)
            allowed = True

    probe = threading.Thread(target=work)
    probe.start()
    probe.join()
    return allowed
