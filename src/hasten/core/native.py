"""Functions in C for what is slow in Python: compiled on this machine in the background, and kept."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from hasten.core.cache_folder import cache_folder, key_of
from hasten.core.tensors import Array
from hasten.errors import CandidateError, InputError

_LIMIT_S = 60.0
_MACHINE = ("vendor_id", "model name", "flags", "Features", "CPU implementer", "CPU part", "isa")
"""Lines of /proc/cpuinfo that tell which instructions a processor has."""


class UnfitError(OSError):
    """A shared object that doesn't do what it should."""


_UNUSABLE = (InputError, CandidateError, OSError, AttributeError, ImportError, MemoryError)
"""Exceptions with which nothing can be compiled, loaded or bound."""
_Functions = TypeVar("_Functions")


class Native(Generic[_Functions]):
    """Functions of one text in C: none at first, then from the user's cache or the compiler.

    A compiler takes about half a second. While it runs, and where there is none, the caller does the work
    in Python.

    Args:
        path: File with the text in C, which includes nothing and calls nothing.
        bind: Function from the loaded shared object to what is called; it raises AttributeError if the
            object is another one, and UnfitError if it doesn't do what it should.
        little: Amount of work, in the caller's unit, up to which a process doesn't start the compiler.
        much: Amount of work from which the caller waits for the compiler; None to never wait.
        log: Name of the logger that is told if there is no compiler, or if it fails.
        otherwise: Warning for that case, without the reason, which the log adds after a colon.
        depends: Function that returns what else a kept object depends on, such as a library's version.
    """

    def __init__(
        self,
        path: Path,
        bind: Callable[[ctypes.CDLL], _Functions],
        *,
        little: int,
        much: int | None,
        log: str,
        otherwise: str,
        depends: Callable[[], str] = str,
    ) -> None:
        self.made: _Functions | None = None
        self._path, self._bind = path, bind
        self._little, self._much = little, much
        self._log, self._otherwise = logging.getLogger(log), otherwise
        self._depends = depends
        self._looked = self._ended = False
        self._asked = 0
        self._alone()
        os.register_at_fork(after_in_child=self._alone)

    def _alone(self) -> None:
        """Begin without another thread, as a process does that was forked off while one held the lock."""
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def get(self, work: int | None) -> _Functions | None:
        """Return the functions; None where there are none, or while they are compiled.

        Args:
            work: Amount of work that is about to be done; None to wait for the compiler.
        """
        if self.made is not None or self._ended:
            return self.made
        with self._lock:
            if not self._looked:
                self.made = self._kept()
                self._looked = True
            self._asked += work or 0
            if self.made is None and (work is None or self._asked > self._little):
                self._start()
        much = self._much is not None and self._asked > self._much
        if self._thread is not None and (work is None or much):
            self._thread.join()
        return self.made

    def use(self, made: _Functions | None) -> None:
        """Use these functions from now on, or none, and compile nothing."""
        self.made, self._looked, self._ended = made, True, True

    def source(self) -> str:
        """Return the text in C."""
        return self._path.read_text()

    def _start(self) -> None:
        """Compile in a thread, unless one does or did; it doesn't go on in a forked process."""
        if not self._ended and (self._thread is None or not self._thread.is_alive()):
            thread = threading.Thread(target=self._make, name="hasten-compile")
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                thread.start()
                self._thread = thread

    def _make(self) -> None:
        try:
            self.made = self._compiled()
        except _UNUSABLE as error:
            self._log.warning("%s: %s", self._otherwise, error or type(error).__name__)
        finally:
            self._ended = True

    def _kept(self) -> _Functions | None:
        """Return the functions that an earlier process kept."""
        from hasten.core.shared_objects import opened

        with contextlib.suppress(
            InputError, MemoryError
        ):  # a setting of the cache that can't be used
            if (folder := cache_folder()) is not None:
                with folder.entry(self._key()) as entry:
                    if entry is not None:
                        try:
                            return self._bind(opened(entry.content, ctypes.CDLL))
                        except (
                            AttributeError,
                            UnfitError,
                        ):  # any other error may be this process' own
                            folder.drop(self._key())
                        except _UNUSABLE:
                            pass
        return None

    def _compiled(self) -> _Functions:
        """Compile the functions and keep them.

        Raises:
            InputError: there is no compiler.
            CandidateError: it failed.
            OSError: the shared object can't be loaded, or does something else.
        """
        from hasten.core.c_compiler import Compiler
        from hasten.core.shared_objects import opened

        content = Compiler.find().compile(self.source(), _LIMIT_S).content
        made = self._bind(opened(content, ctypes.CDLL))
        with contextlib.suppress(InputError):
            if (folder := cache_folder()) is not None:
                folder.put(self._key(), content)
        return made

    def _key(self) -> str:
        """Return the key in the cache: all that the machine code depends on but for the compiler.

        Arithmetic of integers comes out the same by each compiler, and asking for its version takes longer
        than all of the rest.
        """
        facts = [self.source(), self._depends(), platform.machine()]
        try:
            with Path("/proc/cpuinfo").open() as file:
                first = file.read(1 << 14).split("\n\n")[0]
            facts += [line for line in first.splitlines() if line.startswith(_MACHINE)]
        except OSError:
            facts.append(platform.node())
        return key_of("\n".join(facts))


def address(array: Array) -> int:
    """Return the address of an array's first element."""
    return array.__array_interface__["data"][0]  # type: ignore[no-any-return]
