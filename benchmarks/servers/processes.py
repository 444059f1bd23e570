"""The servers as processes: how each is started, what each burns, its end."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from catalogue import PEERS, Place, Server, UnavailableError, last_line
from handed import BUNDLE, FOLDER, MARK, MODEL, PORT, free_port

from hasten.core.telemetry import OFF

HERE = Path(__file__).parent
SOURCE = HERE.parents[1] / "src"
QUIET = {
    **OFF,
    "BENTOML_DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""Nothing is sent anywhere, nothing is left in the sources."""
_READY_S, _STOP_S, _REST_S, _LOOK_S = 120.0, 10.0, 30.0, 0.2
_RESTING = 0.25
"""Of one processor: some use a tenth while nobody asks anything."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Running:
    """A server that is up; ended by `stop`.

    Attributes:
        server: The server that runs.
        place: The model that it serves, and its port.
        folder: The server's own folder, which holds its output.
    """

    server: Server
    place: Place
    folder: Path
    _mark: str = field(default_factory=lambda: secrets.token_hex(16))

    def __post_init__(self) -> None:
        place, command = self.place, self.server.command
        app = PEERS / self.server.name / "app.py"
        line = [str(self.server.python), str(app)] if command is None else command(place)
        environment = {
            **os.environ,
            **QUIET,
            "PYTHONPATH": os.pathsep.join([str(SOURCE), str(HERE)]),
            BUNDLE: str(place.bundle),
            MODEL: place.model,
            PORT: str(place.port),
            FOLDER: str(self.folder),
            MARK: self._mark,
        }
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                line,
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @cached_property
    def _output(self) -> Path:
        return self.folder / "output.txt"

    def wait_until_ready(self, request: bytes) -> None:
        """Ask until it answers.

        Raises:
            UnavailableError: it ended, or didn't answer in time.
        """
        end = time.monotonic() + _READY_S
        why = "nothing listens at its port"
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise UnavailableError(
                    f"it ended with {self._process.returncode}: {self.last_words()}"
                )
            try:
                status, body = ask(self.place.port, request)
            except (OSError, http.client.HTTPException):
                time.sleep(0.2)
                continue
            if status == 200:
                return
            why = f"it answers with {status}: {body[:200]!r}"
            time.sleep(0.5)
        raise UnavailableError(
            f"it wasn't ready within {_READY_S:.0f} s: {why}: {self.last_words()}"
        )

    def last_words(self) -> str:
        """Return the last line of its output."""
        return last_line(self._output.read_text(errors="replace"))

    def processes(self) -> list[int]:
        """Return all of its processes, wherever they hang now: each has inherited a mark."""
        wanted, found = f"{MARK}={self._mark}".encode(), []
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdigit() and wanted in (process / "environ").read_bytes():
                    found.append(int(process.name))
        return found

    def cpu_s(self) -> float:
        """The processor time that its processes have had so far."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += int(fields[11]) + int(fields[12])
        return total / _TICKS

    def rest(self) -> None:
        """Wait until it has worked off what nobody waits for any more, but not for ever."""
        end = time.monotonic() + _REST_S
        while idle_share([self], _LOOK_S)[self.server.name] > _RESTING and time.monotonic() < end:
            pass

    def memory_bytes(self) -> int:
        """The memory that its processes hold, by PSS."""
        total = 0
        for pid in self.processes():
            with contextlib.suppress(OSError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                total += next(
                    int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")
                )
        return total << 10

    def stop(self) -> None:
        """End it and all that it started."""
        self._process.send_signal(signal.SIGTERM)
        end = time.monotonic() + _STOP_S
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        while left := self.processes():
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        self._process.wait()


def ask(port: int, request: bytes) -> tuple[int, bytes]:
    """Send one whole request to a port of 127.0.0.1; return status and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    with contextlib.closing(connection):
        connection.connect()
        connection.sock.sendall(request)
        response = http.client.HTTPResponse(connection.sock)
        response.begin()
        return response.status, response.read()


def idle_share(running: Iterable[Running], seconds: float) -> dict[str, float]:
    """Return which share of one processor each uses while nobody asks anything."""
    everyone = list(running)
    begin = time.monotonic()
    before = {one.server.name: one.cpu_s() for one in everyone}
    time.sleep(seconds)
    after = {one.server.name: one.cpu_s() for one in everyone}
    elapsed = time.monotonic() - begin
    return {name: max(0.0, after[name] - before[name]) / elapsed for name in after}


@contextlib.contextmanager
def started(
    servers: Iterable[Server],
    model: str,
    bundle: Path,
    folder: Path,
    first: Callable[[Server], bytes],
) -> Iterator[tuple[dict[str, Running], dict[str, str]]]:
    """Start servers one after another and end them all.

    Args:
        servers: Servers to start.
        model: Name of the model.
        bundle: Folder of the model's bundle.
        folder: Empty folder to work in.
        first: The request that a server must answer to be ready.

    Yields:
        Running servers by name, and the reasons of those that don't run.
    """
    running: dict[str, Running] = {}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for server in servers:
            place = folder / server.name
            place.mkdir()
            try:
                one = Running(server, Place(model, bundle, free_port()), place)
                stack.callback(one.stop)
                one.wait_until_ready(first(server))
                running[server.name] = one
            except (UnavailableError, OSError) as error:
                failed[server.name] = str(error)
        yield running, failed
