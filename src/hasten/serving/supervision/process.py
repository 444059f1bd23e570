"""Run the serving process, which gets its connections and orders from the supervisor."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import sys
import warnings
from collections import deque
from collections.abc import Coroutine
from typing import Any, NoReturn

from hasten.core.memory_folder import MemoryFolder
from hasten.core.records import from_record
from hasten.errors import DeviceLost, HastenError, named
from hasten.serving.logs import log_to_stderr
from hasten.serving.models.repository import Registered
from hasten.serving.server import Server
from hasten.serving.settings import ServerSettings
from hasten.serving.shared_state import SharedState
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
from hasten.serving.supervision.heartbeat import Pulse
from hasten.serving.supervision.sockets import RESERVED

log = logging.getLogger("hasten.serving")

_PR_SET_PDEATHSIG = 1
"""Constant of linux/prctl.h; see man 2 PR_SET_PDEATHSIG."""
_HEARD = 64
"""Messages that are heard before the event loop goes on with what else there is."""
_GARBAGE = 20_000
"""Allocations between garbage collections: high, since requests leave no reference cycles behind."""


class Office:
    """Serving process's end of the channel to the supervisor.

    Args:
        channel: Socket to the supervisor.
        shared_state: Memory in which connections and engines record their state.
        settings: Settings of the server.
    """

    def __init__(
        self, channel: socket.socket, shared_state: SharedState, settings: ServerSettings
    ) -> None:
        self._channel, self._shared_state, self._settings = channel, shared_state, settings
        self._loop = asyncio.get_running_loop()
        self._server: Server
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._unsent: deque[bytes] = deque()
        """Messages that wait until the channel takes more."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def work(self) -> int:
        """Serve until the supervisor orders the end; return the exit code."""
        try:
            return await self._work()
        except HastenError as error:
            self._fail(str(error))
        except Exception as error:
            log.exception("the server failed")
            self._fail(named(error))
        return 2

    async def _work(self) -> int:
        settings = self._settings
        self._server = Server(settings, self._shared_state)
        self._server.state.repository.forgiven = self._forgiven
        self._server.state.repository.lost = _abort
        self._channel.setblocking(False)
        self._loop.add_reader(self._channel.fileno(), self._hear)
        try:
            grpc_port = 0
            if settings.grpc is not None:
                grpc_port = await self._server.listen_grpc(settings.host, settings.grpc)
            self._say(UP, json.dumps({"grpc": grpc_port}))
            loading = self._loop.create_task(self._server.load())
            await asyncio.wait({loading, self._over}, return_when=asyncio.FIRST_COMPLETED)
            if self._over.done():  # the order to end came before all models were loaded
                return 0
            loading.result()
        except HastenError:
            await self._server.close()
            raise
        gc.collect()
        gc.freeze()  # all current objects live until the end: no collection needs to check them
        gc.set_threshold(_GARBAGE, 20, 50)
        repository = self._server.state.repository
        pulse = Pulse(self._shared_state, lambda: repository.opening)
        repository.opening_begins = pulse.loading_begins
        pulse.beat()
        self._say(READY, "")
        await self._over
        await self._server.close()
        return 0

    def _say(self, what: int, text: str) -> None:
        self._send(bytes([what]) + text.encode()[:MOST_MESSAGE])

    def _closed(self, slot: int) -> None:
        self._send(SLOT.pack(CLOSED, slot))

    def _forgiven(self, one: Registered) -> None:
        self._send(SLOT.pack(FORGIVEN, self._server.number(one)))

    def _fail(self, why: str) -> None:
        """Say why nothing can be served; the process ends then, so nothing else waits."""
        self._channel.setblocking(True)
        self._say(FAILED, why)
        self._flush()

    def _send(self, data: bytes) -> None:
        """Send a message without waiting for the supervisor, which may have much else to do."""
        self._unsent.append(data)
        if len(self._unsent) == 1:
            self._flush()

    def _flush(self) -> None:
        """Send the messages that wait, as far as the channel takes them."""
        try:
            while self._unsent:
                self._channel.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            self._loop.add_writer(self._channel.fileno(), self._flush)
            return
        except OSError:  # the supervisor is gone, which `_hear` finds
            self._unsent.clear()
        self._loop.remove_writer(self._channel.fileno())

    def _hear(self) -> None:
        """Receive and carry out the supervisor's messages, so many that requests needn't wait for long."""
        for _ in range(_HEARD):
            try:
                data, numbers, _, _ = socket.recv_fds(self._channel, SLOT.size, 1)
            except BlockingIOError:
                return
            except OSError:
                data, numbers = b"", []
            if not data:  # the supervisor is gone: no client can be served
                os._exit(1)
            what, slot = SLOT.unpack(data)
            if what == CONNECTION and not numbers:  # too many files are open
                self._send(SLOT.pack(LOST, slot))
            elif what == CONNECTION:
                accepted = socket.socket(fileno=numbers[0])
                accepted.setblocking(False)
                self._begin(
                    self._server.take(accepted, self._shared_state.slot(slot, self._closed))
                )
            elif what == DRAIN:
                self._begin(self._drain())
            elif what == RELOAD:
                self._begin(self._server.state.repository.reload_changed())

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _drain(self) -> None:
        await self._server.drain()
        if not self._over.done():
            self._over.set_result(None)


def _abort(error: DeviceLost) -> NoReturn:
    """End the process, in which the device answers nothing more, so that another one starts.

    By SIGABRT: as after a crash, the supervisor lets the exact model answer where it was the winner
    that ran.
    """
    log.error("%s", error)
    logging.shutdown()
    os.abort()


def main() -> NoReturn:
    """Serve with the file descriptors in the arguments: channel, shared state and settings file."""
    import uvloop

    # An engine that hangs may hold up the loop, which then can't hear that the supervisor is gone; and the
    # next process couldn't have this one's port of gRPC.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the supervisor translates them into orders
    channel_number, shared_state_number, settings_number = map(int, sys.argv[1:4])
    with os.fdopen(settings_number) as file:
        settings = from_record(ServerSettings, json.load(file))
    log_to_stderr(as_json=settings.json_logs)
    # A damaged picture can bring thousands, and Python keeps each text.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    channel = socket.socket(fileno=channel_number)
    shared_state = SharedState(shared_state_number, settings.limits.connections + RESERVED)

    async def work() -> None:
        if code := await Office(channel, shared_state, settings).work():
            _end(code)  # here: the end of a loop waits for gRPC's library, which may never answer

    uvloop.run(work())
    _end(0)


def _end(code: int) -> NoReturn:
    """End the process at once: a normal exit could wait for the engines' own threads."""
    MemoryFolder.close_all()
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
