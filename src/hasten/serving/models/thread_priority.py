"""Lower the priority of threads so that they run only on an idle processor; no effect off Linux."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_LOWEST = 19


def lower_priority() -> None:
    """Give this thread the lowest priority permanently."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST)


@contextlib.contextmanager
def lowered_priority() -> Iterator[None]:
    """Lower the priority of this thread, and of threads started in the context, such as an engine's.

    Afterwards all of them get the priority that this thread had before. If raising a priority isn't
    allowed (it needs CAP_SYS_NICE or ulimit -e), nothing is done, so that no thread stays at the lowest.
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
            with contextlib.suppress(ProcessLookupError):  # the thread has ended meanwhile
                os.setpriority(os.PRIO_PROCESS, thread, before)


def _threads() -> set[int]:
    """Return the ids of all threads of this process."""
    return {int(each.name) for each in Path("/proc/self/task").iterdir()}


def _may_come_back() -> bool:
    """Whether a thread may get its former priority back; tested with a short-lived thread."""
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
