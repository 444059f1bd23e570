"""`hasten serve` as a service manager runs it: started again whenever it has ended."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the tests' own pieces

from tests.support.servers import ServerProcess

from hasten.bundle.folder import put_in_place

MODEL = "chaos"
BACK_S = 120.0
"""Limit for a server to be ready again: its longest pause between starts, its limit for one, and loading."""
_AGAIN_S = 0.1
"""Pause before a server that has ended is started again, as systemd's RestartSec is."""
_LOOK_S = 0.05
_ANSWER_S = 5.0


class Unit:
    """A server that is started again whenever it has ended.

    Args:
        bundle: Bundle that is served at first.
        folder: Empty folder for what the server reads and keeps.
        env: Variables of its environment, besides this process's.

    Attributes:
        http_port: Port of HTTP.
        grpc_port: Port of gRPC.
        starts: Number of starts.
    """

    def __init__(self, bundle: Path, folder: Path, env: Mapping[str, str] = {}) -> None:
        self._folder, self._env = folder, env
        self._served = folder / "served.hasten"
        shutil.copytree(bundle, self._served)
        self.http_port, self.grpc_port = _free_ports(2)
        self.starts = 0
        self._ended = threading.Event()
        self._servers: list[ServerProcess] = []
        self._server = self._started()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)

    def _started(self) -> ServerProcess:
        self.starts += 1
        server = ServerProcess(
            f"{MODEL}={self._served}",
            *("--grpc", str(self.grpc_port), "--allow-control", "--any-batch"),
            *("--shadow", "10%", "--monitor-state", self._folder / "monitor"),
            *("--compiled", self._folder / "compiled", "--json-logs"),
            http=self.http_port,
            env=self._env,
        )
        self._servers.append(server)
        return server

    def _keep(self) -> None:
        while not self._ended.is_set():
            self._server.process.wait()
            if not self._ended.wait(_AGAIN_S):
                self._server = self._started()

    @property
    def errors(self) -> str:
        """What all of its processes wrote to standard error."""
        return "".join(server.errors for server in self._servers)

    @property
    def supervisor(self) -> int:
        """Process id of the present supervisor."""
        return self._server.process.pid

    def worker(self) -> int | None:
        """Return the process id of the present serving process; None while there is none."""
        with contextlib.suppress(OSError, IndexError):
            return self._server.serving_pid()
        return None

    def ready(self) -> bool:
        """Whether it says that it is ready."""
        return self.ask("GET", "/v2/health/ready", _ANSWER_S)[0] == 200

    def ask(self, method: str, path: str, patience_s: float) -> tuple[int, bytes]:
        """Ask once over HTTP; the status is 0 where no answer came."""
        client = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=patience_s)
        try:
            client.request(method, path)
            response = client.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error).encode()
        finally:
            client.close()

    def comes_back(self, gone: int | None = None) -> bool:
        """Wait until it is ready, with another serving process than the one that is gone."""
        end_s = time.monotonic() + BACK_S
        while time.monotonic() < end_s:
            if self.worker() not in (None, gone) and self.ready():
                return True
            time.sleep(_LOOK_S)
        return False

    def swap(self, bundle: Path) -> tuple[int, bytes]:
        """Put another bundle in the served one's place, and ask for it to be loaded."""
        beside = self._folder / f"next-{os.urandom(4).hex()}"
        shutil.copytree(bundle, beside)
        put_in_place(beside, self._served)
        shutil.rmtree(beside)
        return self.ask("POST", f"/v2/repository/models/{MODEL}/load", BACK_S)

    def end(self) -> int:
        """Ask it to end; its exit code."""
        self._ended.set()
        return self._server.end()

    def __enter__(self) -> Self:
        if not self.comes_back():
            self.__exit__()
            raise RuntimeError(f"the server didn't start: {self.errors}")
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._server.__exit__()
        if self._keeper.is_alive():  # it may be starting another one
            self._keeper.join()
        for server in self._servers:
            server.__exit__()


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state == "Z"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
