"""Faults, each done to a running server and undone; all of them in a random order that a seed repeats."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from clock import Clock
from door import Door
from known import Known
from unit import BACK_S, Unit, gone

_LONGEST_S = 3.0
"""Longest time for which a fault lasts that is undone."""
_ORPHAN_S = 30.0
"""Limit for a serving process to end whose supervisor was killed."""
_MOST_ROOM_BYTES = 64 << 20
"""Most memory that is left to a process under a limit."""
_LOOK_S = 0.05
JUMPS_S = {
    "+1 minute": 60,
    "-1 minute": -60,
    "+1 day": 86_400,
    "-1 day": -86_400,
    "+1 year": 365 * 86_400,
    "-1 year": -365 * 86_400,
}
"""Jumps of the clock by their names; after each one it jumps back."""


@dataclass
class Event:
    """A fault that was done.

    Attributes:
        name: Name of the fault.
        begin_ns: Time on the monotonic clock when it was done.
        end_ns: Time when it was undone, and the server was ready again.
        said: Words for the outcome of a fault that has several; "" for others.
        failed: Sentence that says what the server did wrong; "" if it did nothing wrong.
    """

    name: str
    begin_ns: int
    end_ns: int = 0
    said: str = ""
    failed: str = ""


@dataclass
class Scene:
    """What faults are done to.

    Attributes:
        unit: The server.
        known: The model that it serves.
        door: HAProxy in front of it; None where that isn't installed.
        clock: Wall clock of the server's processes; None where it can't be moved.
    """

    unit: Unit
    known: Known
    door: Door | None = None
    clock: Clock | None = None
    _generation: int = 0
    _jumps: Iterator[str] = field(default_factory=lambda: itertools.cycle(JUMPS_S))
    _killing: threading.Lock = field(default_factory=threading.Lock)

    def kill_worker(self, rng: random.Random, event: Event) -> None:
        """Kill the serving process."""
        with self._killing:
            worker = self.unit.worker()
            if worker is not None:
                _signal(worker, signal.SIGKILL)
            event.failed = self._back(worker)

    def kill_supervisor(self, rng: random.Random, event: Event) -> None:
        """Kill the supervisor, which is started again; its serving process has to end by itself."""
        with self._killing:
            supervisor, worker = self.unit.supervisor, self.unit.worker()
            _signal(supervisor, signal.SIGKILL)
            if worker is not None and not until(lambda: gone(worker), _ORPHAN_S):
                event.failed = f"its serving process was still there after {_ORPHAN_S:g} s"
                _signal(worker, signal.SIGKILL)
            event.failed = self._back(worker) or event.failed

    def _back(self, worker: int | None) -> str:
        return "" if self.unit.comes_back(worker) else f"it wasn't ready again in {BACK_S:g} s"

    def kill_proxy(self, rng: random.Random, event: Event) -> None:
        """Kill HAProxy, which whoever looks after it starts again."""
        assert self.door is not None
        if not self.door.kill():
            event.said = "left out: too often of late"
        elif not until(self.door.ready, BACK_S):
            event.failed = f"HAProxy didn't hand on requests again in {BACK_S:g} s"

    def fill_disk(self, rng: random.Random, event: Event) -> None:
        """Let no file grow, as on a full disk, and ask for the model to be loaded meanwhile."""
        pids = [pid for pid in (self.unit.supervisor, self.unit.worker()) if pid is not None]
        with _limited(resource.RLIMIT_FSIZE, dict.fromkeys(pids, 0)):
            status, _ = self.unit.ask("POST", "/v2/repository/models/chaos/load", BACK_S)
            time.sleep(rng.uniform(0, _LONGEST_S))
        for pid in _children(
            self.unit.supervisor
        ):  # whoever was started meanwhile has the limit, too
            _limit(pid, resource.RLIMIT_FSIZE, -1)
        event.said = f"load: {status}"

    def limit_memory(self, rng: random.Random, event: Event) -> None:
        """Leave the serving process little memory besides what it has."""
        worker = self.unit.worker()
        if worker is None:
            return
        room = round(_MOST_ROOM_BYTES * rng.random() ** 2)
        with contextlib.suppress(OSError):
            pages = int(Path(f"/proc/{worker}/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + room
            with _limited(resource.RLIMIT_AS, {worker: most}):
                time.sleep(rng.uniform(0, _LONGEST_S))
        if gone(worker):
            event.said = "died"
            event.failed = self._back(worker)

    def stop_worker(self, rng: random.Random, event: Event) -> None:
        """Stop the serving process, and let it go on."""
        worker = self.unit.worker()
        if worker is None:
            return
        _signal(worker, signal.SIGSTOP)
        time.sleep(rng.uniform(0, _LONGEST_S))
        _signal(worker, signal.SIGCONT)

    def swap(self, rng: random.Random, event: Event) -> None:
        """Put the other generation of the model in the served one's place."""
        self._generation = 1 - self._generation
        status, said = self.unit.swap(self.known.generations[self._generation])
        event.said = f"load: {status}"
        if status not in (0, 200, 400, 503):
            event.failed = f"load was answered with {status}: {said[:300].decode(errors='replace')}"

    def jump_clock(self, rng: random.Random, event: Event) -> None:
        """Let the server's wall clock jump, and jump back."""
        assert self.clock is not None
        event.said = next(self._jumps)
        self.clock.jump(JUMPS_S[event.said])
        time.sleep(rng.uniform(0, _LONGEST_S))
        self.clock.jump(0)

    def slow_readers(self, rng: random.Random, event: Event) -> None:
        """Ask for much, and read hardly any of the answers."""
        asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * rng.randint(1, 32)
        end_s = time.monotonic() + rng.uniform(0, _LONGEST_S)
        with self._connected(rng.randint(1, 32)) as connections:
            for connection in connections:
                _send(connection, asked)
            while time.monotonic() < end_s:
                for connection in connections:
                    with contextlib.suppress(OSError):
                        connection.recv(16)
                time.sleep(_LOOK_S)

    def half_open(self, rng: random.Random, event: Event) -> None:
        """Connect, send half of a head or of a body, then nothing."""
        head = b"POST /v2/models/chaos/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n\r\n"
        with self._connected(rng.randint(1, 32)) as connections:
            for connection in connections:
                _send(connection, (head + bytes(1000))[: rng.randint(0, len(head) + 1000)])
            time.sleep(rng.uniform(0, _LONGEST_S))

    @contextlib.contextmanager
    def _connected(self, count: int) -> Iterator[list[socket.socket]]:
        with contextlib.ExitStack() as stack:
            connections = []
            for _ in range(count):
                with contextlib.suppress(OSError):
                    connection = socket.socket()
                    stack.enter_context(connection)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                    connection.settimeout(_LOOK_S)
                    connection.connect(("127.0.0.1", self.unit.http_port))
                    connections.append(connection)
            yield connections


def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def until(condition: Callable[[], bool], patience_s: float) -> bool:
    """Wait for a condition; return whether it came to hold within so many seconds."""
    end_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        time.sleep(_LOOK_S)
    return True


def _limit(pid: int, what: int, most: int) -> None:
    """Set a limit of a running process; lift it where it is below 0."""
    with contextlib.suppress(ProcessLookupError):
        _, hard = resource.prlimit(pid, what)
        resource.prlimit(pid, what, (hard if most < 0 else most, hard))


@contextlib.contextmanager
def _limited(what: int, most: Mapping[int, int]) -> Iterator[None]:
    """Set a limit of running processes, by their ids, and lift it again."""
    try:
        for pid, size in most.items():
            _limit(pid, what, size)
        yield
    finally:
        for pid in most:
            _limit(pid, what, -1)


def _children(pid: int) -> list[int]:
    """Return the process ids of a process's children, and of theirs, as far as they are still there."""
    found = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                found += [child, *_children(child)]
    return found


LOSING = ("kill the worker", "kill the supervisor", "kill the proxy", "little memory")
"""Faults in whose time a connection may break without an answer."""


Fault: TypeAlias = Callable[[random.Random, Event], None]


def faults(scene: Scene) -> dict[str, Fault]:
    """Return the faults that can be done here, by their names for people."""
    found = {
        "kill the worker": scene.kill_worker,
        "kill the supervisor": scene.kill_supervisor,
        "full disk": scene.fill_disk,
        "little memory": scene.limit_memory,
        "stopped worker": scene.stop_worker,
        "slow readers": scene.slow_readers,
        "half-open connections": scene.half_open,
        "swap": scene.swap,
    }
    if scene.door is not None:
        found["kill the proxy"] = scene.kill_proxy
    if scene.clock is not None:
        found["clock jump"] = scene.jump_clock
    return found


class Storm:
    """Faults that are done one after another and overlap, each at least once, until the time is up.

    Args:
        done: Faults by their names.
        seconds: Time in which faults begin.
        gap_s: Mean time from the beginning of one to the next one's.
        seed: Seed of the order, the times and each fault's size.

    Attributes:
        events: Faults that were done.
    """

    def __init__(self, done: Mapping[str, Fault], seconds: float, gap_s: float, seed: int) -> None:
        self.events: list[Event] = []
        self._faults, self._seconds, self._gap_s = done, seconds, gap_s
        self._rng = random.Random(seed)
        self._thread = threading.Thread(target=self._run, name="storm", daemon=True)
        self._strikes: dict[str, threading.Thread] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the last fault is undone."""
        self._thread.join()
        for strike in self._strikes.values():
            strike.join()

    def _run(self) -> None:
        end_s = time.monotonic() + self._seconds
        for number in itertools.count():
            order = list(self._faults)
            self._rng.shuffle(order)
            for name in order:
                gap_s, seed = self._rng.expovariate(1 / self._gap_s), self._rng.random()
                if number and time.monotonic() + gap_s > end_s:
                    return
                time.sleep(gap_s)
                self._begin(name, seed)

    def _begin(self, name: str, seed: float) -> None:
        """Do a fault, unless it is still being done."""
        before = self._strikes.get(name)
        if before is not None and before.is_alive():
            return
        event = Event(name, time.monotonic_ns())
        self.events.append(event)
        self._strikes[name] = threading.Thread(target=self._strike, args=(event, seed))
        self._strikes[name].start()

    def _strike(self, event: Event, seed: float) -> None:
        try:
            self._faults[event.name](random.Random(seed), event)
        except Exception as error:
            event.failed = f"the fault itself failed: {type(error).__name__}: {error}"
        finally:
            event.end_ns = time.monotonic_ns()
