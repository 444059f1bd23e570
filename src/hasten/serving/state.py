"""Hold the state of one server process: models, memory regions, connections and limits."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from hasten.serving.models.repository import Repository
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.protocol.origins import Origins
from hasten.serving.wire.shared_memory import SharedMemory

_RECEIVE_BYTES = 64 << 10
_JSON_BYTES = 16 << 20
"""Size that JSON of an inference may have, however small bodies are."""


@dataclass(frozen=True)
class Limits:
    """Limits on sizes, counts and times that a server accepts.

    Attributes:
        header_bytes: Largest size of a request line with its headers.
        body_bytes: Largest size of one body, and of one request's tensors.
        bodies_bytes: Largest total size of all bodies that are being received or processed, and of
            answers that their clients haven't read.
        connections: Most connections open at once.
        receive_ns: Longest time to receive a whole request, from its first byte.
        send_ns: Longest time in which a client may read nothing of its answer.
        drain_ns: Longest wait at shutdown for running requests to finish.
    """

    header_bytes: int = 32 << 10
    body_bytes: int = 64 << 20
    bodies_bytes: int = 1 << 30
    connections: int = 1024
    receive_ns: int = 30_000_000_000
    send_ns: int = 30_000_000_000
    drain_ns: int = 30_000_000_000

    @property
    def json_bytes(self) -> int:
        """Largest size of one inference's JSON; the tensors after it aren't counted."""
        return max(_JSON_BYTES, self.body_bytes // 4)


class Held(Protocol):
    """Interface of a connection that the server uses."""

    @property
    def idle(self) -> bool:
        """Whether no request is being received, processed or answered on the connection."""

    @property
    def quiet(self) -> int:
        """Number of consecutive checks, up to the latest, at which the server waited for the client."""

    @property
    def spare(self) -> bool:
        """Whether the connection may be closed to make room for others."""

    def overdue(self, now_ns: int) -> bool:
        """Whether the connection's client is too slow."""

    def rest(self) -> None:
        """Count a check at which the client let the server wait; record whether it is idle."""

    def end_slow(self) -> None:
        """Close the connection because its client is too slow."""

    def give_way(self) -> None:
        """Close the connection to make room for others."""

    def close(self) -> None:
        """Close the connection."""


@dataclass(eq=False)
class ServerState:
    """State of one server process; used on its event loop's thread only.

    Attributes:
        repository: Models by name and version.
        memory: Shared memory regions that clients registered.
        limits: Limits on sizes, counts and times.
        token: Bearer token that a client must send; None if none is needed.
        behind_door: Whether the token is a door's, which sends it for all its clients.
        origins: Names of the server, by which requests of foreign web pages are told.
        may_control: Whether clients may load and unload registered models, and change the log
            settings.
        tracing: Whether spans are sent.
        connections: Open connections.
        body_bytes: Total size of all bodies that are being received or processed, and of answers that
            their clients haven't read.
        draining: Whether the server is shutting down.
        began_ns: Time of the start, on the monotonic clock.
        unpacking: Threads that decompress bodies: few, to bound the memory in use at once.
        received: Buffer that all connections receive into; its content is parsed before the next
            receive.
    """

    repository: Repository
    memory: SharedMemory = field(default_factory=SharedMemory)
    limits: Limits = field(default_factory=Limits)
    token: bytes | None = None
    behind_door: bool = False
    origins: Origins = field(default_factory=Origins)
    may_control: bool = False
    tracing: bool = False
    connections: set[Held] = field(default_factory=set)
    body_bytes: int = 0
    draining: bool = False
    began_ns: int = field(default_factory=time.perf_counter_ns)
    unpacking: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, "hasten-unpacking")
    )
    received: memoryview = field(default_factory=lambda: memoryview(bytearray(_RECEIVE_BYTES)))

    @property
    def ready(self) -> bool:
        """Whether the server answers requests."""
        return not self.draining and self.repository.ready

    def check_room(self, size_bytes: int) -> None:
        """Check that a further body or answer may take memory.

        Raises:
            ProtocolError: all bodies and answers together would exceed the limit.
        """
        most = self.limits.bodies_bytes
        if self.body_bytes + size_bytes > most:
            raise ProtocolError(
                Kind.OVERLOADED,
                f"overloaded: requests with {most:,} bytes are in progress; retry later",
                retry_s=1.0,
            )

    def check_control(self, what: str) -> None:
        """Check that clients may control the server.

        Args:
            what: Action that the client asked for, for the message.

        Raises:
            ProtocolError: the server was started without allowing control.
        """
        if not self.may_control:
            raise ProtocolError(
                Kind.FORBIDDEN, f"clients may not {what}: start the server with --allow-control"
            )
