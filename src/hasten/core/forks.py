"""Objects that begin anew in a process that was forked, in which only the thread that forked goes on."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")
_known: weakref.WeakKeyDictionary[Any, Callable[[Any], None]] = weakref.WeakKeyDictionary()


def after_forks(one: T, anew: Callable[[T], None]) -> None:
    """Call a function of an object in each process that is forked from now on, as long as the object lives.

    Args:
        one: Object with locks or threads.
        anew: Function that forgets what threads held and did that aren't in the process.
    """
    _known[one] = anew


def _after() -> None:
    for one, anew in list(_known.items()):
        anew(one)


os.register_at_fork(after_in_child=_after)


class ForkedLock:
    """Lock that no other thread holds in a process that was just forked."""

    def __init__(self) -> None:
        self._lock = self._held = threading.Lock()
        after_forks(self, ForkedLock._anew)

    def __enter__(self) -> None:
        lock = self._lock
        lock.acquire()
        self._held = lock

    def __exit__(self, *_: object) -> None:
        self._held.release()  # in a thread that forked while it held it, the lock from before

    def _anew(self) -> None:
        self._lock = threading.Lock()
