"""Giving way: threads that get the processor when nobody else wants it. On Linux, elsewhere without effect."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

_LEAST_IMPORTANT = 19


def give_way() -> None:
    """Let this thread give way to all others for good."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_IMPORTANT)


@contextlib.contextmanager
def giving_way() -> Iterator[None]:
    """Let this thread give way, and those that it begins meanwhile, an engine's among them.

    Afterwards they are as important as this one was before. Where that isn't allowed (CAP_SYS_NICE,
    or ulimit -e), nothing is done: nobody is to stay behind.
    """
    if sys.platform != "linux" or not _may_come_back():
        yield
        return
    here, others = threading.get_native_id(), _threads()
    before = os.getpriority(os.PRIO_PROCESS, here)
    os.setpriority(os.PRIO_PROCESS, here, _LEAST_IMPORTANT)
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
    """Whether a thread may become as important again as it was: tried with one that ends then."""
    allowed = False

    def work() -> None:
        nonlocal allowed
        thread = threading.get_native_id()
        before = os.getpriority(os.PRIO_PROCESS, thread)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, _LEAST_IMPORTANT)
            os.setpriority(os.PRIO_PROCESS, thread, before)
            allowed = True

    probe = threading.Thread(target=work)
    probe.start()
    probe.join()
    return allowed
