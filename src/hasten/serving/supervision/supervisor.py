"""Hold the port and every connection in a supervisor that outlives the serving process.

The supervisor accepts connections, hands each one to the serving process and keeps a duplicate of its
file descriptor. When the serving process dies, the supervisor answers 503 to clients that wait and to
clients that send a request meanwhile, and starts a new process. The new process serves the exact
model if the fast model's engine was running when the old process died.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from hasten.core.memory_folder import MemoryFolder
from hasten.core.processes import interpreter
from hasten.core.records import to_record
from hasten.core.telemetry import OFF
from hasten.errors import InputError
from hasten.serving.fairness import client_at
from hasten.serving.settings import ServerSettings
from hasten.serving.shared_state import ANSWERED, MOST_MODELS, WORKING, SharedState
from hasten.serving.supervision.blame import without_blamed
from hasten.serving.supervision.channel import (
    CLOSED,
    CONNECTION,
    DRAIN,
    FAILED,
    FORGIVEN,
    LOST,
    MOST_MESSAGE,
    READY,
    RELOAD,
    SLOT,
    UP,
)
from hasten.serving.supervision.heartbeat import Heartbeat, main_thread
from hasten.serving.supervision.signals import Signals
from hasten.serving.supervision.sockets import LEAVING, RESERVED, allowed_connections, set_up, sorry

log = logging.getLogger("hasten.serving")

_BLAMED = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE}
"""Signals that a faulty engine dies of; SIGKILL, in contrast, is sent by the system or a person."""
_PAUSES_S = (0.0, 0.5, 2.0, 5.0, 10.0, 30.0)
_CALM_S = 60.0
"""Time without a crash after which the next crash counts as the first."""
_LINGER_S = 1.0
_LAST_PLACES = RESERVED // 4
"""Places that are kept for clients with less than half of the allowed connections."""
_BREATH_S = 0.1
_BACKLOG = 1024
"""Connections that the system accepts ahead of the supervisor."""
_ACCEPTS = 64
"""Connections that are accepted before the supervisor hears again what else there is."""
_LAST_RESORT_S = 10.0
UP_S = 60.0
"""Limit for a process to accept connections; loading models comes after that, and has no limit."""


_CROWDED = sorry("too many connections are open: close some, or retry")


class Supervisor:
    """Supervisor that runs one serving process after another.

    Args:
        settings: Settings of the server, with the models to serve.
        say: Callback for messages to people: where the server listens, and when it is ready.
    """

    def __init__(
        self, settings: ServerSettings, say: Callable[[str], None] = lambda text: None
    ) -> None:
        if len(settings.models) > MOST_MODELS:
            raise InputError(f"one server serves at most {MOST_MODELS} models")
        limits = settings.limits
        connections = allowed_connections(limits.connections, 1 if settings.grpc is None else 3)
        limits = dataclasses.replace(limits, connections=connections)
        settings = dataclasses.replace(settings, limits=limits)
        self._settings, self._say, self._asked = settings, say, settings.models
        slots = settings.limits.connections + RESERVED
        self._shared_state = SharedState.new(slots)
        self._selector = selectors.DefaultSelector()
        self._free = list(range(slots - 1, -1, -1))
        self._held: dict[int, socket.socket] = {}
        """Slot -> duplicate of the socket of a connection that the process serves."""
        self._clients: dict[int, str] = {}
        """Slot -> client that its connection is counted under."""
        self._kept: set[socket.socket] = set()
        """Connections that wait until a process is up."""
        self._leaving: dict[socket.socket, float] = {}
        """Refused connection -> monotonic time until which its client may still be sending."""
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._channel: socket.socket | None = None
        self._unsent: deque[bytes] = deque()
        """Messages to the process that wait until its channel takes more."""
        self._up = self._ever_ready = self._ending = False
        self._crashes = 0
        self._last_crash_s = -_CALM_S
        self._start_at_s: float | None = None
        self._code = 0
        self._listener: socket.socket | None = None
        self._order_given = False
        self._accept_at_s: float | None = None
        self._kill_at_s: float | None = None
        self._up_by_s: float | None = None
        self._heartbeat: Heartbeat | None = None
        self._look_at_s: float | None = None

    # -- the run

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit code.

        Raises:
            InputError: the port isn't available, or nothing can be served.
        """
        settings = self._settings
        settings.rights()
        settings.tls()
        if settings.http is None and settings.grpc is None:
            raise InputError("nothing to listen on: give http= or grpc= a port")
        self._listen()
        with Signals() as signals:
            self._selector.register(
                signals.reading, selectors.EVENT_READ, lambda: self._heed(signals)
            )
            self._start()
            try:
                while self._process is not None or self._start_at_s is not None:
                    for key, _ in self._selector.select(self._patience_s()):
                        # An earlier callback of this round may have unregistered this one.
                        if self._selector.get_map().get(key.fd) is key:
                            key.data()
                    self._look_at_the_clock()
                return self._code
            finally:
                self._end()

    def _listen(self) -> None:
        if self._settings.http is None:
            return
        host, port = self._settings.host, self._settings.http
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(_BACKLOG)
        except OSError as error:
            listener.close()
            raise InputError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
        listener.setblocking(False)
        self._listener = listener
        self._selector.register(listener, selectors.EVENT_READ, self._accept)

    def _patience_s(self) -> float | None:
        """Return the time until the next scheduled action, in seconds; None if there is none."""
        others = (
            *(self._start_at_s, self._accept_at_s, self._kill_at_s, self._up_by_s),
            self._look_at_s,
        )
        times = [*self._leaving.values(), *(at_s for at_s in others if at_s is not None)]
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _look_at_the_clock(self) -> None:
        now_s = time.monotonic()
        for connection in [one for one, end_s in self._leaving.items() if end_s <= now_s]:
            self._forget(connection)
        if self._start_at_s is not None and self._start_at_s <= now_s:
            self._start()
        if self._accept_at_s is not None and self._accept_at_s <= now_s:
            self._accept_at_s = None
            self._listen_on()
        if self._kill_at_s is not None and self._kill_at_s <= now_s:
            self._kill_at_s = None
            if self._process is not None:
                log.error("the serving process didn't end within its drain time: killed")
                self._process.kill()
        if self._up_by_s is not None and self._up_by_s <= now_s:
            self._up_by_s = None
            if self._process is not None:
                log.error("the serving process didn't start serving within %g s: killed", UP_S)
                self._process.kill()

        if self._look_at_s is not None and self._look_at_s <= now_s:
            self._feel(now_s)

    def _feel(self, now_s: float) -> None:
        """End the process if its event loop has stood still for too long."""
        assert self._heartbeat is not None
        assert self._process is not None
        self._look_at_s = now_s + self._heartbeat.pause_s
        thread = main_thread(self._process.pid)
        if self._heartbeat.hangs(*self._shared_state.pulse, thread, now_s):
            self._look_at_s = None
            silent_s = self._heartbeat.silent_s
            log.error("the serving process's event loop stood still for %.3g s: killed", silent_s)
            self._process.kill()

    def _heed(self, signals: Signals) -> None:
        for number in signals.came():
            self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGHUP:
            if self._up:
                self._order(RELOAD)
            return
        if self._ending or not self._up:
            self._code = 128 + number if self._ending else 0
            self._ending, self._start_at_s = True, None
            if self._process is not None:
                self._process.kill()
            return
        self._ending = True
        log.info("draining")
        if self._listener is not None:
            self._accept(_BACKLOG)  # clients that have connected by now are served
            self._listen_no_more()
            self._listener.close()
            self._listener = None
        self._kill_at_s = time.monotonic() + self._settings.limits.drain_ns / 1e9 + _LAST_RESORT_S
        self._order_given = True
        self._order(DRAIN)

    def _order(self, what: int) -> None:
        with contextlib.suppress(OSError):
            self._tell(SLOT.pack(what, 0))

    def _tell(self, data: bytes) -> None:
        """Send a message to the process, once those before it are sent.

        Raises:
            OSError: the process died.
        """
        self._unsent.append(data)
        if len(self._unsent) > 1:  # others wait already
            return
        try:
            self._flush()
        except OSError:
            self._unsent.clear()
            raise

    def _flush(self) -> None:
        """Send what waits, as far as the channel takes it; accept no connections until all is sent."""
        channel = self._channel
        assert channel is not None
        while self._unsent:
            data = self._unsent[0]
            what, slot = SLOT.unpack(data)
            held = self._held.get(slot) if what == CONNECTION else None
            try:
                socket.send_fds(channel, [data], [] if held is None else [held.fileno()])
            except BlockingIOError:
                if self._writes(channel):
                    self._listen_no_more()
                return
            self._unsent.popleft()

    def _writes(self, channel: socket.socket) -> bool:
        """Have the selector say when the channel takes more; return whether it is still open."""
        both = selectors.EVENT_READ | selectors.EVENT_WRITE
        try:
            self._selector.modify(channel, both, self._converse)
        except KeyError:  # the process has closed it
            return False
        return True

    def _converse(self) -> None:
        """Hear the process, and go on with what waits to be sent to it."""
        self._hear()
        channel = self._channel
        if channel is None:
            return
        with contextlib.suppress(OSError):  # the process died, which its end will say
            self._flush()
        if not self._unsent:
            with contextlib.suppress(KeyError):
                self._selector.modify(channel, selectors.EVENT_READ, self._hear)
            self._listen_on()

    def _listen_on(self) -> None:
        """Accept connections again, unless something else is in the way."""
        if self._listener is not None and self._accept_at_s is None and not self._unsent:
            with contextlib.suppress(KeyError):  # it does
                self._selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _listen_no_more(self) -> None:
        """Leave new connections to the system for now."""
        if self._listener is not None:
            with contextlib.suppress(KeyError):  # it is left alone already
                self._selector.unregister(self._listener)

    # -- connections

    def _accept(self, most: int = _ACCEPTS) -> None:
        assert self._listener is not None
        for _ in range(most):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # the client is gone already
                continue
            except OSError:  # too many files are open: the other clients wait in the backlog
                self._listen_no_more()
                self._accept_at_s = time.monotonic() + _BREATH_S
                return
            connection.setblocking(False)
            set_up(connection)
            if self._up:
                self._hand_on(connection)
            else:
                self._keep(connection)

    def _hand_on(self, connection: socket.socket) -> None:
        """Hand a connection to the process, and keep a duplicate of its socket."""
        client = self._client_of(connection)
        if not self._has_room(client):
            self._turn_away(connection, _CROWDED)
            return
        slot = self._free.pop()
        self._held[slot], self._clients[slot] = connection, client
        try:
            self._tell(SLOT.pack(CONNECTION, slot))
        except OSError:  # the process died
            del self._held[slot]
            self._free.append(slot)
            self._turn_away(connection)

    def _client_of(self, connection: socket.socket) -> str:
        """Return the client that a connection is counted under; "" if all are counted as one."""
        if not self._settings.limits.fair:
            return ""
        try:
            return client_at(connection.getpeername()[0])
        except OSError:  # the client is gone
            return ""

    def _has_room(self, client: str) -> bool:
        """Whether a connection may be handed on; the last places are for clients with few connections."""
        if len(self._free) > _LAST_PLACES:
            return True
        theirs = [self._clients[slot] for slot in self._held].count(client)
        return bool(self._free) and theirs < self._settings.limits.connections // 2

    def _keep(self, connection: socket.socket) -> None:
        """Hold a connection until a process is up; refuse it if it sends a request before."""
        if len(self._kept) >= self._settings.limits.connections:
            self._turn_away(connection)
            return
        self._kept.add(connection)
        self._selector.register(
            connection, selectors.EVENT_READ, lambda: self._asked_too_early(connection)
        )

    def _asked_too_early(self, connection: socket.socket) -> None:
        self._kept.discard(connection)
        self._selector.unregister(connection)
        self._turn_away(connection)

    def _turn_away(self, connection: socket.socket, why: bytes = b"") -> None:
        """Answer 503 and close; read what the client still sends, or it wouldn't see the answer."""
        # No answer can be sent over TLS: the session's keys died with the process.
        there = len(self._held) + len(self._kept) + len(self._leaving)
        crowded = there >= self._settings.limits.connections + RESERVED + LEAVING
        if self._settings.certificate is not None or crowded:
            connection.close()
            return
        try:
            connection.send(why or self._starting())
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            connection.close()
            return
        self._leaving[connection] = time.monotonic() + _LINGER_S
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._read_on(connection))

    def _starting(self) -> bytes:
        left_s = 0.0 if self._start_at_s is None else self._start_at_s - time.monotonic()
        return sorry("the server is starting again: retry", max(1, math.ceil(left_s)))

    def _read_on(self, connection: socket.socket) -> None:
        try:
            if connection.recv(1 << 16):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._forget(connection)

    def _forget(self, connection: socket.socket) -> None:
        del self._leaving[connection]
        self._selector.unregister(connection)
        connection.close()

    # -- the process

    def _start(self) -> None:
        self._start_at_s = None
        self._shared_state.clear()
        try:
            ours, self._process = self._started()
            self._pidfd = os.pidfd_open(self._process.pid)
        except OSError as error:
            log.error("can't start the serving process: %s", error.strerror or error)
            if self._process is not None:  # it began, but its end couldn't be seen
                self._process.kill()
                self._process.wait()
                self._process = None
            self._start_at_s = time.monotonic() + _PAUSES_S[1]
            return
        ours.setblocking(False)
        self._channel, self._up = ours, False
        self._up_by_s = time.monotonic() + UP_S
        self._selector.register(ours, selectors.EVENT_READ, self._hear)
        self._selector.register(self._pidfd, selectors.EVENT_READ, self._died)

    def _started(self) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.memfd_create("hasten-settings"), "w+b") as told:  # noqa: PTH123
            told.write(json.dumps(to_record(self._settings)).encode())
            told.seek(0)
            fds = (theirs.fileno(), self._shared_state.number, told.fileno())
            return ours, subprocess.Popen(
                [*interpreter(), "-m", "hasten.serving.supervision.process", *map(str, fds)],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **OFF},
                process_group=0,  # a Ctrl-C must reach the supervisor only
            )

    def _hear(self) -> None:
        """Receive and handle the process's messages."""
        channel = self._channel
        if channel is None:
            return
        while True:
            try:
                data = channel.recv(MOST_MESSAGE + 1)
            except OSError:
                return
            if not data:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(channel)
                return
            what, text = data[0], data[1:]
            if what in (CLOSED, LOST):
                _, slot = SLOT.unpack(data)
                connection = self._held.pop(slot, None)
                if connection is not None:
                    self._free.append(slot)
                    if what == CLOSED:
                        connection.close()
                    else:
                        self._turn_away(connection, _CROWDED)
            elif what == FORGIVEN:
                _, number = SLOT.unpack(data)
                models = list(self._settings.models)
                models[number] = self._asked[number]
                self._settings = dataclasses.replace(self._settings, models=tuple(models))
            elif what == UP:
                self._up, self._up_by_s = True, None
                self._where(json.loads(text))
                for connection in list(self._kept):
                    self._kept.discard(connection)
                    self._selector.unregister(connection)
                    self._hand_on(connection)
            elif what == READY:
                self._ever_ready = True
                self._say("ready")
                if stall_ns := self._settings.limits.stall_ns:
                    self._look_at_s = time.monotonic()
                    self._heartbeat = Heartbeat(stall_ns / 1e9, self._look_at_s)
            elif what == FAILED:
                self._failed(text.decode())

    def _where(self, ports: dict[str, Any]) -> None:
        if self._ever_ready:
            return
        host = self._settings.host
        shown = f"[{host}]" if ":" in host else host
        if self._listener is not None:
            scheme = "https" if self._settings.certificate else "http"
            self._say(f"listening on {scheme}://{shown}:{self._listener.getsockname()[1]}")
        if self._settings.grpc is not None:
            self._say(f"listening on grpc://{shown}:{ports['grpc']}")
            # A restarted process must listen on the same port.
            self._settings = dataclasses.replace(self._settings, grpc=ports["grpc"])

    def _failed(self, why: str) -> None:
        """Handle a process that can't serve: give up at the first start, log and retry later."""
        if self._ever_ready:
            log.error("%s", why)
            return
        self._ending = True
        raise InputError(why)

    def _died(self) -> None:
        process, channel = self._process, self._channel
        assert process is not None
        assert channel is not None
        code = process.wait()
        MemoryFolder.clear_after(process.pid)
        self._selector.unregister(self._pidfd)
        os.close(self._pidfd)
        self._hear()  # handle the messages that it sent before it died
        with contextlib.suppress(KeyError):
            self._selector.unregister(channel)
        channel.close()
        self._process, self._channel, self._up = None, None, False
        self._unsent.clear()
        self._listen_on()
        self._up_by_s = self._look_at_s = None
        if not self._ending:
            self._start_again(code)
        self._take_back()
        if self._ending and code and self._order_given and not self._code:
            log.error(
                "the serving process died of %s before all requests were answered", _cause(code)
            )
            self._code = 1

    def _start_again(self, code: int) -> None:
        """Schedule the next process, later the more often processes have crashed recently."""
        now_s = time.monotonic()
        self._crashes = self._crashes + 1 if now_s - self._last_crash_s < _CALM_S else 0
        self._last_crash_s = now_s
        pause_s = _PAUSES_S[min(self._crashes, len(_PAUSES_S) - 1)]
        self._start_at_s = now_s + pause_s
        again = f"again in {pause_s:g} s" if pause_s else "again"
        log.error("the serving process died of %s; it starts %s", _cause(code), again)
        self._blame(code)

    def _take_back(self) -> None:
        """Refuse the clients that wait for the dead process; keep the others for the next one."""
        held = list(self._held.items())
        self._held.clear()
        for slot, connection in held:
            state = self._shared_state.at(slot)
            self._free.append(slot)
            if state == WORKING or (state == ANSWERED and self._asks(connection)):
                self._turn_away(connection)
            elif state or self._ending or self._settings.certificate is not None:
                connection.close()
            else:
                self._keep(connection)

    def _asks(self, connection: socket.socket) -> bool:
        """Whether a client has sent data that was never read."""
        if self._ending:
            return False
        try:
            return bool(connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _blame(self, code: int) -> None:
        """Switch models whose engines were running at the crash to their exact models."""
        if -code in _BLAMED:
            models = without_blamed(self._settings.models, self._shared_state.working_models())
            self._settings = dataclasses.replace(self._settings, models=models)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for connection in (*self._held.values(), *self._kept, *self._leaving):
            connection.close()
        if self._listener is not None:
            self._listener.close()
        self._selector.close()
        self._shared_state.close()


def _cause(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
