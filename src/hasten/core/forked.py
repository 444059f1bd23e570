"""The owner's end of the fork server: starting it, forking workers, and learning of their end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from hasten.core.processes import interpreter

_STATUS = (
    "Umask",
    "Uid",
    "Gid",
    "Groups",
    "SigBlk",
    "SigIgn",
    "CapEff",
    "Cpus_allowed",
    "Mems_allowed",
)
"""Fields of proc(5)'s status that a process inherits from the thread that starts it."""
_START_S, _END_S = 120.0, 30.0
"""Longest times in which a server forks a worker, and ends one, in seconds; a worker could have stopped the server."""


class Forked:
    """A process that a server forked for its owner, with the part of `subprocess.Popen` in use.

    Args:
        server: Server that forked the process, kept alive as long as this object.
        lifeline: Socket on which the server reports on the process.
        pid: Number of the process, which no other gets before the end of the `with` block.
    """

    def __init__(self, server: Server, lifeline: socket.socket, pid: int) -> None:
        self.pid = pid
        self._server = server
        self._lifeline = lifeline
        self._returncode: int | None = None
        self._hearing = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the process runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the process has ended.

        Raises:
            subprocess.TimeoutExpired: it still runs.
        """
        with self._hearing:
            if self._returncode is None:
                self._lifeline.settimeout(timeout)
                try:
                    _, number = _told(self._lifeline)
                except (TimeoutError, BlockingIOError):
                    raise subprocess.TimeoutExpired("a forked worker", timeout or 0) from None
                # A server that is gone took its workers with it.
                self._returncode = -signal.SIGKILL if number is None else number
            return self._returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for the end of the process, which was asked for, then release its number.

        A server that doesn't tell of it is ended, with all of its workers.
        """
        try:
            self.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self.wait()
        with self._lifeline, contextlib.suppress(OSError):
            self._lifeline.settimeout(_END_S)
            self._lifeline.shutdown(socket.SHUT_WR)
            _told(self._lifeline)


class Server:
    """A process that forks workers, and ends with this object and with its owner.

    Args:
        environment: Environment variables of the workers.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as start, theirs:
            start.callback(self._control.close)  # unless it starts
            process = subprocess.Popen(
                [
                    *interpreter(),
                    *("-m", "hasten.measure.forkserver", str(theirs.fileno()), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
            start.pop_all()
        self._process = process
        self._control.settimeout(_START_S)
        weakref.finalize(self, _end, self._control, process, os.getpid())

    def fork(self, temporary: Path, channel: int, output: int) -> Forked | None:
        """Fork a worker; return None where the server can't.

        Args:
            temporary: Worker's folder for temporary files.
            channel: Descriptor of the worker's end of its channel.
            output: Descriptor of the file that its output goes to.

        Raises:
            OSError: the server is gone, or took too long and was killed.
        """
        lifeline, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as start:
            start.callback(lifeline.close)  # unless it starts
            with theirs:
                descriptors = [channel, output, theirs.fileno()]
                socket.send_fds(self._control, [os.fsencode(temporary)], descriptors)
            lifeline.settimeout(_START_S)
            try:
                what, number = _told(lifeline)
            except TimeoutError:
                self.kill()
                raise
            if what != "pid" or number is None:
                return None
            start.pop_all()
        return Forked(self, lifeline, number)

    def kill(self) -> None:
        """End the server at once, and so its workers."""
        self._process.kill()


def _told(lifeline: socket.socket) -> tuple[str, int | None]:
    """Return the next message on a lifeline: "pid" or "exit" with a number, or "" at its end."""
    with contextlib.suppress(ConnectionError):
        what, _, number = lifeline.recv(32).decode().partition(" ")
        return what, int(number) if number else None
    return "", None


def _end(control: socket.socket, process: subprocess.Popen[bytes], owner: int) -> None:
    """End a server; a fork of its owner only closes its own end."""
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            control.shutdown(socket.SHUT_RDWR)  # also where a fork of this process holds it open
    control.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass
class _Current:
    """The server of this process, and what it inherited at its start."""

    server: Server
    inherited: tuple[Any, ...]


_current: _Current | None = None
_starting = threading.Lock()


def fork_worker(
    environment: Mapping[str, str], temporary: Path, channel: int, output: int
) -> Forked | None:
    """Fork a worker as if this thread had started it; return None where that is impossible.

    The first call starts the server. So does a call after a change in anything that a process
    inherits from its parent: environment, folder, processors, priority, limits. See `Server.fork`
    for the arguments.
    """
    global _current
    if not _can_watch():
        return None
    inherited = _inherited(environment)
    for _ in range(2):
        with _starting:
            if _current is None or _current.inherited != inherited:
                _current = None  # the former one ends with its last worker
                _current = _Current(Server(environment), inherited)
            server = _current.server
        try:
            return server.fork(temporary, channel, output)
        except OSError:  # the server was ended from outside
            with _starting:
                if _current is not None and _current.server is server:
                    _current = None
    return None


def _can_watch() -> bool:
    """Whether the system has pidfds, by which the server watches processes: Linux from 5.3 on."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _inherited(environment: Mapping[str, str]) -> tuple[Any, ...]:
    """Return what a process inherits from this thread, as far as that may change.

    Source: proc(5); the cgroup is the parent's too.
    """
    return (
        os.getpid(),
        interpreter(),
        dict(environment),
        Path("/proc/self/cwd").readlink(),
        [line for line in _of_thread("status").splitlines() if line.startswith(_STATUS)],
        [_of_thread(name) for name in ("limits", "cgroup", "oom_score_adj")],
        (os.sched_getscheduler(0), os.getpriority(os.PRIO_PROCESS, 0)),
    )


def _of_thread(name: str) -> str:
    """Read a proc(5) file about this thread; return "" where the system has none."""
    try:
        return Path("/proc/thread-self", name).read_text()
    except OSError:
        return ""
