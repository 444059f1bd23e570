"""What one server process has: models, regions, connections, limits."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from hasten.serving.models.repository import Repository
from hasten.serving.protocol.errors import Kind, ProtocolError
from hasten.serving.wire.shared_memory import SharedMemory

_RECEIVE_BYTES = 64 << 10


@dataclass(frozen=True)
class Limits:
    """How much of anything is taken.

    Attributes:
        header_bytes: Of a request's line and headers.
        body_bytes: Of one body, and of a request's tensors.
        bodies_bytes: Of all bodies that are received or under way, together.
        connections: At once.
        receive_ns: For a request to come whole, from its first byte.
        send_ns: For a client to take something of its answer.
        drain_ns: For what is under way at the end.
    """

    header_bytes: int = 32 << 10
    body_bytes: int = 64 << 20
    bodies_bytes: int = 1 << 30
    connections: int = 1024
    receive_ns: int = 30_000_000_000
    send_ns: int = 30_000_000_000
    drain_ns: int = 30_000_000_000


class Held(Protocol):
    """A connection, as the server sees it."""

    @property
    def idle(self) -> bool:
        """Whether nothing is under way on it."""

    @property
    def quiet(self) -> int:
        """How often nothing had come since it was looked at before, the last times."""

    def overdue(self, now_ns: int) -> bool:
        """Whether its client is too slow."""

    def rest(self) -> None:
        """Note that nothing is under way, where that is so."""

    def end_slow(self) -> None:
        """Hang up on it for that."""

    def close(self) -> None:
        """Close it."""


@dataclass(eq=False)
class ServerState:
    """Of one process; on its event loop's thread alone.

    Attributes:
        repository: The models.
        memory: The shared memory regions.
        limits: How much of anything is taken.
        token: What a client must bring; None for nothing.
        may_control: Whether clients may load and unload registered models, and set what is logged.
        tracing: Whether spans are sent.
        connections: The open ones.
        body_bytes: Of all bodies under way.
        draining: Whether the server is about to end.
        began_s: Wall clock, seconds since 1970.
        unpacking: Threads for compressed bodies: few, so that what they unpack at once is bounded.
        received: Where bytes arrive: what is there is parsed before anything else is received.
    """

    repository: Repository
    memory: SharedMemory = field(default_factory=SharedMemory)
    limits: Limits = field(default_factory=Limits)
    token: bytes | None = None
    may_control: bool = False
    tracing: bool = False
    connections: set[Held] = field(default_factory=set)
    body_bytes: int = 0
    draining: bool = False
    began_s: float = field(default_factory=time.time)
    unpacking: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, "hasten-unpacking")
    )
    received: memoryview = field(default_factory=lambda: memoryview(bytearray(_RECEIVE_BYTES)))

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return not self.draining and self.repository.ready

    def check_control(self, what: str) -> None:
        """Check that clients may do so.

        Raises:
            ProtocolError: they may not.
        """
        if not self.may_control:
            raise ProtocolError(
                Kind.FORBIDDEN, f"clients may not {what}: start the server with --allow-control"
            )
