"""HAProxy in front of a server, as `hasten serve --on ray` runs it, with one replica."""

from __future__ import annotations

import http.client
import os
import signal
import threading
import time
from collections import deque
from pathlib import Path
from typing import Self

from unit import Unit

from hasten.errors import InputError
from hasten.serving.cluster.ingress import Ingress, ReplicaEntry, binary
from hasten.serving.settings import ServerSettings

_LOOK_S = 0.1
_ANSWER_S = 5.0
_KILLS = 3
"""Most kills a minute: HAProxy is started so often at most, and once more."""


def installed() -> bool:
    """Whether HAProxy is there: the system's, or the one that comes with Ray Serve."""
    try:
        binary()
    except InputError:
        return False
    return True


class Door:
    """HAProxy that is started again when it has ended.

    Args:
        unit: Server that it stands in front of.
        folder: Folder for its files; it is made.

    Attributes:
        http_port: Port of HTTP.
    """

    def __init__(self, unit: Unit, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self._ingress = Ingress(ServerSettings((), http=0), folder, 1)
        assert self._ingress.http is not None
        self.http_port = self._ingress.http
        self._entry = ReplicaEntry("127.0.0.1", unit.http_port)
        self._folder, self._ended = folder, threading.Event()
        self._kills_s: deque[float] = deque(maxlen=_KILLS)
        self._keeper = threading.Thread(target=self._keep, name="door", daemon=True)

    def _keep(self) -> None:
        while not self._ended.wait(_LOOK_S):
            self._ingress.look_after()

    def kill(self) -> bool:
        """Kill HAProxy; False where that was done too often of late."""
        now_s = time.monotonic()
        if len(self._kills_s) == _KILLS and now_s - self._kills_s[0] < 60:
            return False
        self._kills_s.append(now_s)
        process = self._ingress._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return True

    def ready(self) -> bool:
        """Whether it hands on requests."""
        client = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=_ANSWER_S)
        try:
            client.request("GET", "/v2/health/ready")
            return client.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            client.close()

    def __enter__(self) -> Self:
        self._ingress.start()
        self._ingress.update({"the server": self._entry})
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._keeper.join()
        self._ingress.close()
