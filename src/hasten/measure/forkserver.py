"""The program that forks workers; it has imported what every worker imports, and does nothing else.

Its owner sends one message per worker on an inherited socket: the worker's folder for temporary
files, with descriptors for the worker's channel, the file for its output, and a lifeline. On the
lifeline the worker reports its process id, and this program later reports its exit status. The
owner shuts the lifeline down when it is done with the worker. Until then a worker that has ended
stays a zombie, so that no other process gets its number. See design/workers.md.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hasten.measure import worker

_CHANNEL = 3
"""Descriptor of the channel in a worker: the first after the standard ones."""


@dataclass
class _Forked:
    """A worker, until it has ended and its owner is done with it.

    Attributes:
        pid: Number of its process and of its process group.
        process: Descriptor that becomes readable when the process ends.
        lifeline: Descriptor on which the owner is told of it.
        ended: Whether the owner was told the exit status.
        released: Whether the owner is done with it.
    """

    pid: int
    process: int
    lifeline: int
    ended: bool = False
    released: bool = False


class _Server:
    def __init__(self, control: socket.socket, owner: int) -> None:
        self._control = control
        self._owner = os.pidfd_open(owner)
        self._alone = _forks_alone()
        self._workers: dict[int, _Forked] = {}  # each by both of its descriptors
        self._poll = select.poll()
        for number in (self._owner, control.fileno()):
            self._poll.register(number, select.POLLIN)

    def serve(self) -> None:
        """Fork workers until the owner ends or closes its socket; then end them all."""
        while True:
            ready = [number for number, _ in self._poll.poll()]
            if self._owner in ready or (self._control.fileno() in ready and not self._take()):
                break
            for number in ready:
                if number in self._workers:  # it may have just been forgotten
                    self._look_after(self._workers[number], number)
        for number, forked in list(self._workers.items()):
            if number == forked.process:
                _kill(forked.pid)
                os.waitpid(forked.pid, 0)

    def _take(self) -> bool:
        """Fork one worker; False when the owner has closed its end."""
        message, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 3)
        if not message:
            return False
        channel, output, lifeline = descriptors
        pid = self._fork(os.fsdecode(message), channel, output, lifeline)
        os.close(channel)
        os.close(output)
        if pid is None:
            os.close(lifeline)  # unanswered, so the owner starts that worker itself
            return True
        forked = _Forked(pid, os.pidfd_open(pid), lifeline)
        for number in (forked.process, lifeline):
            self._workers[number] = forked
            self._poll.register(number, select.POLLIN)
        return True

    def _fork(self, temporary: str, channel: int, output: int, lifeline: int) -> int | None:
        """Return a new worker's process id, or None where this process can't be forked."""
        if not self._alone:
            return None
        own = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            return None
        if pid == 0:
            self._control.detach()  # its number is reused below
            _become_worker(own, temporary, channel, output, lifeline)
        return pid

    def _look_after(self, forked: _Forked, number: int) -> None:
        """Tell the owner that a worker ended, or end a worker that the owner is done with."""
        self._poll.unregister(number)
        if number == forked.process:
            forked.ended = True
            _tell(forked.lifeline, "exit", _exit_code(forked.pid))
        else:
            forked.released = True
            _kill(forked.pid)
        if forked.ended and forked.released:
            os.waitpid(forked.pid, 0)
            for one in (forked.process, forked.lifeline):
                del self._workers[one]
                os.close(one)


def _forks_alone() -> bool:
    """Fork once, and return whether this process has a single thread afterwards.

    Libraries with threads must end them before a fork, as OpenBLAS does: another thread may hold a
    lock, which would never be released in the new process.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return len(list(Path("/proc/self/task").iterdir())) == 1


def _become_worker(
    parent: int, temporary: str, channel: int, output: int, lifeline: int
) -> NoReturn:
    """Become a process just as if it had been started for one worker."""
    try:
        os.setsid()
        _tell(lifeline, "pid", os.getpid())  # from here on its group can be signalled
        for number in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(output, number)
        os.dup2(channel, _CHANNEL)
        for file in list(Path("/proc/self/fd").iterdir()):
            if int(file.name) > _CHANNEL:
                with contextlib.suppress(OSError):  # the descriptor of the listing itself
                    os.close(int(file.name))
        os.environ["TMPDIR"] = temporary
        tempfile.tempdir = None
        worker.serve(_CHANNEL, parent)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def _exit_code(pid: int) -> int:
    """Return the exit code of an ended process, or its negative signal; leave it a zombie."""
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert status is not None
    return status.si_status if status.si_code == os.CLD_EXITED else -status.si_status


def _kill(pid: int) -> None:
    """End a worker and its group; it hasn't been waited for, so the number is still its own."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):  # it hadn't made its group yet
        os.killpg(pid, signal.SIGKILL)


def _tell(lifeline: int, what: str, number: int) -> None:
    with contextlib.suppress(OSError):  # the owner no longer listens
        os.write(lifeline, f"{what} {number}".encode())


def main() -> None:
    """Serve the process that started this one."""
    signal.signal(
        signal.SIGCHLD, signal.SIG_DFL
    )  # if inherited as ignored, no child could be waited for
    control, owner = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    server = _Server(control, owner)
    if os.getppid() != owner:
        return  # the owner ended before it was watched
    gc.collect()
    gc.freeze()  # a collection in a worker would copy every page that they share
    server.serve()


if __name__ == "__main__":
    main()
