"""Run a server in this process: models, HTTP and gRPC on one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from hasten.errors import InputError
from hasten.serving.changing_files import ChangingFiles
from hasten.serving.handshakes import Handshakes
from hasten.serving.http.connection import Connection
from hasten.serving.http.requests import Slot
from hasten.serving.http.routes import Routes
from hasten.serving.http.secured import SecuredConnection
from hasten.serving.models.repository import Registered, Repository
from hasten.serving.models.room import ROOM
from hasten.serving.models.served import Running
from hasten.serving.settings import ServerSettings
from hasten.serving.shared_state import SharedState
from hasten.serving.state import ServerState
from hasten.serving.wire.shared_memory import SharedMemory

if TYPE_CHECKING:
    from hasten.serving.grpc.service import GrpcServer
    from hasten.serving.observation.tracing import Tracing

log = logging.getLogger("hasten.serving")

_SWITCH_S = 0.0005
"""Longest time that a finished engine waits for the interpreter lock; Python's default is 5 ms."""
_SWEEP_S = 1.0
_LOOK_S = 1.0
"""Time between two looks at the files with tokens and certificates."""
_FULL = 0.9
"""Share of the allowed connections; once more are open, those that wait for their clients are closed."""
_HANDSHAKE_S = 10.0
_CROWDED_HANDSHAKE_S = 2.0
"""Time for a handshake of TLS that begins while nearly all allowed connections are open."""
_GOODBYE_S = 0.25
"""Time in which an idle connection may still send a request while the server drains."""


def _no_marker(one: Registered) -> Running:
    return contextlib.nullcontext


class Server:
    """Server that is created within a running event loop.

    Args:
        settings: Settings of the server, with the models that it serves.
        shared_state: Memory in which connections and engines record their state for the supervisor;
            None if there is no supervisor.

    Attributes:
        state: State of the server: its models, memory regions, connections and limits.
        routes: Handlers of all HTTP requests that aren't inferences.
    """

    def __init__(self, settings: ServerSettings, shared_state: SharedState | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.settings, self._shared_state, self._loop = settings, shared_state, loop
        registered = [model.registered() for model in settings.models]
        self._keys = ChangingFiles("trusted keys", settings.key_files(), settings.keys)
        self._numbers = {id(one): number for number, one in enumerate(registered)}
        self._tls = ChangingFiles("certificates", settings.tls_files(), settings.tls)
        self._tracing: Tracing | None = None
        if settings.trace:
            from hasten.serving.observation.tracing import Tracing

            self._tracing = Tracing()
        self._rights = ChangingFiles("tokens", settings.token_files(), settings.rights)
        self._watching = ThreadPoolExecutor(1, "hasten-files")
        """Thread that looks at files: nothing that clients ask for is done on it."""
        self._looking: asyncio.Task[None] | None = None
        if settings.token_files() or settings.tls_files() or settings.key_files():
            self._looking = loop.create_task(self._look())
        marker = _no_marker if shared_state is None else self._marker
        repository = Repository(registered, loop, marker, self._tracing)
        self.state = ServerState(
            repository,
            memory=SharedMemory(settings.shared_memory),
            limits=settings.limits,
            rights=self._rights.value,
            behind_door=settings.behind_door,
            origins=settings.origins(),
            may_control=settings.control,
            tracing=settings.trace,
        )
        ROOM.total_bytes = settings.limits.sample_bytes
        self._trust()
        self.routes = Routes(self.state)
        self._listeners: list[asyncio.Server] = []
        self._grpc: GrpcServer | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._handshakes = Handshakes()
        self._arriving = 0
        """Number of connections whose handshake isn't over."""
        sys.setswitchinterval(_SWITCH_S)

    def _marker(self, one: Registered) -> Running:
        shared_state, number = self._shared_state, self._numbers[id(one)]
        assert shared_state is not None
        return lambda standby=False: shared_state.engine(number, standby)

    def number(self, one: Registered) -> int:
        """Return the index of a registered model among the settings' models, from 0."""
        return self._numbers[id(one)]

    async def _look(self) -> None:
        """Read the files with tokens, certificates and trusted keys again when they change, until the end."""
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                for files in (self._rights, self._tls, self._keys):
                    await self._loop.run_in_executor(self._watching, files.look)
            except Exception:  # later changes must not be missed
                log.exception("the files with tokens, certificates and keys couldn't be checked")
            self.state.rights = self._rights.value
            self._trust()

    def _trust(self) -> None:
        """Let bundles be opened only if one of the keys that were read last has signed them."""
        if self.settings.trusted:
            self.state.repository.trust(self._keys.value)

    # -- connections

    def connection(self, slot: Slot | None = None) -> Connection:
        """Return the asyncio protocol of a new connection."""
        self._sweep_soon()
        kind = Connection if self._tls.value is None else SecuredConnection
        return kind(self.state, self.routes, slot)

    @property
    def _context(self) -> ssl.SSLContext | None:
        """Context for new handshakes: connections that there are keep the one that they began with."""
        tls = self._tls.value
        return None if tls is None else tls.context

    async def take(self, accepted: socket.socket, slot: Slot | None) -> None:
        """Serve a connection that the supervisor accepted."""
        handshake_s = _HANDSHAKE_S if self._surplus() < 0 else _CROWDED_HANDSHAKE_S
        self._arriving += 1
        try:
            context, made = self._context, partial(self.connection, slot)
            if context is None:
                await self._loop.connect_accepted_socket(made, accepted)
            else:
                await self._handshakes.secure(
                    accepted, lambda: self._context or context, made, handshake_s
                )
        except asyncio.CancelledError:  # the server ends
            accepted.close()
            raise
        except (OSError, ssl.SSLError, ConnectionError):
            accepted.close()
            if slot is not None:
                slot.closed()
        finally:
            self._arriving -= 1

    async def listen(self, host: str, port: int) -> int:
        """Listen for HTTP without a supervisor, and with the certificate of now; return the port.

        Raises:
            InputError: the port isn't available.
        """
        try:
            server = await self._loop.create_server(
                self.connection, host, port, ssl=self._context, backlog=1024
            )
        except OSError as error:
            raise InputError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
        self._listeners.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def listen_grpc(self, host: str, port: int) -> int:
        """Listen for gRPC; return the port.

        Raises:
            InputError: the port isn't available, or gRPC isn't installed.
        """
        from hasten.serving.grpc.service import GrpcServer

        self._grpc = GrpcServer(self.state, lambda: self._tls.value)
        return await self._grpc.start(host, port)

    def _sweep_soon(self) -> None:
        """Schedule the next check for slow clients, unless one is scheduled already."""
        if self._sweeping is None:
            self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        now_ns = time.perf_counter_ns()
        for connection in list(self.state.connections):
            if connection.overdue(now_ns):
                connection.end_slow()
            else:
                connection.rest()
        self._make_room()
        if self.state.connections:
            self._sweep_soon()

    def _make_room(self) -> None:
        """Close the connections quiet for longest when nearly all allowed connections are open."""
        too_many = self._surplus()
        if too_many > 0:
            spare = [one for one in self.state.connections if one.spare]
            of = self.state.crowd.of
            for connection in sorted(spare, key=lambda one: (-of(one.client), -one.quiet))[
                :too_many
            ]:
                connection.give_way()

    def _surplus(self) -> int:
        """Return by how many the connections exceed the share that may be open without making room."""
        count = len(self.state.connections) + self._arriving
        return count - int(_FULL * self.settings.limits.connections)

    # -- begin and end

    async def load(self) -> None:
        """Load every model.

        Raises:
            InputError: no model could be loaded.
        """
        await self.state.repository.load_all()

    async def drain(self) -> None:
        """Accept no new connections, answer running and late requests, and close."""
        self.state.draining = True
        for server in self._listeners:
            server.close()
        ending = asyncio.create_task(self._grpc.drain()) if self._grpc is not None else None
        end_s = self._loop.time() + self.settings.limits.drain_ns / 1e9
        quiet_s = self._loop.time() + _GOODBYE_S
        while self._loop.time() < end_s:
            busy = [one for one in self.state.connections if not one.idle]
            if not busy and self._loop.time() >= quiet_s:
                break
            await asyncio.sleep(0.02)
        for connection in list(self.state.connections):
            connection.close()  # takes effect once its buffered output is sent
        while self.state.connections and self._loop.time() < end_s:
            await asyncio.sleep(0.02)
        if ending is not None:
            await ending
        with contextlib.suppress(TimeoutError):
            left_s = max(0.1, end_s - self._loop.time())
            await asyncio.wait_for(self.state.repository.drained(), left_s)

    async def close(self) -> None:
        """Close all connections and models now, without waiting for requests."""
        for server in self._listeners:
            server.close()
        for connection in list(self.state.connections):
            connection.close()
        if self._grpc is not None:
            await self._grpc.close()
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._looking is not None:
            self._looking.cancel()
        await asyncio.sleep(0)
        self.state.repository.close()
        if self._tracing is not None:
            await self._loop.run_in_executor(None, self._tracing.close)
        self._watching.shutdown(wait=False, cancel_futures=True)
        self.state.coding.close()
        self.state.labelling.close()
        self.routes.close()
        self.state.memory.unregister()
