"""The parent's end of a worker: it starts, asks, pauses, wakes and kills the worker."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from hasten.core.forked import fork_worker
from hasten.core.processes import interpreter, name_of, programs
from hasten.core.records import to_record
from hasten.core.scratch import SCRATCH, TORCH_FOLDER, scratch, torch_folder
from hasten.core.telemetry import OFF
from hasten.errors import CandidateError, InputError, NotCovered, Uneven

_POLL_S = 0.05
_POLL_TIMED_S = 0.5  # longer than a block, so that the parent sleeps while anything is timed
_TIMED = ("time", "drive", "load", "profile")
_LAST_WORDS_S = 5.0
_REPLIES = ("ok", "input_error", "candidate_error")
_LONGEST = 64 << 20
"""Largest number of bytes of a reply; those with many latencies are the longest."""


class KilledError(CandidateError):
    """The system or a person killed a process, as where memory ran short for a moment."""


class CrashedError(CandidateError):
    """A process ended before it answered.

    Attributes:
        how: Name of the signal that ended it, or its exit code: "SIGSEGV", "exit code 1".
    """

    def __init__(self, how: str, said: str) -> None:
        super().__init__(said)
        self.how = how


class Worker:
    """A process that runs `hasten.measure.worker` for one candidate.

    Temporary files of the worker, and of programs that it starts, are removed with it.

    Args:
        log: File for the runtime's own output; temporary files lie beside it.
        memory_bytes: Most anonymous memory that the worker may hold before it is killed.
        fresh: Whether the worker starts in an interpreter of its own, instead of being forked from
            a warm one: workers whose figures are published must not share an address layout.
        longest_bytes: Largest number of bytes of a reply; the worker is killed if one is longer.
    """

    def __init__(
        self,
        log: Path,
        memory_bytes: int,
        *,
        fresh: bool = False,
        longest_bytes: int = _LONGEST,
    ) -> None:
        self.memory_bytes = memory_bytes
        self._longest_bytes = longest_bytes
        self._asleep = self._ended = False
        ours, theirs = socket.socketpair()
        with contextlib.ExitStack() as start, theirs:
            start.callback(ours.close)  # unless it starts
            output = start.enter_context(log.open("ab"))
            self._temporary = Path(tempfile.mkdtemp(prefix="tmp-", dir=log.parent)).absolute()
            start.callback(shutil.rmtree, self._temporary, ignore_errors=True)
            environment = {**_caches(), **os.environ, **OFF}
            self._process = (
                None
                if fresh
                else fork_worker(environment, self._temporary, theirs.fileno(), output.fileno())
            ) or subprocess.Popen(
                [
                    *interpreter(),
                    *("-m", "hasten.measure.worker", str(theirs.fileno()), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                env={**environment, "TMPDIR": str(self._temporary)},
                start_new_session=True,
            )
            output.close()
            start.pop_all()
        self._channel = ours
        self._received = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Return the worker's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the worker's process still runs."""
        return self._process.poll() is None

    def ask(self, do: str, *, limit_s: float, **command: Any) -> Any:
        """Send one command and wait for its reply.

        Args:
            do: Name of the command.
            limit_s: Longest time to wait, in seconds.
            **command: Values that `to_record` takes.

        Raises:
            CandidateError: the candidate failed, its process died, or it exceeded a limit and was
                killed; the message has one line.
            InputError: the caller's input is at fault.
        """
        self.wake()
        message = json.dumps(to_record({"do": do, **command})).encode() + b"\n"
        deadline = time.monotonic() + limit_s
        try:
            self._send(message, limit_s, deadline)
            reply = _record(self._line(limit_s, deadline, timed=do in _TIMED))
            if do not in _TIMED:
                self._check_memory(alone=False)  # it may have answered between two looks
        except (OSError, EOFError):
            raise self._epitaph(do) from None
        if reply is None:
            self.kill()
            raise CandidateError(f"its process answered what can't be read during {do!r}, killed")
        if "input_error" in reply:
            raise InputError(str(reply["input_error"]))
        if "candidate_error" in reply:
            said = str(reply["candidate_error"])
            if reply.get("kind") == Uneven.__name__:
                raise Uneven(said, str(reply.get("output")))
            kinds = {kind.__name__: kind for kind in (CandidateError, NotCovered)}
            raise kinds.get(str(reply.get("kind")), CandidateError)(said)
        return reply["ok"]

    def _send(self, message: bytes, limit_s: float, deadline: float) -> None:
        """Send a message, which the process may leave unread."""
        left = memoryview(message)
        while left:
            try:
                left = left[self._channel.send(left, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, limit_s, deadline, timed=False)

    def _line(self, limit_s: float, deadline: float, *, timed: bool) -> bytes:
        """Return the next line; an empty one for a line that is too long."""
        looked = 0
        while (end := self._received.find(b"\n", looked)) < 0:
            looked = len(self._received)
            if looked > self._longest_bytes:
                return b""
            if self._wait(select.POLLIN, limit_s, deadline, timed=timed):
                data = self._channel.recv(1 << 16)
                if not data:
                    raise EOFError
                self._received += data
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _wait(self, event: int, limit_s: float, deadline: float, *, timed: bool) -> bool:
        """Wait a moment for the channel, and look at the process if nothing happens; whether something did.

        Args:
            event: Event of `select.poll`, which takes descriptors of any number, as `select.select` doesn't.
            limit_s: Longest time of the whole command, in seconds.
            deadline: End of that time by the monotonic clock.
            timed: Whether the process times something, so that looks at it are few.
        """
        left = deadline - time.monotonic()
        if left <= 0:
            tools = [name for pid in programs(self.pid) if (name := name_of(pid))]
            busy = f" while {tools[-1]} ran" if tools else ""
            self.kill()
            raise CandidateError(f"hung: no answer within {limit_s:.0f} s{busy}, killed")
        poll = select.poll()
        poll.register(self._channel, event)
        if poll.poll(1000 * min(left, _POLL_TIMED_S if timed else _POLL_S)):
            return True
        self._check_memory(alone=timed)
        return False

    def _check_memory(self, *, alone: bool) -> None:
        """Kill the worker if it holds more memory than it may."""
        if (held := self._memory_held(alone=alone)) > self.memory_bytes:
            self.kill()
            raise CandidateError(
                f"ran out of memory: it held {held >> 20} MiB of the {self.memory_bytes >> 20} "
                "MiB that a trial may take, killed"
            )

    def _memory_held(self, *, alone: bool) -> int:
        """Return the process's anonymous memory in bytes, with its programs' unless `alone`."""
        return sum(map(_anonymous, (self.pid, *(() if alone else programs(self.pid)))))

    def _epitaph(self, do: str) -> CandidateError:
        """Return the error that says how the process ended."""
        try:
            code = self._process.wait(_LAST_WORDS_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return CandidateError(
                f"its process neither answered nor ended during {do!r}, and was killed"
            )
        if code == -signal.SIGKILL:  # which nothing sends itself
            return KilledError(f"its process was killed by SIGKILL during {do!r}")
        if code < 0:
            name = signal.Signals(-code).name
            return CrashedError(name, f"its process was killed by {name} during {do!r}")
        how = f"exit code {code}"
        return CrashedError(how, f"its process ended with {how} during {do!r}")

    def sleep(self) -> None:
        """Stop every thread of the worker, so that none spins while another is timed."""
        if not self._asleep and self._process.poll() is None:
            os.killpg(self.pid, signal.SIGSTOP)
            self._asleep = True

    def wake(self) -> None:
        """Let the worker run again."""
        if self._asleep and self._process.poll() is None:
            os.killpg(self.pid, signal.SIGCONT)
            self._asleep = False

    def kill(self) -> None:
        """End the worker and what it started, only once, since its number may be reused later."""
        if self._ended:
            return
        self._ended = True
        with self._process, contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._channel.close()
        shutil.rmtree(self._temporary, ignore_errors=True)


def _record(line: bytes) -> dict[str, Any] | None:
    """Return a reply; None for what is none."""
    try:
        reply = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return reply if isinstance(reply, dict) and not reply.keys().isdisjoint(_REPLIES) else None


def _anonymous(pid: int) -> int:
    """Return the anonymous memory of a process, in bytes; 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0


def _caches() -> dict[str, str]:
    """Return the folders in which what is compiled is kept, so that they aren't a worker's own.

    They are torch.compile's default folder, and that of the compiled engine.
    """
    return {TORCH_FOLDER: torch_folder(), SCRATCH: str(scratch())}
